"""One comparison: ours, its peers and the physical limit, checked against each other, timed in turn, written down.

`python -m bench.table` and `bench.plots` read the file that grows by one record per comparison (bench/records.py):

    machine_info    device, versions (bench/machine.py)
    benchmarks      group (the operation), name (function and case), extra_info: median_s (ours), peers_s (peers, and
                    the limit as "limit: NAME"), ratio_to_ours, spread_s, peak_bytes, entropy_error, failures, physical
    left_out        comparisons that the time did not suffice for
    peers_not_here  peers that could not be loaded, and why
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench import timing
from bench.records import OURS
from bench.timing import Variant

Outputs = Iterable[torch.Tensor | None]
ERROR_ROWS = 64  # rows whose entropy is recomputed in float64


class File:
    """The records of one run, on disk after each of them: a run that is stopped keeps what it had."""

    def __init__(self, path: Path | None, machine_info: dict, minutes: float | None = None) -> None:
        self.path = path
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.content = {"machine_info": machine_info, "benchmarks": [], "left_out": [], "peers_not_here": {}}

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)


def disagreements(
    calls: dict[str, Callable[[], Outputs]], expected: Outputs, differs: Callable[..., str | None], trusted: str
) -> dict[str, str]:
    """Which calls give something else than `expected`, and how; None among a call's outputs is one it has not.

    Args:
        differs: (output, expected) -> what is wrong, or None.
        trusted: where this call disagrees, ours is taken to be wrong.

    Raises:
        AssertionError: the trusted call and ours disagree: there is nothing to time.
    """
    found = {}
    for name, call in calls.items():
        try:
            pairs = zip(call(), expected, strict=True)
            wrong = next((w for o, e in pairs if o is not None and (w := differs(o, e))), None)
        except Exception as error:  # cannot run here: the timing will say so as well
            found[name] = timing.reason(error)
            continue
        if wrong:
            found[name] = f"differs from ours: {wrong}"
            if name == trusted:
                raise AssertionError(f"ours and {name} differ: {wrong}")
    return found


def by_entry(tolerance: float, absolute: float | None = None) -> Callable[[torch.Tensor, torch.Tensor], str | None]:
    """Entries within `tolerance` of each other, relatively, or within `absolute` (default: the same number)."""

    def differs(output: torch.Tensor, expected: torch.Tensor) -> str | None:
        output, expected = output.detach().double(), expected.detach().double()
        allowed = (tolerance if absolute is None else absolute) + tolerance * expected.abs()
        excess = ((output - expected).abs() / allowed).max().item() if expected.numel() else 0.0
        return None if excess <= 1 else f"by {excess:.1f} times what is allowed"

    return differs


def by_norm(tolerance: float) -> Callable[[torch.Tensor, torch.Tensor], str | None]:
    """The norm of the difference within `tolerance` of the norm."""

    def differs(output: torch.Tensor, expected: torch.Tensor) -> str | None:
        error = ((output.double() - expected.double()).norm() / expected.double().norm()).item()
        return None if error <= tolerance else f"by {error:.1e} of its norm"

    return differs


def entropy_errors(calls: dict[str, Callable[[], Outputs]], exact: torch.Tensor) -> dict[str, float]:
    """Largest relative error of each call's entropies, its second output, on the rows of `exact`, float64."""
    errors = {}
    for name, call in calls.items():
        try:
            entropy = list(call())[1]
        except Exception:  # said by whoever times the same call
            continue
        if entropy is not None:
            errors[name] = ((entropy.detach()[: len(exact)].double() - exact).abs() / exact).max().item()
    return errors


def compare(
    record: dict,
    ours: Variant,
    peers: dict[str, Variant],
    *,
    device: torch.device,
    rounds: int,
    before_each: Variant | None = None,
    physical: dict[str, float] | None = None,
    failures: dict[str, str] | None = None,
    entropy_error: dict[str, float] | None = None,
) -> None:
    """Times `ours` and `peers` in turn and fills the record.

    Args:
        record: the fixture of that name.
        peers: name -> call. A name that starts with "limit" is a physical limit, not a competitor.
        before_each: untimed, before every single call.
        physical: what one call of ours must do, e.g. {"bytes": ..., "flops": ...}.
        failures: peers that are not to be timed, with the reason (`disagreements`).
        entropy_error: by name (`entropy_errors`).

    Raises:
        RuntimeError: ours could not run.
    """
    failures = dict(failures or {})
    variants = {name: run for name, run in peers.items() if name not in failures} | {OURS: ours}
    timings, not_run = timing.interleave(variants, device, rounds, before_each)
    if OURS in not_run:
        raise RuntimeError(f"{OURS} did not run: {not_run[OURS]}")
    mine = timings[OURS].median_s
    medians = {name: timings[name].median_s for name in peers if name in timings}
    record["extra_info"].update(
        median_s=mine,
        peers_s=medians,
        ratio_to_ours={name: median / mine for name, median in medians.items()},
        rounds=rounds,
        spread_s={name: found.spread_s for name, found in timings.items()},
        peak_bytes={name: found.peak_bytes for name, found in timings.items() if found.peak_bytes is not None},
        entropy_error=entropy_error or {},
        failures=failures | not_run,
        physical=physical or {},
    )
