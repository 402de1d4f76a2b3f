"""The results published with the method, and which of them do not follow from their own lengths.

    dLEN = (LEN of thinking - LEN of the method) / LEN of thinking        average = mean over the four benchmarks

Source: tables 1 and 2 of Explore Briefly, Then Decide (arXiv 2510.02249), as the authors' repository prints them.
Accuracies and dLEN in percent, lengths in tokens, each rounded to two decimals.
"""

from __future__ import annotations

from dataclasses import dataclass

BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25")
METHODS = ("thinking", "no_thinking", "cod", "ccot", "cer")


@dataclass(frozen=True)
class PublishedCell:
    """One method on one benchmark: accuracy, mean length, and the printed dLEN (None for thinking itself)."""

    accuracy: float
    length: float
    dlen: float | None


@dataclass(frozen=True)
class PublishedRow:
    model: str
    method: str
    cells: dict[str, PublishedCell]
    average_accuracy: float
    average_length: float


def _row(
    model: str, method: str, *cells: tuple[float, float, float | None], average: tuple[float, float]
) -> PublishedRow:
    by_benchmark = {name: PublishedCell(*cell) for name, cell in zip(BENCHMARKS, cells, strict=True)}
    return PublishedRow(model, method, by_benchmark, *average)


# fmt: off
PUBLISHED = (
    _row("Qwen3-4B", "thinking", (92.80, 1348.59, None), (65.20, 4458.60, None), (64.44, 11343.57, None),
         (48.89, 12119.62, None), average=(67.83, 7317.59)),
    _row("Qwen3-4B", "no_thinking", (86.50, 260.96, 80.65), (61.20, 846.35, 81.02), (26.67, 2132.20, 78.34),
         (20.00, 2503.93, 82.84), average=(48.59, 1435.86)),
    _row("Qwen3-4B", "cod", (93.30, 385.50, 71.41), (52.60, 1159.73, 73.99), (23.30, 3607.83, 68.19),
         (26.70, 3535.23, 70.83), average=(48.98, 2172.07)),
    _row("Qwen3-4B", "ccot", (82.56, 616.42, 54.29), (64.00, 2401.94, 46.13), (56.67, 9491.87, 16.32),
         (40.00, 10775.93, 11.09), average=(60.81, 5821.54)),
    _row("Qwen3-4B", "cer", (94.09, 391.08, 71.00), (64.80, 2708.65, 39.25), (61.11, 9215.77, 18.76),
         (51.11, 9565.64, 21.07), average=(67.78, 5470.29)),
    _row("Qwen3-8B", "thinking", (94.62, 1491.38, None), (65.80, 4669.74, None), (63.33, 11247.68, None),
         (46.67, 12708.16, None), average=(67.60, 7529.24)),
    _row("Qwen3-8B", "no_thinking", (88.86, 272.02, 79.83), (59.00, 837.16, 81.22), (20.00, 2399.13, 80.10),
         (23.33, 2300.13, 80.69), average=(47.80, 1452.11)),
    _row("Qwen3-8B", "cod", (94.40, 415.80, 72.12), (60.80, 1391.22, 70.21), (20.00, 3657.57, 67.48),
         (20.00, 3709.20, 70.81), average=(48.80, 2293.45)),
    _row("Qwen3-8B", "ccot", (92.49, 739.05, 50.45), (65.20, 2761.19, 40.87), (63.33, 9286.63, 17.44),
         (53.33, 10438.07, 17.86), average=(68.59, 5806.23)),
    _row("Qwen3-8B", "cer", (92.57, 668.06, 55.21), (65.80, 3140.04, 32.76), (65.56, 9171.56, 18.46),
         (53.33, 9894.51, 22.14), average=(69.32, 5718.54)),
)
# fmt: on


@dataclass(frozen=True)
class Inconsistency:
    """A printed number that its own table contradicts."""

    model: str
    method: str
    benchmark: str  # or "average"
    quantity: str  # "dLEN", "ACC", "LEN"
    printed: float
    implied: float
    explanation: str = ""


def implied_dlen(thinking: float, length: float) -> float:
    """dLEN in percent."""
    return 100 * (thinking - length) / thinking


def inconsistencies(rows: tuple[PublishedRow, ...] = PUBLISHED) -> list[Inconsistency]:
    """The printed dLEN and averages that do not follow from the printed lengths and accuracies.

    A printed number may be off by half of its last digit, and so may each number it is made from: an average of four
    by 0.005 + 0.005, a dLEN by 0.005 + d(dLEN), which the lengths' own rounding moves by less than 0.001.
    """
    thinking = {row.model: row for row in rows if row.method == "thinking"}
    found = []
    for row in rows:
        own = thinking[row.model]
        for benchmark, cell in row.cells.items():
            if cell.dlen is None:
                continue
            base = own.cells[benchmark].length
            implied = implied_dlen(base, cell.length)
            slack = 0.005 + 100 * 0.005 * (1 / base + cell.length / base**2) + 1e-9
            if abs(implied - cell.dlen) > slack:
                others = [
                    model
                    for model, other in thinking.items()
                    if model != row.model
                    and abs(implied_dlen(other.cells[benchmark].length, cell.length) - cell.dlen) <= slack
                ]
                explanation = f"it follows from the thinking length of {others[0]}" if others else ""
                found.append(Inconsistency(row.model, row.method, benchmark, "dLEN", cell.dlen, implied, explanation))
        for quantity, printed, parts in (
            ("ACC", row.average_accuracy, [cell.accuracy for cell in row.cells.values()]),
            ("LEN", row.average_length, [cell.length for cell in row.cells.values()]),
        ):
            implied = sum(parts) / len(parts)
            if abs(implied - printed) > 0.01 + 1e-9:
                found.append(Inconsistency(row.model, row.method, "average", quantity, printed, implied))
    return found
