"""How a stored logit x becomes the logit of the softmax, as the kernels read it.

    y = softcap * tanh(logit_scale * (x + bias) / softcap)      p = softmax(y / T)

In: the checked numbers of a call (T for all rows, logit_scale, softcap) and, where rows have temperatures of their own,
those. Out: a Transform (LogitTransform of csrc/kernels.h).

The ops take the three numbers as one small tensor on the CPU: torch.compile makes a graph anew for every value of a
float that enters an op, and gives up at the ninth; the values in a tensor may change at will.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Its inverse is still a float32. Anything smaller is as good as greedy decoding.
SMALLEST_TEMPERATURE = 2.0**-126


class Scalars(NamedTuple):
    """The numbers of a call that hold for all of its rows."""

    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float = 0.0  # 0: none

    def pack(self) -> Tensor:
        """(3,) float64 on the CPU."""
        if torch.compiler.is_compiling():
            # A product with a tensor is what keeps a float that changes between calls out of the graph's guards.
            one = torch.ones(1, dtype=torch.float64)
            return torch.cat([one * value for value in self])
        return torch.tensor(self, dtype=torch.float64)

    @classmethod
    def unpack(cls, packed: Tensor) -> Scalars:
        return cls(*packed.tolist())


class Transform(NamedTuple):
    """How a stored logit becomes the logit of the softmax (LogitTransform of kernels.h)."""

    scale: float = 1.0
    softcap: float = 0.0  # 0: none
    inverse_temperature_all: float = 1.0
    inverse_temperature: Tensor | None = None  # (rows,) float64, instead of the above
    bias: Tensor | None = None  # (cols,) Real

    @classmethod
    def of(cls, packed_scalars: Tensor, inverse_temperature: Tensor | None, bias: Tensor | None = None) -> Transform:
        scalars = Scalars.unpack(packed_scalars)
        return cls(scalars.logit_scale, scalars.softcap, 1.0 / scalars.temperature, inverse_temperature, bias)

    def tile(self, rows: slice, columns: slice) -> Transform:
        """The part of it that belongs to a tile."""
        inverse, bias = self.inverse_temperature, self.bias
        return self._replace(
            inverse_temperature=None if inverse is None else inverse[rows], bias=None if bias is None else bias[columns]
        )


def inverse_temperature(temperature: Tensor | None, ignored: Tensor | None, validate: bool) -> Tensor | None:
    """1/T per row, flat, in float64; NaN (and so a NaN row) where T is not positive and finite, if that may pass."""
    if temperature is None:
        return None
    temperature = temperature.detach().reshape(-1).double()
    good = (temperature >= SMALLEST_TEMPERATURE) & (temperature < torch.inf)
    if ignored is not None:
        good = good | ignored
    if validate and not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise ValueError(
            f"temperature: expected positive finite values, got {temperature[first].item()} in row {first}"
        )
    return torch.where(good, temperature.reciprocal(), torch.nan)
