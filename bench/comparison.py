"""One comparison: ours, its peers and the physical limit, checked against each other, then timed in turn and recorded.

pytest-benchmark times ours and writes the file; in every round the peers are timed right before, by the same clock.
What was found goes into the record's extra_info, which bench.table and bench.plots read (bench/records.py):

    median_s (ours), peers_s (peers, and the limit as "limit: NAME"), ratio_to_ours, spread_s, peak_bytes,
    entropy_error, failures, physical
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from bench import timing
from bench.records import OURS
from bench.timing import Variant

Outputs = Iterable[torch.Tensor | None]
ERROR_ROWS = 64  # rows whose entropy is recomputed in float64


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
    benchmark,
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
        benchmark: pytest-benchmark's fixture; it times `ours`, by the clock that bench/conftest.py gives it.
        peers: name -> call. A name that starts with "limit" is a physical limit, not a competitor.
        before_each: untimed, before every single call.
        physical: what one call of ours must do, e.g. {"bytes": ..., "flops": ...}.
        failures: peers that are not to be timed, with the reason (`disagreements`).
        entropy_error: by name (`entropy_errors`).

    Raises:
        RuntimeError: ours could not run.
    """
    failures = dict(failures or {})
    others = timing.Rounds({name: run for name, run in peers.items() if name not in failures}, device, before_each)
    own = timing.Rounds({OURS: ours}, device, before_each)
    if own.failures:
        raise RuntimeError(f"{OURS} did not run: {own.failures[OURS]}")

    def peers_first() -> None:
        others.run_one()
        own.prepare()
        timing.settle(device)

    benchmark.pedantic(ours, setup=peers_first, rounds=rounds, iterations=1)
    if benchmark.stats is None:  # --benchmark-disable: it ran once, nothing was timed
        return
    found = others.timings() | {OURS: timing.Timing(sorted(benchmark.stats.stats.data), own.memory[OURS])}
    mine = found[OURS].median_s
    medians = {name: found[name].median_s for name in peers if name in found}
    benchmark.extra_info.update(
        median_s=mine,
        peers_s=medians,
        ratio_to_ours={name: median / mine for name, median in medians.items()},
        rounds=rounds,
        spread_s={name: one.spread_s for name, one in found.items()},
        peak_bytes={name: one.peak_bytes for name, one in found.items() if one.peak_bytes is not None},
        entropy_error=entropy_error or {},
        failures=failures | others.failures,
        physical=physical or {},
    )
