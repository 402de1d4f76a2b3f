"""Which kernels can serve the NVIDIA GPUs that are here, and if none, what to install.

In: what was built (toolkit, architectures), what the driver says, which CuPy is installed. Out: "native", "nvrtc" or
None, and the reason. The driver is asked through its own library: for its version and the capabilities of the devices,
which makes no context and allocates nothing.

    driver        a CUDA 13 build starts on drivers for CUDA 13 or newer (580) alone: majors must not go back
    capability    machine code runs on its own major, from its minor on (sm_80: 8.0, 8.6, 8.9; sm_90a: 9.0 alone), PTX
                  on every newer device
    CuPy          compiles the same kernels for the device that is here: the way out of both, if it fits the driver
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import re
from typing import NamedTuple

BFLOAT16_CAPABILITY = (8, 0)  # of the instruction that rounds to it


class Driver(NamedTuple):
    version: tuple[int, int]  # of CUDA, the newest that it runs
    capabilities: tuple[tuple[int, int], ...]  # of the visible devices


@functools.cache
def driver() -> Driver | None:
    """None where there is no NVIDIA driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, count, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    capabilities = []
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
        for device in range(count.value):
            found = []
            for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
                cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
                found.append(value.value)
            capabilities.append((found[0], found[1]))
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(capabilities))


def cupy_distribution() -> tuple[str, str] | None:
    """(name, version) of an installed CuPy, whatever CUDA it is built for; it is not imported."""
    if importlib.util.find_spec("cupy") is None:
        return None
    for name in importlib.metadata.packages_distributions().get("cupy", ()):
        return name, importlib.metadata.version(name)
    return "cupy", "unknown"


def has_code_for(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for these architectures ("80-real 90a-real 100-virtual") runs on a device."""
    for number, exact, kind in re.findall(r"(\d+)([af]?)-?(real|virtual)?", architectures):
        built = int(number[:-1]), int(number[-1])
        if exact:
            fits = built == capability
        else:
            on_its_major = built[0] == capability[0] and built[1] <= capability[1]
            fits = (kind != "virtual" and on_its_major) or (kind != "real" and built <= capability)
        if fits:
            return True
    return False


def choose_kernels(
    toolkit: str | None, architectures: str, here: Driver | None, cupy: str | None
) -> tuple[str | None, str]:
    """Which kernels serve CUDA tensors, and why.

    `toolkit`: the CUDA version that cer_ext._C was built with, or None. `cupy`: the name of the installed distribution.
    """
    if toolkit is None:
        problem = "cer_ext._C was built without CUDA"
    elif here is None:
        return "native", "cer_ext._C was built with CUDA kernels"
    else:
        problem = _problem_of_build(toolkit, architectures, here)
        if problem is None:
            return "native", "cer_ext._C was built with CUDA kernels"

    compiles = "CuPy is installed and compiles the kernels at first use"
    if here is not None and here.capabilities and min(here.capabilities) < BFLOAT16_CAPABILITY:
        compiles += " (not the gradient of bfloat16, which needs compute capability 8.0)"
    if cupy is None:
        return None, f"{problem}, and CuPy is not installed: {_remedy(toolkit, here)}"
    made_for = re.search(r"cuda(\d+)", cupy)
    if here is not None and made_for is not None and int(made_for[1]) > here.version[0]:
        return None, f"{problem}, and {cupy} is newer than the driver, too: {_remedy(toolkit, here)}"
    return "nvrtc", f"{problem}; {compiles}"


def _problem_of_build(toolkit: str, architectures: str, here: Driver) -> str | None:
    major = int(toolkit.split(".")[0])
    if major > here.version[0]:
        return (
            f"cer_ext._C was built with CUDA {toolkit}, which needs a driver for CUDA {major}.0 or newer; the one here "
            f"is for CUDA {here.version[0]}.{here.version[1]}"
        )
    for capability in here.capabilities:
        if not has_code_for(architectures, capability):
            return (
                f"cer_ext._C was built for the architectures {architectures}, and a device here has compute capability "
                f"{capability[0]}.{capability[1]}"
            )
    return None


def _remedy(toolkit: str | None, here: Driver | None) -> str:
    extra = "cupy12" if here is not None and here.version[0] < 13 else "cupy"
    build = "install cer_ext where nvcc is found"
    if toolkit is not None and here is not None:
        build = f"build cer_ext here with the nvcc of CUDA {here.version[0]} or update the driver"
    return f"{build}, or add CuPy (pip install 'cer_ext[{extra}]') to compile the kernels at first use"
