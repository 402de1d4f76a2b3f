"""What the results must be, to 50 digits, and how a failed comparison is reported.

In: one row of logits as floats, a target, upstream gradients. Out: logprob, entropy, lse and dlogits, by mpmath, from
the definitions alone; nothing of cer_ext is used.

    y = softcap tanh(scale x / softcap)   p = softmax(y / T)   L = g log p_target + h H + l lse
    dL/dx_j = dy_j/dx_j / T ( g [j = target] - (g - l) p_j - h p_j (log p_j + H) )
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mpmath
import torch
from torch import Tensor

mpmath.mp.dps = 50


class Row(NamedTuple):
    logprob: float
    entropy: float
    lse: float
    dlogits: list[float]


def exact_row(
    logits: list[float],
    target: int,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    upstream: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Row:
    x = [mpmath.mpf(v) for v in logits]
    y, slope = [], []
    for v in x:
        if softcap is None:
            y.append(scale * v)
            slope.append(mpmath.mpf(scale))
        else:
            t = mpmath.tanh(scale * v / mpmath.mpf(softcap)) if math.isfinite(v) else mpmath.sign(v)
            y.append(softcap * t)
            slope.append(scale * (1 - t**2))
    inverse = 1 / mpmath.mpf(temperature)
    z = [v * inverse for v in y]
    top = max(z)
    weights = [mpmath.exp(v - top) if v != -mpmath.inf else mpmath.mpf(0) for v in z]
    total = mpmath.fsum(weights)
    lse = top + mpmath.log(total)
    p = [w / total for w in weights]
    log_p = [v - lse if v != -mpmath.inf else mpmath.mpf(0) for v in z]
    entropy = -mpmath.fsum(a * b for a, b in zip(p, log_p, strict=True))
    g, h, l_ = (mpmath.mpf(v) for v in upstream)
    gradient = [
        s * inverse * ((g if j == target else 0) - (g - l_) * pj - h * pj * (lj + entropy))
        for j, (s, pj, lj) in enumerate(zip(slope, p, log_p, strict=True))
    ]
    logprob = z[target] - lse
    return Row(float(logprob), float(entropy), float(lse), [float(v) for v in gradient])


def assert_relative(actual: Tensor, expected: Tensor, rtol: float, what: str, atol: float = 0.0) -> None:
    """|actual - expected| <= atol + rtol |expected| everywhere, NaN and infinities alike; names the worst one."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, e = actual.detach().cpu().double(), expected.detach().cpu().double()
    error = (a - e).abs() - atol - rtol * e.abs()
    same = (a == e) | (a.isnan() & e.isnan())
    error = torch.where(same, -torch.inf, torch.where(error.isnan(), torch.inf, error))
    if error.numel() and bool((error > 0).any()):
        index = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
        at = tuple(index)
        relative = abs(a[at] - e[at]) / abs(e[at])
        raise AssertionError(
            f"{what}{index}: got {a[at].item()!r}, expected {e[at].item()!r} (relative error {relative:.2e}, allowed "
            f"{rtol:.0e}); {int((error > 0).sum())} of {error.numel()} are off"
        )
