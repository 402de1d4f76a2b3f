"""Three responses before and after training, for a person to read.

In: the records of two policies.  Out: markdown: the question, then what each policy answered to it, with its length,
its TECA and whether it is right.

The problems are those whose responses before training are the shortest, the median and the longest among those that
were right: chosen by a rule and not by hand. Where fewer than three were right, among all.
"""

from __future__ import annotations

from trainer.experiment.stages import BEFORE, Plan
from trainer.records.record_files import Record, read_records

_SHOWN = 3


def reading_page(plan: Plan, after: str) -> str:
    """The page of the start model and of the policy `after`."""
    first = {(record["id"], record["sample"]): record for record in read_records(plan.evaluation(BEFORE))}
    second = {(record["id"], record["sample"]): record for record in read_records(plan.evaluation(after))}
    both = [key for key in first if key in second]
    right = [key for key in both if first[key]["is_correct"]]
    candidates = sorted(right if len(right) >= _SHOWN else both, key=lambda key: (first[key]["response_length"], key))
    last = len(candidates) - 1
    chosen = list(dict.fromkeys(candidates[place] for place in (0, last // 2, last) if candidates))
    parts = [f"# {BEFORE} and {after}\n"]
    for key in chosen:
        parts.append(f"## {first[key]['question']}\n")
        parts += [_shown(BEFORE, first[key]), _shown(after, second[key])]
    return "\n".join(parts)


def _shown(policy: str, record: Record) -> str:
    teca = f"TECA {record['teca'][-1]:.3f}" if record["teca"] else "empty"
    end = "" if record["finish_reason"] == "stop" else ", cut off"
    verdict = "right" if record["is_correct"] else f"wrong ({record['ground_truth']} is right)"
    quoted = "\n".join(f"> {line}" for line in record["response"].splitlines() or [""])
    return f"**{policy}**: {verdict}, {record['response_length']} tokens{end}, {teca}\n\n{quoted}\n"
