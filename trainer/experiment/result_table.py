"""The table before / after on held-out problems, and what may be read from it.

In: per policy a summary of its held-out responses.  Out: markdown, and the same numbers for JSON.

    accuracy    share of right answers with Wilson's 95% interval, as n is a few hundred and shares are near 1
    length      mean tokens of a response; its change against the warm start in percent
    TECA        mean over responses of the mean token entropy, nats;  total: of the sum, nats
"""

import math
from statistics import mean, stdev

from trainer.catalogue.rewards import title
from trainer.experiment.held_out import HeldOutResponses
from trainer.reporting.statistics import wilson
from trainer.reporting.table import Table, TableCell, to_markdown
from trainer.tiny.problems import DESIGNS

BEFORE = "warm start"
BEFORE_TITLE = "before (warm start)"

ONE_RUN = """\
- One run per row: between seeds, lengths differ by several tokens. Intervals are over problems, not over runs."""

RECAP = """\
- This is the counter-example. TECA is a mean, and a recap repeats what is known with certainty: it lowers TECA and says
  nothing. Where CER's length or recaps grow while TECA falls, the reward is being gamed; a reward on the total entropy
  can't be diluted."""

SLIPS = """\
- stop =, stop !=: shares of responses that calculate no more after two results, where the two agree and where they
  differ. Where the shares are alike the policy stops by count: what shortens it cuts needed and idle checks alike."""


def summarise(responses: HeldOutResponses) -> dict[str, float]:
    """The numbers of one row."""
    n = len(responses.correct)
    low, high = wilson(sum(responses.correct), n)
    return {
        "problems": n,
        "accuracy": sum(responses.correct) / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "length": mean(responses.tokens),
        "length_standard_error": stdev(responses.tokens) / math.sqrt(n),
        "teca": mean(responses.teca),
        "entropy_sum": mean(responses.entropy_sum),
        "explorations": mean(responses.explorations),
        "recaps": mean(responses.recaps),
    }


def what_controls_say(summaries: dict[str, dict[str, float]]) -> str:
    """What accuracy alone and a length penalty did, from the rows that are there: CER is read against them."""
    before = summaries[BEFORE]["length"]
    did = [
        f"{name} {100 * (summaries[key]['length'] / before - 1):+.0f}%"
        for key, name in (("accuracy", "accuracy alone"), ("length_penalty", "a plain length penalty"))
        if key in summaries
    ]
    if not did:
        return (
            "- No control was run. Accuracy alone changes the length too, and so does a plain length penalty: without "
            "them (--controls)\n  nothing can be said about what the entropy in the reward adds."
        )
    return (
        f"- Change of length by the controls: {', '.join(did)}. What the entropy in the reward adds is the "
        "difference to\n  those rows, not to the first one; accuracies are to be compared with them too."
    )


def _share(row: dict[str, float], name: str) -> TableCell:
    return TableCell(f"{row[name]:.2f}" if name in row else "")


def result_table(summaries: dict[str, dict[str, float]], *, design: str) -> str:
    """Markdown. `summaries` maps "warm start" and then names of rewards to what `summarise` gives."""
    before = summaries[BEFORE]
    columns = [
        *("ACC", "LEN", "dLEN", "TECA", "total H", "explorations"),
        *(["stop =", "stop !="] if DESIGNS[design].slips else []),
        *(["recaps"] if DESIGNS[design].recaps else []),
    ]
    rows = []
    for name, row in summaries.items():
        change = 100 * (row["length"] / before["length"] - 1)
        cells = [
            TableCell(f"{row['accuracy']:.3f}", f"[{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"),
            TableCell(f"{row['length']:.1f}"),
            TableCell("" if name == BEFORE else f"{change:+.0f}%"),
            TableCell(f"{row['teca']:.3f}"),
            TableCell(f"{row['entropy_sum']:.1f}"),
            TableCell(f"{row['explorations']:.2f}"),
            *(_share(row, share) for share in ("stops_agreed", "stops_split") if DESIGNS[design].slips),
            *([TableCell(f"{row['recaps']:.2f}")] if DESIGNS[design].recaps else []),
        ]
        rows.append((BEFORE_TITLE if name == BEFORE else title(name), cells))
    caption = f"Held-out problems ({before['problems']:.0f}), design {design}, one sampled response each at T = 1"
    notes = [
        what_controls_say(summaries),
        ONE_RUN,
        *([SLIPS] if DESIGNS[design].slips else []),
        *([RECAP] if DESIGNS[design].recaps else []),
    ]
    return "\n".join([to_markdown(Table(caption, [("", columns)], [("", rows)])), "", *notes, ""])
