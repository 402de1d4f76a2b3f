"""Interleaved timing: one round of every variant in turn, so that a busy neighbour slows them all alike.

In: calls by name, a device, a number of rounds. Out: medians and their spread in seconds, on CUDA the memory one call
adds, and for what could not run the reason. The same code on every device: only the clock differs.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Variant = Callable[[], object]

# OpenMP's threads spin for some milliseconds after a parallel region and would take a core from whoever runs next.
SETTLE_S = 0.02
WARM_UPS = 2  # the second shows the memory without one-time work: module loads, autotuning


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds."""

    each_s: list[float]  # sorted
    peak_bytes: int | None  # device memory of one call beyond what was allocated before it, results included

    @property
    def median_s(self) -> float:
        return statistics.median(self.each_s)

    @property
    def spread_s(self) -> tuple[float, float]:
        """The 20th and the 80th percentile."""
        last = len(self.each_s) - 1
        return self.each_s[int(0.2 * last)], self.each_s[round(0.8 * last)]


def reason(error: Exception) -> str:
    """What a failure says, in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def seconds_of(run: Variant, device: torch.device) -> float:
    """One call, until the device has finished it."""
    if device.type != "cuda":
        time.sleep(SETTLE_S)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_bytes(run: Variant, device: torch.device) -> int | None:
    """Device memory that one call allocates at its highest point. None on a CPU, where nobody counts it."""
    if device.type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def interleave(
    variants: dict[str, Variant], device: torch.device, rounds: int, before_each: Variant | None = None
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times every variant `rounds` times in turn, after two warm-ups each.

    Args:
        before_each: untimed, before every single call (restores inputs that the call destroys).

    Returns:
        Timings by name, and for the variants that could not run (out of memory, unsupported shape) the reason by name.
    """
    prepare = before_each or (lambda: None)
    memory, failures = {}, {}
    for name, run in variants.items():
        try:
            for _ in range(WARM_UPS):
                prepare()
                memory[name] = peak_bytes(run, device)
        except Exception as error:  # a peer's own limits: named in the result, never hidden
            memory.pop(name, None)
            failures[name] = reason(error)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {name: [] for name in memory}
    for _ in range(rounds):
        for name, times in samples.items():
            prepare()
            times.append(seconds_of(variants[name], device))
    return {name: Timing(sorted(times), memory[name]) for name, times in samples.items()}, failures
