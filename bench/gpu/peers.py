"""Every peer of the head on a GPU, and why one that cannot run here cannot.

A head takes (hidden (N, D), weight (V, D), target (N,), with_entropy) and gives (logprobs, entropy); entropy is None
where the peer has none. A peer that only gives a loss summed over all rows gives (-loss, None).
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import cer_ext
from bench import baselines

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], baselines.Outputs]


@dataclass(frozen=True)
class Peer:
    """`load` imports the peer and hands out its head; it raises where the peer cannot be had."""

    name: str
    load: Callable[[], Head]
    note: str = ""


def ours(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, with_entropy: bool) -> baselines.Outputs:
    return cer_ext.linear_logprobs_and_entropy(hidden, weight, target, return_entropy=with_entropy)


def from_baselines(name: str) -> Callable[[], Head]:
    """The peers that CPU and GPU have in common always compute the entropy they know."""
    return lambda: lambda hidden, weight, target, with_entropy: baselines.FROM_HIDDEN[name](hidden, weight, target)


def load_trl() -> Head:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def head(hidden, weight, target, with_entropy):
        wanted = ("entropy",) if with_entropy else ()
        args = (hidden, weight, None, target, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, wanted)
        return ChunkedLogProbFunction.apply(*args)[:2]

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


HEADS = [
    Peer("TRL function", load_trl),
    Peer("Liger scaled CE (device's choice)", load_liger_dispatched, "grad_weight always; entropy in bfloat16"),
    Peer("Liger scaled CE cuTile", load_liger_cutile),
    Peer("Liger scaled CE torch fallback", load_liger_fallback),
    Peer("Liger FLCE", load_liger_flce, "no entropy, loss only; gradients in its forward"),
    Peer("Apple CCE", load_cce, "no entropy; small gradients left out (its default filter)"),
    Peer("verl Triton", load_verl_triton, "grad_weight always"),
    Peer("verl torch fallback", load_verl_torch),
    Peer("quack chunked", load_quack, "no entropy, loss only; gradients in its forward"),
    Peer("plain torch", from_baselines("plain torch")),
    Peer("torch.compile", from_baselines("torch.compile")),
]


def available() -> tuple[dict[str, Head], dict[str, str]]:
    """(heads that loaded, reasons of those that did not), both by name."""
    heads, reasons = {}, {}
    for peer in HEADS:
        try:
            heads[peer.name] = peer.load()
        except Exception as reason:  # a peer may fail in any way of its own: it is named, with what it said
            reasons[peer.name] = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
    return heads, reasons
