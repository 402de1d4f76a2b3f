"""What only a packaged build can show: wheel, sdist, editable and repeated installs, both compilers, the CUDA option.

Every build runs in an isolated environment without torch, from a copy of the tree, CPU only unless the test says so.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cer_ext import _C

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["csrc", "cer_ext", "trainer", "setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "LICENSE"]
PARTS += ["README.md", "constraints.txt", "cer_commands.py"]
SCRIPTS = ["cer-grpo", "cer-evaluate", "cer-report", "cer-plots", "cer-merge-lora", "cer-experiment"]

USE = """
import torch, cer_ext
assert cer_ext.__file__.startswith({where!r}), cer_ext.__file__
logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
logprobs, entropy = cer_ext.logprobs_and_entropy(logits, torch.tensor([2]))
p = logits.softmax(-1)
assert abs(logprobs.item() - p[0, 2].log().item()) < 1e-12
assert abs(entropy.item() + (p * p.log()).sum().item()) < 1e-12
print(cer_ext.build_info())
"""


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=environment.pop("cwd", "/"),
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a clone holds, without anything that was built in it."""
    copy = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / part, copy / part)
    return copy


def wheel_of(source: Path, destination: Path, **environment: str) -> Path:
    run(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "-w", destination, **environment)
    (wheel,) = destination.glob("*.whl")
    return wheel


def use_wheel(wheel: Path, where: Path) -> str:
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", where, wheel)
    return run(sys.executable, "-c", USE.format(where=str(where)), PYTHONPATH=str(where))


def test_wheel_is_complete_small_and_runs(tree, tmp_path):
    wheel = wheel_of(tree, tmp_path / "wheel", CER_CUDA="off")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size < 3_000_000
    assert [name for name in names if name.startswith("cer_ext/_C")], names
    for source in [*(tree / "csrc").glob("*.h"), *(tree / "csrc/cuda").glob("*.cuh")]:
        assert f"cer_ext/{source.relative_to(tree)}" in names, f"{source.name}: NVRTC would not find it"
    scripts = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert re.findall(r"^(cer-[a-z-]+) = cer_commands:", scripts, re.MULTILINE) == sorted(SCRIPTS)
    assert "cer_commands.py" in names
    assert {"cer_ext/py.typed", "cer_ext/_C.pyi"} <= set(names), "type checkers would not see the package's types"
    for recipe in (tree / "trainer").rglob("*.yaml"):
        assert str(recipe.relative_to(tree)) in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]
    assert not (tree / "build").exists(), "the build left files in the tree"
    assert "baseline" in use_wheel(wheel, tmp_path / "site")
    # `pip install . && python -m trainer.grpo` in a clone: Python finds the tree first, the installed kernels too.
    run(sys.executable, "-c", USE.format(where=str(tree)), cwd=str(tree), PYTHONPATH=str(tmp_path / "site"))


def test_second_build_of_the_same_tree_works_and_sdist_makes_the_same_files(tree, tmp_path):
    first = wheel_of(tree, tmp_path / "first", CER_CUDA="off", CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Debug")
    make = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    name = run(sys.executable, "-c", make, cwd=str(tree)).strip().splitlines()[-1]
    second = wheel_of(tmp_path / name, tmp_path / "second", CER_CUDA="off")
    assert sorted(zipfile.ZipFile(first).namelist()) == sorted(zipfile.ZipFile(second).namelist())


def test_editable_install_imports_from_the_tree_and_brings_the_console_scripts(tree, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site, outer = (
        Path(run(each, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
        for each in (python, sys.executable)
    )
    for package in outer.iterdir():  # torch and the rest of the environment that runs the tests, but not cer_ext
        if not (site / package.name).exists() and "cer_ext" not in package.name and package.name != "trainer":
            (site / package.name).symlink_to(package)
    run(python, "-m", "pip", "install", "--no-deps", "-e", tree, CER_CUDA="off")
    run(python, "-c", USE.format(where=str(tree)))
    found = sorted(path.name for path in (tmp_path / "venv/bin").glob("cer-*"))
    assert found == sorted(SCRIPTS)
    for script in SCRIPTS:
        module = f"trainer.{script.removeprefix('cer-').replace('-', '_')}"
        text = run(tmp_path / "venv/bin" / script, "--help")
        assert f"python -m {module}" in text, f"{script} answers as another command"
        assert "--output" in text or script == "cer-report"


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ here")
def test_builds_with_clang(tree, tmp_path):
    wheel = wheel_of(tree, tmp_path / "wheel", CER_CUDA="off", CC="clang", CXX="clang++")
    assert "Clang" in use_wheel(wheel, tmp_path / "site")


def test_cuda_required_but_absent_fails_and_says_so(tree, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "-w", str(tmp_path)],
        env={**os.environ, "CER_CUDA": "on", "CUDACXX": "/nowhere/nvcc"},
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0
    assert "no nvcc was found" in done.stdout + done.stderr


def test_an_unknown_cuda_option_is_refused(tree, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "-w", str(tmp_path)],
        env={**os.environ, "CER_CUDA": "maybe"},
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0
    assert "auto, on or off" in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_cuda_build_loads_without_a_driver(tree, tmp_path):
    """The runtime is static, so importing needs no CUDA library at all."""
    native = Path(_C.__file__)
    if not _C.build()["cuda"]:  # what is installed was built without: one architecture, to stay short
        wheel = wheel_of(tree, tmp_path / "wheel", CER_CUDA="on", CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=90a-real")
        assert "90a" in use_wheel(wheel, tmp_path / "site")
        (native,) = (tmp_path / "site/cer_ext").glob("_C*")
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", native))
    assert needed
    assert not [library for library in needed if "cuda" in library or "nv" in library], needed
