"""Rollouts for training, sampled by our own decoding loop.

In: a causal LM of transformers and prompts as token ids.  Out: sampled completions, each up to and with its end token.

Sampling is plain: softmax at one temperature, torch's global generator (which checkpoints save). `rollout` is this
sampler in the form of TRL's `rollout_func`; everything after the sampling stays TRL's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.sampling.decode import decode


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    end_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """One sampled completion per prompt, in order; at most `max_new_tokens` long, the end token included."""

    def draw(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0]

    completions = decode(model, prompts, draw, max_new_tokens=max_new_tokens, end_ids=end_ids, pad_id=pad_id)
    return [completion.token_ids for completion in completions]


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
        completion_ids = sample(
            model,
            prompt_ids,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            end_ids=trainer.eos_token_ids,
            pad_id=tokenizer.pad_token_id,
        )
    finally:
        model.train(was_training)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}
