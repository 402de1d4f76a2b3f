"""What the policies of an experiment do on the same held-out problems: numbers, table, and what may be read from it.

In: a directory of records per policy.  Out: per policy a dict of numbers for JSON, and a table in markdown.

    accuracy              share of right responses; interval of 95% over problems by bootstrap, as in trainer.report
    answered              share of responses in which any final answer was found
    appears               share in which the right number appears anywhere
    length, length_right  mean tokens of all and of right responses
    clipped               share cut off at the limit
    teca, entropy_sum     mean over responses of the mean and of the sum of token entropies, nats
    tokens_after, nats_after   mean over responses in which the right number appears, from there to the end
    d_accuracy, d_length  against the start model on the same problems, paired
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np

from trainer.experiment.stages import BEFORE, Plan
from trainer.experiment.where_entropy_sits import split_at_answer
from trainer.records.record_files import Record, read_records
from trainer.reporting.statistics import Ratio, bootstrap, interval, share_interval
from trainer.reporting.table import Table, TableCell, to_markdown

Numbers = dict[str, float | None]
_QUANTITIES = ("accuracy", "length", "teca", "entropy_sum")


def measure(directory: Path) -> tuple[Numbers, dict[str, np.ndarray]]:
    """The numbers of one policy, and accuracy and length per problem, in the order of the problems' ids."""
    records = list(read_records(directory))
    by_problem: dict[str, list[Record]] = {}
    for record in records:
        by_problem.setdefault(record["id"], []).append(record)
    problems = [by_problem[identity] for identity in sorted(by_problem)]
    per_problem = {
        "accuracy": np.array([mean(record["is_correct"] for record in group) for group in problems], dtype=float),
        "length": np.array([mean(record["response_length"] for record in group) for group in problems], dtype=float),
        "teca": np.array([mean(record["teca"][-1] for record in group) for group in problems]),
        "entropy_sum": np.array([mean(sum(record["token_entropies"]) for record in group) for group in problems]),
    }
    numbers: Numbers = {"problems": len(problems), "responses": len(records)}
    drawn = bootstrap([Ratio.mean(per_problem[name]) for name in _QUANTITIES], seed=0, stream="experiment")
    for column, name in enumerate(_QUANTITIES):
        value = float(per_problem[name].mean())
        found = (
            share_interval(value, drawn[:, column], len(problems))
            if name == "accuracy"
            else interval(value, drawn[:, column])
        )
        numbers |= {name: value, f"{name}_low": _json(found.low), f"{name}_high": _json(found.high)}
    splits = [split for split in map(split_at_answer, records) if split is not None]
    right = [record["response_length"] for record in records if record["is_correct"]]
    numbers |= {
        "answered": mean(record["extracted_answer"] is not None for record in records),
        "appears": len(splits) / len(records),
        "clipped": mean(record["finish_reason"] == "length" for record in records),
        "length_right": mean(right) if right else None,
        "tokens_before": mean(split.tokens_before for split in splits) if splits else None,
        "tokens_after": mean(split.tokens_after for split in splits) if splits else None,
        "nats_before": mean(split.nats_before for split in splits) if splits else None,
        "nats_after": mean(split.nats_after for split in splits) if splits else None,
    }
    return numbers, per_problem


def compare(plan: Plan) -> dict[str, Numbers]:
    """The numbers of every policy whose evaluation is there, the differences to the start model among them."""
    measured = {
        policy: measure(plan.evaluation(policy))
        for policy in plan.policies()
        if any(plan.evaluation(policy).glob("records-*.jsonl"))
    }
    found: dict[str, Numbers] = {}
    for policy, (numbers, per_problem) in measured.items():
        found[policy] = numbers
        if policy == BEFORE or BEFORE not in measured:
            continue
        start = measured[BEFORE][1]
        for name in ("accuracy", "length"):
            if len(start[name]) != len(per_problem[name]):
                continue  # an evaluation under way: not the same problems yet
            difference = per_problem[name] - start[name]
            drawn = bootstrap([Ratio.mean(difference)], seed=0, stream="experiment")[:, 0]
            estimate = interval(float(difference.mean()), drawn)
            numbers |= {
                f"d_{name}": estimate.value,
                f"d_{name}_low": _json(estimate.low),
                f"d_{name}_high": _json(estimate.high),
            }
    return found


def _json(value: float) -> float | None:
    return None if np.isnan(value) else value


def table(found: dict[str, Numbers], plan: Plan) -> str:
    """Markdown: a row per policy."""

    def share(numbers: Numbers, name: str) -> TableCell:
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        return TableCell(f"{numbers[name]:.3f}", f"[{low:.3f}, {high:.3f}]" if low is not None else "")

    def number(value: float | None, form: str = "{:.1f}") -> TableCell:
        return TableCell("-" if value is None else form.format(value))

    def tokens(numbers: Numbers) -> TableCell:
        low, high = numbers["length_low"], numbers["length_high"]
        form = f"{numbers['length']:.1f}"
        mark = "≥" if numbers["clipped"] > 0.05 else ""  # cut off at the limit: they would have been longer
        return TableCell(mark + form, f"[{low:.1f}, {high:.1f}]" if low is not None else "")

    columns = ["ACC", "LEN", "LEN if right", "TECA", "total H", "clipped", "no answer", "right number appears"]
    columns += ["tokens after it", "nats after it"]
    rows = [
        (
            policy,
            [
                share(numbers, "accuracy"),
                tokens(numbers),
                number(numbers["length_right"]),
                number(numbers["teca"], "{:.3f}"),
                number(numbers["entropy_sum"]),
                number(numbers["clipped"], "{:.0%}"),
                number(1 - numbers["answered"], "{:.0%}"),
                number(numbers["appears"], "{:.0%}"),
                number(numbers["tokens_after"]),
                number(numbers["nats_after"], "{:.2f}"),
            ],
        )
        for policy, numbers in found.items()
    ]
    caption = (
        f"{plan.dataset}, held out: {plan.problems} problems x {plan.samples} responses at T = {plan.temperature}, at "
        f"most {plan.max_new_tokens} tokens; intervals of 95% over problems"
    )
    return to_markdown(Table(caption, [("", columns)], [("", rows)])) + "\n"
