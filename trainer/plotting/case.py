"""One response: the entropy of each token, and TECA over them, on one scale.

In: records of the same problem from several runs. Out: a figure with a panel per record.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from trainer.plotting.style import NEUTRAL, RIGHT, figure, label, legend_below, whole_steps
from trainer.records.names import title
from trainer.records.record_files import Record

_POINTS = 1500  # more cannot be seen on paper, and a 16,384-token response would make a file of megabytes


def _thin_maximum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) with at most _POINTS points: of each group of neighbours the largest, so that no peak is lost."""
    group = -(-len(values) // _POINTS)
    starts = np.arange(0, len(values), group)
    return starts + group / 2 + 0.5, np.maximum.reduceat(values, starts)


def case(records: list[tuple[str, Record]]) -> Figure:
    """Token entropy (bars) and TECA (line), in nats, over the tokens of each response.

    Args:
        records: (name of the run, record with at least one token), from the first panel to the last.
    """
    made = figure(6.5, 1.75 * len(records) + 0.3)
    panels = made.subplots(len(records), 1, squeeze=False, sharex=True)[:, 0]
    top = max(max(record["token_entropies"]) for _, record in records)  # no mean of them is larger
    longest = max(record["response_length"] for _, record in records)
    width = min(3.0, max(0.4, 260 / max(min(longest, _POINTS), 90)))  # points: bars that touch would hide their heights
    for axis, (name, record) in zip(panels, records, strict=True):
        entropy, teca = np.array(record["token_entropies"]), np.array(record["teca"])
        steps, peaks = (np.arange(1, len(entropy) + 1), entropy) if len(entropy) <= _POINTS else _thin_maximum(entropy)
        axis.vlines(steps, 0, peaks, color=NEUTRAL, linewidth=width, alpha=0.75, label="token entropy")
        at = np.unique(np.linspace(0, len(teca) - 1, min(len(teca), _POINTS)).astype(int))
        marker = "o" if len(teca) == 1 else None
        axis.plot(at + 1, teca[at], color=RIGHT, marker=marker, markersize=3, label="TECA: its mean so far")
        axis.set_ylim(0, 1.05 * top or 1)
        axis.set_ylabel("nats")
        grade = "right" if record["is_correct"] else "wrong"
        cut = ", cut at the limit" if record["finish_reason"] == "length" else ""
        axis.set_title(
            f"{label(name)}: {record['response_length']} tokens, {grade}{cut}, last TECA {teca[-1]:.3f}", loc="left"
        )
    panels[-1].set_xlim(0.5 if longest > 1 else 0, longest + 0.5)
    whole_steps(panels[-1])
    first = records[0][1]
    panels[-1].set_xlabel(label(f"token ({title(first['benchmark'])}, problem {first['id']})", 90))
    legend_below(made, panels[:1])
    return made
