"""Steps with dead rows: what is timed, by which clock; and several runs joined into one file."""

import json

import pytest

from bench import join
from bench.records import OURS, read


def test_each_share_of_dead_rows_is_an_operation_of_less_work(dead_run):
    results = read(dead_run)
    assert list(results.operations()) == [f"one step of the head, trained weight, {d}% dead rows" for d in (0, 40, 80)]
    assert "CPU seconds of the process, on a shared machine" in results.where
    for record, dead in zip(results.records, (0.0, 0.4, 0.8), strict=True):
        assert record.case == "smoke, 20 x 24 x 3001, bfloat16"
        assert record.limit.times == pytest.approx(1 + 2 * (1 - dead))  # the logits of all rows, gradients of the rest
        timed = {variant.name for variant in record.peers if variant.seconds}
        assert {f"{OURS}, two passes", "plain torch"} <= timed


def test_runs_of_one_machine_are_joined_and_the_last_counts(dead_run, tmp_path):
    first = json.loads(dead_run.read_text())
    again = json.loads(dead_run.read_text())
    again["benchmarks"] = again["benchmarks"][:1]
    again["benchmarks"][0]["extra_info"]["median_s"] = 7.0
    again["left_out"] = ["another", first["benchmarks"][1]["name"]]
    other = tmp_path / "again.json"
    other.write_text(json.dumps(again))
    assert join.main([str(dead_run), str(other), "--output", str(tmp_path / "both.json")]) == 0
    both = read(tmp_path / "both.json")
    assert [record.ours.seconds == 7.0 for record in both.records] == [True, False, False]
    assert json.loads((tmp_path / "both.json").read_text())["left_out"] == ["another"]

    again["machine_info"]["torch"] = "1.0"
    other.write_text(json.dumps(again))
    said = join.main([str(dead_run), str(other), "--output", str(tmp_path / "none.json")])
    assert said == "bench.join: expected runs of one machine with the same versions, got other torch"
    assert not (tmp_path / "none.json").exists()
