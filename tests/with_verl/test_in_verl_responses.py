"""verl's rows as whole responses: what belongs together, what counts, what it is worth."""

import math

import pytest
import torch

from cer_verl.responses import measure, rewards_by_row, sessions_of
from cer_verl.settings import CERSettings

H = [[1.0, 3.0, 9.0], [0.5], [2.0, 2.0], [4.0, 0.0]]
MASK = [[1, 1, 0], [1], [1, 1], [0, 1]]
SCORE = [[0.0, 0.0, 1.0], [-1.0], [0.0, 1.0], [0.0, 1.0]]


def tensors(rows, dtype=torch.float32):
    return [torch.tensor(row, dtype=dtype) for row in rows]


def measured(keys, is_padding=(False,) * 4, entropy=H, score=SCORE, **settings):
    return measure(
        keys, is_padding, tensors(entropy), tensors(MASK, torch.long), tensors(score), CERSettings(**settings)
    )


def test_each_single_turn_response_by_hand():
    found = measured(["a_0_0", "a_1_0", "b_0_0", "b_1_0"])
    assert found.length.tolist() == [2, 1, 2, 1]
    assert found.entropy_sum.tolist() == [4.0, 0.5, 4.0, 0.0]
    assert found.teca.tolist() == [2.0, 0.5, 2.0, 0.0]
    assert found.correct.tolist() == [True, False, True, True]
    assert found.reward.tolist() == pytest.approx([1 + math.exp(-2) / 2, 0, 1 + math.exp(-2) / 2, 1.5])
    rows = rewards_by_row(found, [3, 1, 2, 2])
    assert [row.tolist() for row in rows[1:]] == [[0.0], [0.0, pytest.approx(1 + math.exp(-2) / 2)], [0.0, 1.5]]
    assert rows[0].tolist() == [0.0, 0.0, pytest.approx(1 + math.exp(-2) / 2)]


def test_total_entropy_is_scaled_by_the_median_of_the_prompts_right_answers():
    keys = ["a_0_0", "a_1_0", "a_2_0", "b_0_0"]
    entropy = [[1.0, 1.0, 9.0], [7.0], [3.0, 3.0], [4.0, 0.2]]
    found = measured(keys, entropy=entropy, reward="total_entropy", weight=1.0)
    # a: 2 and 6 are right, median 4; b: 0.2, at least one nat
    assert found.reward.tolist() == pytest.approx([1 + math.exp(-0.5), 0, 1 + math.exp(-1.5), 1 + math.exp(-0.2)])
    found = measured(keys, entropy=entropy, reward="total_entropy", scale=10.0)
    assert found.reward.tolist() == pytest.approx(
        [1 + math.exp(-0.2) / 2, 0, 1 + math.exp(-0.6) / 2, 1 + math.exp(-0.02) / 2]
    )


def test_outputs_of_one_session_are_one_response_and_padding_is_none():
    keys = ["a_0_1", "pad_0_0", "a_0_0", "uid_with_underscores_3_0"]
    found = measured(keys, [False, True, False, False])
    assert [(session.prompt, session.rows) for session in found.sessions] == [
        ("a", (2, 0)),
        ("uid_with_underscores", (3,)),
    ]
    assert found.length.tolist() == [4, 1]
    assert found.entropy_sum.tolist() == [8.0, 0.0]
    assert found.teca.tolist() == [2.0, 0.0]
    rewarded = 1 + math.exp(-2) / 2
    assert [row.sum().item() for row in rewards_by_row(found, [3, 1, 2, 2])] == pytest.approx(
        [rewarded, 0, rewarded, 1.5]
    )


def test_right_is_a_score_of_at_least_right_from():
    score = [[0.0, 0.0, 0.1], [0.5], [0.2, 0.4], [1.0, -1.0]]
    assert measured(["a_0_0", "a_1_0", "a_2_0", "a_3_0"], score=score).correct.tolist() == [False, True, True, False]
    found = measured(["a_0_0", "a_1_0", "a_2_0", "a_3_0"], score=score, right_from=0.0)
    assert found.correct.tolist() == [True, True, True, True]


def test_broken_entropies_and_foreign_keys_are_named():
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    measured(keys, entropy=[[1.0, 3.0, math.nan], *H[1:]])  # masked: not looked at
    with pytest.raises(
        ValueError, match="entropy of token 1 of response b_0_0 is nan: expected a finite number of nats"
    ):
        measured(keys, entropy=[*H[:2], [2.0, math.nan], H[3]])
    with pytest.raises(ValueError, match="row 'a-0': expected a key like uid_session_index"):
        sessions_of(["a-0"], [False])


def test_a_batch_of_padding_alone_has_no_responses():
    found = measured(["pad_0_0", "pad_1_0", "pad_2_0", "pad_3_0"], [True] * 4)
    assert found.sessions == []
    assert len(found.reward) == 0
    assert [row.abs().sum().item() for row in rewards_by_row(found, [3, 1, 2, 2])] == [0, 0, 0, 0]
