"""Which kernels are chosen for a driver, a device and a build, and what is said where none fit."""

from __future__ import annotations

import pytest

from cer_ext import build_info, cuda_driver
from cer_ext.cuda_driver import Driver, choose_kernels, has_code_for

ARCHITECTURES = "80-real 90a-real 100-real 100-virtual"
HOPPER_13 = Driver((13, 0), ((9, 0),))
HOPPER_12 = Driver((12, 8), ((9, 0),))


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((10, 3), True),
        ((12, 0), True),
    ],
)
def test_the_wheels_architectures_serve_every_device_from_ampere_on(capability: tuple[int, int], runs: bool) -> None:
    assert has_code_for(ARCHITECTURES, capability) is runs


def test_architecture_specific_code_runs_on_its_own_device_alone() -> None:
    assert has_code_for("90a-real", (9, 0))
    assert not has_code_for("90a-real", (10, 0))
    assert not has_code_for("86-real", (8, 0))
    assert has_code_for("90-virtual", (12, 0))
    assert has_code_for("80", (9, 0))  # CMake: machine code and PTX


def test_a_build_that_fits_is_used() -> None:
    assert choose_kernels("13.0.88", ARCHITECTURES, HOPPER_13, None)[0] == "native"
    assert choose_kernels("12.8.93", ARCHITECTURES, HOPPER_13, "cupy-cuda13x")[0] == "native"
    assert choose_kernels("13.0.88", ARCHITECTURES, None, None)[0] == "native"  # no driver: nothing is launched anyway


def test_a_driver_older_than_the_toolkit_is_named_with_its_remedy() -> None:
    backend, reason = choose_kernels("13.0.88", ARCHITECTURES, HOPPER_12, None)
    assert backend is None
    assert "needs a driver for CUDA 13.0 or newer; the one here is for CUDA 12.8" in reason
    assert "nvcc of CUDA 12 or update the driver" in reason
    assert "cer_ext[cupy12]" in reason


def test_cupy_takes_over_where_the_build_cannot_run() -> None:
    backend, reason = choose_kernels("13.0.88", ARCHITECTURES, HOPPER_12, "cupy-cuda12x")
    assert backend == "nvrtc"
    assert "compiles the kernels at first use" in reason
    backend, reason = choose_kernels("13.0.88", ARCHITECTURES, HOPPER_12, "cupy-cuda13x")
    assert backend is None
    assert "cupy-cuda13x is newer than the driver" in reason


def test_a_device_without_code_is_named_with_its_capability() -> None:
    turing = Driver((13, 0), ((7, 5),))
    backend, reason = choose_kernels("13.0.88", ARCHITECTURES, turing, None)
    assert backend is None
    assert "compute capability 7.5" in reason
    backend, reason = choose_kernels("13.0.88", ARCHITECTURES, turing, "cupy-cuda13x")
    assert backend == "nvrtc"
    assert "not the gradient of bfloat16" in reason


def test_without_cuda_in_the_build_the_extra_fits_the_driver() -> None:
    assert "cer_ext[cupy12]" in choose_kernels(None, "", HOPPER_12, None)[1]
    assert "cer_ext[cupy]" in choose_kernels(None, "", HOPPER_13, None)[1]
    assert choose_kernels(None, "", HOPPER_12, "cupy-cuda12x")[0] == "nvrtc"


def test_build_info_tells_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: HOPPER_12)
    info = build_info()
    assert info["cuda_driver"] == "for CUDA 12.8"
    assert info["cuda_capabilities"] == ["9.0"]
