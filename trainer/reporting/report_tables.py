"""The tables of a report: results in the published layout, the rest per benchmark, comparisons, the published numbers.

In: results, comparisons or the published rows. Out: Tables, which table.py writes as text.
"""

from __future__ import annotations

from trainer.records.names import title
from trainer.reporting.comparison import Comparison
from trainer.reporting.published import PUBLISHED, Inconsistency, implied_dlen, inconsistencies
from trainer.reporting.results import AVERAGE, Results, Row
from trainer.reporting.statistics import Estimate
from trainer.reporting.table import DASH, Table, TableCell

_MUCH_CLIPPED = 0.05  # share of responses cut off at the limit from which their mean length is a lower bound


def _percent(estimate: Estimate, digits: int = 2) -> TableCell:
    return _number(Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high), digits)


def _number(estimate: Estimate, digits: int, plus: bool = False) -> TableCell:
    if not estimate.defined:
        return TableCell(DASH)
    sign = "+" if plus else ""
    # An interval is read to fewer digits than the value it surrounds.
    low_digits = max(digits - 1, 0) if digits < 3 else digits
    inside = f"[{estimate.low:.{low_digits}f}, {estimate.high:.{low_digits}f}]" if estimate.has_interval else ""
    return TableCell(f"{estimate.value:{sign}.{digits}f}", inside)


def _with_sign(estimate: Estimate, scale: float, digits: int) -> TableCell:
    return _number(Estimate(scale * estimate.value, scale * estimate.low, scale * estimate.high), digits, plus=True)


def _sections(rows: list[Row]) -> list[tuple[str, list[int]]]:
    """The rows of one run under its label, in order."""
    sections: list[tuple[str, list[int]]] = []
    for index, row in enumerate(rows):
        if not sections or sections[-1][0] != row.run.label:
            sections.append((row.run.label, []))
        sections[-1][1].append(index)
    return sections


def result_tables(results: Results, *, seed: int, intervals: bool = True) -> list[Table]:
    """ACC, LEN and dLEN in the layout of the published tables (two benchmarks each), then everything else."""
    groups = [*results.benchmarks, *([AVERAGE] if len(results.benchmarks) > 1 else [])]
    how = "≥: more than 5% were cut off at the limit. " if _some_clipped(results) else ""
    how += f"95% intervals: bootstrap over problems, each with all its samples, seed {seed}."
    if results.baseline:
        how = f"dLEN against {results.baseline.name}. {how}"
    else:
        how = f"No dLEN: there is no baseline method (thinking). {how}"
    tables = []
    for start in range(0, len(groups), 2):
        part = groups[start : start + 2]
        if part == [AVERAGE] and tables:  # the average stands beside the last benchmarks, as published
            part_table = tables[-1]
        else:
            names = ", ".join(title(name) for name in groups[start : start + 2] if name != AVERAGE)
            part_table = Table(f"Accuracy (%), mean length (tokens) and its reduction on {names}. {how}", [], [])
            part_table.sections = [
                (label, [(title(results.rows[i].method), []) for i in indices])
                for label, indices in _sections(results.rows)
            ]
            tables.append(part_table)
        for name in part:
            part_table.groups.append(("Average" if name == AVERAGE else title(name), ["ACC", "LEN", "dLEN"]))
            flat = [row for _, rows in part_table.sections for row in rows]
            for index, (_, cells) in enumerate(flat):
                cells += _main_cells(part_table, results, index, name, intervals)
    for note in results.notes:
        tables[0].mark(note)
    return [*tables, _detail_table(results, intervals)]


def _some_clipped(results: Results) -> bool:
    return any(cell["clipped"].value > _MUCH_CLIPPED for cell in results.cells.values())


def _main_cells(table: Table, results: Results, index: int, name: str, intervals: bool) -> list[TableCell]:
    cell = results.cells.get((index, name))
    if cell is None:
        return [TableCell(DASH) for _ in range(3)]
    made = [_percent(cell["ACC"]), _number(cell["LEN"], 2), _percent(cell["dLEN"])]
    if cell["LEN"].defined and cell["clipped"].value > _MUCH_CLIPPED:
        made[1].value = f"≥{made[1].value}"
    if made[2].value != DASH:
        made[2].value += "%"
    made[0].mark = ",".join(table.mark(note) for note in cell.notes)
    for shown in made:
        shown.interval = shown.interval if intervals else ""
    return made


def _detail_table(results: Results, intervals: bool) -> Table:
    columns = ["problems", "samples", *(f"pass@{k}" for k in results.pass_at), "clipped", "no answer"]
    columns += ["TECA right", "TECA wrong"]
    shares = ", ".join([f"pass@{k}" for k in results.pass_at] + ["clipped responses", "responses without an answer"])
    shares = shares[0].upper() + shares[1:] if not results.pass_at else shares
    caption = f"{shares} (%), and the last TECA of right and wrong answers (nats)."
    table = Table(caption, [("", columns)], [])
    for benchmark in results.benchmarks:
        rows = []
        for index, row in enumerate(results.rows):
            cell = results.cells.get((index, benchmark))
            if cell is None:
                continue
            low, high = cell.samples
            mark = ",".join(table.mark(note) for note in cell.notes)
            cells = [TableCell(str(cell.problems), mark=mark), TableCell(str(high) if low == high else f"{low}-{high}")]
            cells += [_percent(cell[f"pass@{k}"]) for k in results.pass_at]
            cells += [
                _percent(cell["clipped"]),
                _percent(cell["no answer"]),
                _number(cell["TECA right"], 4),
                _number(cell["TECA wrong"], 4),
            ]
            for shown in cells:
                shown.interval = shown.interval if intervals else ""
            rows.append((row.name, cells))
        table.sections.append((title(benchmark), rows))
    return table


def comparison_table(a: Row, b: Row, comparisons: list[Comparison], *, seed: int) -> Table:
    """B against A with paired intervals."""
    table = Table(
        f"A: {a.name}. B: {b.name}. Differences are B - A on the problems that both have; ACC in points, LEN in "
        f"tokens, TECA in nats. 95% intervals: paired bootstrap over problems, seed {seed}.",
        [
            ("", ["problems"]),
            ("ACC", ["A", "B", "B - A", "better/worse"]),
            ("LEN", ["A", "B", "B - A", "dLEN"]),
            ("TECA", ["B - A"]),
        ],
        [],
    )
    rows = []
    for c in comparisons:
        v = c.values
        mark = ",".join(table.mark(note) for note in c.notes)
        dlen = _percent(v["dLEN"])
        dlen.value += "%"
        cells = [
            TableCell(str(c.problems), mark=mark),
            TableCell(_percent(v["ACC A"]).value),
            TableCell(_percent(v["ACC B"]).value),
            _with_sign(v["ACC difference"], 100, 2),
            TableCell(f"{c.better}/{c.worse}"),
            TableCell(_number(v["LEN A"], 2).value),
            TableCell(_number(v["LEN B"], 2).value),
            _with_sign(v["LEN difference"], 1, 2),
            dlen,
            _with_sign(v["TECA difference"], 1, 4),
        ]
        rows.append(("Average" if c.benchmark == AVERAGE else title(c.benchmark), cells))
    table.sections = [("", rows)]
    return table


def published_tables(found: list[Inconsistency] | None = None) -> list[Table]:
    """The published tables with dLEN worked out from the published lengths, beside what was printed."""
    found = inconsistencies() if found is None else found
    wrong = {(i.model, i.method, i.benchmark, i.quantity): i for i in found}
    tables = []
    for pair, average in ((("gsm8k", "math500"), False), (("aime24", "aime25"), True)):
        table = Table(
            f"Published results on {title(pair[0])} and {title(pair[1])} (arXiv 2510.02249). dLEN is worked out "
            "from the lengths and equals the printed one, except where a letter stands: that is the printed number.",
            [(title(name), ["ACC", "LEN", "dLEN"]) for name in pair] + [("Average", ["ACC", "LEN"])] * average,
            [],
        )
        sections: dict[str, list[tuple[str, list[TableCell]]]] = {}
        thinking = {row.model: row for row in PUBLISHED if row.method == "thinking"}
        for row in PUBLISHED:
            cells = []

            def marked(quantity: str, benchmark: str, text: str, row=row, table=table) -> TableCell:
                one = wrong.get((row.model, row.method, benchmark, quantity))
                if one is None:
                    return TableCell(text)
                unit = "" if quantity == "LEN" else "%"
                why = f"; {one.explanation}" if one.explanation else ""
                where = "the average" if benchmark == AVERAGE else title(benchmark)
                source = "parts" if benchmark == AVERAGE else "lengths"
                note = (
                    f"{row.model} {title(row.method)}, {where}: {quantity} is printed as {one.printed:.2f}{unit}, "
                    f"its own {source} give {one.implied:.2f}{unit}{why}"
                )
                return TableCell(f"{one.printed:.2f}{unit}", mark=table.mark(note))

            for name in pair:
                own = row.cells[name]
                cells += [TableCell(f"{own.accuracy:.2f}"), TableCell(f"{own.length:.2f}")]
                base = thinking[row.model].cells[name].length
                text = DASH if own.dlen is None else f"{implied_dlen(base, own.length):.2f}%"
                cells.append(marked("dLEN", name, text))
            if average:
                cells.append(marked("ACC", AVERAGE, f"{row.average_accuracy:.2f}"))
                cells.append(marked("LEN", AVERAGE, f"{row.average_length:.2f}"))
            sections.setdefault(row.model, []).append((title(row.method), cells))
        table.sections = list(sections.items())
        tables.append(table)
    return tables
