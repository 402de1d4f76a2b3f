"""Interleaved timing: one round of every variant in turn, so that a busy neighbour slows them all alike.

In: calls by name, a device. Out: medians and their spread in seconds, on CUDA the memory one call
adds, and for what could not run the reason. The same code on every device: only the clock differs.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class StreamMoment:
    """A moment on the current CUDA stream: the difference of two is the seconds between them on the device."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: StreamMoment) -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


# What tells the time of work on a CPU. On a machine that others use too, time.process_time, the CPU seconds of this
# process's threads, does not count the waits for them (bench/conftest.py: --clock cpu).
cpu_clock: Callable[[], float] = time.perf_counter


def clock(device: torch.device) -> Callable[[], Any]:
    """What tells the time of work on a device; pytest-benchmark takes the same one for ours."""
    return StreamMoment if device.type == "cuda" else cpu_clock


def settle(device: torch.device) -> None:
    """Let the threads of whoever ran last come to rest."""
    if device.type != "cuda":
        time.sleep(SETTLE_S)


def seconds_of(run: Variant, device: torch.device) -> float:
    """One call, until the device has finished it."""
    now = clock(device)
    settle(device)
    start = now()
    run()
    return now() - start


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


class Rounds:
    """Variants that are timed in turn, after two warm-ups each.

    Args:
        before_each: untimed, before every single call (restores inputs that the call destroys).

    Attributes:
        failures: for the variants that could not run (out of memory, unsupported shape) the reason by name.
    """

    def __init__(self, variants: dict[str, Variant], device: torch.device, before_each: Variant | None = None) -> None:
        self.variants, self.device, self.prepare = variants, device, before_each or (lambda: None)
        self.memory: dict[str, int | None] = {}
        self.failures: dict[str, str] = {}
        for name, run in variants.items():
            self._warm_up(name, run)
        self._each_s: dict[str, list[float]] = {name: [] for name in self.memory}

    def _warm_up(self, name: str, run: Variant) -> None:
        try:
            for _ in range(WARM_UPS):
                self.prepare()
                self.memory[name] = peak_bytes(run, self.device)
        except Exception as error:  # a peer's own limits: named in the result, never hidden
            self.memory.pop(name, None)
            self.failures[name] = reason(error)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def run_one(self) -> None:
        """One round: every variant once."""
        for name, times in self._each_s.items():
            self.prepare()
            times.append(seconds_of(self.variants[name], self.device))

    def timings(self) -> dict[str, Timing]:
        return {name: Timing(sorted(times), self.memory[name]) for name, times in self._each_s.items()}


def interleave(variants: dict[str, Variant], device: torch.device, rounds: int) -> tuple[dict[str, Timing], dict]:
    """Timings by name over so many rounds, and the reasons of those that could not run by name."""
    turns = Rounds(variants, device)
    for _ in range(rounds):
        turns.run_one()
    return turns.timings(), turns.failures
