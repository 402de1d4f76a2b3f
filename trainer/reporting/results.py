"""From runs to numbers: every quantity of every (run, method) and benchmark with its interval, and the averages.

    ACC    mean over problems of the share of right samples                      percent in the tables
    LEN    mean over problems of the mean response length                        tokens
    dLEN   (LEN of the baseline - LEN) / LEN of the baseline                     on the problems that both have
    pass@k, clipped share, share without a final answer
    TECA of right and of wrong answers (mean of the last value over those responses, nats)
    average: mean of ACC and of LEN over all benchmarks of the report; its dLEN from the averaged lengths

A note names what is incomplete, and no average is taken over incomplete parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from trainer.records.names import benchmarks_in_order, title
from trainer.reporting.per_problem import per_problem, problems_with_fewer, samples_per_problem
from trainer.reporting.runs import Responses, Run, samples_asked
from trainer.reporting.statistics import UNDEFINED, Estimate, Ratio, bootstrap, interval, pass_at_k, share_interval

AVERAGE = "average"


@dataclass(frozen=True)
class Row:
    """One line of the tables: a method of a run."""

    run: Run
    method: str

    @property
    def name(self) -> str:
        return f"{self.run.label}, {title(self.method)}"


@dataclass
class Cell:
    """One row on one benchmark. `notes` says what is wrong with it; a cell with notes enters no average."""

    problems: int = 0
    samples: tuple[int, int] = (0, 0)  # fewest and most per problem
    values: dict[str, Estimate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, quantity: str) -> Estimate:
        return self.values.get(quantity, UNDEFINED)


@dataclass
class Results:
    rows: list[Row]
    baseline: Row | None
    benchmarks: list[str]
    pass_at: list[int]
    cells: dict[tuple[int, str], Cell]  # (index of the row, benchmark or AVERAGE)
    notes: list[str]


def find_baseline(rows: list[Row], asked: str | None) -> Row | None:
    """The row that dLEN refers to: `LABEL:METHOD`, `LABEL` or `METHOD` as asked, else the first run's thinking."""
    if asked is None:
        return next((row for row in rows if row.run is rows[0].run and row.method == "thinking"), None)
    for row in rows:
        whole = f"{row.run.label}:{row.method}"
        if asked in (whole, f"{row.run.directory}:{row.method}"):
            return row
    for row in rows:
        if row.method == "thinking" and asked in (row.run.label, str(row.run.directory)):
            return row
    for row in rows:
        if row.method == asked:
            return row
    raise ValueError(f"no baseline {asked!r}; there are {', '.join(f'{r.run.label}:{r.method}' for r in rows)}")


def summarise(
    runs: list[Run], *, baseline: str | None = None, pass_at: list[int] | None = None, seed: int = 0
) -> Results:
    """Every quantity of every method of every run.

    Args:
        runs: at least one.
        baseline: what dLEN refers to (see find_baseline).
        pass_at: the k of pass@k; None: powers of two up to the number of samples, where there are several.
        seed: of the bootstrap.
    """
    rows = [Row(run, method) for run in runs for method in run.methods()]
    base = find_baseline(rows, baseline)
    benchmarks = benchmarks_in_order({benchmark for run in runs for benchmark, _ in run.responses})
    pass_at = _default_pass_at(runs) if pass_at is None else pass_at
    results = Results(rows, base, benchmarks, pass_at, {}, _differing_settings(runs))
    replicates: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for benchmark in benchmarks:
        _summarise_benchmark(results, benchmark, seed, replicates)
    for index in range(len(rows)):
        results.cells[index, AVERAGE] = _average(results, index, replicates)
    return results


def _default_pass_at(runs: list[Run]) -> list[int]:
    most = max(samples_per_problem(responses)[1] for run in runs for responses in run.responses.values())
    return [] if most < 2 else [2**i for i in range(most.bit_length()) if 2**i <= most]


def _summarise_benchmark(results: Results, benchmark: str, seed: int, kept: dict) -> None:
    responses = {
        i: row.run.responses[benchmark, row.method]
        for i, row in enumerate(results.rows)
        if (benchmark, row.method) in row.run.responses
    }
    union = sorted(set().union(*(r.problem for r in responses.values())))
    position = {name: i for i, name in enumerate(union)}
    sums = {i: per_problem(r, position) for i, r in responses.items()}
    base_index = results.rows.index(results.baseline) if results.baseline else None
    base = sums.get(base_index)

    names: list[tuple[int, str]] = []
    ratios: list[Ratio] = []
    for i, s in sums.items():
        quantities = {
            "ACC": s.mean(s.right),
            "LEN": s.mean(s.length),
            "clipped": s.mean(s.clipped),
            "no answer": s.mean(s.unanswered),
            "TECA right": Ratio(s.teca_right, s.teca_right_n),
            "TECA wrong": Ratio(s.teca_wrong, s.teca_wrong_n),
        }
        for k in results.pass_at:
            if s.n[s.present].min() >= k:
                quantities[f"pass@{k}"] = Ratio.mean(np.where(s.present, pass_at_k(s.n, s.right, k), np.nan))
        if base is not None and i != base_index and (common := s.present & base.present).any():
            quantities["own common"] = s.mean(s.length, common)
            quantities["baseline common"] = base.mean(base.length, common)
        names += [(i, name) for name in quantities]
        ratios += quantities.values()
    columns = dict(zip(names, bootstrap(ratios, seed=seed, stream=benchmark).T, strict=True))
    values = {name: ratio.value() for name, ratio in zip(names, ratios, strict=True)}

    for i, s in sums.items():
        cell = Cell(int(s.present.sum()), samples_per_problem(responses[i]))
        for owner, name in names:
            if owner != i or name in ("own common", "baseline common"):
                continue
            value, drawn = values[i, name], columns[i, name]
            share = name in ("ACC", "clipped", "no answer") or name.startswith("pass@")
            cell.values[name] = share_interval(value, drawn, cell.problems) if share else interval(value, drawn)
        if (i, "own common") in columns:
            dlen = 1 - values[i, "own common"] / values[i, "baseline common"]
            cell.values["dLEN"] = interval(dlen, 1 - columns[i, "own common"] / columns[i, "baseline common"])
        cell.notes = _what_is_missing(results.rows[i], responses[i], cell, union)
        if base is not None and (s.present != base.present).any():
            both = int((s.present & base.present).sum())
            cell.notes.append(
                f"its problems are not the baseline's ({results.baseline.name}): dLEN is on the {both} they share"
                if both
                else f"it shares no problem with the baseline ({results.baseline.name}): no dLEN"
            )
        results.cells[i, benchmark] = cell
        kept[i, benchmark] = {name: columns[i, name] for name in ("ACC", "LEN")}


def _what_is_missing(row: Row, responses: Responses, cell: Cell, union: list[str]) -> list[str]:
    notes = []
    if cell.problems < len(union):
        notes.append(f"{cell.problems} of the {len(union)} problems seen in this report")
    asked = max(samples_asked(row.run) or 0, cell.samples[1])
    if short := problems_with_fewer(responses, asked):
        notes.append(f"{short} of {cell.problems} problems have fewer than {asked} samples")
    if responses.doubled:
        notes.append(f"{responses.doubled} records were there twice; the first of each counts")
    return notes


def _average(results: Results, index: int, kept: dict) -> Cell:
    """ACC and LEN averaged over all benchmarks of the report, if the row has them all, each whole."""
    cells = [results.cells.get((index, benchmark)) for benchmark in results.benchmarks]
    lacking = [b for b, cell in zip(results.benchmarks, cells, strict=True) if cell is None]
    partial = [b for b, cell in zip(results.benchmarks, cells, strict=True) if cell is not None and cell.notes]
    average = Cell()
    if lacking or partial:
        reasons = [f"no {title(b)}" for b in lacking] + [f"{title(b)} is not whole" for b in partial]
        average.notes = [f"no average: {', '.join(reasons)}"]
        return average
    average.problems = sum(cell.problems for cell in cells)
    average.samples = (min(cell.samples[0] for cell in cells), max(cell.samples[1] for cell in cells))

    def over_benchmarks(i: int, name: str) -> tuple[float, np.ndarray]:
        value = np.mean([results.cells[i, b][name].value for b in results.benchmarks])
        return float(value), np.mean([kept[i, b][name] for b in results.benchmarks], axis=0)

    average.values = {
        "ACC": share_interval(*over_benchmarks(index, "ACC"), average.problems),
        "LEN": interval(*over_benchmarks(index, "LEN")),
        "clipped": Estimate(max(cell["clipped"].value for cell in cells)),
    }
    base_index = results.rows.index(results.baseline) if results.baseline else index
    if base_index != index and all((base_index, b) in results.cells for b in results.benchmarks):
        (own, own_drawn), (base, base_drawn) = over_benchmarks(index, "LEN"), over_benchmarks(base_index, "LEN")
        average.values["dLEN"] = interval(1 - own / base, 1 - own_drawn / base_drawn)
    return average


# What may differ between runs that are compared: that is what the comparison is about.
_MAY_DIFFER = {"provenance", "seed"}
_MODEL_WORDS = ("model", "adapter", "revision", "fingerprint")


def _differing_settings(runs: list[Run]) -> list[str]:
    """Settings, but for the model's, in which the runs differ: such runs must be compared with care."""
    notes = []
    for key in sorted(set().union(*(run.settings for run in runs)) - _MAY_DIFFER):
        if any(word in key for word in _MODEL_WORDS):
            continue
        given = {run.label: run.settings.get(key) for run in runs if run.settings}
        if len({json.dumps(value, sort_keys=True) for value in given.values()}) > 1:
            notes.append(f"the runs differ in {key}: " + ", ".join(f"{k} {v}" for k, v in given.items()))
    unknown = [run.label for run in runs if not run.settings]
    return notes + [f"{label} has no settings.json: how it was generated is not known" for label in unknown]
