"""Interleaved timing: one round of every variant in turn, so that a busy neighbour slows them all alike.

The variant under test is timed by pytest-benchmark; its peers run before each of its rounds, and their medians and the
ratios go into the record's `extra_info`, which `bench.table` prints.
"""

import statistics
import time
from collections.abc import Callable

import torch

Variant = Callable[[], object]

# OpenMP's threads spin for some milliseconds after a parallel region and would take a core from whoever runs next.
SETTLE_S = 0.02


def synchronized(run: Variant, device: torch.device) -> Variant:
    """The same call, returning when the device has finished it."""
    if device.type != "cuda":
        return run

    def run_and_wait() -> object:
        result = run()
        torch.cuda.synchronize(device)
        return result

    return run_and_wait


def compare(
    benchmark,
    ours: Variant,
    peers: dict[str, Variant],
    *,
    device: torch.device,
    rounds: int,
    before_each: Variant | None = None,
    physical: dict[str, float] | None = None,
) -> None:
    """Times `ours` and `peers` in turn, `rounds` times after one warm-up.

    Args:
        benchmark: pytest-benchmark's fixture; it times `ours`.
        peers: name -> call. A name that starts with "limit" is a physical limit, not a competitor.
        before_each: untimed, before every single call (restores inputs that the call destroys).
        physical: what one call must do, e.g. {"bytes": ..., "flops": ...}; goes into the record.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    peers = {name: synchronized(run, device) for name, run in peers.items()}

    def run_peers() -> None:
        for name, run in peers.items():
            if before_each is not None:
                before_each()
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        if before_each is not None:
            before_each()
        time.sleep(SETTLE_S)

    benchmark.pedantic(synchronized(ours, device), setup=run_peers, rounds=rounds, iterations=1, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable: it ran once, nothing was timed
        return
    mine = benchmark.stats.stats.median
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # without the warm-up round
    benchmark.extra_info.update(
        median_s=mine,
        peers_s=medians,
        ratio_to_ours={name: median / mine for name, median in medians.items()},
        physical=physical or {},
    )
