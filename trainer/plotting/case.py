"""One response: the entropy of each token, and TECA over them, on two axes.

In: records of the same problem from several runs. Out: a figure with a panel per record.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from trainer.plotting.style import NEUTRAL, RIGHT, figure, label
from trainer.records.names import title
from trainer.records.record_files import Record

_POINTS = 1500  # more cannot be seen on paper, and a 16,384-token response would make a file of megabytes


def _thin_maximum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) with at most _POINTS points: of each group of neighbours the largest, so that no peak is lost."""
    group = -(-len(values) // _POINTS)
    starts = np.arange(0, len(values), group)
    return starts + group / 2 + 0.5, np.maximum.reduceat(values, starts)


def case(records: list[tuple[str, Record]]) -> Figure:
    """Token entropy (bars, left axis) beside TECA (line, right axis) over the tokens of each response.

    Args:
        records: (name of the run, record with at least one token), from the first panel to the last.
    """
    made = figure(6.5, 1.75 * len(records) + 0.3)
    panels = made.subplots(len(records), 1, squeeze=False, sharex=True)[:, 0]
    top_entropy = max(max(record["token_entropies"]) for _, record in records)
    top_teca = max(max(record["teca"]) for _, record in records)
    longest = max(record["response_length"] for _, record in records)
    width = min(3.0, max(0.4, 260 / max(min(longest, _POINTS), 90)))  # points: bars that touch would hide their heights
    for axis, (name, record) in zip(panels, records, strict=True):
        entropy, teca = np.array(record["token_entropies"]), np.array(record["teca"])
        steps, peaks = (np.arange(1, len(entropy) + 1), entropy) if len(entropy) <= _POINTS else _thin_maximum(entropy)
        axis.vlines(steps, 0, peaks, color=NEUTRAL, linewidth=width, alpha=0.75)
        other = axis.twinx()
        at = np.unique(np.linspace(0, len(teca) - 1, min(len(teca), _POINTS)).astype(int))
        other.plot(at + 1, teca[at], color=RIGHT, marker="o" if len(teca) == 1 else None, markersize=3)
        axis.set_ylim(0, 1.05 * top_entropy or 1)
        other.set_ylim(0, 1.05 * top_teca or 1)
        axis.set_ylabel("token entropy (nats)", color="#555555")
        other.set_ylabel("TECA (nats)", color=RIGHT)
        other.tick_params(axis="y", colors=RIGHT)
        other.spines["right"].set(visible=True, color=RIGHT)
        other.grid(False)
        axis.set_zorder(0)
        grade = "right" if record["is_correct"] else "wrong"
        cut = ", cut at the limit" if record["finish_reason"] == "length" else ""
        axis.set_title(
            f"{label(name)}: {record['response_length']} tokens, {grade}{cut}, last TECA {teca[-1]:.3f}", loc="left"
        )
    panels[-1].set_xlim(0.5 if longest > 1 else 0, longest + 0.5)
    first = records[0][1]
    panels[-1].set_xlabel(label(f"token ({title(first['benchmark'])}, problem {first['id']})", 90))
    return made
