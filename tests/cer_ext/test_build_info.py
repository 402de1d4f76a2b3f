"""build_info and the package's face: what it says, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import torch

import cer_ext
from cer_ext import _C, build_info


def test_build_info_says_what_was_built_and_what_will_be_used():
    info = build_info()
    native = _C.build()
    assert {k: info[k] for k in native} == native
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
