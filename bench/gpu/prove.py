"""Proves and measures the CUDA side on one NVIDIA GPU: `python -m bench.gpu.prove --output DIR`.

Needs Linux, nvcc, and a python with torch, pytest, hypothesis, pybind11, cmake and ninja; no network. The stages, each
a process of its own that is stopped after --minutes:

    build      the wheel, from this tree, for the GPU that is here; installed beside the environment, not into it
    tests      streams, graphs, devices, memory (test_cuda_device.py), then the value tests of cer_ext, on the GPU
    nvrtc      the same wheel without CUDA: kernels compiled at first use through CuPy, the same tests
    sanitizer  memcheck, racecheck, initcheck, synccheck over small cases
    logits     from_logits and TECA beside plain torch, torch.compile, TRL's fold and the copy bandwidth
    head       from_hidden beside every head of bench/peers.py and the bare GEMM

Everything is written to DIR/result.json after every stage (device, driver, clocks, versions, commit, outcome and
numbers); a short table is printed last. Exit code 1 if a stage failed. --dry-run rehearses all of it on a machine
without a GPU: it builds with CUDA, collects the tests, runs the small cases and tiny shapes on the CPU; only the
launches are missing.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import records
from bench.machine import PEERS, output_of, versions
from bench.table import table as benchmark_table

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("build", "tests", "nvrtc", "sanitizer", "logits", "head")
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TESTS = "tests/cer_ext"
DEVICE_TESTS = f"{TESTS}/test_cuda_device.py"
BENCHMARKS = {
    "logits": ("bench/bench_from_logits.py", "bench/bench_teca.py"),
    "head": ("bench/bench_from_hidden.py",),
}


class Proof:
    """One run: where it works, what it found."""

    def __init__(self, output: Path, minutes: float, dry_run: bool) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.seconds, self.dry_run = output.resolve(), 60 * minutes, dry_run
        self.work = Path(tempfile.mkdtemp(prefix="cer_ext-prove-"))
        self.result: dict = {"machine": machine(), "commit": commit(), "dry_run": dry_run, "stages": {}}
        for part in ("bench", "tests"):  # the package itself is imported from the wheel, never from the tree
            shutil.copytree(ROOT / part, self.work / part, ignore=shutil.ignore_patterns("__pycache__"))
        (self.work / "csrc").symlink_to(ROOT / "csrc")
        shutil.copy(ROOT / "pyproject.toml", self.work)

    def run(self, *command, site: str = "site", log: str, **environment: str) -> tuple[int, str]:
        """One bounded process; its output goes to DIR/LOG.log. Returns (exit code, last lines)."""
        # The wheel first; peers may lie on the caller's path.
        search = os.pathsep.join(filter(None, [str(self.work / site), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1", **environment}
        path = self.output / f"{log}.log"
        with path.open("w") as stream:
            try:
                code = subprocess.run(
                    [str(part) for part in command],
                    cwd=self.work,
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=self.seconds,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        return code, "\n".join(path.read_text(errors="replace").splitlines()[-15:])

    def build(self) -> dict:
        cuda = self.build_wheel("site", "on")
        return {"ok": cuda[0] == 0, "tail": cuda[1]}

    def build_wheel(self, site: str, cuda: str) -> tuple[int, str]:
        arguments = [] if self.dry_run or cuda == "off" else [f"-DCMAKE_CUDA_ARCHITECTURES={architecture()}"]
        pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--target")
        log = f"build-{site}"
        return self.run(*pip, self.work / site, ROOT, log=log, CER_CUDA=cuda, CMAKE_ARGS=" ".join(arguments))

    def pytest(self, site: str, log: str) -> dict:
        """What only a GPU can show, then the values."""
        selection = ("--collect-only", "-q") if self.dry_run else ("-k", "cuda", "-q", "--maxfail=20")
        outcome = {"ok": True, "tail": ""}
        for part, where in (("device", (DEVICE_TESTS,)), ("values", (TESTS, f"--ignore={DEVICE_TESTS}"))):
            command = (sys.executable, "-m", "pytest", *where, "-p", "no:cacheprovider", *selection)
            code, tail = self.run(*command, site=site, log=f"{log}-{part}")
            outcome["ok"] &= code == 0
            outcome["tail"] += tail + "\n"
        return outcome

    def tests(self) -> dict:
        return self.pytest("site", "tests")

    def nvrtc(self) -> dict:
        code, tail = self.build_wheel("site-nvrtc", "off")
        return self.pytest("site-nvrtc", "nvrtc") if code == 0 else {"ok": False, "tail": tail}

    def sanitizer(self) -> dict:
        cases = (sys.executable, "-m", "bench.gpu.sanitizer_cases")
        if self.dry_run:
            code, tail = self.run(*cases, log="sanitizer")
            return {"ok": code == 0, "tail": tail}
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            return {"ok": False, "tail": "compute-sanitizer is not on PATH"}
        outcome: dict = {"ok": True, "tools": {}}
        for name in SANITIZER_TOOLS:
            # Only our kernels (namespace cer): torch's own trip initcheck and are not ours to prove.
            options = ("--tool", name, "--error-exitcode", "1", "--kernel-regex", "kns=cer")
            command = (tool, *options, *cases)
            code, tail = self.run(*command, log=f"sanitizer-{name}", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            outcome["tools"][name] = {"ok": code == 0, "tail": tail}
            outcome["ok"] &= code == 0
        return outcome

    def benchmark(self, part: str) -> dict:
        file = self.output / f"{part}.json"
        budget = max(1.0, self.seconds / 60 - 1.5)
        command = [sys.executable, "-m", "pytest", *BENCHMARKS[part], "--benchmark-json", file, "--minutes", budget]
        command += ["-q", "-p", "no:cacheprovider"]
        if self.dry_run:
            command += ["--size", "smoke", "--rounds", 1, "--device", "cpu"]
        code, tail = self.run(*command, log=part)
        numbers = json.loads(file.read_text()) if file.exists() else {}
        return {"ok": code == 0 and bool(numbers.get("benchmarks")), "tail": tail, **numbers}

    def logits(self) -> dict:
        return self.benchmark("logits")

    def head(self) -> dict:
        return self.benchmark("head")

    def stage(self, name: str) -> bool:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        outcome = getattr(self, name)()
        outcome["seconds"] = round(time.monotonic() - start, 1)
        self.result["stages"][name] = outcome
        temporary = self.output / "result.tmp"
        temporary.write_text(json.dumps(self.result, indent=1))
        temporary.replace(self.output / "result.json")
        if not outcome["ok"]:
            print(outcome.get("tail", ""), flush=True)
        return outcome["ok"]


def commit() -> str | None:
    return output_of("git", "rev-parse", "HEAD", cwd=ROOT)


def machine() -> dict:
    """Device, driver, clocks and versions, as the tools here report them."""
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    return {
        "gpu": output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "nvcc": (output_of("nvcc", "--version") or "").splitlines()[-1:],
        "python": platform.python_version(),
        "packages": versions("torch", *PEERS, "cupy-cuda13x", "cupy-cuda12x"),
    }


def architecture() -> str:
    """The real architecture of the GPU that is here, e.g. "90a-real"."""
    reported = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    capability = reported.splitlines()[0].replace(".", "")
    return f"{capability}a-real" if capability == "90" else f"{capability}-real"


def table(result: dict) -> str:
    lines = [f"{'stage':<10} {'outcome':<8} seconds"]
    for name, outcome in result["stages"].items():
        lines.append(f"{name:<10} {'ok' if outcome['ok'] else 'FAILED':<8} {outcome['seconds']}")
    for part in BENCHMARKS:
        stage = result["stages"].get(part, {})
        if stage.get("benchmarks"):
            lines += ["", benchmark_table(records.results(part, stage))]
        lines += [f"not here: {name}: {reason}" for name, reason in stage.get("peers_not_here", {}).items()]
        lines += [f"left out: {text}" for text in stage.get("left_out", [])]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-proof"), help="directory for result.json and the logs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all")
    parser.add_argument("--minutes", type=float, default=9.5, help="limit of one stage's process")
    parser.add_argument("--dry-run", action="store_true", help="rehearse without a GPU")
    args = parser.parse_args()
    if not args.dry_run and output_of("nvidia-smi", "-L") is None:
        parser.error("no NVIDIA GPU here (nvidia-smi -L fails); --dry-run rehearses without one")
    proof = Proof(args.output, args.minutes, args.dry_run)
    try:
        outcomes = [proof.stage(name) for name in args.stages]
    finally:
        shutil.rmtree(proof.work, ignore_errors=True)
    print(table(proof.result))
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
