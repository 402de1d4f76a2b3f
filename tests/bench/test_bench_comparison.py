"""What is timed, what is refused and what the file says of it."""

from __future__ import annotations

import time

import pytest
import torch

from bench.comparison import by_entry, by_norm, compare, disagreements
from bench.timing import Rounds, StreamMoment, clock

CPU = torch.device("cpu")


def test_every_variant_runs_in_every_round_and_a_failing_one_is_named():
    calls = []

    def refuses():
        raise NotImplementedError("not on this device\nat all")

    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b"), "c": refuses}
    turns = Rounds(variants, CPU, before_each=lambda: calls.append("-"))
    for _ in range(3):
        turns.run_one()
    timings, failures = turns.timings(), turns.failures
    assert "".join(calls) == "-a-a-b-b-" + 3 * "-a-b"  # warm-ups, with the call that failed, then rounds
    assert {name: len(timing.each_s) for name, timing in timings.items()} == {"a": 3, "b": 3}
    assert all(t.spread_s[0] <= t.median_s <= t.spread_s[1] for t in timings.values())
    assert failures == {"c": "NotImplementedError: not on this device"}


def test_a_peer_that_computes_something_else_is_not_timed(benchmark):
    expected = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    calls = {
        "near": lambda: (expected[0] * 1.0005, expected[1]),
        "has no entropy": lambda: (expected[0], None),
        "far": lambda: (expected[0], expected[1] * 1.01),
        "has NaN": lambda: (expected[0], expected[1] * float("nan")),
    }
    found = disagreements(calls, expected, by_entry(1e-3, absolute=0.0), "near")
    assert found == {
        "far": "differs from ours: by 10.0 times what is allowed",
        "has NaN": "differs from ours: by nan times what is allowed",
    }
    assert set(disagreements(calls, expected, by_norm(1e-3), "near")) == {"far", "has NaN"}
    compare(benchmark, lambda: None, calls, device=CPU, rounds=1, failures=found)
    assert set(benchmark.extra_info["peers_s"]) == {"near", "has no entropy"}
    assert benchmark.extra_info["failures"] == found
    with pytest.raises(AssertionError, match="ours and far differ: by 10"):
        disagreements(calls, expected, by_entry(1e-3, absolute=0.0), "far")


def test_ours_and_peers_are_timed_in_the_same_rounds_by_the_same_clock(benchmark):
    calls = []
    compare(
        benchmark,
        lambda: calls.append("o"),
        {"p": lambda: calls.append("p")},
        device=CPU,
        rounds=3,
        before_each=lambda: calls.append("-"),
    )
    assert "".join(calls) == "-p-p" + "-o-o" + 3 * "-p-o"
    assert benchmark.extra_info["median_s"] == benchmark.stats.stats.median
    assert benchmark.extra_info["peers_s"].keys() == {"p"}
    assert clock(CPU) is time.perf_counter
    assert clock(torch.device("cuda")) is StreamMoment


def test_without_time_every_comparison_is_left_out_by_name(run_bench):
    said = run_bench("bench/bench_teca.py", "--minutes", "0").with_suffix(".txt").read_text()
    for name in ("bench_forward[5x33]", "bench_forward_backward[5x33]"):
        assert f"left out, the time was up: {name}" in said
