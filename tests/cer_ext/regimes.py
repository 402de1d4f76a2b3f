"""The rows of logits that log-softmax and entropy go wrong on, with the reason for each.

Out: float64 logits (N, V) whose values are exact in float32, and a target per row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def regimes(vocabulary: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(4, vocabulary, generator=generator)).double()

    target = torch.randint(vocabulary, (4,), generator=generator)
    rows: dict[str, tuple[Tensor, Tensor]] = {
        "moderate": (normal(), target),
        "uniform": (torch.zeros(4, vocabulary, dtype=torch.float64), target),  # H = log V
        "peaked": (normal(30.0), target),
        "shift 1000": ((normal(3.0) + 1000.0).float().double(), target),  # sum e^z z cancels here
        "shift -1000": ((normal(3.0) - 1000.0).float().double(), target),
        "spread 1e4": (normal(1e4), target),  # differences beyond every exponential
    }
    if vocabulary > 1:
        for gap in (10.0, 20.0, 25.0):  # H down to about 1e-8
            one_hot = normal(0.01)
            one_hot[:, vocabulary // 2] = gap
            one_hot = one_hot.float().double()
            rows[f"near one-hot, gap {gap:.0f}, its target"] = (one_hot, torch.full((4,), vocabulary // 2))
            rows[f"near one-hot, gap {gap:.0f}, another target"] = (one_hot, torch.zeros(4, dtype=torch.long))
            shifted = (one_hot.float() + 1000.0).double()
            rows[f"near one-hot, gap {gap:.0f}, shift 1000"] = (shifted, torch.full((4,), vocabulary // 2))
        holes = normal()
        holes[:, ::2] = -torch.inf
        holes[:, 1] = 0.5
        rows["half -inf"] = (holes, torch.ones(4, dtype=torch.long))
        rows["half -inf, target at one"] = (holes, torch.zeros(4, dtype=torch.long))
        ties = normal()
        ties[:, : vocabulary // 2 + 1] = 4.0
        rows["ties at the maximum"] = (ties, target)
    return rows


def poisoned(vocabulary: int) -> dict[str, Tensor]:
    """Rows with no distribution: NaN must come out."""
    base = torch.linspace(-1, 1, vocabulary, dtype=torch.float64).repeat(2, 1)
    nan, inf = base.clone(), base.clone()
    nan[:, vocabulary // 3] = torch.nan
    inf[:, vocabulary // 3] = torch.inf
    return {"NaN": nan, "+inf": inf, "all -inf": torch.full_like(base, -torch.inf)}
