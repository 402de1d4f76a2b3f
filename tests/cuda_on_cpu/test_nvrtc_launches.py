"""cer_ext.nvrtc launches the right kernel with the right plan and parameters.

The driver's place is taken by the emulation of a GPU's blocks on this CPU, which reads the parameters from the same
addresses; what comes out must be what the CPU kernels give for the same arguments.
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from kernel_programs import compile_library
from torch import Tensor

from cer_ext import _C, nvrtc

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
IGNORE = -100


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it compiles the kernels for the CPU")
    library: Path = compile_library("emulated_kernels", tmp_path_factory.mktemp("emulated"))
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_bool
    loaded.emulate.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
    return loaded


@pytest.fixture
def on_cpu(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Launches go to the emulation; the names of the kernels launched."""
    launched: list[str] = []

    def start(name: str, blocks: int, threads: int, stream: int, addresses: int) -> None:
        assert stream == STREAM
        launched.append(name)
        assert emulated.emulate(name.encode(), blocks, threads, 1, addresses), name

    monkeypatch.setattr(nvrtc, "_start", start)
    monkeypatch.setattr(nvrtc, "_multiprocessors", lambda: 4)
    return launched


STREAM = 12345


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Case:
    """One tile of logits and everything that goes with it."""

    def __init__(self, dtype: torch.dtype, general: bool, rows: int = 7, cols: int = 333) -> None:
        generator = torch.Generator().manual_seed(rows * cols)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        self.rows, self.cols, self.dtype, self.real = rows, cols, dtype, real
        self.padded = torch.randn(rows, cols + 3, generator=generator, dtype=torch.float64).mul(3).to(dtype)
        self.target = torch.randint(cols, (rows,), generator=generator)
        self.target[1] = IGNORE
        self.bias = torch.randn(cols, generator=generator, dtype=real) if general else None
        self.inverse_temperature = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5 if general else None
        self.scale, self.softcap, self.inverse_all = (0.7, 20.0, 1.0) if general else (1.0, 0.0, 0.8)
        self.gradients = [torch.randn(rows, generator=generator, dtype=real) for _ in range(3)]

    def tile(self, logits: Tensor) -> tuple:
        return (
            logits.data_ptr(),
            CODES[self.dtype],
            self.rows,
            self.cols,
            logits.stride(0),
            0,
            address(self.bias),
            self.scale,
            self.softcap,
            address(self.inverse_temperature),
            self.inverse_all,
            self.target.data_ptr(),
        )

    def run(self, kernels: dict, splits: int) -> dict[str, Tensor]:
        """Every operation, from the logits to dlogits in place."""
        states = torch.full((5, self.rows), torch.nan, dtype=torch.float64)
        partial = torch.full((splits, 5, self.rows), torch.nan, dtype=torch.float64)
        outputs = {
            name: torch.full((self.rows,), torch.nan, dtype=self.real) for name in ("logprobs", "entropy", "lse")
        }
        outputs["stats"] = torch.full((3, self.rows), torch.nan, dtype=torch.float64)
        logits = self.padded.clone()
        state = (states.data_ptr(), self.rows, states[4].data_ptr())
        kernels["fold_tile"](*self.tile(logits), *state, True, rest=(partial.data_ptr(), splits))
        kernels["finish_rows"](
            *state,
            self.rows,
            self.target.data_ptr(),
            IGNORE,
            self.cols,
            address(self.inverse_temperature),
            self.inverse_all,
            self.real == torch.float64,
            *(outputs[name].data_ptr() for name in ("logprobs", "entropy", "lse", "stats")),
            self.rows,
        )
        kernels["grad_tile"](
            *self.tile(logits),
            IGNORE,
            outputs["stats"].data_ptr(),
            self.rows,
            *(gradient.data_ptr() for gradient in self.gradients),
            logits.data_ptr(),
            CODES[self.dtype],
            logits.stride(0),
        )
        return outputs | {"dlogits": logits}


NAMES = ("fold_tile", "merge_states", "finish_rows", "grad_tile", "teca_forward", "teca_backward")
ON_CPU = {name: lambda *a, rest=(), name=name: getattr(_C, f"cpu_{name}")(*a, 1) for name in NAMES}
BY_NVRTC = {name: lambda *a, rest=(), name=name: getattr(nvrtc, name)(*a, *rest, STREAM) for name in NAMES}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("general", [False, True], ids=["plain", "general"])
@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype).split(".")[1])
def test_logits_operations_equal_those_of_the_cpu(
    on_cpu: list[str], dtype: torch.dtype, general: bool, splits: int
) -> None:
    case = Case(dtype, general)
    expected, got = case.run(ON_CPU, 1), case.run(BY_NVRTC, splits)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
    for name, value in expected.items():
        relative = tolerance[dtype] if name == "dlogits" else min(tolerance[dtype], 1e-5)
        torch.testing.assert_close(
            got[name].double(),
            value.double(),
            rtol=relative,
            atol=relative * 1e-2,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    assert len(on_cpu) == (4 if splits > 1 else 3)
    assert all(("general" if general else "plain") in name for name in on_cpu if "tile" in name)


def test_merging_the_states_of_ranks_equals_that_of_the_cpu(on_cpu: list[str]) -> None:
    """Three parts of 700 rows, one of them without columns; every target is in one part, or in none."""
    generator = torch.Generator().manual_seed(3)
    partial = torch.rand(3, 5, 700, generator=generator, dtype=torch.float64) * 5
    partial[:, 1] = partial[:, 1].ceil()  # how many entries equal the maximum
    partial[1, 0], partial[1, 1:4] = -torch.inf, 0.0
    partial[1, 4] = torch.nan
    holder = torch.randint(3, (700,), generator=generator)
    for part in (0, 2):
        partial[part, 4, holder != part] = torch.nan
    inverse = torch.rand(700, generator=generator, dtype=torch.float64) + 0.5
    results = []
    for kernels in (ON_CPU, BY_NVRTC):
        states = torch.full((5, 700), torch.nan, dtype=torch.float64)
        state = (states.data_ptr(), 700, states[4].data_ptr())
        kernels["merge_states"](partial.data_ptr(), 3, 700, inverse.data_ptr(), 1.0, *state)
        results.append(states)
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=0.0, equal_nan=True)
    assert torch.equal(results[0][4].isnan(), holder == 1)
    m, c, r = results[0][:3]
    d = [(m - part[0]) * inverse for part in partial]
    total = sum((part[1] + part[2]) * torch.exp(-distance) for part, distance in zip(partial, d, strict=True))
    torch.testing.assert_close(c + r, total, rtol=1e-14, atol=0.0)
    assert on_cpu == ["cer_merge_states"]


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["padded", "masked", "packed"])
def test_teca_operations_equal_those_of_the_cpu(on_cpu: list[str], form: str, real: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    entropy, grad_teca = (torch.rand(3, 700, generator=generator, dtype=real) for _ in range(2))
    grad_last = torch.rand(3, generator=generator, dtype=real)
    mask = (torch.rand(3, 700, generator=generator) < 0.7).to(torch.uint8) if form == "masked" else None
    cu_seqlens = torch.tensor([0, 900, 900, 2100]) if form == "packed" else None
    results = []
    for kernels in (ON_CPU, BY_NVRTC):
        teca, grad_entropy, last = torch.empty_like(entropy), torch.empty_like(entropy), torch.empty_like(grad_last)
        shared = (real == torch.float64, 3, 700, address(cu_seqlens), address(mask))
        kernels["teca_forward"](*shared, entropy.data_ptr(), teca.data_ptr(), last.data_ptr())
        kernels["teca_backward"](*shared, grad_teca.data_ptr(), grad_last.data_ptr(), grad_entropy.data_ptr())
        results.append((teca, last, grad_entropy))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6 if real == torch.float32 else 1e-13, atol=0.0)
    assert len(on_cpu) == 2


def test_float32_logits_give_bfloat16_gradients_in_another_buffer(on_cpu: list[str]) -> None:
    case = Case(torch.float32, general=False)
    stats = case.run(ON_CPU, 1)["stats"]
    results = []
    for kernels in (ON_CPU, BY_NVRTC):
        dlogits = torch.full((case.rows, case.cols), torch.nan, dtype=torch.bfloat16)
        kernels["grad_tile"](
            *case.tile(case.padded),
            IGNORE,
            stats.data_ptr(),
            case.rows,
            *(gradient.data_ptr() for gradient in case.gradients),
            dlogits.data_ptr(),
            CODES[torch.bfloat16],
            case.cols,
        )
        results.append(dlogits.float())
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-9)
    assert on_cpu == ["cer_grad_tile_float32_bfloat16_plain"]


def test_nothing_is_launched_for_no_rows(on_cpu: list[str]) -> None:
    nvrtc.teca_forward(False, 0, 0, 0, 0, 0, 0, 0, STREAM)
    nvrtc.fold_tile(0, 0, 0, 10, 10, 0, 0, 1.0, 0.0, 0, 1.0, 0, 0, 0, 0, True, 0, 1, STREAM)
    assert on_cpu == []


def test_a_pair_of_dtypes_without_a_kernel_is_refused(on_cpu: list[str]) -> None:
    arguments = [0, 1, 1, 1, 1, 0, 0, 1.0, 0.0, 0, 1.0, 0, IGNORE, 0, 0, 0, 0, 0, 0, 0, 1, STREAM]
    with pytest.raises(RuntimeError, match="no kernel from dtype code 1 to dtype code 0"):
        nvrtc.grad_tile(*arguments)


def test_every_kernel_there_is_can_be_launched(emulated: ctypes.CDLL) -> None:
    """kernel_names() against the list of the emulation: an unknown name is refused."""
    assert not emulated.emulate(b"cer_unknown", 1, 32, 1, None)
    source = (Path(__file__).parent / "emulated_kernels.cpp").read_text(encoding="utf-8")
    assert sorted(nvrtc.kernel_names()) == sorted(part.split(")")[0] for part in source.split("KERNEL(")[2:])
