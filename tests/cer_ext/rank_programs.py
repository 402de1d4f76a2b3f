"""What one rank of a test does: a head whose vocabulary, and on demand whose tokens, are spread over a group.

Every rank makes the whole problem from a seed and takes its part. `whole` is the same problem on one process.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cer_ext import linear_logprobs_and_entropy, linear_token_loss


class Problem(NamedTuple):
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    target: Tensor  # (N,)
    temperature: Tensor  # (N,)
    advantages: Tensor  # (N,), a third of them zero


def problem(dtype: torch.dtype = torch.float32, rows: int = 24, vocabulary: int = 301, width: int = 16) -> Problem:
    """Values on a grid, as in test_from_hidden: products and their sums are exact in float32."""
    generator = torch.Generator().manual_seed(7)

    def grid(*shape: int) -> Tensor:
        return (torch.randint(-24, 25, shape, generator=generator) / 16.0).to(dtype)

    target = torch.randint(vocabulary, (rows,), generator=generator)
    target[[1, 5, rows - 2]] = -100
    target[0], target[2] = 0, vocabulary - 1
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    advantages[::3] = 0.0
    temperature = 0.5 + torch.rand(rows, generator=generator, dtype=torch.float64)
    return Problem(grid(rows, width), grid(vocabulary, width), grid(vocabulary), target, temperature, advantages)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature per row, bias": {"temperature": "per row", "bias": True},
    "softcap, scale, temperature, small workspace": {
        "softcap": 9.0,
        "logit_scale": 0.7,
        "temperature": 1.3,
        "workspace_bytes": 40_000,
    },
}


def losses(advantages: Tensor, logprobs: Tensor, entropy: Tensor) -> Tensor:
    return (advantages.to(logprobs) * (logprobs - 0.3 * entropy**2)).sum()


def step(
    p: Problem, options: dict[str, Any], *, one_pass: bool, trained: bool = True, lse: bool = False, **group: Any
) -> dict[str, Tensor]:
    """Outputs and gradients of one call on the operands of `p`."""
    options = dict(options)
    bias = p.bias.clone() if options.pop("bias", False) else None
    if options.get("temperature") == "per row":
        options["temperature"] = p.temperature
    hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_(trained)
    if bias is not None:
        bias.requires_grad_(trained)
    results = {}
    if one_pass:
        options["workspace_bytes"] = options.get("workspace_bytes", 0) * 4 or None
        result = linear_token_loss(
            hidden, weight, p.target, lambda lp, h, rows: losses(p.advantages[rows], lp, h), bias, **options, **group
        )
        loss, results["logprobs"], results["entropy"] = result.loss, result.logprobs, result.entropy
    else:
        outputs = linear_logprobs_and_entropy(hidden, weight, p.target, bias, return_lse=lse, **options, **group)
        results |= dict(zip(("logprobs", "entropy", "lse"), outputs, strict=False))
        loss = losses(p.advantages, *outputs[:2])
        if lse:
            loss = loss + 0.1 * (p.advantages.to(outputs[2]) * outputs[2]).sum()
    (1.5 * loss).backward()
    results |= {"loss": loss, "grad_hidden": hidden.grad, "grad_weight": weight.grad}
    results["grad_bias"] = None if bias is None else bias.grad
    return {name: value.detach() for name, value in results.items() if value is not None}


def part_of(p: Problem, group: dist.ProcessGroup, cuts: list[int], split_tokens: bool) -> Problem:
    """This rank's rows of the weight, [cuts[r], cuts[r + 1]), and where tokens are split its share of them."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine = slice(cuts[rank], cuts[rank + 1])
    p = p._replace(weight=p.weight[mine], bias=p.bias[mine])
    if split_tokens:
        names = ("hidden", "target", "temperature", "advantages")
        p = p._replace(**{name: getattr(p, name).chunk(ranks)[rank] for name in names})
    return p


def shard_step(
    group: dist.ProcessGroup,
    *,
    cuts: list[int],
    options: str = "plain",
    dtype: torch.dtype = torch.float32,
    one_pass: bool,
    split_tokens: bool = False,
    change: dict[str, Any] | None = None,
    **rest: Any,
) -> dict[str, Tensor]:
    p = changed(problem(dtype), change or {})
    p = part_of(p, group, cuts, split_tokens)
    return step(p, OPTIONS[options], one_pass=one_pass, group=group, split_tokens=split_tokens, **rest)


def changed(p: Problem, change: dict[str, Any]) -> Problem:
    """The problem with some values overwritten: {field: (index, value)}."""
    for name, (index, value) in change.items():
        getattr(p, name)[index] = value
    return p


def twice(group: dist.ProcessGroup, **arguments: Any) -> bool:
    """Whether two runs give the same bits."""
    first, second = (shard_step(group, **arguments) for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in first)


def compiled(group: dist.ProcessGroup, *, cuts: list[int], split_tokens: bool) -> bool:
    """Whether torch.compile(fullgraph=True) gives the bits of eager execution, for temperatures that change."""
    p = part_of(problem(), group, cuts, split_tokens)

    def loss(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
        logprobs, entropy = linear_logprobs_and_entropy(
            torch.tanh(hidden), weight, p.target, temperature=temperature, group=group, split_tokens=split_tokens
        )
        return losses(p.advantages, logprobs, entropy)

    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for temperature in (0.7, 0.9, 1.2):
        results = []
        for function in (loss, fast):
            inputs = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
            results.append(torch.autograd.grad(function(*inputs, temperature), inputs))
        if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
            return False
    return True


def sharded_parameter(group: dist.ProcessGroup, *, one_pass: bool) -> dict[str, Tensor]:
    """The weight a DTensor, as FSDP2 keeps it: its gradient is one, too."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    p = problem()
    mesh = DeviceMesh.from_group(group, "cpu")
    weight = torch.nn.Parameter(distribute_tensor(p.weight, mesh, [Shard(0)]))
    hidden = p.hidden.clone().requires_grad_()
    if one_pass:
        result = linear_token_loss(
            hidden, weight, p.target, lambda lp, h, rows: losses(p.advantages[rows], lp, h), group=mesh, validate=False
        )
        result.loss.backward()
        outputs = result[1:]
    else:
        outputs = linear_logprobs_and_entropy(hidden, weight, p.target, group=mesh, validate=False)
        losses(p.advantages, *outputs).backward()
    assert isinstance(weight.grad, DTensor)
    return {
        "logprobs": outputs[0].detach(),
        "entropy": outputs[1].detach(),
        "grad_hidden": hidden.grad,
        "grad_weight": weight.grad.full_tensor(),
    }


def wrong_dtensor(group: dist.ProcessGroup, *, case: str) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    p = problem()
    mesh = DeviceMesh.from_group(group, "cpu")
    placement = {"other dimension": Shard(1), "whole": Replicate()}.get(case, Shard(0))
    weight = distribute_tensor(p.weight, mesh, [placement])
    linear_logprobs_and_entropy(p.hidden, weight, p.target, group=None if case == "no group" else group)


class Traffic(NamedTuple):
    """Collectives of one step in order, and how many bytes each rank hands in."""

    forward: list[tuple[str, int]]
    backward: list[tuple[str, int]]


def traffic(
    group: dist.ProcessGroup, *, cuts: list[int], one_pass: bool, split_tokens: bool, validate: bool
) -> Traffic:
    names = ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor", "all_gather_object", "broadcast")
    seen: list[tuple[str, int]] = []
    originals = {name: getattr(dist, name) for name in names}

    def counted(name: str):
        def call(*arguments: Any, **options: Any):
            sent = arguments[0] if name == "all_reduce" else arguments[1]
            seen.append((name, sent.numel() * sent.element_size()))
            return originals[name](*arguments, **options)

        return call

    p = part_of(problem(), group, cuts, split_tokens)
    options = {"group": group, "split_tokens": split_tokens, "vocabulary": cuts[-1], "validate": validate}
    hidden, weight = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
    for name in names:
        setattr(dist, name, counted(name))
    try:
        if one_pass:
            loss = linear_token_loss(
                hidden, weight, p.target, lambda lp, h, rows: losses(p.advantages[rows], lp, h), **options
            ).loss
        else:
            loss = losses(p.advantages, *linear_logprobs_and_entropy(hidden, weight, p.target, **options))
        forward = list(seen)
        loss.backward()
        return Traffic(forward, seen[len(forward) :])
    finally:
        for name in names:
            setattr(dist, name, originals[name])


def mistake(group: dist.ProcessGroup, *, case: str, one_pass: bool) -> None:
    """A call that does not fit those of the other ranks; rank 1 is the odd one."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    whole = problem()
    odd = rank == 1
    cuts = [whole.weight.shape[0] * r // ranks for r in range(ranks + 1)]
    split = case in ("tokens of its own, fewer", "target out of range, split")
    p = part_of(whole, group, cuts, split)
    options: dict[str, Any] = {"group": group, "split_tokens": split}
    if case == "rows missing":
        options["vocabulary"] = 301
        p = p._replace(weight=p.weight[1:] if odd else p.weight)
    elif case == "another vocabulary":
        options["vocabulary"] = 302 if odd else 301
    elif case in ("fewer tokens", "tokens of its own, fewer"):
        if odd:
            p = p._replace(hidden=p.hidden[1:], target=p.target[1:], advantages=p.advantages[1:])
    elif case == "another width":
        p = p._replace(hidden=p.hidden[:, 1:], weight=p.weight[:, 1:]) if odd else p
    elif case == "another dtype":
        p = p._replace(hidden=p.hidden.double(), weight=p.weight.double()) if odd else p
    elif case == "other targets":
        p = p._replace(target=p.target.flip(0)) if odd else p
    elif case == "another temperature":
        options["temperature"] = 0.9 if odd else 1.0
    elif case == "a wrong argument":
        options["softcap"] = -1.0 if odd else None
    elif case == "a wrong shape":
        p = p._replace(weight=p.weight[:, 1:]) if odd else p
    elif case == "no rows at all":
        p = p._replace(weight=p.weight[:0])
    elif case == "target out of range, split":
        p = p._replace(target=p.target.masked_fill(p.target >= 0, 301)) if odd else p
    elif case == "target out of range":
        p.target[3] = 301
    elif case == "no room":
        options["workspace_bytes"] = 10
    elif case == "another cut, unvalidated":
        options |= {"vocabulary": 301, "validate": False}
        p = p._replace(weight=p.weight[:-1])
    else:
        raise AssertionError(case)
    if one_pass:
        p.hidden.requires_grad_()
        linear_token_loss(
            p.hidden, p.weight, p.target, lambda lp, h, rows: losses(p.advantages[rows], lp, h), **options
        )
    else:
        linear_logprobs_and_entropy(p.hidden, p.weight, p.target, **options)


def other_upstream(group: dist.ProcessGroup) -> None:
    """One pass over split tokens, but each rank scales its loss by a number of its own afterwards."""
    cuts = [301 * r // dist.get_world_size(group) for r in range(dist.get_world_size(group) + 1)]
    p = part_of(problem(), group, cuts, True)
    hidden, weight = p.hidden.requires_grad_(), p.weight.clone().requires_grad_()
    result = linear_token_loss(
        hidden,
        weight,
        p.target,
        lambda lp, h, rows: losses(p.advantages[rows], lp, h),
        group=group,
        split_tokens=True,
    )
    (result.loss * (1 + dist.get_rank(group))).backward()


def even(vocabulary: int, ranks: int) -> list[int]:
    """The cuts of torch.chunk."""
    rows = -(-vocabulary // ranks)
    return [min(rank * rows, vocabulary) for rank in range(ranks + 1)]


def sizes(cuts: list[int]) -> list[int]:
    return [stop - start for start, stop in pairwise(cuts)]
