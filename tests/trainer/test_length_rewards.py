"""The field's length rewards, each against values worked out by hand from its equation."""

import math

import pytest

from trainer.rewards.length import (
    conciser_reward,
    dapo_reward,
    efficient_reward,
    gr3_reward,
    grpo_lambda_reward,
    kimi_reward,
    l1_exact_reward,
    l1_max_reward,
)

RIGHT, WRONG = "\\boxed{7}", "\\boxed{8}"


def call(reward, right, lengths, prompts=None, **options):
    """The reward of completions that are right, wrong or without ground truth (None), of these lengths."""
    return reward(
        completions=[WRONG if r is False else RIGHT for r in right],
        ground_truth=[None if r is None else "7" for r in right],
        completion_ids=[[0] * length for length in lengths],
        prompts=prompts,
        **options,
    )


def test_kimi_places_between_the_shortest_and_the_longest_of_all():
    # lam = 1/2, 0, -1/2, 1/4: a wrong answer loses by a negative one and gains by none
    assert call(kimi_reward, [True, True, False, False], [10, 20, 30, 15], weight=1.0) == [1.5, 1.0, -0.5, 0.0]
    assert call(kimi_reward, [True, False], [10, 10]) == [1.0, 0.0]  # all as long: no length term
    assert call(kimi_reward, [True, None, True], [10, 50, 20], weight=1.0) == [1.5, None, 1 + 0.5 - 10 / 40]
    two = call(kimi_reward, [True] * 4, [10, 20, 100, 200], prompts=["a", "a", "b", "b"])
    assert two == [1.25, 0.75, 1.25, 0.75]


def test_dapo_punishes_the_last_fifth_linearly():
    # L_max 100, cache 20: free up to 80, -1/2 at 90, -1 at 100 and beyond
    rewards = call(dapo_reward, [True, True, False, True, None], [80, 90, 95, 120, 90], max_length=100)
    assert rewards == pytest.approx([1.0, 0.5, -0.75, 0.0, None])
    with pytest.raises(ValueError, match="needs max_length"):
        call(dapo_reward, [True], [5])


def test_efficient_prices_by_the_sigmoid_among_right_answers():
    # right lengths 10 and 30: mean 20, deviation 10: z = -1, +1; the wrong one's length does not count
    rewards = call(efficient_reward, [True, False, True], [10, 1000, 30], alpha=0.5)
    assert rewards == pytest.approx([1 - 0.5 / (1 + math.e), 0.0, 1 - 0.5 / (1 + 1 / math.e)])
    assert call(efficient_reward, [True, True], [5, 5], alpha=0.4) == [0.8, 0.8]  # sigmoid(0) = 1/2
    with pytest.raises(ValueError, match="alpha is 1"):
        call(efficient_reward, [True], [5], alpha=1)


def test_grpo_lambda_prices_the_best_groups_alone():
    prompts = ["easy", "easy", "hard", "hard"]
    rewards = call(grpo_lambda_reward, [True, True, True, False], [5, 5, 9, 9], prompts, share=0.5)
    assert rewards == [0.8, 0.8, 1.0, 0.0]
    assert call(grpo_lambda_reward, [False, False], [5, 9]) == [0.0, 0.0]
    everyone = call(grpo_lambda_reward, [True, True, True, False], [5, 5, 9, 9], prompts, share=1.0)
    assert everyone == [0.8, 0.8, 0.8, 0.0]
    with pytest.raises(ValueError, match="share is 0"):
        call(grpo_lambda_reward, [True], [5], share=0)


def test_gr3_divides_by_the_relative_length():
    # mean 20: 1 / (1 + a/2), 1 / (1 + 3a/2); a wrong answer is 0 however short, and counts in the mean
    rewards = call(gr3_reward, [True, True, False], [10, 30, 20], alpha=0.5)
    assert rewards == pytest.approx([1 / 1.25, 1 / 1.75, 0.0])


def test_conciser_waits_until_all_are_right():
    prompts = ["a", "a", "b", "b"]
    rewards = call(conciser_reward, [True, True, True, False], [20, 60, 20, 60], prompts, max_length=100)
    assert rewards == pytest.approx([1.4, 1.2, 1.0, 0.0])
    assert call(conciser_reward, [True, None], [20, 60], max_length=100) == [1.0, None]


def test_l1_holds_the_length_to_the_datas_target():
    target = {"target_length": [100, 100, 100, 100]}
    exact = call(l1_exact_reward, [True, True, False, None], [100, 150, 50, 7], alpha=0.01, **target)
    assert exact == pytest.approx([1.0, 0.5, -0.5, None])
    most = call(l1_max_reward, [True, True, True, False], [100, 120, 400, 1], alpha=0.01, **target)
    assert most == pytest.approx([0.5, 0.3, 0.0, 0.0])
    assert call(l1_max_reward, [True], [10], alpha=0.01, target_length=[100]) == [1.0]
    with pytest.raises(ValueError, match="needs the data column target_length"):
        call(l1_max_reward, [True], [5])


@pytest.mark.parametrize("reward", [kimi_reward, efficient_reward, gr3_reward, grpo_lambda_reward])
def test_lengths_are_asked_for(reward):
    with pytest.raises(ValueError, match="needs completion_ids"):
        reward(completions=[RIGHT], ground_truth=["7"])
