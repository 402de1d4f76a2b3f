"""A reward of your own: a function of completions and their entropies, run by `python -m trainer.grpo`.

    python examples/own_reward.py                             # a short run of the embedded experiment, in minutes
    python -m trainer.grpo --reward own_reward:decisive ...   # on any model, where examples/ is on PYTHONPATH

The program gives it what TRL gives every reward function (completions, the columns of the data set), and besides `teca`
(mean token entropy, nats) and `entropy_sum` (their total) of each completion.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from trainer.rewards.completions import grade_completions


def decisive(completions, ground_truth, *, teca, completion_ids, log_metric=None, **kwargs) -> list[float | None]:
    """1 for a right answer, and up to 0.5 more the surer and the shorter it is; 0 for a wrong one.

        reward = right * (1 + 0.5 * exp(-TECA) * 32 / max(32, tokens))

    None leaves a completion out: there is nothing to grade where the data set has no answer.
    """
    rewards: list[float | None] = []
    graded = grade_completions(completions, ground_truth, log_metric)  # True, False, or None
    for right, mean_entropy, ids in zip(graded, teca, completion_ids, strict=True):
        if right is None:
            rewards.append(None)
        elif not right:
            rewards.append(0.0)
        else:
            rewards.append(1.0 + 0.5 * math.exp(-mean_entropy) * 32 / max(32, len(ids)))
    return rewards


def main(argv: list[str] | None = None) -> int:
    from trainer import grpo

    sys.path.insert(0, str(Path(__file__).parent))  # so that own_reward:decisive can be imported by name
    options = ["--reward", "own_reward:decisive", "--output_dir", "runs/own_reward", "--max_steps", "20"]
    return grpo.main([*options, *(sys.argv[1:] if argv is None else argv)])  # a table before / after is printed


if __name__ == "__main__":
    sys.exit(main())
