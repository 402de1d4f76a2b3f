"""cer_reward: the published formula, and what it accepts."""

import math

import pytest
import torch
from exact import assert_relative

from cer_ext import cer_reward, reference, teca, teca_last
from cer_ext.reward import group_scales


def test_reward_is_one_plus_half_the_exponential_of_minus_teca_where_right(device):
    last = torch.tensor([0.0, 0.5, 2.0, 0.5], device=device)
    correct = torch.tensor([True, True, True, False], device=device)
    expected = torch.tensor([1.5, 1 + math.exp(-0.5) / 2, 1 + math.exp(-2) / 2, 0.0])
    reward = cer_reward(last, correct)
    assert reward.dtype == torch.float32
    assert_relative(reward, expected, 1e-7, "reward")
    assert_relative(cer_reward(last, correct, weight=2), 1 + 4 * (expected - 1).where(correct.cpu(), -0.25), 1e-6, "2")
    assert cer_reward(last, correct, weight=0.0).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_teca_of_every_token_counts_at_the_last_token(device):
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(5, 7, generator=generator).to(device)
    mask = torch.tensor([[1] * 7, [1, 1, 0, 1, 0, 0, 0], [0] * 7, [0, 0, 0, 0, 0, 0, 1], [1] + [0] * 6], device=device)
    correct = torch.tensor([1, 1, 1, 0, 1], device=device)
    from_all = cer_reward(teca(entropy, mask), correct, mask=mask)
    from_last = cer_reward(teca_last(entropy, mask), correct)
    assert_relative(from_all, from_last, 1e-6, "reward")
    assert_relative(from_all, reference.cer_reward(teca(entropy, mask), correct, mask=mask), 1e-6, "reward")
    assert from_all[2] == 1.5  # no token, no entropy
    whole = cer_reward(teca(entropy), correct)
    assert_relative(whole, cer_reward(teca_last(entropy), correct), 1e-6, "no mask")


def test_what_lies_outside_the_mask_is_never_read(device):
    average = torch.tensor([[0.5, torch.nan, torch.nan]], device=device)
    mask = torch.tensor([[1, 0, 0]], device=device)
    assert_relative(cer_reward(average, [True], mask=mask), torch.tensor([1 + math.exp(-0.5) / 2]), 1e-6, "reward")


def test_a_wrong_answer_is_worth_zero_even_with_nan_teca(device):
    last = torch.tensor([torch.nan, torch.nan], device=device)
    reward = cer_reward(last, torch.tensor([False, True], device=device))
    assert reward[0] == 0
    assert reward[1].isnan()


def test_correct_may_be_bool_or_zero_and_one_in_any_clothes(device):
    last = torch.tensor([0.3, 0.4], device=device)
    expected = cer_reward(last, torch.tensor([True, False], device=device))
    for correct in ([True, False], [1, 0], (1.0, 0.0), torch.tensor([1.0, 0.0], device=device)):
        assert torch.equal(cer_reward(last, correct), expected)


def test_no_responses_no_rewards(device):
    assert cer_reward(torch.empty(0, device=device), torch.empty(0, dtype=torch.bool, device=device)).shape == (0,)
    assert cer_reward(torch.empty(2, 0, device=device), [True, False]).tolist() == [1.5, 0.0]


@pytest.mark.parametrize(
    ("error", "match", "arguments", "options"),
    [
        (ValueError, "correct: expected booleans or 0 and 1, got 0.5", (torch.ones(2), [1.0, 0.5]), {}),
        (ValueError, "correct: expected booleans or 0 and 1, got 2", (torch.ones(2), torch.tensor([1, 2])), {}),
        (TypeError, "correct: expected booleans", (torch.ones(2), [True, None]), {}),
        (ValueError, r"correct: expected one value per response, got shape \(3,\)", (torch.ones(2), [True] * 3), {}),
        (ValueError, r"correct: expected one value per response", (torch.ones(2, 3, 4), [True] * 2), {}),
        (ValueError, "mask: goes with TECA", (torch.ones(2), [True] * 2), {"mask": torch.ones(2).bool()}),
        (ValueError, r"mask: expected shape \(2, 3\)", (torch.ones(2, 3), [1, 0]), {"mask": torch.ones(2, 4).bool()}),
        (ValueError, "weight: expected a finite number", (torch.ones(2), [True] * 2), {"weight": math.nan}),
        (TypeError, "weight: expected a number", (torch.ones(2), [True] * 2), {"weight": "0.5"}),
        (TypeError, "teca_or_last: expected one of", (torch.ones(2).long(), [True] * 2), {}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error, match, arguments, options):
    with pytest.raises(error, match=match):
        cer_reward(*arguments, **options)


def test_scale_is_the_median_of_a_groups_right_answers():
    assert group_scales([1.0, 5.0, 3.0, 9.0], [True, True, True, False], None) == [3.0] * 4
    assert group_scales([4.0, 8.0, 6.0], [True, False, True], ["a", "b", "a"]) == [5.0, 1.0, 5.0]
    assert group_scales([0.5, 40.0], [True, None], ["a", "b"], least=2.0) == [2.0, 2.0]
    with pytest.raises(ValueError, match="group_scales: 2 values, 1 of correct, 2 of groups"):
        group_scales([1.0, 2.0], [True], ["a", "b"])
