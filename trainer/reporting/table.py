"""A table and how it is written: markdown and LaTeX (booktabs).

In: a Table: groups of columns, sections of rows, cells of value, interval and mark, and the notes the marks refer to.
Out: text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DASH = "–"


@dataclass
class TableCell:
    value: str
    interval: str = ""
    mark: str = ""


@dataclass
class Table:
    caption: str
    groups: list[tuple[str, list[str]]]  # title over the columns, and the columns; the first column names the row
    sections: list[tuple[str, list[tuple[str, list[TableCell]]]]]  # heading, rows
    notes: dict[str, str] = field(default_factory=dict)  # mark -> text

    def mark(self, text: str) -> str:
        """The letter of a note, the same for the same text."""
        for letter, known in self.notes.items():
            if known == text:
                return letter
        number = len(self.notes)
        letter = chr(ord("a") + number % 26) * (1 + number // 26)
        self.notes[letter] = text
        return letter


def to_markdown(table: Table) -> str:
    """A pipe table whose columns are aligned in a terminal as well."""
    header = [""] + [f"{group} {column}".strip() for group, columns in table.groups for column in columns]
    lines = [header]
    for heading, rows in table.sections:
        if heading and len(table.sections) > 1:
            lines.append([f"**{_markdown(heading)}**"] + [""] * (len(header) - 1))
        for name, cells in rows:
            texts = [
                " ".join(part for part in (c.value, c.interval, f"({c.mark})" if c.mark else "") if part) for c in cells
            ]
            lines.append([_markdown(name), *texts])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    widths = [max(width, 3) for width in widths]

    def joined(line: list[str]) -> str:
        first = line[0].ljust(widths[0])
        return "| " + " | ".join([first] + [t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    notes = [f"({mark}) {_markdown(text)}" for mark, text in table.notes.items()]
    body = [joined(lines[0]), rule, *(joined(line) for line in lines[1:])]
    parts = [_markdown(table.caption), "\n".join(body), "  \n".join(notes)]  # two spaces end a line in markdown
    return "\n\n".join(part for part in parts if part)


def _markdown(text: str) -> str:
    """A name may hold anything; in a pipe table only | and newlines break the row."""
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "≥": r"$\geq$",
    "<": "$<$",
    ">": "$>$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text).replace("dLEN", r"$\Delta$LEN")


def to_latex(table: Table) -> str:
    """A table environment; needs \\usepackage{booktabs} and nothing else."""
    columns = sum(len(names) for _, names in table.groups)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * columns}}}", r"\toprule"]
    if any(group for group, _ in table.groups):
        spans = [rf"\multicolumn{{{len(names)}}}{{c}}{{{_latex(group)}}}" for group, names in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
        start, rules = 2, []
        for group, names in table.groups:
            if group:
                rules.append(rf"\cmidrule(lr){{{start}-{start + len(names) - 1}}}")
            start += len(names)
        lines.append(" ".join(rules))
    lines.append(" & ".join(["", *(_latex(name) for _, names in table.groups for name in names)]) + r" \\")
    for heading, rows in table.sections:
        lines.append(r"\midrule")
        if heading and len(table.sections) > 1:
            lines.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\textbf{{{_latex(heading)}}}}} \\")
        for name, cells in rows:
            texts = []
            for cell in cells:
                interval = rf" {{\scriptsize {_latex(cell.interval)}}}" if cell.interval else ""
                mark = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
                texts.append(_latex(cell.value) + mark + interval)
            lines.append(" & ".join([_latex(name), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for mark, text in table.notes.items():
        lines.append(rf"\par{{\footnotesize \textsuperscript{{{mark}}} {_latex(text)}}}")
    return "\n".join([*lines, r"\end{table}"])
