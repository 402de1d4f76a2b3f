"""What a policy does on held-out word problems.

In: model, tokenizer, problems.  Out: per response: right or wrong, tokens, TECA, total entropy, explorations, recaps.

Responses are sampled at temperature 1, one per problem, with a random state of their own, so evaluating changes nothing
in a training that goes on. Entropies are those of cer_ext.linear_logprobs_and_entropy on the policy's hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cer_ext import linear_logprobs_and_entropy, teca_last
from trainer.grading import grade
from trainer.sampling.rollout import sample
from trainer.tiny.problems import WordProblem, count_explorations, count_recaps

_BATCH = 64


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


@torch.inference_mode()
def entropies(model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], pad_id: int):
    """(entropy, mask), both (B, C): of every completion token under the model at temperature 1, in nats."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    longest, width = max(map(len, rows)), max(map(len, completions))
    ids = torch.full((len(rows), longest), pad_id)
    targets = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, len(prompts[i]) - 1 : len(row) - 1] = torch.tensor(completions[i])
    hidden = model.model(input_ids=ids.to(model.device)).last_hidden_state  # (B, L, D)
    _, entropy = linear_logprobs_and_entropy(hidden, model.lm_head.weight, targets.to(model.device))  # (B, L)
    packed = torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, completion in enumerate(completions):
        first = len(prompts[i]) - 1
        packed[i, : len(completion)] = entropy[i, first : first + len(completion)].cpu()
        mask[i, : len(completion)] = True
    return packed, mask


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
    with torch.random.fork_rng(devices=[]), tqdm(total=len(problems), desc=description, unit="problem") as bar:
        torch.manual_seed(seed)
        for start in range(0, len(problems), _BATCH):
            batch = problems[start : start + _BATCH]
            prompts = tokenizer.apply_chat_template(
                [[{"role": "user", "content": problem.question}] for problem in batch],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
            completions = sample(
                model,
                prompts,
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                end_ids=[tokenizer.eos_token_id],
                pad_id=tokenizer.pad_token_id,
            )
            entropy, mask = entropies(model, prompts, completions, tokenizer.pad_token_id)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            found.text += texts
            found.correct += [grade(text, str(problem.answer)) for text, problem in zip(texts, batch, strict=True)]
            found.tokens += [len(completion) for completion in completions]
            found.teca += teca_last(entropy, mask).tolist()
            found.entropy_sum += (entropy * mask).sum(-1).tolist()
            found.explorations += [count_explorations(text) for text in texts]
            found.recaps += [count_recaps(text) for text in texts]
            bar.update(len(batch))
    model.train(was_training)
    return found
