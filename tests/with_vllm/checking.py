"""Requests of every kind through an engine: every entropy against float64, every exit against the rule."""

from __future__ import annotations

import torch
from engines import float64_entropies
from tiny_models import ENDS
from vllm import SamplingParams

from trainer.sampling.early_exit import EarlyExit, first_exit, forced_places
from trainer.sampling.teca_processor import take_entropies
from trainer.sampling.teca_requests import decoded, request_arguments

RULES = (None, EarlyExit(2.7, (3, 4), (5,), 4, 0), EarlyExit(2.8, (7,), (8,), 2, 4))


def check(llm, reference, prompts, *, longest, n=1, keys_from=0, **options) -> dict[str, int]:
    """Generate with every rule, temperature and length in turn; every entropy and every exit must be right."""
    keys = list(range(keys_from, keys_from + len(prompts)))
    rules = [RULES[i % len(RULES)] for i in range(len(prompts))]
    temperatures = [0.6 + 0.2 * (i % 4) for i in range(len(prompts))]
    params = [
        SamplingParams(
            n=n,
            temperature=temperatures[i],
            max_tokens=5 + (7 * i) % longest,
            stop_token_ids=ENDS if i % 2 else [],
            ignore_eos=i % 2 == 0,
            extra_args=request_arguments(key=keys[i], rule=rules[i]),
            **{"top_k": 20, "top_p": 0.95, **options},
        )
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    counts = {"responses": 0, "exits": 0, "stopped": 0}
    for i, (records, output) in enumerate(zip(take_entropies(llm, keys), outputs, strict=True)):
        for completion in output.outputs:
            tokens = list(completion.token_ids)
            known = decoded(records, tokens, keys[i])
            expected = float64_entropies(reference, prompts[i], tokens, temperatures[i])
            torch.testing.assert_close(torch.tensor(known.entropies).double(), expected, rtol=1e-5, atol=1e-5)
            place = None if rules[i] is None else first_exit(rules[i], known.entropies, tokens, prompt_ids=prompts[i])
            assert known.fired == place
            places = forced_places(place, rules[i], len(tokens))
            assert [tokens[p] for p in places] == list(rules[i].forced_ids[: len(places)]) if places else True
            counts["responses"] += 1
            counts["exits"] += place is not None
            counts["stopped"] += completion.finish_reason == "stop"
    return counts
