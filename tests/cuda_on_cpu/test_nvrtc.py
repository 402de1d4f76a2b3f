"""The kernels compiled at first use: their text compiles for every architecture, and their parameters lie as in C++.

No GPU and no CuPy needed: NVRTC itself comes with cuda-bindings and nvidia-cuda-nvrtc. That the launches carry the
right parameters is shown in test_nvrtc_launches.py, that the code is right in test_ptx_on_cpu.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_ptx import compile_by_nvrtc

from cer_ext import nvrtc

pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings here: it brings NVRTC")

# One of each kind, for the architectures that are not compiled in full.
ONE_OF_EACH = (
    "cer_fold_tile_bfloat16_plain",
    "cer_grad_tile_float32_bfloat16_general",
    "cer_merge_splits",
    "cer_merge_states",
    "cer_finish_rows",
    "cer_teca_backward_float32",
)
STRUCTS = (
    nvrtc.LogitTransform,
    nvrtc.LogitsTile,
    nvrtc.RowStates,
    nvrtc.RowStats,
    nvrtc.FoldTile,
    nvrtc.MergeStates,
    nvrtc.FinishRows,
    nvrtc.GradTile,
    nvrtc.Teca,
    nvrtc.TecaBackward,
)


@pytest.mark.parametrize("name", nvrtc.kernel_names())
def test_every_kernel_compiles_for_hopper_and_is_found_by_its_name(name: str) -> None:
    ptx, binary = compile_by_nvrtc("sm_90a", nvrtc.kernel_source(name))
    assert f".entry {name}(" in ptx
    assert name.encode() in binary


@pytest.mark.parametrize("architecture", ["sm_80", "sm_100"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_kernel_of_each_kind_compiles_for_other_architectures(name: str, architecture: str) -> None:
    ptx, binary = compile_by_nvrtc(architecture, nvrtc.kernel_source(name))
    assert f".entry {name}(" in ptx
    assert name.encode() in binary


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cer_fold_tile_float32_plain", (nvrtc.FoldTile, ctypes.c_void_p, ctypes.c_int64)),
        ("cer_merge_splits", (nvrtc.FoldTile, ctypes.c_void_p, ctypes.c_int64)),
        ("cer_merge_states", (nvrtc.MergeStates,)),
        ("cer_finish_rows", (nvrtc.FinishRows,)),
        ("cer_grad_tile_float32_float32_plain", (nvrtc.GradTile, ctypes.c_int64)),
        ("cer_teca_forward_float32", (nvrtc.Teca,)),
        ("cer_teca_backward_float32", (nvrtc.TecaBackward,)),
    ],
)
def test_compiled_parameters_have_the_sizes_that_are_passed(name: str, parameters: tuple[type, ...]) -> None:
    ptx, _ = compile_by_nvrtc("sm_90a", nvrtc.kernel_source(name))
    for index, parameter in enumerate(parameters):
        size = ctypes.sizeof(parameter)
        declared = f"{name}_param_{index}"
        if issubclass(parameter, ctypes.Structure):
            assert f".b8 {declared}[{size}]" in ptx
        else:
            assert any(
                f".{kind} {qualifier}{declared}" in ptx
                for kind in ("u64", "b64")
                for qualifier in ("", ".ptr .align 1 ")
            )
    assert f"{name}_param_{len(parameters)}" not in ptx


def test_every_field_lies_where_a_compiler_of_c_plus_plus_puts_it(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it says where the fields lie")
    fields = [(struct, name) for struct in STRUCTS for name, _ in struct._fields_]
    prints = "".join(
        f'std::printf("%zu %zu\\n", offsetof(cer::{s.__name__}, {f}), sizeof(cer::{s.__name__}::{f}));\n'
        for s, f in fields
    )
    sizes = "".join(f'std::printf("%zu\\n", sizeof(cer::{s.__name__}));\n' for s in STRUCTS)
    program = tmp_path / "layout.cpp"
    program.write_text(
        f'#include <cstddef>\n#include <cstdio>\n#include "kernels.h"\nint main() {{\n{prints}{sizes}return 0;\n}}\n'
    )
    executable = tmp_path / "layout"
    subprocess.run(
        ["g++", "-std=c++17", f"-I{nvrtc.kernel_sources()}", str(program), "-o", str(executable)], check=True
    )
    lines = subprocess.run([str(executable)], capture_output=True, text=True, check=True).stdout.splitlines()
    got = [(s.__name__, f, getattr(s, f).offset, getattr(s, f).size) for s, f in fields]
    compiled = [(s.__name__, f, *map(int, line.split())) for (s, f), line in zip(fields, lines, strict=False)]
    assert got == compiled
    assert [ctypes.sizeof(s) for s in STRUCTS] == [int(line) for line in lines[len(fields) :]]


def test_structs_name_every_field_of_the_header(tmp_path: Path) -> None:
    """A field of kernels.h forgotten here changes the struct's size or leaves a hole; so does another order."""
    header = (nvrtc.kernel_sources() / "kernels.h").read_text(encoding="utf-8")
    for struct in STRUCTS:
        body = header.split(f"struct {struct.__name__} {{", 1)[1].split("\n};", 1)[0]
        declared = [
            line.split("//")[0].split("=")[0].strip().rstrip(";").split()[-1]
            for line in body.splitlines()
            if ";" in line
        ]
        assert declared == [name for name, _ in struct._fields_], struct.__name__


def test_the_source_of_a_kernel_is_self_contained_and_holds_no_other() -> None:
    source = nvrtc.kernel_source("cer_fold_tile_bfloat16_plain")
    assert "#include" not in source
    assert "cer_fold_tile_float32_plain" not in source
    assert source.count("struct SoftmaxState") == 1


def test_without_cupy_the_error_says_what_to_install() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is here")
    with pytest.raises(ImportError, match=r'pip install "cer_ext\[cupy\]"'):
        nvrtc._cupy()


def test_importing_the_module_neither_imports_cupy_nor_touches_a_gpu() -> None:
    code = "import sys, cer_ext.nvrtc, torch; assert 'cupy' not in sys.modules and not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
