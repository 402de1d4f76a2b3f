"""The reward functions' values, what they ask of the trainer, and TRL's own run of them."""

import functools
import json
import math
import pickle
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.catalogue.rewards import REWARDS, find
from trainer.rewards import (
    accuracy_reward,
    cer_reward,
    length_penalty_reward,
    random_reward,
    reward_function,
    total_entropy_reward,
)
from trainer.rewards.completions import completion_text
from trainer.training.padding_alarm import padding_alarm

RIGHT, WRONG = r"so \boxed{7}", r"so \boxed{8}"


def test_accuracy_reward_grades_strings_and_messages():
    messages = [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG)]
    assert accuracy_reward(completions=[RIGHT, WRONG], ground_truth=["7", "7"]) == [1.0, 0.0]
    assert accuracy_reward(completions=messages, ground_truth=["7", "7"], teca=[1.0, 1.0]) == [1.0, 0.0]


def test_the_last_message_is_the_answer():
    assert completion_text([{"role": "assistant", "content": WRONG}, {"role": "assistant", "content": RIGHT}]) == RIGHT
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}]) == RIGHT
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([]) == ""


def test_cer_reward_is_one_plus_weighted_exponential_of_teca():
    rewards = cer_reward(completions=[RIGHT, RIGHT, WRONG], ground_truth=["7"] * 3, teca=[0.0, 0.3, 0.1])
    assert rewards == pytest.approx([1.5, 1 + math.exp(-0.3) / 2, 0.0], rel=1e-12)
    rewards = cer_reward(completions=[RIGHT], ground_truth=["7"], teca=[0.3], weight=2.0)
    assert rewards == pytest.approx([1 + 2 * math.exp(-0.3)], rel=1e-12)


def test_total_entropy_reward_scales_by_the_median_of_right_answers_to_the_prompt():
    rewards = total_entropy_reward(
        prompts=["p"] * 4 + ["q"] * 2,
        completions=[RIGHT, RIGHT, RIGHT, WRONG, RIGHT, WRONG],
        ground_truth=["7"] * 6,
        entropy_sum=[10.0, 20.0, 90.0, 5.0, 400.0, 1.0],
    )
    expected = [1 + math.exp(-0.5) / 2, 1 + math.exp(-1) / 2, 1 + math.exp(-4.5) / 2, 0, 1 + math.exp(-1) / 2, 0]
    assert rewards == pytest.approx(expected, rel=1e-12)


def test_total_entropy_reward_is_free_of_scale_above_one_nat_and_flat_below():
    def rewards(totals):
        return total_entropy_reward(completions=[RIGHT] * 3, ground_truth=["7"] * 3, entropy_sum=totals)

    assert rewards([10.0, 20.0, 30.0]) == pytest.approx(rewards([1000.0, 2000.0, 3000.0]), rel=1e-12)
    assert rewards([1e-4, 2e-4, 3e-4]) == pytest.approx([1.5] * 3, abs=2e-4)
    assert rewards([0.0, 0.0, 0.0]) == [1.5] * 3


def test_total_entropy_reward_with_a_given_scale():
    rewards = total_entropy_reward(completions=[RIGHT], ground_truth=["7"], entropy_sum=[10.0], scale=20.0)
    assert rewards == pytest.approx([1 + math.exp(-0.5) / 2], rel=1e-12)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0.01, 3.0), min_size=2, max_size=30), st.integers(1, 200))
def test_padding_with_certain_tokens_raises_the_mean_reward_but_not_the_total_one(entropies, padding):
    """The counter-example in one line: the same answer, said again with certainty."""
    padded = entropies + [0.0] * padding
    teca = [sum(tokens) / len(tokens) for tokens in (entropies, padded)]
    by_mean = cer_reward(completions=[RIGHT] * 2, ground_truth=["7"] * 2, teca=teca)
    by_total = total_entropy_reward(
        completions=[RIGHT] * 2, ground_truth=["7"] * 2, entropy_sum=[sum(entropies), sum(padded)]
    )
    assert by_mean[1] > by_mean[0]
    assert by_total[1] == by_total[0]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.floats(0, 1e4), st.booleans()), min_size=1, max_size=16))
def test_any_right_answer_beats_any_wrong_one(rows):
    completions = [RIGHT if right else WRONG for _, right in rows]
    totals = [total for total, _ in rows]
    for name, extra in {"cer": {"teca": totals}, "total_entropy": {"entropy_sum": totals}}.items():
        rewards = find(name)(completions=completions, ground_truth=["7"] * len(rows), **extra)
        for reward, (_, right) in zip(rewards, rows, strict=True):
            assert (1.0 <= reward <= 1.5) if right else reward == 0.0


def test_length_penalty_prefers_the_shorter_right_answer():
    rewards = length_penalty_reward(
        prompts=[[{"role": "user", "content": "p"}]] * 3,
        completions=[RIGHT, RIGHT, WRONG],
        ground_truth=["7"] * 3,
        completion_ids=[[1] * 10, [1] * 30, [1] * 2],
    )
    assert rewards == pytest.approx([1 + math.exp(-0.5) / 2, 1 + math.exp(-1.5) / 2, 0.0], rel=1e-12)


def test_random_reward_is_a_fair_coin_that_a_resumed_run_tosses_again():
    def toss(step, seed=0):
        state = SimpleNamespace(global_step=step)
        ids = [[step, i] for i in range(64)]
        return random_reward(completions=[RIGHT] * 64, completion_ids=ids, trainer_state=state, seed=seed)

    assert toss(3) == toss(3)
    assert toss(3) != toss(4)
    assert toss(3) != toss(3, seed=1)
    tosses = [reward for step in range(100) for reward in toss(step)]
    assert set(tosses) == {0.0, 1.0}
    assert abs(sum(tosses) / len(tosses) - 0.5) < 4 * 0.5 / math.sqrt(len(tosses))


def test_rows_without_ground_truth_get_no_reward():
    truths = ["7", None]
    assert accuracy_reward(completions=[RIGHT] * 2, ground_truth=truths) == [1.0, None]
    assert cer_reward(completions=[RIGHT] * 2, ground_truth=truths, teca=[0.0, math.nan]) == [1.5, None]


def test_accuracy_and_missing_answers_are_logged():
    logged = []
    cer_reward(
        completions=[RIGHT, WRONG, RIGHT, RIGHT, "I do not know."],
        ground_truth=["7", "7", None, "7", "7"],
        teca=[0.1] * 5,
        log_metric=lambda *entry: logged.append(entry),
    )
    # A number per graded completion, of which TRL takes the mean, over processes too.
    assert [value for name, value in logged if name == "accuracy"] == [1, 0, 1, 0]
    assert [value for name, value in logged if name == "no_answer"] == [0, 0, 0, 1]


@pytest.mark.parametrize(("name", "keyword"), [("cer", "teca"), ("total_entropy", "entropy_sum")])
def test_missing_or_wrong_entropies_are_refused_by_name(name, keyword):
    reward = find(name)
    with pytest.raises(ValueError, match=rf"'{keyword}'.*CERTrainer"):
        reward(completions=[RIGHT], ground_truth=["7"])
    with pytest.raises(ValueError, match=f"2 values of {keyword} for 1"):
        reward(completions=[RIGHT], ground_truth=["7"], **{keyword: [0.1, 0.2]})
    for bad in (math.nan, math.inf, -0.1, None):
        with pytest.raises(ValueError, match=f"{keyword} of completion 0"):
            reward(completions=[RIGHT], ground_truth=["7"], **{keyword: [bad]})
    # an empty completion has no entropy, and is not right
    assert reward(completions=[""], ground_truth=["7"], **{keyword: [math.nan]}) == [0.0]


def test_ground_truth_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 values of ground_truth for 2 completions"):
        accuracy_reward(completions=[RIGHT, RIGHT], ground_truth=["7"])


@pytest.mark.parametrize("name", REWARDS)
def test_configured_rewards_keep_their_name_and_can_be_pickled(name):
    from trl.trainer.utils import get_callable_name

    reward = reward_function(name, weight=0.25, seed=3, max_length=64)
    assert reward.__name__ == find(name).__name__
    assert get_callable_name(reward) == find(name).__name__
    given_to_all = {"teca": [0.2], "entropy_sum": [3.0], "completion_ids": [[1, 2]], "prompts": ["p"]}
    given_to_all["target_length"] = [2]
    call = {"completions": [RIGHT], "ground_truth": ["7"], **given_to_all}
    assert pickle.loads(pickle.dumps(reward))(**call) == reward(**call)


def test_reward_function_sets_the_weight_and_refuses_bad_ones():
    call = {"completions": [RIGHT], "ground_truth": ["7"], "teca": [0.0]}
    assert reward_function("cer", weight=0.25)(**call) == [1.25]
    with pytest.raises(ValueError, match="'x': expected one of cer, "):
        reward_function("x")
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight is"):
            reward_function("cer", weight=bad)


def test_every_reward_trains_in_trl_on_loaded_problems(load_model, tokenizer, config, tmp_path):
    """One step with all at once: TRL hands over the columns and the entropies, and logs each by its name.

    The tiny model says no answers, so each completion is replaced, by its tokens, with a right or a wrong one.
    """
    from trainer.cer_trainer import CERTrainer
    from trainer.datasets import load_problems

    records = [{"question": f"w{i} w{i + 1}", "answer": "#### 7"} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    problems = load_problems(str(tmp_path / "sums.jsonl"), instruction=None)
    received = []

    def on_graded(name):
        reward = reward_function(name, max_length=64)

        @functools.wraps(reward)
        def replaced(completions, completion_ids, **kwargs):
            said = [RIGHT if sum(ids) % 2 else WRONG for ids in completion_ids]
            rewards = reward(completions=said, completion_ids=completion_ids, **kwargs)
            received.append((name, said, rewards, kwargs))
            return rewards

        return replaced

    trainer = CERTrainer(
        model=load_model(),
        reward_funcs=[on_graded(name) for name in REWARDS],
        args=config(max_steps=1, reward_weights=[1.0, 1.0] + [0.0] * (len(REWARDS) - 2)),
        train_dataset=problems.add_column("target_length", [8] * len(problems)),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in REWARDS:
        assert math.isfinite(logged[f"rewards/{find(name).__name__}/mean"])
        assert name in [seen[0] for seen in received]
    assert 0 <= logged["accuracy"] <= 1
    for name, said, rewards, kwargs in received:
        assert kwargs["ground_truth"] == ["7"] * len(said)
        if name == "cer":
            right = [1 + math.exp(-value) / 2 for value in kwargs["teca"]]
            assert rewards == pytest.approx([r if text == RIGHT else 0 for r, text in zip(right, said, strict=True)])


def test_messages_that_are_equal_are_one_prompt():
    messages = [[{"role": "user", "content": "a"}], [{"content": "a", "role": "user"}]]
    rewards = total_entropy_reward([RIGHT] * 2, ["7"] * 2, [4.0, 8.0], messages)
    assert rewards == pytest.approx([1 + math.exp(-4 / 6) / 2, 1 + math.exp(-8 / 6) / 2])


# The alarm


def history(rng, steps, teca, length, noise):
    return (
        [teca(i / steps) * (1 + noise * rng.gauss(0, 1)) for i in range(steps)],
        [length(i / steps) * (1 + noise * rng.gauss(0, 1)) for i in range(steps)],
    )


def test_padding_is_alarmed_about():
    rng = random.Random(0)
    heard = []
    for _ in range(100):
        teca, length = history(rng, 40, lambda x: 0.22 - 0.10 * x, lambda x: 117 * (1 + 0.2 * x), 0.05)
        heard.append(padding_alarm(teca, length))
    heard = [alarm for alarm in heard if alarm]
    assert len(heard) >= 85
    assert all(alarm.teca_now < alarm.teca_before and alarm.length_now > alarm.length_before for alarm in heard)
    assert str(heard[0]).startswith("TECA falls while length rises: TECA 0.")


def test_padding_after_a_phase_of_shortening_is_alarmed_about():
    rng = random.Random(0)
    teca, length = history(rng, 60, lambda x: 0.3 - 0.25 * x, lambda x: 120 * (1 - 0.5 * min(x, 1 - x)), 0.03)
    alarm = padding_alarm(teca, length)
    assert alarm is not None
    assert length[0] * 1.05 > alarm.length_now > alarm.length_before
    assert 15 <= alarm.first_step < 45


@pytest.mark.parametrize(
    ("teca", "length"),
    [
        (lambda x: 0.2, lambda x: 100.0),  # nothing happens
        (lambda x: 0.3 - 0.2 * x, lambda x: 120 - 70 * x),  # CER as meant: both fall
        (lambda x: 0.2 + 0.1 * x, lambda x: 100 + 50 * x),  # both rise: more thinking, not padding
        (lambda x: 0.2 + 0.1 * x, lambda x: 100 - 50 * x),
        (lambda x: 0.3 - 0.2 * x, lambda x: 100.0),
    ],
)
def test_other_histories_are_quiet(teca, length):
    rng = random.Random(0)
    false_alarms = sum(padding_alarm(*history(rng, 80, teca, length, 0.08)) is not None for _ in range(200))
    assert false_alarms <= 4  # of 200 runs, each judged at its end


def test_short_constant_and_broken_histories_are_quiet():
    assert padding_alarm([], []) is None
    assert padding_alarm([0.2] * 15, [100.0] * 15) is None
    assert padding_alarm([0.2] * 40, [100.0] * 40) is None
    assert padding_alarm([math.nan] * 40, [100.0] * 40) is None


def test_steps_without_teca_are_left_out():
    teca = [0.3 + 0.001 * (i % 2) for i in range(8)] + [math.nan] * 5 + [0.1 + 0.001 * (i % 2) for i in range(8)]
    length = [100.0 + i % 2 for i in range(13)] + [150.0 + i % 2 for i in range(8)]
    alarm = padding_alarm(teca, length)
    assert (alarm.first_step, alarm.last_step) == (0, 7)
    assert alarm.teca_now == pytest.approx(0.1005)


def test_alarm_arguments_are_checked():
    with pytest.raises(ValueError, match="1 values of teca, 2 of length"):
        padding_alarm([0.1], [1.0, 2.0])
    with pytest.raises(ValueError, match="window is 1"):
        padding_alarm([0.1], [1.0], window=1)
