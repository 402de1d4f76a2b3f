"""Is the merged model the adapted one? Logits on a few token sequences, with the adapter and from the disk.

    error  = |merged - adapted| / |adapted|      effect = |base - adapted| / |adapted|      (norms of centred logits)

The error must stay below what rounding the weights once to their dtype costs. The logits are those of the model as the
disk gives it back, whose weights must be the merged ones to the bit.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Unit roundoff times what a few dozen layers make of it.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LENGTHS = (1, 5, 24, 24)


@dataclass(frozen=True)
class Agreement:
    """How far the merged model is from the adapted one, and how far the base was."""

    error: float
    tolerance: float
    effect: float


def token_sequences(vocabulary: int, *, include: list[int] | None = None, seed: int = 0) -> list[Tensor]:
    """A few sequences (1, L) of random tokens; those in `include` (tokens that an adapter trains) are the last one."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(vocabulary, (1, length), generator=generator) for length in _LENGTHS]
    if include:
        sequences.append(torch.tensor([include[:64]]))
    return sequences


@torch.no_grad()
def logits_of(model: torch.nn.Module, sequences: list[Tensor]) -> list[Tensor]:
    """Logits (L, V) of every sequence, float32, on the host."""
    device = next(model.parameters()).device
    return [model(input_ids=ids.to(device), use_cache=False).logits[0].float().cpu() for ids in sequences]


def agreement(merged: list[Tensor], adapted: list[Tensor], base: list[Tensor], *dtypes: torch.dtype) -> Agreement:
    """Compare; raises ValueError where the merged model is not the adapted one.

    Args:
        merged, adapted, base: logits of the three models on the same sequences.
        dtypes: of the base and of the merged weights; the coarser one sets the tolerance.
    """
    scale = torch.stack([_centred(a).norm() for a in adapted]).norm()

    def distance(those: list[Tensor]) -> float:
        return float(torch.stack([_centred(t - a).norm() for t, a in zip(those, adapted, strict=True)]).norm() / scale)

    found = Agreement(distance(merged), max(TOLERANCE[dtype] for dtype in dtypes), distance(base))
    if not found.error <= found.tolerance:
        names = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
        raise ValueError(
            f"the merged model is not the adapted one: its logits differ by {found.error:.2e} (relative), more than "
            f"{found.tolerance:.0e} for {names}; the adapter itself moves them by {found.effect:.2e}"
        )
    return found


def _centred(logits: Tensor) -> Tensor:
    """Logits less their mean over the vocabulary, which no probability depends on."""
    return logits - logits.mean(dim=-1, keepdim=True)


def checksums(model: PreTrainedModel) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Name -> dtype, shape and CRC-32 of every tensor that is saved."""
    found = {}
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = (tensor.dtype, tuple(tensor.shape), zlib.crc32(data))
    return found


def require_same_from_disk(model: PreTrainedModel, info: dict, expected: dict[str, tuple]) -> None:
    """Raise ValueError unless the reloaded model has every weight of `expected`, to the bit, and no other."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise ValueError(f"the saved model has {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[:5]}")
    found = checksums(model)
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise ValueError(f"the saved model differs from the merged one in {len(different)} tensors: {different[:5]}")
