"""The launchers of a CUDA build, <<< >>> and all, give the CPU's results and NVRTC's launch plans.

Their .cu files are compiled by g++ with one textual change, ``kernel<<<blocks, threads, 0, stream>>>(`` to a function's
call, against a cuda_runtime.h of this folder; the launches then run on the emulation of a GPU's blocks.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from kernel_programs import CSRC, HERE, compile_library
from test_nvrtc_launches import BY_NVRTC, CODES, IGNORE, NAMES, ON_CPU, STREAM, Case

from cer_ext import nvrtc

STRUCTS = {
    "fold_tile": nvrtc.FoldTile,
    "merge_states": nvrtc.MergeStates,
    "finish_rows": nvrtc.FinishRows,
    "grad_tile": nvrtc.GradTile,
    "teca_forward": nvrtc.Teca,
    "teca_backward": nvrtc.TecaBackward,
}
LAUNCH = re.compile(r"(\w+)<<<(.*?)>>>\(", re.DOTALL)
MULTIPROCESSORS = 4


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it compiles the launchers for the CPU")
    into = tmp_path_factory.mktemp("launchers")
    shutil.copy(HERE / "host_runtime" / "cuda_runtime.h", into)
    launches = 0
    for source in (CSRC / "cuda").glob("*.cu"):
        text, count = LAUNCH.subn(r"host_runtime::launch_of(\1, \2)(", source.read_text())
        (into / source.name).write_text(text)
        launches += count
    # fold_tile and the merge of its splits, merge_states, finish_rows, grad_tile, teca forward and backward
    assert launches == 7
    loaded = ctypes.CDLL(str(compile_library("launchers", into, kernels=into, warnings=("-w",))))
    for name in (*NAMES, "launched"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.set_device.argtypes = (ctypes.c_int, ctypes.c_bool)
    loaded.set_device(MULTIPROCESSORS, False)
    return loaded


class Launchers:
    """The operations by name, as test_nvrtc_launches calls them, and (blocks, threads, stream) of every launch."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.launches: list[tuple[int, int, int]] = []

    def __getitem__(self, name: str) -> Callable[..., None]:
        def call(*arguments, rest: tuple[int, ...] = ()) -> None:
            parameters = nvrtc.filled(STRUCTS[name], list(arguments))
            further = (ctypes.c_void_p(rest[0]), ctypes.c_int64(rest[1])) if name == "fold_tile" else ()
            error = getattr(self.library, name)(ctypes.byref(parameters), *further, ctypes.c_void_p(STREAM))
            if error:
                raise RuntimeError(error.decode())
            for line in self.library.launched().decode().splitlines():
                blocks, threads, stream = line.split()
                self.launches.append((int(blocks), int(threads), int(stream)))

        return call


@pytest.fixture
def launchers(library: ctypes.CDLL) -> Iterator[Launchers]:
    yield Launchers(library)
    library.set_device(MULTIPROCESSORS, False)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What cer_ext.nvrtc would launch; nothing runs."""
    launches: list[tuple[int, int, int]] = []

    def start(name: str, blocks: int, threads: int, stream: int, addresses: int) -> None:
        launches.append((blocks, threads, stream))

    monkeypatch.setattr(nvrtc, "_start", start)
    monkeypatch.setattr(nvrtc, "_multiprocessors", lambda: MULTIPROCESSORS)
    return launches


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("general", [False, True], ids=["plain", "general"])
@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype).split(".")[1])
def test_launchers_of_the_logits_operations_equal_the_cpu_and_nvrtcs_plans(
    launchers: Launchers, planned: list, dtype: torch.dtype, general: bool, splits: int
) -> None:
    case = Case(dtype, general)
    expected, got = case.run(ON_CPU, 1), case.run(launchers, splits)
    case.run(BY_NVRTC, splits)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for name, value in expected.items():
        relative = tolerance if name == "dlogits" else min(tolerance, 1e-5)
        torch.testing.assert_close(
            got[name].double(), value.double(), rtol=relative, atol=relative * 1e-2, equal_nan=True
        )
    assert launchers.launches == planned
    assert len(planned) == (4 if splits > 1 else 3)


def test_the_launcher_of_merge_states_equals_the_cpu_and_nvrtcs_plan(launchers: Launchers, planned: list) -> None:
    generator = torch.Generator().manual_seed(3)
    partial = torch.rand(3, 5, 700, generator=generator, dtype=torch.float64) * 5
    inverse = torch.rand(700, generator=generator, dtype=torch.float64) + 0.5
    results = []
    for kernels in (ON_CPU, launchers, BY_NVRTC):
        states = torch.full((5, 700), torch.nan, dtype=torch.float64)
        state = (states.data_ptr(), 700, states[4].data_ptr())
        kernels["merge_states"](partial.data_ptr(), 3, 700, inverse.data_ptr(), 1.0, *state)
        results.append(states)
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=0.0, equal_nan=True)
    assert launchers.launches == planned
    assert len(planned) == 1


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_launchers_of_teca_equal_the_cpu_and_nvrtcs_plans(
    launchers: Launchers, planned: list, real: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    entropy, grad_teca = (torch.rand(3, 700, generator=generator, dtype=real) for _ in range(2))
    grad_last = torch.rand(3, generator=generator, dtype=real)
    results = []
    for kernels in (ON_CPU, launchers, BY_NVRTC):
        teca, grad_entropy, last = torch.empty_like(entropy), torch.empty_like(entropy), torch.empty_like(grad_last)
        shared = (real == torch.float64, 3, 700, 0, 0)
        kernels["teca_forward"](*shared, entropy.data_ptr(), teca.data_ptr(), last.data_ptr())
        kernels["teca_backward"](*shared, grad_teca.data_ptr(), grad_last.data_ptr(), grad_entropy.data_ptr())
        results.append((teca, last, grad_entropy))
    for expected, got in zip(*results[:2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6 if real == torch.float32 else 1e-13, atol=0.0)
    assert launchers.launches == planned
    assert len(planned) == 2


def test_the_error_of_a_launch_is_raised_with_its_name(launchers: Launchers) -> None:
    launchers.library.set_device(MULTIPROCESSORS, True)
    with pytest.raises(RuntimeError, match="fold_tile: cudaErrorInvalidConfiguration: invalid configuration argument"):
        Case(torch.float32, general=False).run(launchers, 1)
    assert launchers.launches == []


def test_launchers_refuse_what_has_no_kernel_and_launch_nothing_for_no_rows(launchers: Launchers) -> None:
    arguments = [0, 1, 1, 1, 1, 0, 0, 1.0, 0.0, 0, 1.0, 0, IGNORE, 0, 0, 0, 0, 0, 0, 0, 1]
    with pytest.raises(RuntimeError, match="no kernel from dtype code 1 to dtype code 0"):
        launchers["grad_tile"](*arguments)
    with pytest.raises(RuntimeError, match="splits is 2, and more than one needs `partial`"):
        launchers["fold_tile"](0, 0, 1, 10, 10, 0, 0, 1.0, 0.0, 0, 1.0, 0, 0, 0, 0, True, rest=(0, 2))
    launchers["teca_forward"](False, 0, 0, 0, 0, 0, 0, 0)
    assert launchers.launches == []
