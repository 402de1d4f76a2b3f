"""CUDA tensors that are CPU memory: the whole Python path of cer_ext on CUDA, on a machine without a GPU.

In: a library of emulated kernels (emulated_kernels.cpp). Out: a context in which `on_cuda(tensor)` gives a tensor whose
device is cuda:0, whose operations run on the CPU, and whose launches through cer_ext.nvrtc go to that library.

    ops of torch          computed on the CPU memory inside (mm and addmm with a float32 result of low-precision
                          operands, which CPUs do not have, by their definition, with CUDA's rules for the dtypes)
    ops of cer_ext        their bodies, as CUDA's dispatcher would call them
    launches              must be on the current stream of the current device; a log keeps the kernels' names
    what would wait for the device (item, nonzero, a boolean index, a copy to the host) raises HostSync

A tensor is a wrapper on torch's meta device, so that nothing can reach the memory but through here; Python sees cuda:0.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from cer_ext import from_hidden, from_logits, hidden_targets, logits_targets, nvrtc, ops

DEVICE = torch.device("cuda", 0)
STREAM = 777
MULTIPROCESSORS = 132


class HostSync(AssertionError):
    """Something that would have waited for the device."""


class PretendedTensor(Tensor):
    """A tensor on cuda:0 as far as Python can see."""

    @staticmethod
    def __new__(cls, memory: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            memory.size(),
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device="meta",
        )

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    def __repr__(self) -> str:
        return f"on_cuda({self.memory})"

    @classmethod
    def __torch_dispatch__(cls, func, types_, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def on_cuda(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor on the pretended device."""
    return PretendedTensor(tensor.detach().clone(memory_format=torch.preserve_format))


def to_host(tensor: Tensor) -> Tensor:
    """The memory of a pretended tensor. Only for tests: it does not count as a wait."""
    return tensor.detach().memory


# ------------------------------------------------------------------------------------------------------------ dispatch

# The result's size, or its value, is known to the host only when the device is done.
_WAITS = {
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
}


def _bodies() -> dict:
    import sys

    teca = sys.modules["cer_ext.teca"]  # the package's attribute of that name is the function
    return {
        "cer_ext::hidden_forward": from_hidden._forward,
        "cer_ext::hidden_backward": from_hidden._backward,
        "cer_ext::hidden_targets_forward": hidden_targets._forward,
        "cer_ext::hidden_targets_backward": hidden_targets._backward,
        "cer_ext::logits_targets_forward": logits_targets._forward,
        "cer_ext::logits_targets_backward": logits_targets._backward,
        "cer_ext::logits_forward": from_logits._forward,
        "cer_ext::logits_backward": from_logits._backward,
        "cer_ext::logits_backward_": from_logits._backward_in_place,
        "cer_ext::teca_forward": teca._forward,
        "cer_ext::teca_backward": teca._backward,
    }


def _dispatch(func, args: tuple, kwargs: dict):
    name = func._schema.name
    if name.startswith("cer_ext::"):
        with _Modes():
            return _bodies()[name](*args, **kwargs)
    _refuse_waits(func, args, kwargs)
    if func.name() in ("aten::mm.dtype_out", "aten::addmm.dtype_out"):
        return _mixed_product(func, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    inner_args, inner_kwargs = tree_map(_memory, args), tree_map(_memory, kwargs)
    if inner_kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device("cpu")
    result = func(*inner_args, **inner_kwargs)
    # What was written in place, or given as out=, comes back as the wrapper that it was.
    wrappers = {id(leaf.memory): leaf for leaf in leaves if isinstance(leaf, PretendedTensor)}
    return tree_map_only(Tensor, lambda t: wrappers[id(t)] if id(t) in wrappers else PretendedTensor(t), result)


def _memory(value):
    return value.memory if isinstance(value, PretendedTensor) else value


def _refuse_waits(func, args: tuple, kwargs: dict) -> None:
    name = func._schema.name
    to = kwargs.get("device")
    leaves = tree_leaves(args)
    boolean = any(isinstance(x, PretendedTensor) and x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
    if name in _WAITS or (name in ("aten::index", "aten::index_put_", "aten::index_put") and boolean):
        raise HostSync(name)
    if name == "aten::_to_copy" and to is not None and torch.device(to).type == "cpu":
        raise HostSync("a copy to the host")
    if name == "aten::copy_" and not isinstance(args[0], PretendedTensor):
        raise HostSync("a copy to the host")


def _mixed_product(func, args: tuple, kwargs: dict) -> Tensor:
    """mm and addmm with out_dtype: CUDA only. The operands have one low-precision dtype, the sums are float32."""
    out = kwargs["out"]
    *summand, a, b, out_dtype = args[: 4 if func.name().startswith("aten::addmm") else 3]
    assert a.dtype == b.dtype, (a.dtype, b.dtype)
    assert a.dtype in (torch.bfloat16, torch.float16), a.dtype
    assert out.dtype == out_dtype == torch.float32, (out.dtype, out_dtype)
    product = _memory(a).float() @ _memory(b).float()
    for tensor in summand:
        assert tensor.dtype in (out_dtype, a.dtype), tensor.dtype
        product = product + _memory(tensor)
    _memory(out).copy_(product)
    return out


class _Dispatch(TorchDispatchMode):
    """Sends here what has no pretended tensor among its arguments: factories on the device, ops of cer_ext."""

    def __torch_dispatch__(self, func, types_, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = kwargs.get("device")
        pretended = any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs)))
        if pretended or (to is not None and torch.device(to).type == "meta"):
            return _dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Factories(TorchFunctionMode):
    """torch.empty(..., device="cuda") would ask for a driver before any dispatch; the meta device needs none."""

    def __torch_function__(self, func, types_, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        to = kwargs.get("device")
        if to is not None and torch.device(to).type == "cuda":
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


class _Modes(contextlib.ExitStack):
    def __enter__(self):
        super().__enter__()
        self.enter_context(_Factories())
        self.enter_context(_Dispatch())
        return self


# ------------------------------------------------------------------------------------------------------------- context


def load_kernels(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_bool
    loaded.emulate.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
    return loaded


@contextlib.contextmanager
def pretended_cuda(kernels: ctypes.CDLL, monkeypatch) -> Iterator[list[str]]:
    """The device is there. Yields the names of the kernels launched, in order."""
    launched: list[str] = []
    current: list[torch.device] = []

    @contextlib.contextmanager
    def device(chosen) -> Iterator[None]:
        assert torch.device(chosen) == DEVICE
        current.append(DEVICE)
        yield
        current.pop()

    def start(name: str, blocks: int, threads: int, stream: int, addresses: int) -> None:
        assert stream == STREAM
        assert current, f"{name} was launched without making its device current"
        launched.append(name)
        assert kernels.emulate(name.encode(), blocks, threads, len(launched), addresses), name

    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: types.SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(ops, "_multiprocessors", lambda _: MULTIPROCESSORS)
    monkeypatch.setattr(ops, "_cuda_kernels", lambda: nvrtc)
    monkeypatch.setattr(nvrtc, "_start", start)
    monkeypatch.setattr(nvrtc, "_multiprocessors", lambda: MULTIPROCESSORS)
    with _Modes():
        yield launched
