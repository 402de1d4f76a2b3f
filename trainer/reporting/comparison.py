"""Two runs on the same problems: differences with paired intervals.

In: two rows (a method of a run each). Out: one Comparison per benchmark that both have, and one over all of them.
When problems are drawn, both values of a problem are drawn together, so that its difficulty cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.records.names import benchmarks_in_order, title
from trainer.reporting.per_problem import per_problem, problems_with_fewer, samples_per_problem
from trainer.reporting.results import AVERAGE, Row
from trainer.reporting.runs import samples_asked
from trainer.reporting.statistics import Estimate, Ratio, bootstrap, interval, share_interval


@dataclass
class Comparison:
    """B against A on the problems of one benchmark that both have; differences are B - A."""

    benchmark: str
    problems: int
    only_a: int
    only_b: int
    values: dict[str, Estimate]
    better: int  # problems on which B is right more often
    worse: int
    notes: list[str]


def compare(a: Row, b: Row, *, seed: int = 0) -> list[Comparison]:
    """B against A per benchmark that both have, on common problems, and averaged over those benchmarks.

    values: "ACC A", "ACC B", "ACC difference", "LEN A", "LEN B", "LEN difference", "dLEN" = 1 - LEN B / LEN A,
    "TECA difference" (mean over problems of the mean last TECA).

    Raises:
        ValueError: no benchmark in common, or no problem in common on one.
    """
    own = [{bench: r for (bench, method), r in row.run.responses.items() if method == row.method} for row in (a, b)]
    shared = benchmarks_in_order(own[0].keys() & own[1].keys())
    if not shared:
        raise ValueError(f"{a.name} and {b.name} have no benchmark in common")
    found, kept = [], []
    for benchmark in shared:
        sides = [side[benchmark] for side in own]
        common = sorted(set(sides[0].problem) & set(sides[1].problem))
        if not common:
            raise ValueError(f"{a.name} and {b.name} have no problem of {benchmark} in common")
        position = {name: i for i, name in enumerate(sorted(set(sides[0].problem) | set(sides[1].problem)))}
        inside = np.array([position[name] for name in common])
        sums = [per_problem(side, position) for side in sides]
        columns = {}
        for letter, s in zip("AB", sums, strict=True):
            teca_n = s.teca_right_n + s.teca_wrong_n
            columns[f"ACC {letter}"] = (s.right / np.maximum(s.n, 1))[inside]
            columns[f"LEN {letter}"] = (s.length / np.maximum(s.n, 1))[inside]
            with np.errstate(invalid="ignore"):
                columns[f"TECA {letter}"] = ((s.teca_right + s.teca_wrong) / teca_n)[inside]
        ratios = {name: Ratio.mean(column) for name, column in columns.items()}
        drawn = dict(zip(ratios, bootstrap(list(ratios.values()), seed=seed, stream=benchmark).T, strict=True))
        value = {name: ratio.value() for name, ratio in ratios.items()}
        notes = []
        missing = [len(set(side.problem)) - len(common) for side in sides]
        if any(missing):
            notes.append(f"{missing[0]} problems only in A and {missing[1]} only in B are left out")
        for row, side in zip((a, b), sides, strict=True):
            asked = max(samples_asked(row.run) or 0, samples_per_problem(side)[1])
            if short := problems_with_fewer(side, asked):
                notes.append(f"{row.name}: {short} problems have fewer than {asked} samples")
        difference = columns["ACC B"] - columns["ACC A"]
        found.append(
            Comparison(
                benchmark,
                len(common),
                *missing,
                _compared(value, drawn, len(common)),
                int((difference > 0).sum()),
                int((difference < 0).sum()),
                notes,
            )
        )
        kept.append((value, drawn))
    if len(found) > 1:
        value = {name: float(np.mean([v[name] for v, _ in kept])) for name in kept[0][0]}
        drawn = {name: np.mean([d[name] for _, d in kept], axis=0) for name in kept[0][1]}
        left_out = benchmarks_in_order(own[0].keys() ^ own[1].keys())
        notes = [f"without {', '.join(map(title, left_out))}, which only one of them has"] if left_out else []
        if any(c.notes for c in found):
            notes.append("over parts that are not whole")
        totals = [sum(getattr(c, name) for c in found) for name in ("problems", "only_a", "only_b", "better", "worse")]
        found.append(Comparison(AVERAGE, *totals[:3], _compared(value, drawn, totals[0]), *totals[3:], notes))
    return found


def _compared(value: dict[str, float], drawn: dict[str, np.ndarray], problems: int) -> dict[str, Estimate]:
    values = {f"ACC {x}": share_interval(value[f"ACC {x}"], drawn[f"ACC {x}"], problems) for x in "AB"}
    values |= {f"LEN {x}": interval(value[f"LEN {x}"], drawn[f"LEN {x}"]) for x in "AB"}
    for name in ("ACC", "LEN", "TECA"):
        values[f"{name} difference"] = interval(
            value[f"{name} B"] - value[f"{name} A"], drawn[f"{name} B"] - drawn[f"{name} A"]
        )
    values["dLEN"] = interval(1 - value["LEN B"] / value["LEN A"], 1 - drawn["LEN B"] / drawn["LEN A"])
    return values
