"""What a policy does on held-out word problems.

In: model, tokenizer, problems.  Out: per response: right or wrong, tokens, TECA, total entropy, explorations, recaps.

Responses are sampled at temperature 1, one per problem, with a random state of their own, so evaluating changes nothing
in a training that goes on. Entropies are those that the sampler saw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.console.progress_bar import ProgressBar
from trainer.grading import grade
from trainer.sampling.rollout import sample
from trainer.sampling.rollout_entropy import teca_and_sum
from trainer.tiny.problems import WordProblem, count_explorations, count_recaps

_LEAST_BATCH, _BATCHES = 64, 4  # many problems in larger batches: their decoding steps cost hardly more


@dataclass
class HeldOutResponses:
    """One entry per problem in every list."""

    text: list[str]
    correct: list[bool]
    tokens: list[int]
    teca: list[float]
    entropy_sum: list[float]
    explorations: list[int]
    recaps: list[int]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[WordProblem],
    *,
    max_new_tokens: int,
    seed: int,
    description: str = "evaluate",
) -> HeldOutResponses:
    """Samples one response per problem and measures it."""
    was_training = model.training
    model.eval()
    found = HeldOutResponses([], [], [], [], [], [], [])
    with torch.random.fork_rng(devices=[]), ProgressBar(total=len(problems), desc=description, unit="problem") as bar:
        torch.manual_seed(seed)
        size = max(_LEAST_BATCH, math.ceil(len(problems) / _BATCHES))
        for start in range(0, len(problems), size):
            batch = problems[start : start + size]
            prompts = tokenizer.apply_chat_template(
                [[{"role": "user", "content": problem.question}] for problem in batch],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
            samples = sample(
                model,
                prompts,
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                end_ids=[tokenizer.eos_token_id],
                pad_id=tokenizer.pad_token_id,
            )
            completions = [one.token_ids for one in samples]
            entropies = [one.decoded.entropies for one in samples]
            teca, totals = teca_and_sum(entropies, [[1] * len(row) for row in entropies])
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            found.text += texts
            found.correct += [grade(text, str(problem.answer)) for text, problem in zip(texts, batch, strict=True)]
            found.tokens += [len(completion) for completion in completions]
            found.teca += teca
            found.entropy_sum += totals
            found.explorations += [count_explorations(text) for text in texts]
            found.recaps += [count_recaps(text) for text in texts]
            bar.update(len(batch))
    model.train(was_training)
    return found
