"""Entropies and early exits inside vLLM's real engine, against a float64 model and the rule over finished responses."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from checking import check
from engines import draw_prompts, float64_entropies, start
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.platforms.cpu import CpuPlatform

from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.teca_processor import refuse_speculation, take_entropies
from trainer.sampling.teca_requests import decoded, request_arguments


def processor_of(llm):
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    (found,) = (one for one in runner.input_batch.logitsprocs.all if hasattr(one, "take"))
    return found


def schedule_ahead(patch) -> None:
    """vLLM switches async scheduling, the default on GPUs, off on CPUs; its runner can do it all the same."""
    own = CpuPlatform.check_and_update_config.__func__

    def with_async(cls, config):
        own(cls, config)
        config.scheduler_config.async_scheduling = True

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(with_async))


@pytest.fixture(scope="module", params=["async", "sync"])
def engine(request, model_dir):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "async":
            schedule_ahead(patch)
        llm = start(model_dir, async_scheduling=request.param == "async", max_num_batched_tokens=64)
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == (request.param == "async")
    yield llm
    del llm
    gc.collect()


def test_many_requests_in_few_slots_with_prompts_read_in_parts(engine, reference):
    prompts = draw_prompts(144, longest=150)  # more than 64 at once: read in parts
    prompts[::5] = [prompts[0]] * len(prompts[::5])  # served from the cache of prefixes
    counts = check(engine, reference, prompts, longest=50)
    assert counts["responses"] == 144
    assert counts["exits"] >= 20
    assert 10 <= counts["stopped"] < 144


def test_responses_of_one_request_are_told_apart(engine, reference):
    counts = check(engine, reference, draw_prompts(9, longest=20, seed=4), longest=30, n=5)
    assert counts["responses"] == 45
    assert counts["exits"] >= 3


def test_stop_strings_end_a_response_without_losing_its_entropies(engine, reference):
    counts = check(engine, reference, draw_prompts(24, longest=20, seed=5), longest=60, stop=["w5", "w6 w7"])
    assert counts["stopped"] >= 8


def test_greedy_entropies_are_those_at_temperature_one(engine, reference):
    (prompt,) = draw_prompts(1, longest=20, seed=6)
    params = SamplingParams(temperature=0.0, max_tokens=20, extra_args=request_arguments(key="greedy"))
    (output,) = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    tokens = list(output.outputs[0].token_ids)
    (records,) = take_entropies(engine, ["greedy"])
    known = torch.tensor(decoded(records, tokens, "greedy").entropies).double()
    torch.testing.assert_close(known, float64_entropies(reference, prompt, tokens, 1.0), rtol=1e-5, atol=1e-5)


def test_forced_tokens_have_probability_one_and_others_their_own(engine, reference):
    prompt = draw_prompts(1, longest=20, seed=7)[0]
    rule = EarlyExit(100.0, (3, 4), (5,), 3)
    arguments = request_arguments(key="p", rule=rule)
    params = SamplingParams(temperature=0.8, max_tokens=8, ignore_eos=True, logprobs=0, extra_args=arguments)
    (output,) = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    made = output.outputs[0]
    assert list(made.token_ids[2:4]) == [3, 4]
    take_entropies(engine, ["p"])


def test_requests_without_arguments_are_left_alone(engine, model_dir):
    plain = SamplingParams(temperature=0.9, max_tokens=12, seed=3, logprobs=0)
    (prompt,) = draw_prompts(1, longest=20, seed=8)
    prompts = [{"prompt_token_ids": prompt}]
    recorded = plain.clone()
    recorded.extra_args = request_arguments(key="x")
    (first,) = engine.generate(prompts, plain, use_tqdm=False)
    (second,) = engine.generate(prompts, recorded, use_tqdm=False)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert [len(records) for records in take_entropies(engine, ["x", "y"])] == [1, 0]
    assert take_entropies(engine, ["x"]) == [[]]  # once
    with pytest.raises(RuntimeError, match="taken already"):
        decoded([], first.outputs[0].token_ids, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"early_exit": -1.0}, "never fire"),
        ({"early_exit": 1.0, "early_exit_min_tokens": 99}, "at most 16 tokens"),
        ({"early_exit_window": 3}, "without early_exit"),
    ],
)
def test_wrong_arguments_are_refused_before_generation(engine, arguments, message):
    params = SamplingParams(max_tokens=16, extra_args=arguments)
    with pytest.raises(VLLMValidationError, match=message):
        engine.generate([{"prompt_token_ids": [7, 8]}], params, use_tqdm=False)


def test_nothing_is_left_behind_by_ten_thousand_requests(engine):
    """Rows, records and the process's memory are what they were: 10,000 requests with keys, 2,000 without."""
    import resource

    processor = processor_of(engine)

    def run(first, count, keyed):
        keys = list(range(first, first + count))
        rule = EarlyExit(2.7, (3, 4), (5,), 2)
        params = [
            SamplingParams(max_tokens=3, extra_args=request_arguments(key=key if keyed else None, rule=rule))
            for key in keys
        ]
        engine.generate([{"prompt_token_ids": [7 + key % 40]} for key in keys], params, use_tqdm=False)
        if keyed:
            assert all(len(records) == 1 for records in take_entropies(engine, keys))

    run(10**6, 2000, keyed=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for first in range(0, 8000, 2000):
        run(first, 2000, keyed=True)
    run(0, 2000, keyed=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(processor.records.live) <= 16
    assert len(processor.records._free) + len(processor.records.live) == 16
    assert not processor.records._by_key
    assert len(processor.records) <= 4 * 16  # requests without a key that might have come back
    assert grown < 24 * 1024, f"{grown} KiB more"


def test_requests_put_off_take_up_where_they_were(model_dir, reference):
    """A key/value cache too small for the batch: vLLM drops requests and computes them again."""
    llm = start(model_dir, num_gpu_blocks_override=14, block_size=32, max_model_len=160, disable_log_stats=False)
    prompts = draw_prompts(64, longest=60, seed=9)
    counts = check(llm, reference, prompts, longest=60)
    put_off = next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    assert put_off >= 5
    assert counts["exits"] >= 5
    assert len(processor_of(llm).records) == 0
    del llm
    gc.collect()


def test_speculative_decoding_is_refused_before_the_engine_starts(model_dir):
    # The last of this file: vLLM loads numba for it, and then no further engine starts in this process.
    guesses = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    with pytest.raises(ValueError, match="speculative decoding"):
        start(model_dir, speculative_config=guesses)
    with pytest.raises(ValueError, match="one distribution per token"):  # vLLM's second runner leaves it to us
        refuse_speculation(SimpleNamespace(speculative_config=guesses))
