"""The early exit: its rule over finished responses, and the same decided in tensors while a batch is decoded."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import VOCABULARY, make_model, make_tokenizer

from cer_ext import logprobs_and_entropy
from trainer.sampling.early_exit import (
    EarlyExit,
    closed_by_prompt,
    closes_at,
    end_tokens,
    first_exit,
    forced_places,
    make_rule,
)
from trainer.sampling.rollout import sample
from trainer.sampling.running_teca import RunningTeca
from trainer.sampling.teca_requests import check_arguments, decoded, request_arguments, rule_of


def rule(threshold=1.0, forced=(7, 8), closing=(5,), min_tokens=1, window=0):
    return EarlyExit(threshold, forced, closing, min_tokens, window)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3),  # means 2, 1.5, 1.1667, 0.9
        ({"threshold": 1.6}, 1),
        ({"threshold": 1.5}, 2),  # below, not at
        ({"threshold": 0.5}, None),
        ({"threshold": 1.6, "min_tokens": 4}, 3),
        ({"window": 2}, 2),  # means of two: 1.5, 0.75
        ({"window": 1, "threshold": 0.6}, 2),
        ({"window": 4, "threshold": 2.0}, 3),  # not before there are four
    ],
)
def test_the_rule_fires_where_the_mean_falls_below_the_threshold(options, expected):
    assert first_exit(rule(**options), [2.0, 1.0, 0.5, 0.1, 0.1], [9, 9, 9, 9, 9]) == expected


def test_no_exit_from_a_thinking_that_is_over():
    entropies = [2.0, 1.0, 0.5, 0.1, 0.1]
    assert first_exit(rule(), entropies, [9, 9, 5, 9, 9]) is None
    assert first_exit(rule(), entropies, [9, 9, 9, 5, 9]) == 3  # the closing token itself would have been drawn there
    assert first_exit(rule(closing=(5, 6)), entropies, [9, 5, 9, 6, 9]) == 3
    assert first_exit(rule(closing=(5, 6)), entropies, [9, 5, 6, 9, 9]) is None
    assert first_exit(rule(), entropies, [9] * 5, prompt_ids=[1, 2, 5, 3, 3]) is None
    assert closed_by_prompt(rule(closing=(5, 6)), [1, 5, 6, 3, 3])
    assert not closed_by_prompt(rule(), [5, 3, 3, 3, 3, 3])  # an earlier turn's


def test_forced_places_end_with_the_response():
    assert list(forced_places(3, rule(), 10)) == [3, 4]
    assert list(forced_places(3, rule(), 4)) == [3]
    assert list(forced_places(None, rule(), 10)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "early_exit is 0.0.*never fire"),
        ({"threshold": -1.0}, "never fire"),
        ({"threshold": float("nan")}, "finite"),
        ({"min_tokens": 0}, "early_exit_min_tokens is 0"),
        ({"window": -1}, "early_exit_window is -1"),
        ({"forced": ()}, "forced_ids"),
        ({"closing": (-1,)}, "closing_ids"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rule(**options)


def test_a_rule_longer_than_any_response_is_refused():
    rule(min_tokens=16).check_limit(16)
    with pytest.raises(ValueError, match=r"early_exit_min_tokens is 17.*at most 16 tokens.*never fire"):
        rule(min_tokens=17).check_limit(16)
    with pytest.raises(ValueError, match="early_exit_window is 20"):
        rule(window=20).check_limit(16)


def test_end_tokens_are_those_the_model_has():
    tokenizer = make_tokenizer()
    end, w1, w2 = (tokenizer.get_vocab()[word] for word in ("<end>", "w1", "w2"))
    assert end_tokens(tokenizer, "<end>") == ((end,), (end,))
    assert end_tokens(tokenizer, "w1 <end> w2") == ((w1, end, w2), (end,))
    assert end_tokens(tokenizer, "w1 w2") == ((w1, w2), (w1, w2))  # a model without thinking tokens
    with pytest.raises(ValueError, match="the model has no token </think>"):
        end_tokens(tokenizer)
    with pytest.raises(ValueError, match="at least one token"):
        end_tokens(tokenizer, "")
    with pytest.raises(ValueError, match="cannot write it"):
        end_tokens(tokenizer, "hello")
    made = make_rule(tokenizer, 0.5, min_tokens=3, window=2, text="<end>", max_new_tokens=8)
    assert made == EarlyExit(0.5, (end,), (end,), 3, 2)


# --- while a batch is decoded


def tail_of(tokens, width):
    last = tokens[-width:] if width else []
    return [-2] * (width - len(last)) + last


def random_rule(choice: random.Random) -> EarlyExit | None:
    if choice.random() < 0.2:
        return None
    return rule(
        threshold=choice.choice([0.8, 1.5, 2.2]),
        forced=choice.choice([(7,), (7, 8, 9)]),
        closing=choice.choice([(5,), (7, 8)]),
        min_tokens=choice.randint(1, 6),
        window=choice.choice([0, 1, 3, 5]),
    )


@pytest.mark.parametrize("seed", range(12))
def test_decisions_in_tensors_are_those_of_the_rule_over_the_finished_response(seed):
    """Responses of a random process, some steps shown twice, some responses moved to another row on the way."""
    choice = random.Random(seed)
    chosen = [random_rule(choice) for _ in range(8)]
    generator = torch.Generator().manual_seed(seed)
    vocabulary, length = 12, 20
    teca = RunningTeca(2 * len(chosen), "cpu", capacity=4)  # grows
    temperature = torch.tensor([0.7 + 0.2 * i for i in range(len(chosen))])
    row_of = list(range(len(chosen)))
    tokens = [[] for _ in chosen]
    for i, one in enumerate(chosen):
        teca.begin(i, temperature=float(temperature[i]), rule=one)
    for step in range(length):
        scale = 4 * torch.rand(len(chosen), 1, generator=generator)
        logits = scale * torch.randn(len(chosen), vocabulary, generator=generator)
        rows, at = torch.tensor(row_of), torch.full((len(chosen),), step)
        tail = torch.tensor([tail_of(row, teca.tail_width) for row in tokens], dtype=torch.long)
        tail = tail.reshape(len(chosen), -1)
        teca.make_room(step + 1)
        if choice.random() < 0.5:  # a call that is discarded, with other logits
            teca.step(0.01 * logits.clone(), rows, at, tail)
        shown = logits.clone()
        entropy = teca.step(shown, rows, at, tail)
        _, expected = logprobs_and_entropy(logits, rows * 0, temperature=temperature)
        torch.testing.assert_close(entropy, expected)
        noise = -torch.rand(logits.shape, generator=generator).log()
        drawn = (shown.softmax(-1) / noise).argmax(-1).tolist()
        for row, token in zip(tokens, drawn, strict=True):
            row.append(token)
        if choice.random() < 0.3:  # leave one row, come back in another
            i = choice.randrange(len(chosen))
            target = next(r for r in range(2 * len(chosen)) if r not in row_of)
            fired = teca.fired(row_of[i])
            kept = teca.entropies(row_of[i], step + 1)
            teca.begin(target, temperature=float(temperature[i]), rule=chosen[i])
            left = int(fired) if fired is not None and fired >= 0 else None
            closed = None if chosen[i] is None else closes_at(chosen[i], tokens[i])
            teca.restore(target, kept, fired=left, closed=closed)
            row_of[i] = target
    fired = teca.all_fired()
    for i, one in enumerate(chosen):
        entropies = teca.entropies(row_of[i], length).tolist()
        expected = None if one is None else first_exit(one, entropies, tokens[i])
        assert fired[row_of[i]] == expected
        if expected is not None:
            places = forced_places(expected, one, length)
            assert tuple(tokens[i][place] for place in places) == one.forced_ids[: len(places)]


def test_what_a_grammar_rules_out_is_not_forced():
    teca = RunningTeca(1, "cpu")
    teca.begin(0, temperature=1.0, rule=rule(threshold=100.0))
    logits = torch.zeros(1, 12)
    logits[0, 7] = -torch.inf
    at = torch.tensor([0])
    teca.step(logits, at, at, torch.full((1, teca.tail_width), -2))
    assert logits[0, 7] == -torch.inf
    assert teca.all_fired() == [None]


@pytest.mark.parametrize("window", [0, 4])
def test_our_sampler_exits_where_the_rule_says(window):
    model = make_model("qwen3", initializer_range=0.4)
    one = EarlyExit(2.4, (7, 8), (5,), 3, window)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(6, VOCABULARY, (3 + i % 4,), generator=generator).tolist() for i in range(24)]
    torch.manual_seed(0)
    samples = sample(model, prompts, max_new_tokens=20, temperature=0.7, end_ids=[11, 18, 25], pad_id=0, early_exit=one)
    exits = 0
    for prompt, made in zip(prompts, samples, strict=True):
        assert len(made.decoded.entropies) == len(made.token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + made.token_ids])).logits[0, len(prompt) - 1 : -1].double() / 0.7
        logp = logits.log_softmax(-1)
        expected = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(torch.tensor(made.decoded.entropies).double(), expected, rtol=1e-4, atol=1e-5)
        assert made.decoded.fired == first_exit(one, made.decoded.entropies, made.token_ids, prompt_ids=prompt)
        if made.decoded.fired is not None:
            exits += 1
            places = forced_places(made.decoded.fired, one, len(made.token_ids))
            assert [made.token_ids[place] for place in places] == [7, 8][: len(places)]
    assert 3 <= exits < 24


# --- what requests carry


def test_a_rule_survives_the_way_through_request_arguments():
    one = rule(threshold=0.25, forced=(3, 4), closing=(4,), min_tokens=9, window=5)
    arguments = request_arguments(key="a", rule=one)
    check_arguments(arguments, max_tokens=100)
    assert rule_of(arguments) == one
    assert rule_of({"early_exit": 1}, ((6,), (6,))) == EarlyExit(1.0, (6,), (6,))
    assert rule_of(None) is None
    assert request_arguments() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"early_exit": "low"}, "early_exit is 'low'"),
        ({"early_exit": 0}, "never fire"),
        ({"early_exit": 1.0, "early_exit_min_tokens": 65}, "at most 64 tokens"),
        ({"early_exit": 1.0, "early_exit_min_tokens": 1.5}, "expected an integer"),
        ({"early_exit": 1.0, "early_exit_token_ids": 4}, "expected a list"),
        ({"early_exit": 1.0, "early_exit_window": True}, "expected a number"),
        ({"early_exit_min_tokens": 3}, "without early_exit"),
        ({"early_exits": 1.0}, "unknown request argument early_exits"),
        ({"teca_key": 1.5}, "teca_key is 1.5"),
        ({"teca_key": True}, "teca_key is True"),
    ],
)
def test_wrong_request_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(arguments, max_tokens=64)


def test_records_of_one_key_are_told_apart_by_their_tokens():
    def record(tokens, entropies, fired=-1):
        return tokens, torch.tensor(entropies).numpy().tobytes(), fired

    records = [record([1, 2, 3], [1.0, 2.0, 3.0]), record([1, 5], [1.0, 2.5, 4.5, 9.0], 3)]
    assert decoded(records, [1, 2, 3], 0).entropies == [1.0, 2.0, 3.0]
    assert decoded(records, [1, 2], 0).entropies == [1.0, 2.0]  # the engine went on until it heard of a stop string
    found = decoded(records, [1, 5, 6], 0)  # the engine was not told the last token
    assert (found.entropies, found.fired) == ([1.0, 2.5, 4.5], None)
    with pytest.raises(RuntimeError, match=r"4 tokens for request 'k'.*no entropies"):
        decoded(records, [1, 5, 6, 7], "k")
    with pytest.raises(RuntimeError):
        decoded(records, [2], 0)
