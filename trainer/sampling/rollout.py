"""Rollouts for training, sampled by our own decoding loop.

In: a causal LM of transformers and prompts as token ids.  Out: sampled completions, each up to and with its end token,
with the entropy of every distribution drawn from.

Sampling is plain: softmax at one temperature, torch's global generator (which checkpoints save). `rollout` is this
sampler in the form of TRL's `rollout_func`; everything after the sampling stays TRL's. The entropies go to CERTrainer
(trainer/cer_trainer.py), which then needs no pass of its own over the rollouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.sampling.batch_teca import BatchTeca
from trainer.sampling.decode import decode
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.teca_requests import Decoded


@dataclass(frozen=True)
class Sample:
    """A sampled completion."""

    token_ids: list[int]  # up to and with the end token
    decoded: Decoded  # entropies in nats, and the place of an early exit


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    end_ids: Sequence[int],
    pad_id: int,
    early_exit: EarlyExit | None = None,
) -> list[Sample]:
    """One sampled completion per prompt, in order; at most `max_new_tokens` long, the end token included."""
    teca = BatchTeca(prompts, temperature=temperature, limit=max_new_tokens, device=model.device, rule=early_exit)

    def draw(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        teca.step(logits, rows, step)
        chosen = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0]
        teca.wrote(rows, chosen)
        return chosen

    completions = decode(model, prompts, draw, max_new_tokens=max_new_tokens, end_ids=end_ids, pad_id=pad_id)
    token_ids = [completion.token_ids for completion in completions]
    decoded = teca.decoded([len(ids) for ids in token_ids])
    return [Sample(ids, of_it) for ids, of_it in zip(token_ids, decoded, strict=True)]


def rollout(prompts: list, trainer) -> dict[str, list]:
    """TRL's `rollout_func`: tokenise with the chat template, sample, hand back ids; TRL does the rest.

    Raises ValueError for sampling options that this sampler does not have.
    """
    args = trainer.args
    unsupported = {"top_p": (args.top_p, 1.0), "top_k": (args.top_k, 0), "min_p": (args.min_p, None)}
    unsupported["repetition_penalty"] = (args.repetition_penalty, 1.0)
    for name, (value, neutral) in unsupported.items():
        if value != neutral:
            raise ValueError(f"the embedded sampler samples at a temperature only; {name}={value} needs --sampler trl")
    tokenizer = trainer.processing_class
    prompt_ids = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **(args.chat_template_kwargs or {})
    )["input_ids"]
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()  # gradient checkpointing in training mode would switch the cache off
    try:
        samples = sample(
            model,
            prompt_ids,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            end_ids=trainer.eos_token_ids,
            pad_id=tokenizer.pad_token_id,
            early_exit=trainer.early_exit,
        )
    finally:
        model.train(was_training)
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": [one.token_ids for one in samples],
        "logprobs": None,
        "decoded": [one.decoded for one in samples],
    }
