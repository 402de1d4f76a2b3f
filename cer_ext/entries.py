"""Some entries of every row of logits, by their index in the vocabulary: several targets a row, or the largest k.

In: tiles of raw logits x (rows, cols), as the loop over tiles makes them; what the rows' statistics became (m, log_sum,
spread of csrc/softmax_state.h). Out: what the entries are, and their part of dlogits.

    y = softcap * tanh(logit_scale * (x + bias) / softcap)      d = (y - m) / T      log p = d - log_sum
    L of sum_k G_k log p_k + M_k y_k / T + h H + l lse, with S = sum_k G_k:

    dL/dx_j = dy_j/dx_j / T * ( G_j + M_j - (S - l) p_j - h p_j (d_j + spread) )        G_j, M_j: of all k at entry j

grad_tile writes all of it but G_j + M_j, with l - S for lse's gradient. The entries are written over it, in double,
with G_j (1 - p_j) - (S - G_j - l) p_j: where one target has nearly all of the mass, 1 - p_j = -expm1(log p_j) keeps its
digits.

No step waits for the device: an entry that is not in a tile reads and writes where it does no harm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cer_ext import ops
from cer_ext.transform import Transform


def pick(tile: Tensor, indices: Tensor, columns: slice, raw: Tensor) -> None:
    """raw (rows, K) <- the entries of tile (rows, cols) at vocabulary indices (rows, K), where `columns` holds them."""
    here = (indices >= columns.start) & (indices < columns.stop)
    found = tile.gather(1, (indices - columns.start).clamp(0, tile.shape[1] - 1))
    torch.where(here, found.to(raw.dtype), raw, out=raw)


class Largest:
    """The k largest entries of each row, over tiles: raw (rows, k) and indices (rows, k), largest first."""

    def __init__(self, rows: int, k: int, transform: Transform, dtype: torch.dtype, device: torch.device) -> None:
        self.k, self.transform = k, transform
        self.keys, self.raw = (torch.empty((rows, k), dtype=dtype, device=device) for _ in range(2))
        self.indices = torch.empty((rows, k), dtype=torch.int64, device=device)

    def add_tile(self, tile: Tensor, part: slice, columns: slice) -> None:
        """One tile of raw logits of the rows `part`; all rows of some columns before the next columns, in order."""
        keys = tile  # y rises with them
        if self.transform.bias is not None:
            keys = tile + self.transform.bias[columns]
        if self.transform.scale < 0:
            keys = -keys
        most = min(self.k, tile.shape[1])
        top, local = keys.topk(most, dim=1)
        before = min(self.k, columns.start)
        candidates = torch.cat([self.keys[part, :before], top], 1)
        raw = torch.cat([self.raw[part, :before], tile.gather(1, local)], 1)
        indices = torch.cat([self.indices[part, :before], local + columns.start], 1)
        best, order = candidates.topk(min(self.k, candidates.shape[1]), dim=1)
        found = best.shape[1]
        self.keys[part, :found] = best
        self.raw[part, :found] = raw.gather(1, order)
        self.indices[part, :found] = indices.gather(1, order)


class Values(NamedTuple):
    """Of entries (rows, K), in float64."""

    logit: Tensor  # y / T
    logprob: Tensor
    slope: Tensor  # dy/dx / T
    distance: Tensor  # d
    is_top1: Tensor  # bool: no entry of the row is larger


def evaluate(raw: Tensor, indices: Tensor, stats: Tensor, transform: Transform) -> Values:
    """What raw entries (rows, K) are in rows with statistics (3, rows); NaN in NaN rows and where an index is none."""
    x = raw.double()
    if transform.bias is not None:
        x = x + transform.bias[indices.clamp(0, transform.bias.numel() - 1)]
    y, slope = x * transform.scale, torch.full_like(x, transform.scale)
    if transform.softcap:
        bounded = torch.tanh(y / transform.softcap)
        y, slope = bounded * transform.softcap, slope * (1 - bounded * bounded)
    inverse = transform.inverse_temperature
    factor = transform.inverse_temperature_all if inverse is None else inverse[:, None]
    m, log_sum = stats[0][:, None], stats[1][:, None]
    # The kernel's tanh and torch's differ in the last bits of a double; float logits differ by more, or not at all.
    is_top1 = (y - m).abs() <= (1e-14 * m.abs() if transform.softcap else 0.0)
    distance = torch.where(is_top1, 0.0, (y - m) * factor)
    return Values(y * factor, distance - log_sum, slope * factor, distance, is_top1)


def total_per_index(grads: Tensor, indices: Tensor) -> Tensor:
    """(rows, K): for each entry the sum of grads over all entries of its row with the same index."""
    if indices.shape[1] == 1:
        return grads
    ordered, order = indices.sort(dim=1, stable=True)
    starts = torch.zeros_like(ordered)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = starts.cumsum(1)
    sums = torch.zeros_like(grads).scatter_add_(1, place, grads.gather(1, order))
    return torch.empty_like(grads).scatter_(1, order, sums.gather(1, place))


class EntryGradients(NamedTuple):
    """The gradients of entries, to be written into tiles of dlogits, and what is left for every other entry."""

    indices: Tensor  # (rows, K)
    values: Tensor  # (rows, K) float64: dL/dx
    others: ops.Upstream  # for grad_tile

    @classmethod
    def of(
        cls,
        raw: Tensor,
        indices: Tensor,
        stats: Tensor,
        transform: Transform,
        grad_logprobs: Tensor | None,
        grad_logits: Tensor | None,
        grad_entropy: Tensor | None,
        grad_lse: Tensor | None,
        alive: Tensor | None = None,
    ) -> EntryGradients:
        """From upstream gradients of entries (rows, K) float64, zero for ignored ones, and of rows (rows,) Real.

        `alive` (rows,): where rows that add nothing are among these, which do.
        """
        at = evaluate(raw, indices, stats, transform)
        p = at.logprob.exp()
        zeros = torch.zeros_like(p)
        g = zeros if grad_logprobs is None else grad_logprobs
        h = torch.zeros_like(stats[0]) if grad_entropy is None else grad_entropy.double()
        lse = torch.zeros_like(stats[0]) if grad_lse is None else grad_lse.double()
        total = g.sum(1)
        own = total_per_index(g, indices)
        value = -own * torch.expm1(at.logprob) - (total[:, None] - own - lse[:, None]) * p
        value = value - torch.where(p == 0, 0.0, h[:, None] * p * (at.distance + stats[2][:, None]))
        if grad_logits is not None:
            value = value + total_per_index(grad_logits, indices)
        value = value * at.slope
        if alive is not None:
            value = value.masked_fill(~alive[:, None], 0.0)
        rest = (lse - total).to(raw.dtype)
        return cls(indices, value, ops.Upstream(None, grad_entropy, rest))

    def write(self, dlogits: Tensor, rows: slice, columns: slice) -> None:
        """Over what grad_tile wrote into dlogits (n, cols)."""
        index, values = self.indices[rows] - columns.start, self.values[rows]
        here = (index >= 0) & (index < dlogits.shape[1])
        # An entry that is elsewhere writes what another of its row writes here, or else what is here already.
        first = here.to(torch.uint8).argmax(1, keepdim=True)
        some = here.gather(1, first)
        spare = torch.where(some, index.gather(1, first), 0)
        present = dlogits[:, :1].to(values.dtype)
        spare_value = torch.where(some, values.gather(1, first), present)
        index = torch.where(here, index, spare)
        dlogits.scatter_(1, index, torch.where(here, values, spare_value).to(dlogits.dtype))
