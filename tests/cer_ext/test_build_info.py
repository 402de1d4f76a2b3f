"""build_info and the package's face: what it says, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import torch

import cer_ext
from cer_ext import _C, build_info


def runs_here(isa: str) -> bool:
    """Whether the operating system says that this processor has what the instruction set needs (x86-64, Linux)."""
    needed = {"baseline": (), "avx2": ("avx2", "fma", "bmi2"), "avx512": ("avx512f", "avx512dq", "avx512vl")}
    needed["avx512bf16"] = (*needed["avx512"], "avx512_bf16")
    needed["amxbf16"] = (*needed["avx512bf16"], "amx_tile", "amx_bf16")
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(needed[isa]) <= set(flags[1].split() if flags else ())


def test_build_info_says_what_was_built_and_what_will_be_used():
    info = build_info()
    assert re.fullmatch(r"(gcc|GNU|[Cc]lang|AppleClang)\S* \d+\.\d.*", info["compiler"])
    assert "-O3" in info["cpp_flags"]
    assert info["cpu_isas"][0] == "baseline"
    assert info["cpu_isas_runnable"] == [isa for isa in info["cpu_isas"] if runs_here(isa)]
    assert info["cuda"] == hasattr(_C, "cuda_fold_tile") == bool(info["cuda_archs"])
    assert info["version"] == cer_ext.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu_isa"] in info["cpu_isas_runnable"]
    assert info["cpu_isa"] in info["cpu_backend"]
    if not torch.cuda.is_available():
        assert "sees no CUDA device" in info["cuda_backend"]


def test_build_info_prints_one_line_per_entry():
    info = build_info()
    lines = str(info).splitlines()
    assert [line.split()[0] for line in lines] == list(info)


def test_version_is_the_one_of_the_project():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert re.search(r'^version = "(.*)"$', project.read_text(), re.MULTILINE)[1] == cer_ext.__version__


def test_importing_loads_neither_compilers_nor_other_array_libraries():
    code = "import sys, torch; before = set(sys.modules); import cer_ext; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(eval(done.stdout))  # a list of names that this test printed
    unwanted = {"torch._dynamo", "torch._inductor", "cupy", "numpy", "triton", "cer_ext.nvrtc"}
    assert not new & unwanted
    assert done.stderr == ""


def test_importing_does_not_initialise_cuda():
    code = "import torch, cer_ext; cer_ext.build_info(); print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
