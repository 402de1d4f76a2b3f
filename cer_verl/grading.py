r"""verl's reward function: is the last boxed answer right?

In: what verl's reward managers hand to a custom function. Out: its score, 1 or 0, which cer_sync then turns into the
CER reward. The rules are those of trainer.grading, the same as in this project's own training and evaluation.

    reward.custom_reward_function.path=pkg://cer_verl.grading
    reward.custom_reward_function.name=compute_score
"""

from __future__ import annotations

from typing import Any

from trainer.grading import grade


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **kwargs: Any
) -> dict[str, float]:
    """Returns {"score": 1 or 0, "acc": the same}; verl logs `acc` of validation by data source.

    Args:
        data_source, extra_info: not used; every source is graded alike.
        solution_str: the text of the response.
        ground_truth: the answer alone, or a solution that ends in one.
    """
    right = float(grade(solution_str, ground_truth))
    return {"score": right, "acc": right}
