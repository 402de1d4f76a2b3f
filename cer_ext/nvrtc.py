"""The CUDA kernels on a machine that has a GPU but no nvcc: compiled at first use by NVRTC, through CuPy.

In: the arguments of ``_C.cuda_fold_tile`` and its sisters (addresses, strides, scalars, the stream last). Out: the same
results: it is the same device code (``csrc/cuda/*.cuh``), under the same launch plan (``csrc/cuda/launch_plan.h``, from
``_C``). One kernel is compiled at a time, about a second each; CuPy keeps the binaries in ``~/.cupy/kernel_cache``.

A kernel's parameters are the structs of ``csrc/kernels.h`` by value, mirrored here with ctypes and handed to the driver
as addresses, which is what a compiled launch does too. The tests compare every offset with what a C++ compiler says.
The source is handed over as one text, headers included: NVRTC then needs no include path, and CuPy's cache, which knows
the text alone, never serves a kernel of an older header.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from types import ModuleType

import torch

from cer_ext import _C

OPTIONS = ("-std=c++17",)  # contraction of a * b + c stays on, as with nvcc; never --use_fast_math

_DTYPES = {0: "float32", 1: "bfloat16", 2: "float16", 3: "float64"}  # ScalarType of csrc/kernels.h
_GRADIENTS = ((0, 0), (0, 1), (0, 2), (1, 1), (2, 2), (3, 3))  # (dtype of logits, dtype of dlogits)

# What a host compiler brings along and NVRTC does not: the types of <cstdint>, by size, and two of its built-ins.
_PRELUDE = """namespace std {
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
}
#define __builtin_huge_val() __longlong_as_double(0x7ff0000000000000LL)
#define __builtin_nan(text) __longlong_as_double(0x7ff8000000000000LL)
"""


# ---------------------------------------------------------------------------------------- parameters (csrc/kernels.h)


class LogitTransform(ctypes.Structure):
    _fields_ = (
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("inverse_temperature", ctypes.c_void_p),
        ("inverse_temperature_all", ctypes.c_double),
    )

    def is_plain(self) -> bool:
        """Whether the stored logit is the logit of the softmax bit for bit (launch_plan.h)."""
        return not self.bias and self.scale == 1.0 and self.softcap == 0.0


class LogitsTile(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("first_column", ctypes.c_int64),
        ("transform", LogitTransform),
        ("target", ctypes.c_void_p),
    )


class RowStates(ctypes.Structure):
    _fields_ = (("state", ctypes.c_void_p), ("state_stride", ctypes.c_int64), ("target_logit", ctypes.c_void_p))


class RowStats(ctypes.Structure):
    _fields_ = (("stats", ctypes.c_void_p), ("stats_stride", ctypes.c_int64))


class FoldTile(ctypes.Structure):
    _fields_ = (("tile", LogitsTile), ("states", RowStates), ("fresh", ctypes.c_bool))


class MergeStates(ctypes.Structure):
    _fields_ = (
        ("partial", ctypes.c_void_p),
        ("parts", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("inverse_temperature", ctypes.c_void_p),
        ("inverse_temperature_all", ctypes.c_double),
        ("states", RowStates),
    )


class FinishRows(ctypes.Structure):
    _fields_ = (
        ("states", RowStates),
        ("rows", ctypes.c_int64),
        ("target", ctypes.c_void_p),
        ("ignore_index", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("inverse_temperature", ctypes.c_void_p),
        ("inverse_temperature_all", ctypes.c_double),
        ("double_outputs", ctypes.c_bool),
        ("logprobs", ctypes.c_void_p),
        ("entropy", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("stats", RowStats),
    )


class GradTile(ctypes.Structure):
    _fields_ = (
        ("tile", LogitsTile),
        ("ignore_index", ctypes.c_int64),
        ("stats", RowStats),
        ("grad_logprobs", ctypes.c_void_p),
        ("grad_entropy", ctypes.c_void_p),
        ("grad_lse", ctypes.c_void_p),
        ("dlogits", ctypes.c_void_p),
        ("dlogits_dtype", ctypes.c_int32),
        ("dlogits_row_stride", ctypes.c_int64),
    )


class Teca(ctypes.Structure):
    _fields_ = (
        ("is_double", ctypes.c_bool),
        ("responses", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cu_seqlens", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("entropy", ctypes.c_void_p),
        ("teca", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
    )


class TecaBackward(ctypes.Structure):
    _fields_ = (
        ("is_double", ctypes.c_bool),
        ("responses", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cu_seqlens", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("grad_teca", ctypes.c_void_p),
        ("grad_last", ctypes.c_void_p),
        ("grad_entropy", ctypes.c_void_p),
    )


def filled(struct: type[ctypes.Structure], values: list) -> ctypes.Structure:
    """A struct from a flat list of its fields in order, as the binding's arguments are; takes from the front."""
    result = struct()
    for name, kind, *_ in struct._fields_:
        if issubclass(kind, ctypes.Structure):
            setattr(result, name, filled(kind, values))
        else:
            setattr(result, name, values.pop(0))
    return result


# --------------------------------------------------------------------------------------------------- source and binary


def kernel_names() -> list[str]:
    """Every kernel that the operations below may ask for."""
    names = ["cer_merge_splits", "cer_merge_states", "cer_finish_rows"]
    names += [_fold_kernel(dtype, plain) for dtype in _DTYPES for plain in (True, False)]
    names += [_grad_kernel(*dtypes, plain) for dtypes in _GRADIENTS for plain in (True, False)]
    names += [f"cer_teca_{way}_{real}" for way in ("forward", "backward") for real in ("float32", "float64")]
    return names


def _fold_kernel(dtype: int, plain: bool) -> str:
    return f"cer_fold_tile_{_DTYPES[dtype]}_{'plain' if plain else 'general'}"


def _grad_kernel(dtype: int, dlogits_dtype: int, plain: bool) -> str:
    if (dtype, dlogits_dtype) not in _GRADIENTS:
        raise RuntimeError(f"grad_tile: no kernel from dtype code {dtype} to dtype code {dlogits_dtype}")
    return f"cer_grad_tile_{_DTYPES[dtype]}_{_DTYPES[dlogits_dtype]}_{'plain' if plain else 'general'}"


def kernel_sources() -> Path:
    """The folder of the device code: inside the installed package, or beside it in the source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cuda" / "fold_tile.cuh").is_file():
            return folder
    raise FileNotFoundError(
        f"the CUDA sources of cer_ext are neither in {package / 'csrc'} nor in {package.parent}/csrc"
    )


def kernel_header(name: str) -> str:
    """The file of csrc/cuda that declares a kernel."""
    for prefix, file in (
        ("cer_fold_tile", "fold_tile.cuh"),
        ("cer_merge_splits", "fold_tile.cuh"),
        ("cer_merge_states", "merge_states.cuh"),
        ("cer_finish_rows", "finish_rows.cuh"),
        ("cer_grad_tile", "grad_tile.cuh"),
        ("cer_teca", "teca.cuh"),
    ):
        if name.startswith(prefix):
            return file
    raise ValueError(f"{name}: no kernel of this package")


@functools.cache
def kernel_source(name: str) -> str:
    """The CUDA C++ text of one kernel, headers written out; of a file's kernels made by macro only that one."""
    return source_text(name, kernel_sources())


def source_text(name: str, root: Path) -> str:
    """kernel_source from the device code in the folder `root`."""
    lines: list[str] = []
    _write_out(root / "cuda" / kernel_header(name), root, lines, set())
    kept = (line for line in lines if not re.match(r"CER_\w+_KERNEL\(", line) or f"({name}," in line)
    return _PRELUDE + "\n".join(kept) + "\n"


def _write_out(path: Path, root: Path, lines: list[str], seen: set[Path]) -> None:
    if path in seen:
        return
    seen.add(path)
    lines.append(f'#line 1 "{path.name}"')
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if local := re.match(r'#include "(.+)"', line):
            candidates = (path.parent / local[1], root / local[1])
            _write_out(next(file for file in candidates if file.is_file()), root, lines, seen)
            lines.append(f'#line {number + 1} "{path.name}"')
        elif re.match(r"#pragma once|#include <", line):
            lines.append("")  # once by construction; NVRTC has no standard headers and the device code needs none
        else:
            lines.append(line)


def _cupy() -> ModuleType:
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "cer_ext was built without CUDA kernels, and compiling them at first use takes CuPy: "
            'pip install "cer_ext[cupy]" (CUDA 13) or "cer_ext[cupy12]" (CUDA 12)'
        ) from error
    return cupy


@functools.cache
def _compiled(name: str):
    """The kernel as a CuPy RawKernel, which compiles and loads it once per device."""
    module = _cupy().RawModule(code=kernel_source(name), options=OPTIONS, backend="nvrtc")
    return module.get_function(name)


def _launch(
    name: str, blocks: int, threads: int, stream: int, *parameters: ctypes._SimpleCData | ctypes.Structure
) -> None:
    """One launch of the kernel with its parameters by value, in order."""
    addresses = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(parameter) for parameter in parameters))
    _start(name, blocks, threads, stream, ctypes.addressof(addresses))


def _start(name: str, blocks: int, threads: int, stream: int, addresses: int) -> None:
    """Hands the launch to the driver, on torch's current device; the parameters are copied before this returns."""
    cupy = _cupy()
    with cupy.cuda.Device(torch.cuda.current_device()):
        function = _compiled(name).kernel.ptr
        cupy.cuda.driver.launchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, addresses, 0)


def _multiprocessors() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


# ---------------------------------------------------------------------------------------------------------- operations


def fold_tile(*arguments) -> None:
    """``_C.cuda_fold_tile``: the fields of FoldTile in order, then ``partial, splits, stream``."""
    values = list(arguments)
    p = filled(FoldTile, values)
    partial, splits, stream = values
    if p.tile.rows <= 0:
        return
    if splits < 1 or (splits > 1 and not partial):
        raise RuntimeError(f"fold_tile: splits is {splits}, and more than one needs `partial`")
    rest = (ctypes.c_void_p(partial), ctypes.c_int64(splits))
    plan = _C.fold_tile_plan(p.tile.rows, p.tile.cols, p.tile.dtype, splits)
    _launch(_fold_kernel(p.tile.dtype, p.tile.transform.is_plain()), *plan, stream, p, *rest)
    if splits > 1:
        _launch("cer_merge_splits", *_C.merge_splits_plan(p.tile.rows), stream, p, *rest)


def merge_states(*arguments) -> None:
    """``_C.cuda_merge_states``: the fields of MergeStates in order, then ``stream``."""
    *values, stream = arguments
    p = filled(MergeStates, values)
    if p.rows > 0:
        _launch("cer_merge_states", *_C.merge_states_plan(p.rows), stream, p)


def finish_rows(*arguments) -> None:
    """``_C.cuda_finish_rows``: the fields of FinishRows in order, then ``stream``."""
    *values, stream = arguments
    p = filled(FinishRows, values)
    if p.rows > 0:
        _launch("cer_finish_rows", *_C.finish_rows_plan(p.rows), stream, p)


def grad_tile(*arguments) -> None:
    """``_C.cuda_grad_tile``: the fields of GradTile in order, then ``stream``."""
    *values, stream = arguments
    p = filled(GradTile, values)
    name = _grad_kernel(p.tile.dtype, p.dlogits_dtype, p.tile.transform.is_plain())
    if p.tile.rows <= 0 or p.tile.cols <= 0:
        return
    pieces, blocks, threads = _C.grad_tile_plan(
        p.tile.rows, p.tile.cols, p.tile.dtype, p.dlogits_dtype, _multiprocessors()
    )
    _launch(name, blocks, threads, stream, p, ctypes.c_int64(pieces))


def teca_forward(*arguments) -> None:
    """``_C.cuda_teca_forward``: the fields of Teca in order, then ``stream``."""
    *values, stream = arguments
    p = filled(Teca, values)
    if p.responses > 0:
        real = "float64" if p.is_double else "float32"
        _launch(f"cer_teca_forward_{real}", *_C.teca_plan(p.responses), stream, p)


def teca_backward(*arguments) -> None:
    """``_C.cuda_teca_backward``: the fields of TecaBackward in order, then ``stream``."""
    *values, stream = arguments
    p = filled(TecaBackward, values)
    if p.responses > 0:
        real = "float64" if p.is_double else "float32"
        _launch(f"cer_teca_backward_{real}", *_C.teca_plan(p.responses), stream, p)
