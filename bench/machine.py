"""The machine that numbers were measured on: device, driver, versions; nothing that names its owner."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PEERS = ("trl", "transformers", "triton", "liger-kernel", "cut-cross-entropy", "verl", "quack-kernels")


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def output_of(*command: str, cwd: Path | None = None) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """The model name as Linux gives it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gpu() -> dict:
    import torch

    properties = torch.cuda.get_device_properties(0)
    found = {"name": properties.name, "memory_bytes": properties.total_memory}
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    answer = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0")
    return found | (dict(zip(query.split(","), answer.split(", "), strict=False)) if answer else {})


def machine_info(device: torch.device, *, rehearsal: bool) -> dict:
    """`rehearsal`: the shapes are too small for the numbers to mean anything, and the record says so."""
    import torch

    import cer_ext  # here: bench.gpu.prove asks for versions before there is a package to import

    build = cer_ext.build_info()
    found = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cer_ext": {key: build[key] for key in ("version", "compiler", "cpu_isa", "cuda", "cuda_archs")},
        **versions(*PEERS),
    }
    if device.type == "cuda":
        found |= {"gpu": gpu(), "cuda": torch.version.cuda}
    return found | ({"rehearsal": True} if rehearsal else {})
