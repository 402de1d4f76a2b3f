"""Short responses word by word: bars of token entropy with the token under each bar, and a line for TECA.

In: records of the same problem from several runs. Out: a figure with a panel per record, on one scale: where a policy
explores, and what is left of it.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from trainer.plotting.style import RIGHT, WRONG, figure, label
from trainer.records.record_files import Record

MOST_TOKENS = 100  # more words than this cannot be read side by side


def fits(records: list[tuple[str, Record]]) -> bool:
    """Whether every response is short enough to be read in the figure."""
    return max(record["response_length"] for _, record in records) <= MOST_TOKENS


def words(records: list[tuple[str, Record]]) -> Figure:
    """Bars of token entropy with the tokens under them, and TECA, in nats.

    Args:
        records: (name of the run, record with 1 to MOST_TOKENS tokens), from the first panel to the last.
    """
    longest = max(record["response_length"] for _, record in records)
    made = figure(max(5.0, 0.16 * longest + 0.8), 2.05 * len(records) + 0.3)
    panels = made.subplots(len(records), 1, squeeze=False)[:, 0]
    top = max(max(record["token_entropies"]) for _, record in records)
    for axis, (name, record) in zip(panels, records, strict=True):
        places = range(1, record["response_length"] + 1)
        axis.bar(places, record["token_entropies"], width=0.8, color=WRONG, label="entropy of a token")
        axis.plot(
            places,
            record["teca"],
            color=RIGHT,
            marker="o",
            markersize=2,
            label="TECA: mean entropy of the tokens so far",
        )
        axis.set_xlim(0.3, longest + 0.7)
        axis.set_ylim(0, 1.08 * top or 1)
        axis.set_ylabel("nats")
        axis.set_xticks(places, [label(token.strip() or "␣", 14) for token in record["tokens"]], rotation=90, size=7)
        axis.tick_params(axis="x", length=0, pad=1)
        axis.grid(visible=False, axis="x")
        grade = "right" if record["is_correct"] else "wrong"
        about = f": {record['response_length']} tokens, {grade}, TECA {record['teca'][-1]:.2f}"
        axis.set_title(label(name) + about, loc="left", fontweight="bold")
    panels[-1].legend(loc="upper right", fontsize=8.5)
    question = label(records[0][1]["question"], 20 + int(2.2 * longest))
    made.suptitle(question, size=8.5, color="#555555", x=0.01, ha="left")
    return made
