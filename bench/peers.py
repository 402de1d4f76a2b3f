"""What we are compared with, each once, on every device: the same inputs in, (logprobs, entropy) out.

Every function is one peer's own code, called the way its users call it; nothing here is ours.

A fold takes (logits (N, V), target (N,)). A head takes (hidden (N, D), weight (V, D), target (N,), with_entropy);
entropy is None where the peer has none or was not asked. A peer that only gives a loss summed over all rows gives
(-loss (), None).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.timing import reason

Outputs = tuple[torch.Tensor, torch.Tensor | None]
Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], Outputs]
NO_ENTROPY = "(no entropy)"  # ends the name of a peer that has none: it does less than the others


# From logits (N, V) -------------------------------------------------------------------------------------------------
def plain_torch(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    """log_softmax, gather, entropy, in float32: what most trainers write."""
    logp = torch.log_softmax(logits.float(), -1)
    return logp.gather(-1, target[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


compiled_torch = torch.compile(plain_torch, dynamic=False)


def trl_fold(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    """TRL's fold of a logits tile into running statistics, and what its function makes of them."""
    from trl.kernels import chunked_logprob as trl_kernels

    n, vocabulary = logits.shape
    m = torch.full((n,), float("-inf"), device=logits.device)
    s, xs, unused, target_logit = (torch.zeros(n, device=logits.device) for _ in range(4))
    fold = trl_kernels._forward_kernel[(n,)] if trl_kernels._use_triton(logits.device) else trl_kernels._forward_tile
    fold(
        *(logits, logits.stride(0), target, m, s, xs, unused, unused, unused, target_logit, 0, vocabulary),
        *(1.0, 1.0, 1.0),  # logit_scale, softcap, inverse temperature
        HAS_SOFTCAP=False,
        HAS_ENTROPY=True,
        HAS_LOG_SUM_SQ_PROBS=False,
        HAS_MEAN_LOGITS=False,
        HAS_IS_TOP1=False,
        BLOCK_SIZE=trl_kernels._BLOCK_SIZE,
    )
    log_z = m + s.log()
    return target_logit - log_z, log_z - xs / s


def trl_grad(
    logits: torch.Tensor, target: torch.Tensor, log_z: torch.Tensor, entropy: torch.Tensor, grads: Outputs
) -> torch.Tensor:
    """TRL's backward of one tile: the logits become their gradient, in place."""
    from trl.kernels import chunked_logprob as trl_kernels

    n, vocabulary = logits.shape
    block = trl_kernels._BLOCK_SIZE
    grid = (n, -(-vocabulary // block))
    grad = trl_kernels._backward_kernel[grid] if trl_kernels._use_triton(logits.device) else trl_kernels._backward_tile
    grad(
        *(logits, logits.stride(0), target, log_z, entropy, *grads, 0, vocabulary, 1.0, 1.0, 1.0),
        HAS_SOFTCAP=False,
        HAS_LOGPROB_GRAD=True,
        HAS_ENTROPY_GRAD=True,
        BLOCK_SIZE=block,
    )
    return logits


FROM_LOGITS: dict[str, Callable[..., Outputs]] = {
    "plain torch": plain_torch,
    "torch.compile": compiled_torch,
    "trl fold": trl_fold,
}


# From hidden (N, D) and weight (V, D) ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Peer:
    """`load` imports the peer and hands out its head; it raises where the peer cannot be had."""

    name: str
    load: Callable[[], Head]
    devices: tuple[str, ...] = ("cuda",)
    note: str = ""


def plain_torch_head(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return plain_torch(hidden @ weight.T, target)


compiled_torch_head = torch.compile(plain_torch_head, dynamic=False)


def with_its_entropy(head: Callable[..., Outputs]) -> Callable[[], Head]:
    """Peers that compute the entropy whether asked or not."""
    return lambda: lambda hidden, weight, target, with_entropy: head(hidden, weight, target)


def load_torch_linear_cross_entropy() -> Head:
    """torch's own chunked head, torch 2.12 and newer."""
    options = torch.nn.LinearCrossEntropyOptions()

    def head(hidden, weight, target, with_entropy):
        return -F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options), None

    return head


def load_trl() -> Head:
    """The function behind TRL's fused head, with the chunk size its trainers use."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def head(hidden, weight, target, with_entropy):
        wanted = ("entropy",) if with_entropy else ()
        args = (hidden, weight, None, target, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, wanted)
        outputs = ChunkedLogProbFunction.apply(*args)
        return outputs[0], outputs[1] if with_entropy else None

    return head


def liger_head(function, *middle) -> Head:
    """Liger's scaled cross entropy; `middle`: what its signature has between ignore_index and return_entropy."""

    def head(hidden, weight, target, with_entropy):
        outputs = function.apply(hidden, weight, target, 1.0, -100, *middle, with_entropy)
        return (-outputs[0], outputs[1]) if with_entropy else (-outputs, None)

    return head


def load_liger_dispatched() -> Head:
    """What a Liger user gets on this device: on compute capability 9.0 the SM90 CuTe kernels."""
    from liger_kernel.ops import fused_linear_scaled_cross_entropy as liger

    chosen = liger._resolve_implementation(torch.device("cuda"))
    if chosen is liger._FusedLinearPPOFallbackFunction:
        raise RuntimeError("Liger dispatches to its torch fallback on this device, timed under that name")
    return liger_head(liger.LigerFusedLinearScaledCrossEntropyFunction, 1)


def load_liger_cutile() -> Head:
    from liger_kernel.ops.cutile.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    return liger_head(LigerFusedLinearScaledCrossEntropyFunction, 1)


def load_liger_fallback() -> Head:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import _FusedLinearPPOFallbackFunction

    return liger_head(_FusedLinearPPOFallbackFunction)


def load_liger_flce() -> Head:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def head(hidden, weight, target, with_entropy):
        loss = LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, target, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32
        )
        return -(loss[0] if isinstance(loss, tuple) else loss), None

    return head


def load_cce() -> Head:
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, target, with_entropy: (
        -linear_cross_entropy(hidden, weight, target, reduction="none"),
        None,
    )


def verl_module(name: str) -> types.ModuleType:
    """One module of verl without running verl/__init__.py, which wants ray and a whole trainer."""
    if "verl" not in sys.modules:
        found = importlib.util.find_spec("verl")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'verl'")
        root = Path(next(iter(found.submodule_search_locations)))
        for package in ("verl", "verl.utils"):
            bare = types.ModuleType(package)
            bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = bare
    return importlib.import_module(name)


def load_verl_triton() -> Head:
    function = verl_module("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy
    return lambda hidden, weight, target, with_entropy: function(hidden, weight, target, 1.0, "none")


def load_verl_torch() -> Head:
    function = verl_module("verl.utils.experimental.torch_functional").FusedLinearForPPOFunction
    return lambda hidden, weight, target, with_entropy: function.apply(hidden, weight, target, 1.0)


def load_quack() -> Head:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda hidden, weight, target, with_entropy: (
        -chunked_linear_cross_entropy(hidden, weight, target, reduction="sum"),
        None,
    )


BOTH = ("cpu", "cuda")
HEADS = [
    Peer("plain torch", with_its_entropy(plain_torch_head), BOTH),
    Peer("torch.compile", with_its_entropy(compiled_torch_head), BOTH),
    Peer("trl function", load_trl, BOTH),
    Peer(f"torch linear_cross_entropy {NO_ENTROPY}", load_torch_linear_cross_entropy, BOTH),
    Peer("Liger scaled CE (device's choice)", load_liger_dispatched, note="grad_weight always; entropy in bfloat16"),
    Peer("Liger scaled CE cuTile", load_liger_cutile),
    Peer("Liger scaled CE torch fallback", load_liger_fallback, BOTH),
    Peer(f"Liger FLCE {NO_ENTROPY}", load_liger_flce, note="loss only; gradients in its forward"),
    Peer(f"Apple CCE {NO_ENTROPY}", load_cce, note="small gradients left out (its default filter)"),
    Peer("verl Triton", load_verl_triton, note="grad_weight always"),
    Peer("verl torch fallback", load_verl_torch, BOTH),
    Peer(f"quack chunked {NO_ENTROPY}", load_quack, note="loss only; gradients in its forward"),
]


def heads(device: torch.device) -> tuple[dict[str, Head], dict[str, str]]:
    """(heads that loaded, reasons of those that did not), both by name, of the peers that run on this device."""
    found, reasons = {}, {}
    for peer in HEADS:
        if device.type not in peer.devices:
            continue
        try:
            found[peer.name] = peer.load()
        except Exception as error:  # a peer may fail in any way of its own: it is named, with what it said
            reasons[peer.name] = reason(error)
    return found, reasons


# TECA of (B, L) -------------------------------------------------------------------------------------------------------
def plain_torch_teca(entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    counts = mask.cumsum(-1).clamp(min=1)
    return (entropy * mask).cumsum(-1) / counts * mask
