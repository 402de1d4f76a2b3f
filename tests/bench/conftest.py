"""What the benchmarks write, made by the benchmarks themselves: once a session, at their smallest size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is not part of the package; last, so that an installed cer_ext comes first


@pytest.fixture(scope="session")
def committed() -> Path:
    """The published numbers."""
    return ROOT / "bench" / "results" / "cpu-epyc-zen4.json"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """From_logits forward in float32 and TECA, two rounds."""
    path = tmp_path_factory.mktemp("pytest") / "small.json"
    files = ("bench/bench_from_logits.py", "bench/bench_teca.py")
    return run(path, *files, "--rounds", "2", "-k", "forward and not bfloat16")


@pytest.fixture(scope="session")
def head_run(tmp_path_factory) -> Path:
    """The head in bfloat16, one round."""
    return run(tmp_path_factory.mktemp("head") / "head.json", "bench/bench_from_hidden.py", "-k", "bfloat16")


@pytest.fixture(scope="session")
def dead_run(tmp_path_factory) -> Path:
    """Steps of a trained bfloat16 head with dead rows, 20 tokens, timed by the CPU's clock."""
    options = ("-k", "bfloat16 and trained", "--clock", "cpu", "--tokens", "20")
    return run(tmp_path_factory.mktemp("dead") / "dead.json", "bench/bench_dead_rows.py", *options)


@pytest.fixture
def run_bench(tmp_path):
    return lambda *arguments: run(tmp_path / "run.json", *arguments)


def run(path: Path, *arguments: str) -> Path:
    options = ("--size", "smoke", "--rounds", "1", "--device", "cpu", "-q", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *options, *arguments, f"--benchmark-json={path}"]
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # how fast anything is does not matter: nothing is compiled
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]
    path.with_suffix(".txt").write_text(done.stdout)
    return path
