"""Builds the CPU side and its C++ tests with CMake, without Python in the build, and runs them through ctest.

Native with the default compiler, with what it would build if it knew fewer instruction sets, and with clang++; for
aarch64 (Grace hosts) with Debian's cross compiler, run by qemu's user-mode emulation.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-aarch64;-L;/usr/aarch64-linux-gnu"
TOOLCHAINS = {
    "default compiler": ([], []),
    # A compiler that knows no product of bfloat16, as its answers to CMake's questions would be: kernels without.
    "old compiler": ([], ["-DCER_COMPILES_avx512bf16=OFF", "-DCER_COMPILES_amxbf16=OFF"]),
    "clang++": (["clang++"], ["-DCMAKE_CXX_COMPILER=clang++"]),
    "aarch64": (
        ["aarch64-linux-gnu-g++", "qemu-aarch64"],
        [
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
            f"-DCMAKE_CROSSCOMPILING_EMULATOR={QEMU}",
        ],
    ),
}


def run(*command: str, timeout: int = 1500) -> str:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_cpp_tests_pass_and_compile_without_warnings(toolchain, tmp_path):
    tools, options = TOOLCHAINS[toolchain]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    options = [*options, "-DCER_MODULE=OFF", "-DCER_TESTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    run("cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *options)
    log = run("cmake", "--build", str(tmp_path), "--parallel", "2")
    assert "warning:" not in log, log
    tested = run("ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--parallel", "2")
    assert "100% tests passed" in tested
