"""The dial: its points are means over problems with the tables' intervals, joined by what was swept."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import make_record, write_run

from trainer import plots
from trainer.plotting.curves import read_series
from trainer.plotting.dial import dial, dial_points, has_sweep, settings_of


def run_of(path, lengths, right, *, method="thinking", **settings):
    records = [
        make_record(f"p{i}", sample, length=length, correct=i < right, method=method)
        for i, row in enumerate(lengths)
        for sample, length in enumerate(row)
    ]
    return write_run(path, records, **{"model": "m", "max_new_tokens": 64, "early_exit": None, **settings})


@pytest.fixture
def directories(tmp_path):
    def rule(threshold, window=0):
        return {"threshold": threshold, "window": window, "min_tokens": 4, "forced_ids": [1], "closing_ids": [1]}

    plain = [[20, 40], [30, 30], [10, 10], [8, 12]]
    return [
        ("plain", run_of(tmp_path / "plain", plain, 4)),
        ("exit .2", run_of(tmp_path / "a", [[10, 10]] * 4, 3, early_exit=rule(0.2))),
        ("exit .1", run_of(tmp_path / "b", [[16, 16]] * 4, 4, early_exit=rule(0.1))),
        ("window", run_of(tmp_path / "w", [[9, 9]] * 4, 2, early_exit=rule(0.1, 8))),
        ("short", run_of(tmp_path / "s", [[12, 12]] * 4, 1, max_new_tokens=12)),
        ("none", run_of(tmp_path / "n", [[6, 6]] * 4, 2, method="no_thinking")),
    ]


def test_points_are_means_over_problems_named_by_what_was_swept(directories):
    points = dial_points(read_series(directories), settings_of(directories))
    found = {(p.sweep, p.name): (p.length.value, p.accuracy.value) for p in points}
    assert found == {
        ("w/ thinking, limit", "64 tokens"): (20.0, 1.0),
        ("w/ thinking, limit", "12 tokens"): (12.0, 0.25),
        ("w/ thinking, early exit", "0.2"): (10.0, 0.75),
        ("w/ thinking, early exit", "0.1"): (16.0, 1.0),
        ("w/ thinking, early exit, mean of 8", "0.1"): (9.0, 0.5),
        ("w/o thinking", ""): (6.0, 0.5),
    }
    plain = next(p for p in points if p.name == "64 tokens")
    assert 10 <= plain.length.low < 20 < plain.length.high <= 30
    assert plain.accuracy.low == pytest.approx(4 / (4 + 1.959964**2))  # Wilson's: all of four right


def test_the_figure_joins_a_sweep_in_the_order_of_its_setting(directories):
    drawn = dial(dial_points(read_series(directories), settings_of(directories)))
    (axis,) = drawn.axes
    lines = {c.get_label(): c.lines[0].get_xydata() for c in axis.containers}
    np.testing.assert_allclose(lines["w/ thinking, early exit"], [[16, 100], [10, 75]])
    np.testing.assert_allclose(lines["w/ thinking, limit"], [[12, 25], [20, 100]])
    assert {text.get_text() for text in axis.texts} >= {"0.1", "0.2", "12 tokens", "64 tokens"}


def test_the_program_draws_it_only_where_there_is_a_sweep(directories, tmp_path):
    with_exits = [str(path) for _, path in directories]
    assert plots.main(plots.parser().parse_args([*with_exits, "--output", str(tmp_path / "o"), "--format", "png"])) == 0
    assert (tmp_path / "o" / "dial.png").stat().st_size > 5000
    assert not has_sweep(settings_of(directories[:1]))
    arguments = [with_exits[0], with_exits[4], "--output", str(tmp_path / "p"), "--format", "png"]
    assert plots.main(plots.parser().parse_args(arguments)) == 0
    assert not (tmp_path / "p" / "dial.png").exists()
