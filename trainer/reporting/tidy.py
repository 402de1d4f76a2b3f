"""The numbers of a report as tidy CSV: one row per quantity.

In: results, comparisons or the published rows. Out: text. Shares and dLEN between 0 and 1, lengths in tokens, TECA in
nats; an empty field where a quantity is not defined.
"""

from __future__ import annotations

import csv
import io

from trainer.reporting.comparison import Comparison
from trainer.reporting.published import PUBLISHED, Inconsistency, inconsistencies
from trainer.reporting.results import AVERAGE, Results, Row
from trainer.reporting.statistics import Estimate

CSV_COLUMNS = ("table", "run", "method", "benchmark", "quantity", "value", "low", "high", "problems", "notes")


def to_csv(rows: list[tuple]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def _plain(estimate: Estimate) -> tuple[str, str, str]:
    if not estimate.defined:
        return "", "", ""
    ends = (f"{estimate.low:.6g}", f"{estimate.high:.6g}") if estimate.has_interval else ("", "")
    return f"{estimate.value:.10g}", *ends


def results_csv(results: Results) -> list[tuple]:
    """One row per quantity; shares between 0 and 1, lengths in tokens, TECA in nats. Empty: not defined."""
    rows = []
    for (index, benchmark), cell in sorted(results.cells.items(), key=lambda item: item[0][0]):
        row = results.rows[index]
        quantities = ["ACC", "LEN", "dLEN"]
        if benchmark != AVERAGE:
            quantities += [*(f"pass@{k}" for k in results.pass_at), "clipped", "no answer", "TECA right", "TECA wrong"]
        notes = "; ".join(cell.notes)
        for name in quantities:
            value = _plain(cell[name])
            rows.append(("results", row.run.label, row.method, benchmark, name, *value, cell.problems, notes))
    return rows


def comparison_csv(a: Row, b: Row, comparisons: list[Comparison]) -> list[tuple]:
    names = f"{a.run.label} -> {b.run.label}", f"{a.method} -> {b.method}"
    return [
        ("comparison", *names, c.benchmark, quantity, *_plain(estimate), c.problems, "; ".join(c.notes))
        for c in comparisons
        for quantity, estimate in c.values.items()
    ]


def published_csv(found: list[Inconsistency] | None = None) -> list[tuple]:
    found = inconsistencies() if found is None else found
    notes = {
        (i.model, i.method, i.benchmark, i.quantity): f"printed; implied {i.implied:.2f}"
        + (f"; {i.explanation}" if i.explanation else "")
        for i in found
    }
    rows = []
    for row in PUBLISHED:
        cells = [
            (benchmark, name, value)
            for benchmark, cell in row.cells.items()
            for name, value in (("ACC", cell.accuracy), ("LEN", cell.length), ("dLEN", cell.dlen))
        ]
        cells += [(AVERAGE, "ACC", row.average_accuracy), (AVERAGE, "LEN", row.average_length)]
        for benchmark, name, value in cells:
            share = name != "LEN"
            text = "" if value is None else f"{value / 100:.4f}" if share else f"{value:.2f}"
            note = notes.get((row.model, row.method, benchmark, name), "")
            rows.append(("published", row.model, row.method, benchmark, name, text, "", "", "", note))
    return rows
