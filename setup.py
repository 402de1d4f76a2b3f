"""Builds cer_ext._C: setuptools drives CMakeLists.txt (Ninja). Metadata lives in pyproject.toml.

CER_CUDA=auto (default)  CUDA kernels where nvcc is found, else a CPU build and one line that says so
CER_CUDA=on              CUDA kernels, or the build fails
CER_CUDA=off             CPU only, nvcc or not
CMAKE_ARGS               further arguments for CMake, e.g. -DCMAKE_CUDA_ARCHITECTURES=90a-real

All intermediate files lie in a temporary directory: a build/ left in the tree would keep the deleted isolated build
environment's ninja in its CMake cache (and fail the second install), and stale modules in its lib/.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
KERNEL_SOURCES = ["csrc/*.h", "csrc/cuda/*.cuh", "csrc/cuda/*.h"]  # what NVRTC compiles at first use


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("CER_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"CER_CUDA must be auto, on or off, not {cuda!r}")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        import pybind11

        with tempfile.TemporaryDirectory(prefix="cer_ext-build-") as build:
            configure = [
                *("cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja"),
                f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
                f"-DCER_CUDA={cuda.upper()}",
                f"-DCER_OUTPUT_DIRECTORY={output}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            ]
            if ninja := shutil.which("ninja"):
                configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
            subprocess.run(configure, check=True)
            jobs = ["--parallel", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else ["--parallel"]
            subprocess.run(["cmake", "--build", build, *jobs], check=True)


class BuildPyWithKernelSources(build_py):
    """Ships the device code inside the package, where cer_ext.nvrtc finds it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # cer_ext.nvrtc reads csrc/ beside the package
        for pattern in KERNEL_SOURCES:
            for source in ROOT.glob(pattern):
                target = Path(self.build_lib) / "cer_ext" / source.relative_to(ROOT)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


scratch = tempfile.TemporaryDirectory(prefix="cer_ext-setuptools-")
setup(
    ext_modules=[Extension("cer_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPyWithKernelSources},
    options={"build": {"build_base": scratch.name}},
)
