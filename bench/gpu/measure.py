"""Timing on the device: variants interleaved, device events around each call, medians and their spread.

On a machine without a GPU the same code times with the host's clock: the rehearsal runs what the real run will run.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

Variant = Callable[[], object]


@dataclass
class Timing:
    """Milliseconds of one variant, and the device memory it needed beyond what was allocated before it."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    peak_extra_bytes: int | None

    def as_dict(self) -> dict:
        return asdict(self)


def timed(run: Variant, device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_extra_bytes(run: Variant, device: torch.device) -> int | None:
    """Device memory that one call allocates at its highest point, results included. None on a CPU."""
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

    Returns:
        Timings by name, and for the variants that could not run (out of memory, unsupported shape) the reason by name.
    """
    memory, failures = {}, {}
    for name, run in variants.items():
        try:
            for _ in range(2):  # the second shows the memory without one-time work: module loads, autotuning
                if before_each is not None:
                    before_each()
                memory[name] = peak_extra_bytes(run, device)
        except Exception as reason:  # a peer's own limits: named in the result, never hidden
            memory.pop(name, None)
            failures[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {name: [] for name in memory}
    for _ in range(rounds):
        for name in samples:
            if before_each is not None:
                before_each()
            samples[name].append(timed(variants[name], device))
    timings = {}
    for name, times in samples.items():
        times.sort()
        p20, p80 = times[int(0.2 * (len(times) - 1))], times[round(0.8 * (len(times) - 1))]
        timings[name] = Timing(statistics.median(times), p20, p80, memory[name])
    return timings, failures
