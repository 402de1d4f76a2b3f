"""The native kernels as functions of tensors: the one place where addresses are taken.

In: tensors (any device the package has kernels for). Out: the same tensors, written. This file packs addresses, strides
and dtype codes for csrc (kernels.h states what each operation computes), and adds what a kernel cannot know: the device
to make current, torch's current stream, how many threads torch may use. No mathematics, and no checks of user input:
those are in checks.py; the custom ops around the kernels are in from_logits.py, from_hidden.py and teca.py.

Lifetime: every tensor whose address is passed is an argument of the function that passes it, so it outlives the call.
On CUDA the kernel may still run when the function returns; torch's caching allocator keeps the memory for the stream.
"""

from __future__ import annotations

import functools
import types
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from cer_ext import _C
except ImportError as error:
    raise ImportError(
        "the native part of cer_ext (cer_ext._C) is neither built in this source tree nor installed: run "
        "`pip install .` there (`pip install -e .` to work on it)"
    ) from error

from cer_ext import cuda_driver
from cer_ext.transform import Transform

native_build = _C.build

# ScalarType of csrc/kernels.h.
SCALAR_TYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """What logits of `dtype` are accumulated in, and what the outputs are ("Real" in kernels.h)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


# --------------------------------------------------------------------------------------------------------- CUDA backend


def cuda_backend() -> tuple[str | None, str]:
    """Which kernels serve CUDA tensors ("native", "nvrtc" or None), and why. Makes no CUDA context."""
    build = native_build()
    cupy = cuda_driver.cupy_distribution()
    return cuda_driver.choose_kernels(
        build["cuda_toolkit"] if build["cuda"] else None,
        build["cuda_archs"],
        cuda_driver.driver(),
        None if cupy is None else cupy[0],
    )


@functools.cache
def _cuda_kernels() -> types.SimpleNamespace | types.ModuleType:
    backend, reason = cuda_backend()
    if backend is None:
        raise RuntimeError(f"no kernels for CUDA tensors: {reason}")
    if backend == "nvrtc":
        warnings.warn(f"cer_ext: {reason}", stacklevel=2)
        from cer_ext import nvrtc

        return nvrtc
    names = ("fold_tile", "merge_states", "finish_rows", "grad_tile", "teca_forward", "teca_backward")
    return types.SimpleNamespace(**{name: getattr(_C, f"cuda_{name}") for name in names})


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _run(name: str, device: torch.device, *arguments) -> None:
    """Call the kernel `name` of the device's backend, with the device's last argument (threads or stream)."""
    if device.type == "cpu":
        _CPU_KERNELS[name](*arguments, torch.get_num_threads())
    else:
        with torch.cuda.device(device):
            getattr(_cuda_kernels(), name)(*arguments, torch.cuda.current_stream(device).cuda_stream)


_CPU_KERNELS = {
    name: getattr(_C, f"cpu_{name}")
    for name in ("fold_tile", "merge_states", "finish_rows", "grad_tile", "teca_forward", "teca_backward")
}


# ----------------------------------------------------------------------------------------------------------- operations


def new_states(rows: int, device: torch.device) -> Tensor:
    """Row states (5, rows): the four components of softmax_state.h and the target's logit."""
    return torch.empty((5, rows), dtype=torch.float64, device=device)


def empty_states(rows: int, device: torch.device) -> Tensor:
    """Row states (5, rows) that have seen no logit, nor the target's."""
    states = torch.zeros((5, rows), dtype=torch.float64, device=device)
    states[0] = -torch.inf
    states[4] = torch.nan
    return states


def first_bad_target(target: Tensor, ignore_index: int, vocabulary: int) -> int:
    """Index of the first target (contiguous) that is neither in [0, vocabulary) nor ignore_index; -1 if none. On CUDA
    this waits for the device."""
    if target.device.type == "cpu":
        return _C.cpu_first_bad_target(target.data_ptr(), target.numel(), ignore_index, vocabulary)
    bad = ((target < 0) | (target >= vocabulary)) & (target != ignore_index)
    found = bad.flatten().nonzero()
    return int(found[0]) if found.numel() else -1


def has_head_tile() -> bool:
    """Whether the CPU kernels in use multiply bfloat16 operands into float32 sums (AVX512-BF16)."""
    return _C.cpu_has_head_tile()


def pack_hidden(hidden: Tensor, packed: Tensor) -> None:
    """packed (rows, D rounded up to even), contiguous <- bfloat16 hidden (rows, D), any row stride, for head_tile."""
    rows, width = hidden.shape
    _C.cpu_pack_hidden(hidden.data_ptr(), rows, width, hidden.stride(0), packed.data_ptr(), torch.get_num_threads())


def head_tile(packed: Tensor, weight: Tensor, logits: Tensor) -> None:
    """logits (rows, cols) float32 <- hidden weight^T: hidden packed by pack_hidden, bfloat16 weight (cols, D), any row
    stride."""
    rows, cols = logits.shape
    _C.cpu_head_tile(
        packed.data_ptr(),
        rows,
        weight.shape[1],
        weight.data_ptr(),
        weight.stride(0),
        cols,
        logits.data_ptr(),
        logits.stride(0),
        torch.get_num_threads(),
    )


def fold_tile(
    logits: Tensor, target: Tensor, states: Tensor, transform: Transform, *, first_column: int = 0, fresh: bool = True
) -> None:
    """states (5, rows) <- merge(states, fold of logits (rows, cols)); `fresh` starts them anew."""
    rows, cols = logits.shape
    if not rows:
        return
    address = states.data_ptr()
    stride = states.stride(0)
    arguments = (
        logits.data_ptr(),
        SCALAR_TYPE[logits.dtype],
        rows,
        cols,
        logits.stride(0),
        first_column,
        _address(transform.bias),
        transform.scale,
        transform.softcap,
        _address(transform.inverse_temperature),
        transform.inverse_temperature_all,
        target.data_ptr(),
        address,
        stride,
        address + 4 * stride * 8,
        fresh,
    )
    if logits.device.type == "cpu":
        _C.cpu_fold_tile(*arguments, torch.get_num_threads())
        return
    splits = _C.fold_tile_splits(rows, cols, arguments[1], _multiprocessors(logits.device))
    partial = None
    if splits > 1:
        partial = torch.empty((splits, 5, rows), dtype=torch.float64, device=logits.device)
    _run("fold_tile", logits.device, *arguments, _address(partial), splits)


def merge_states(partial: Tensor, transform: Transform) -> Tensor:
    """states (5, rows) <- partial (parts, 5, rows), contiguous: merged in the order of the parts."""
    parts, _, rows = partial.shape
    states = new_states(rows, partial.device)
    if rows:
        _run(
            "merge_states",
            partial.device,
            partial.data_ptr(),
            parts,
            rows,
            _address(transform.inverse_temperature),
            transform.inverse_temperature_all,
            states.data_ptr(),
            rows,
            states.data_ptr() + 4 * rows * 8,
        )
    return states


def finish_rows(
    states: Tensor,
    target: Tensor,
    transform: Transform,
    ignore_index: int,
    vocabulary: int,
    logprobs: Tensor,
    entropy: Tensor | None,
    lse: Tensor | None,
    stats: Tensor | None,
) -> None:
    """states (5, rows) -> logprobs, entropy, lse (rows,) and stats (3, rows) = (m, log_sum, spread)."""
    rows = states.shape[1]
    if not rows:
        return
    address = states.data_ptr()
    stride = states.stride(0)
    _run(
        "finish_rows",
        states.device,
        address,
        stride,
        address + 4 * stride * 8,
        rows,
        target.data_ptr(),
        ignore_index,
        vocabulary,
        _address(transform.inverse_temperature),
        transform.inverse_temperature_all,
        logprobs.dtype == torch.float64,
        logprobs.data_ptr(),
        _address(entropy),
        _address(lse),
        _address(stats),
        0 if stats is None else stats.stride(0),
    )


class Upstream(NamedTuple):
    """Gradients of a loss with respect to a row's outputs, (rows,) Real each; None where there is none."""

    logprobs: Tensor | None
    entropy: Tensor | None
    lse: Tensor | None = None

    def tile(self, rows: slice) -> Upstream:
        return Upstream(*(None if grad is None else grad[rows] for grad in self))


def grad_tile(
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    transform: Transform,
    ignore_index: int,
    grads: Upstream,
    dlogits: Tensor,
    *,
    first_column: int = 0,
) -> None:
    """dlogits (rows, cols), which may be `logits`, from the upstream gradients of its rows."""
    rows, cols = logits.shape
    if not rows:
        return
    _run(
        "grad_tile",
        logits.device,
        logits.data_ptr(),
        SCALAR_TYPE[logits.dtype],
        rows,
        cols,
        logits.stride(0),
        first_column,
        _address(transform.bias),
        transform.scale,
        transform.softcap,
        _address(transform.inverse_temperature),
        transform.inverse_temperature_all,
        target.data_ptr(),
        ignore_index,
        stats.data_ptr(),
        stats.stride(0),
        _address(grads.logprobs),
        _address(grads.entropy),
        _address(grads.lse),
        dlogits.data_ptr(),
        SCALAR_TYPE[dlogits.dtype],
        dlogits.stride(0),
    )


def teca_forward(
    entropy: Tensor,
    responses: int,
    length: int,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    average: Tensor,
    last: Tensor,
) -> None:
    """entropy (responses, length) or packed (total,) -> average alike and last (responses,). All contiguous."""
    if responses:
        double = entropy.dtype == torch.float64
        _run(
            "teca_forward",
            entropy.device,
            double,
            responses,
            length,
            _address(cu_seqlens),
            _address(mask),
            entropy.data_ptr(),
            average.data_ptr(),
            last.data_ptr(),
        )


def teca_backward(
    responses: int,
    length: int,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    grad_average: Tensor | None,
    grad_last: Tensor | None,
    grad_entropy: Tensor,
) -> None:
    """Upstream gradients of average and last -> grad_entropy. All contiguous."""
    if responses:
        double = grad_entropy.dtype == torch.float64
        _run(
            "teca_backward",
            grad_entropy.device,
            double,
            responses,
            length,
            _address(cu_seqlens),
            _address(mask),
            _address(grad_average),
            _address(grad_last),
            grad_entropy.data_ptr(),
        )
