"""The report's numbers against values worked out by hand or by another route, and what it says of incomplete runs."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import make_record, write_run

from trainer import report
from trainer.records.directories import labelled_directories
from trainer.reporting.comparison import compare
from trainer.reporting.published import BENCHMARKS, PUBLISHED, inconsistencies
from trainer.reporting.results import AVERAGE, Row, summarise
from trainer.reporting.runs import load_run
from trainer.reporting.statistics import Ratio, bootstrap, interval, pass_at_k, share_interval, wilson


def run_report(capsys, *arguments: str) -> str:
    assert report.main(report.parser().parse_args([str(a) for a in arguments])) == 0
    return capsys.readouterr().out


def two_methods() -> list[dict]:
    """Three problems x two samples of thinking, and the same problems without thinking."""
    right = {"p1": (True, True), "p2": (True, False), "p3": (False, False)}
    records = []
    for problem, (first, second) in right.items():
        records += [
            make_record(problem, 0, correct=first, entropies=[0.2] * 10),
            make_record(problem, 1, correct=second, entropies=[0.8] * 30, clipped=problem == "p3"),
            make_record(problem, 0, correct=True, length=5, method="no_thinking"),
            make_record(problem, 1, correct=first, length=5, method="no_thinking"),
        ]
    return records


# ------------------------------------------------------------------------------------------------------- statistics
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_answer():
    for n, c in itertools.product(range(1, 7), range(7)):
        if c > n:
            continue
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(outcomes, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_undefined_with_fewer_samples_and_refuses_zero():
    assert np.isnan(pass_at_k(np.array([2, 4]), np.array([1, 1]), 3)).tolist() == [True, False]
    with pytest.raises(ValueError, match="at least 1"):
        pass_at_k(np.array([2]), np.array([1]), 0)


def test_bootstrap_equals_a_loop_that_draws_problem_by_problem():
    """The same multinomial weights, applied by repeating each problem: no matrix product."""
    values = np.array([3.0, 5.0, np.nan, 11.0])
    other = np.array([1.0, 0.0, 2.0, 4.0])
    drawn = bootstrap([Ratio.mean(values), Ratio(other, values * 0 + 1 == 1)], seed=5, stream="s", replicates=50)
    random = np.random.default_rng([5, zlib.crc32(b"s")])
    weights = random.multinomial(4, np.full(4, 0.25), size=50)
    for replicate, weight in enumerate(weights):
        resampled = np.repeat(values, weight)
        resampled = resampled[~np.isnan(resampled)]
        if len(resampled):
            assert drawn[replicate, 0] == pytest.approx(resampled.mean())
        else:
            assert np.isnan(drawn[replicate, 0])


def test_bootstrap_gives_the_same_numbers_however_it_is_cut_into_pieces(monkeypatch):
    ratio = Ratio.mean(np.arange(20.0))
    whole = bootstrap([ratio], seed=1, stream="x", replicates=100)
    monkeypatch.setattr("trainer.reporting.statistics._CHUNK_BYTES", 8 * 20 * 7)
    assert np.array_equal(bootstrap([ratio], seed=1, stream="x", replicates=100), whole)
    assert not np.array_equal(bootstrap([ratio], seed=2, stream="x", replicates=100), whole)


def test_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(100, 15, size=400)
    found = interval(values.mean(), bootstrap([Ratio.mean(values)], seed=0, stream="x")[:, 0])
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1)


def test_interval_covers_the_truth_for_samples_nested_in_problems():
    """Problem rates ~ Beta(2, 2), 4 samples each: the truth .5 is inside 95% of 300 intervals, give or take 3.8%.

    Samples taken as independent would cover about 80%.
    """
    random = np.random.default_rng(3)
    covered = flat_covered = 0
    for trial in range(300):
        rates = random.beta(2, 2, size=60)
        right = random.binomial(4, rates)
        drawn = bootstrap([Ratio.mean(right / 4)], seed=trial, stream="c", replicates=600)[:, 0]
        found = interval(right.mean() / 4, drawn)
        covered += found.low <= 0.5 <= found.high
        mean = right.mean() / 4
        half = 1.96 * math.sqrt(mean * (1 - mean) / 240)
        flat_covered += abs(mean - 0.5) <= half
    assert covered / 300 == pytest.approx(0.95, abs=0.038)
    assert flat_covered / 300 < 0.90


def test_interval_of_a_share_of_none_or_all_is_wilsons():
    none, all_ = share_interval(0.0, np.zeros(10), 30), share_interval(1.0, np.ones(10), 30)
    z2 = 1.959964**2
    assert (none.low, none.high) == (0.0, pytest.approx(z2 / (30 + z2)))
    assert (all_.low, all_.high) == (pytest.approx(30 / (30 + z2)), 1.0)


def test_interval_of_few_successes_is_wilsons_and_wider_than_that_of_none():
    values = np.array([1.0] + [0.0] * 23)
    one = share_interval(1 / 24, bootstrap([Ratio.mean(values)], seed=0, stream="t")[:, 0], 24)
    assert (one.low, one.high) == pytest.approx(wilson(1, 24))
    assert one.high > share_interval(0.0, np.zeros(10), 24).high
    many = np.array([1.0] * 10 + [0.0] * 14)
    drawn = bootstrap([Ratio.mean(many)], seed=0, stream="t")[:, 0]
    assert share_interval(10 / 24, drawn, 24) == interval(10 / 24, drawn)
    spread = np.array([0.1] * 10 + [0.0] * 14)  # as many successes as `one`, in samples of ten problems
    drawn = bootstrap([Ratio.mean(spread)], seed=0, stream="t")[:, 0]
    assert share_interval(1 / 24, drawn, 24) == interval(1 / 24, drawn)


def test_one_problem_has_no_interval():
    (column,) = bootstrap([Ratio.mean(np.array([3.0]))], seed=0, stream="t").T
    assert not interval(3.0, column).has_interval
    assert not share_interval(1.0, column, 1).has_interval
    some = bootstrap([Ratio(np.array([1.0, 0.0]), np.array([1.0, 0.0]))], seed=0, stream="t")[:, 0]
    assert not interval(1.0, some).has_interval  # two problems, of which one carries the quantity


def test_a_length_that_was_cut_off_is_a_lower_bound(tmp_path, capsys):
    records = [make_record(f"p{i}", correct=True, length=10, clipped=i < 2) for i in range(20)]
    write_run(tmp_path / "much", records)
    write_run(tmp_path / "little", [{**r, "finish_reason": "length" if r["id"] == "p0" else "stop"} for r in records])
    much, little = (run_report(capsys, tmp_path / name) for name in ("much", "little"))
    assert "≥10.00" in much
    assert "more than 5% were cut off" in much
    assert "≥" not in little  # 1 of 20 is not more than 5%


def test_the_share_without_an_answer_is_told(tmp_path, capsys):
    records = [make_record(f"p{i}", correct=i > 0, length=10) for i in range(4)]  # the wrong one has no answer
    results = summarise([load_run("r", write_run(tmp_path / "r", records))])
    assert results.cells[0, "gsm8k"]["no answer"].value == 0.25
    assert "no answer" in run_report(capsys, tmp_path / "r")


# ------------------------------------------------------------------------------------------------------ one directory
def test_every_quantity_of_a_hand_made_run(tmp_path):
    run = load_run("r", write_run(tmp_path / "r", two_methods(), samples=2))
    results = summarise([run])
    thinking, direct = (results.cells[i, "gsm8k"] for i in (0, 1))
    assert [row.method for row in results.rows] == ["thinking", "no_thinking"]
    assert results.pass_at == [1, 2]
    assert (thinking.problems, thinking.samples, thinking.notes) == (3, (2, 2), [])
    assert thinking["ACC"].value == pytest.approx(3 / 6)
    assert thinking["pass@1"].value == pytest.approx(3 / 6)
    assert thinking["pass@2"].value == pytest.approx(2 / 3)
    assert thinking["LEN"].value == pytest.approx(20)
    assert thinking["clipped"].value == pytest.approx(1 / 6)
    # Right: p1 twice (.2, .8) and p2's first (.2). Wrong: p2's second (.8), p3's two (.2, .8).
    assert thinking["TECA right"].value == pytest.approx(0.4)
    assert thinking["TECA wrong"].value == pytest.approx(0.6)
    assert not thinking["dLEN"].defined
    assert direct["ACC"].value == pytest.approx((1 + 1 + 0.5) / 3)
    assert direct["dLEN"].value == pytest.approx(0.75)
    assert (direct["dLEN"].low, direct["dLEN"].high) == (pytest.approx(0.75), pytest.approx(0.75))
    assert thinking["ACC"].low < 0.5 < thinking["ACC"].high


def test_dlen_interval_is_paired(tmp_path):
    """A method always half as long as thinking, on problems of very different lengths: dLEN is .5 and certain."""
    records = []
    for i in range(12):
        records.append(make_record(f"p{i}", length=10 * 2 ** (i % 6)))
        records.append(make_record(f"p{i}", length=5 * 2 ** (i % 6), method="ccot"))
    cell = summarise([load_run("r", write_run(tmp_path, records))]).cells[1, "gsm8k"]
    assert cell["LEN"].high / cell["LEN"].low > 1.5
    assert (cell["dLEN"].low, cell["dLEN"].high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_average_is_over_benchmarks_and_its_dlen_from_averaged_lengths(tmp_path):
    records = [make_record("a", length=100), make_record("a", length=50, method="cod")]
    records += [make_record("b", length=300, benchmark="aime24", correct=False)]
    records += [make_record("c", length=300, benchmark="aime24", correct=False)]
    records += [make_record(p, length=290, benchmark="aime24", method="cod") for p in "bc"]
    results = summarise([load_run("r", write_run(tmp_path, records))])
    assert results.cells[0, AVERAGE]["ACC"].value == pytest.approx(0.5)  # not 1/3: benchmarks weigh the same
    assert results.cells[0, AVERAGE]["LEN"].value == pytest.approx(200)
    assert results.cells[1, AVERAGE]["LEN"].value == pytest.approx(170)
    assert results.cells[1, AVERAGE]["dLEN"].value == pytest.approx(0.15)


def test_incomplete_runs_are_said_and_not_averaged(tmp_path, capsys):
    records = two_methods()
    records = [r for r in records if not (r["method"] == "no_thinking" and r["id"] == "p3")]
    records = [r for r in records if not (r["method"] == "thinking" and r["id"] == "p1" and r["sample"] == 1)]
    records += [make_record("x", benchmark="aime24", method=m) for m in ("thinking", "no_thinking")]
    run = load_run("r", write_run(tmp_path / "r", records, samples=2))
    results = summarise([run])
    assert results.cells[0, "gsm8k"].notes[0] == "1 of 3 problems have fewer than 2 samples"
    assert results.cells[1, "gsm8k"].notes[0] == "2 of the 3 problems seen in this report"
    for i in (0, 1):
        assert not results.cells[i, AVERAGE]["ACC"].defined
        assert "GSM8K is not whole" in results.cells[i, AVERAGE].notes[0]
    # dLEN on the two problems both have: thinking 10 (one sample left) and 20, without thinking 5 and 5.
    assert results.cells[1, "gsm8k"]["dLEN"].value == pytest.approx(1 - 5 / 15)
    text = run_report(capsys, tmp_path / "r")
    assert "2 of the 3 problems seen in this report" in text
    assert "dLEN is on the 2 they share" in text
    assert "no average: GSM8K is not whole, AIME24 is not whole" in text  # aime24 has 1 of 2 samples asked


def test_doubled_records_count_once_and_are_said(tmp_path):
    directory = write_run(tmp_path, [make_record("a", length=10), make_record("b", length=30)])
    path = directory / "records-gsm8k-thinking.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    results = summarise([load_run("r", directory)])
    assert results.cells[0, "gsm8k"]["LEN"].value == pytest.approx(20)
    assert "1 records were there twice" in results.cells[0, "gsm8k"].notes[0]


def test_runs_with_other_settings_are_said(tmp_path):
    a = load_run("a", write_run(tmp_path / "a", [make_record("p")], temperature=0.8, samples=1))
    b = load_run("b", write_run(tmp_path / "b", [make_record("p")], temperature=1.0, samples=1))
    assert summarise([a, b]).notes == ["the runs differ in temperature: a 0.8, b 1.0"]


def test_a_response_without_tokens_has_no_teca(tmp_path):
    run = load_run("r", write_run(tmp_path, [make_record("a", entropies=[]), make_record("b", entropies=[0.3])]))
    cell = summarise([run]).cells[0, "gsm8k"]
    assert cell["LEN"].value == pytest.approx(0.5)
    assert cell["TECA right"].value == pytest.approx(0.3)
    assert not cell["TECA wrong"].defined


# ---------------------------------------------------------------------------------------------------------- several
def test_baseline_is_the_first_runs_thinking_or_the_one_asked_for(tmp_path):
    base = load_run("base", write_run(tmp_path / "b", [make_record("p", length=100)]))
    cer = load_run("cer", write_run(tmp_path / "c", [make_record("p", length=30)]))
    assert summarise([base, cer]).cells[1, "gsm8k"]["dLEN"].value == pytest.approx(0.7)
    other = summarise([base, cer], baseline="cer")
    assert not other.cells[1, "gsm8k"]["dLEN"].defined
    assert other.cells[0, "gsm8k"]["dLEN"].value == pytest.approx(1 - 100 / 30)
    assert summarise([base, cer], baseline="cer:thinking").baseline.run is cer
    with pytest.raises(ValueError, match=r"no baseline 'nobody'.*base:thinking, cer:thinking"):
        summarise([base, cer], baseline="nobody")


def test_comparison_is_paired_on_common_problems(tmp_path):
    easy = [make_record(f"p{i}", correct=i < 10, length=10 * (i + 1)) for i in range(20)]
    better = [make_record(f"p{i}", correct=i < 12, length=10 * (i + 1) - 5) for i in range(22)]
    a = Row(load_run("a", write_run(tmp_path / "a", easy)), "thinking")
    b = Row(load_run("b", write_run(tmp_path / "b", better)), "thinking")
    (one,) = compare(a, b)
    assert (one.problems, one.only_a, one.only_b, one.better, one.worse) == (20, 0, 2, 2, 0)
    assert one.values["ACC difference"].value == pytest.approx(0.1)
    assert 0 <= one.values["ACC difference"].low < 0.1 < one.values["ACC difference"].high < 0.3
    # Every problem is 5 shorter: the difference is certain though the lengths run from 10 to 200.
    length = one.values["LEN difference"]
    assert (length.value, length.low, length.high) == tuple(pytest.approx(-5) for _ in range(3))
    assert one.values["dLEN"].value == pytest.approx(5 / 105)
    assert one.notes == ["0 problems only in A and 2 only in B are left out"]


def test_comparison_averages_over_shared_benchmarks_and_names_the_rest(tmp_path):
    both = [make_record("p", length=10), make_record("q", length=20, benchmark="aime25")]
    more = [make_record("p", length=5), make_record("q", length=5, benchmark="aime25")]
    more += [make_record("z", benchmark="math500")]
    a = Row(load_run("a", write_run(tmp_path / "a", both)), "thinking")
    b = Row(load_run("b", write_run(tmp_path / "b", more)), "thinking")
    found = compare(a, b)
    assert [c.benchmark for c in found] == ["gsm8k", "aime25", AVERAGE]
    assert found[-1].values["LEN difference"].value == pytest.approx(-10)
    assert found[-1].notes == ["without MATH500, which only one of them has"]
    c = Row(load_run("c", write_run(tmp_path / "c", [make_record("p", benchmark="other")])), "thinking")
    with pytest.raises(ValueError, match="no benchmark in common"):
        compare(a, c)


def test_compare_picks_shared_methods_or_those_named(tmp_path, capsys):
    write_run(tmp_path / "a", two_methods())
    write_run(tmp_path / "b", [make_record(p, s, length=4, method="cod") for p in ("p1", "p2", "p3") for s in (0, 1)])
    with pytest.raises(ValueError, match=r"no method in common; name one each as DIR:METHOD"):
        run_report(capsys, "--compare", tmp_path / "a", tmp_path / "b")
    text = run_report(capsys, "--compare", f"{tmp_path / 'a'}:thinking", f"{tmp_path / 'b'}:cod")
    assert "A: a, w/ thinking. B: b, CoD." in text
    assert re.search(r"\| GSM8K +\| +3 \| +50\.00 \| +100\.00 \| +\+50\.00 \[", text)


# ------------------------------------------------------------------------------------------------------------ output
def test_markdown_rows_have_the_header_s_columns_and_hold_hostile_names(tmp_path, capsys):
    directory = write_run(tmp_path / "a|b", two_methods())
    text = run_report(capsys, directory, f"two={directory}")
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) <= 1
    assert "75.00% [75.0, 75.0]" in text
    assert "w/o thinking" in text


def test_csv_is_tidy_and_carries_the_numbers(tmp_path, capsys):
    directory = write_run(tmp_path / "r", two_methods())
    rows = list(csv.DictReader(io.StringIO(run_report(capsys, directory, "--format", "csv"))))
    values = {(r["method"], r["quantity"]): r for r in rows if r["benchmark"] == "gsm8k"}
    assert float(values["thinking", "pass@2"]["value"]) == pytest.approx(2 / 3)
    assert float(values["no_thinking", "dLEN"]["value"]) == pytest.approx(0.75)
    assert values["thinking", "dLEN"]["value"] == ""
    assert 0 <= float(values["thinking", "ACC"]["low"]) < 0.5 < float(values["thinking", "ACC"]["high"]) <= 1
    assert values["thinking", "ACC"]["problems"] == "3"


def test_latex_has_as_many_columns_in_every_row_and_escapes(tmp_path, capsys):
    directory = write_run(tmp_path / "r_1&2", two_methods())
    text = run_report(capsys, directory, "--format", "latex")
    for block in text.split(r"\begin{table}")[1:]:
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", block).group(1))
        body = [line for line in block.splitlines() if line.endswith(r"\\")]
        for line in body:
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == columns, line
    assert r"r\_1\&2" in text
    assert r"75.00\%" in text


def test_same_seed_same_report_other_seed_other_interval(tmp_path, capsys):
    records = [make_record(f"p{i}", length=10 + (i * 37) % 100, correct=i % 3 == 0) for i in range(40)]
    directory = write_run(tmp_path / "r", records)
    first = run_report(capsys, directory, "--format", "csv")
    assert run_report(capsys, directory, "--format", "csv") == first
    assert run_report(capsys, directory, "--format", "csv", "--seed", "1") != first


def test_labels_are_short_and_distinct(tmp_path):
    paths = [str(tmp_path / "a" / "eval"), str(tmp_path / "b" / "eval"), f"cer={tmp_path / 'c'}"]
    assert [label for label, _ in labelled_directories(paths)] == ["a/eval", "b/eval", "cer"]
    with pytest.raises(ValueError, match="name them apart"):
        labelled_directories([f"x={tmp_path}", f"x={tmp_path / 'a'}"])


def test_bad_input_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="nothing to report"):
        run_report(capsys)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        run_report(capsys, tmp_path / "nowhere")
    (tmp_path / "records-gsm8k-thinking.jsonl").write_text("")
    with pytest.raises(ValueError, match="records files are empty"):
        run_report(capsys, tmp_path)
    directory = write_run(tmp_path / "r", two_methods())
    with pytest.raises(ValueError, match="--pass_at"):
        run_report(capsys, directory, "--pass_at", "1,zero")


# --------------------------------------------------------------------------------------------------------- published
# Printed dLEN that their own lengths contradict; all the others follow.
CONTRADICTED = {
    ("Qwen3-4B", "no_thinking", "aime24"): (78.34, 81.20),
    ("Qwen3-4B", "no_thinking", "aime25"): (82.84, 79.34),
    ("Qwen3-8B", "no_thinking", "gsm8k"): (79.83, 81.76),
    ("Qwen3-8B", "no_thinking", "math500"): (81.22, 82.07),
    ("Qwen3-8B", "no_thinking", "aime24"): (80.10, 78.67),
    ("Qwen3-8B", "no_thinking", "aime25"): (80.69, 81.90),
}


def test_published_dlen_follows_from_the_lengths_but_for_six_entries():
    checked = 0
    for row in PUBLISHED:
        thinking = next(r for r in PUBLISHED if r.model == row.model and r.method == "thinking")
        for benchmark in BENCHMARKS:
            cell = row.cells[benchmark]
            if cell.dlen is None:
                continue
            implied = 100 * (1 - cell.length / thinking.cells[benchmark].length)
            if (row.model, row.method, benchmark) in CONTRADICTED:
                assert (cell.dlen, round(implied, 2)) == CONTRADICTED[row.model, row.method, benchmark]
            else:
                assert implied == pytest.approx(cell.dlen, abs=0.006)
            checked += 1
    assert checked == 32
    found = {(i.model, i.method, i.benchmark): (i.printed, round(i.implied, 2)) for i in inconsistencies()}
    assert found == CONTRADICTED  # and every average follows


def test_two_of_the_six_follow_from_the_other_model_s_thinking():
    explained = {(i.model, i.benchmark) for i in inconsistencies() if i.explanation}
    assert explained == {("Qwen3-8B", "gsm8k"), ("Qwen3-8B", "math500")}


def test_published_report_prints_the_dlen_column_and_marks_the_six(capsys):
    text = run_report(capsys, "--published")
    printed = [f"{c.dlen:.2f}%" for row in PUBLISHED for c in row.cells.values() if c.dlen is not None]
    in_tables = re.findall(r"(\d+\.\d\d%)(?: \((\w)\))? +\|", text)
    assert sorted(value for value, _ in in_tables) == sorted(printed)
    assert sum(bool(mark) for _, mark in in_tables) == 6
    for printed_dlen, implied in CONTRADICTED.values():
        assert f"dLEN is printed as {printed_dlen:.2f}%, its own lengths give {implied:.2f}%" in text
    rows = list(csv.DictReader(io.StringIO(run_report(capsys, "--published", "--format", "csv"))))
    assert len(rows) == 10 * (4 * 3 + 2)
    assert sum(r["notes"].startswith("printed; implied") for r in rows) == 6


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Wilson (1927) by the formula in 50-digit arithmetic
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (243, 256, 0.915069, 0.970086)],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_stays_within_0_and_1(case):
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1
