"""The transformers engine: what it draws follows the filters' definition, and its entropies are the model's own."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ENDS, make_model
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trainer.evaluation.engine_transformers import TransformersEngine, draw, penalise
from trainer.evaluation.requests import Request, Sampling, request_seed

PROMPTS = [(3, 7, 9, 4), (3, 20, 4), (3, 7, 9, 4), (3, 5, 6, 7, 8, 9, 10, 11, 4), (30,)]


def requests(prompts=PROMPTS):
    return [Request(prompt, request_seed(0, "b", "m", str(i), 0)) for i, prompt in enumerate(prompts)]


def engine(model, **options):
    options = {"max_new_tokens": 24, **options}
    return TransformersEngine(model, Sampling(**options), stop_ids=ENDS, pad_id=0)


def float64_entropies(model, request, response, temperature):
    """Teacher-forced, one sequence, no cache, in float64: the definition."""
    ids = torch.tensor([[*request.prompt_ids, *response.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt_ids) - 1 : -1]  # (L, V)
    log_p = (logits.double() / temperature).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "cohere", "phi", "qwen3_moe"])
def test_entropies_are_those_of_the_whole_distribution_for_every_token_the_first_included(family):
    model = make_model(family)
    asked = requests()
    for response, request in zip(engine(model, temperature=0.7).generate(asked), asked, strict=True):
        expected = float64_entropies(model, request, response, 0.7)
        assert len(response.entropies) == len(response.token_ids) == len(expected)
        torch.testing.assert_close(torch.tensor(response.entropies).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_response_ends_with_its_stop_token_or_at_its_limit():
    responses = engine(make_model("qwen3"), temperature=1.5, top_p=1.0).generate(requests(PROMPTS * 6))
    reasons = [response.finish_reason for response in responses]
    assert set(reasons) == {"stop", "length"}
    for response in responses:
        stops = [token in ENDS for token in response.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] == (response.finish_reason == "stop")
        assert len(stops) == 24 or response.finish_reason == "stop"


def test_a_response_does_not_depend_on_its_neighbours():
    model = make_model("qwen3")
    asked = requests(PROMPTS * 3)
    together = engine(model).generate(asked)
    for number in (0, 3, 4, 11):
        (alone,) = engine(model).generate([asked[number]])
        assert alone.token_ids == together[number].token_ids
        assert alone.entropies == pytest.approx(together[number].entropies, abs=1e-5)


def test_equal_prompts_with_different_seeds_are_different_samples():
    responses = engine(make_model("qwen3"), temperature=1.0).generate(requests([PROMPTS[0]] * 8))
    assert len({tuple(response.token_ids) for response in responses}) >= 6  # responses of one or two tokens can meet


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_temperature_zero_is_transformers_greedy_generation(penalty):
    model = make_model("qwen3")
    for response, request in zip(
        engine(model, temperature=0, repetition_penalty=penalty).generate(requests()), requests(), strict=True
    ):
        expected = model.generate(
            input_ids=torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=24,
            eos_token_id=ENDS,
            pad_token_id=0,
        )[0, len(request.prompt_ids) :]
        assert response.token_ids == expected.tolist()
        reference = float64_entropies(model, request, response, 1.0)
        assert response.entropies == pytest.approx(reference.tolist(), abs=1e-5)


def warped(logits, sampling):
    """The same filters by transformers' warpers, in its order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(None, logits.clone()).double().softmax(-1)


FILTERS = [
    {"top_p": 1.0},
    {"top_p": 0.9},
    {"top_p": 1.0, "top_k": 7},
    {"top_p": 0.6, "top_k": 7},
    {"top_p": 1.0, "min_p": 0.05},
    {"top_p": 0.8, "min_p": 0.2, "top_k": 20},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize(("vocabulary", "spread"), [(50, 1.0), (5000, 3.0), (5000, 0.1)])
def test_the_share_of_each_token_is_its_filtered_probability(vocabulary, spread, options):
    """Over an even grid of u every token comes up as often as its probability says; spread 0.1 needs the whole sort."""
    sampling = Sampling(temperature=0.8, **options)
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)) * spread
    points = 20_000 if vocabulary == 50 else 2_000
    expected = warped(logits[None], sampling)[0]
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    drawn = torch.cat([draw(logits.expand(500, -1), part, sampling) for part in uniform.split(500)])
    share = torch.bincount(drawn, minlength=vocabulary).double() / points
    assert (share - expected).abs().max() <= 1.01 / points
    assert not bool((share[expected == 0] > 0).any())


def test_the_edges_of_u_draw_tokens_that_have_weight():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for top_p in (1.0, 0.99):
        sampling = Sampling(temperature=1.0, top_p=top_p)
        drawn = {int(draw(logits, torch.tensor([u], dtype=torch.float64), sampling)) for u in (0.0, 1 - 2**-53)}
        assert drawn == {1, 3}


def test_the_penalty_is_transformers():
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 3, 9], [1, 29, 4]])
    seen = torch.zeros(2, 30, dtype=torch.bool).scatter(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.2)(ids, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, 1.2), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_impossible_sampling_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**options)


def test_a_seed_belongs_to_one_response_of_one_run():
    keys = [(s, b, m, i, k) for s in (0, 1) for b in "xy" for m in "uv" for i in ("1", "11") for k in (0, 1)]
    seeds = [request_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(0, "gsm8k", "thinking", "0", 0) == request_seed(0, "gsm8k", "thinking", "0", 0)
