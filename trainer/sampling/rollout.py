"""Sampling with a key/value cache from which finished rows are dropped.

In: a causal LM of transformers and prompts as token ids.  Out: sampled completions, each up to and with its end token.

`transformers.generate` keeps computing rows that ended until the longest has; with lengths as spread as here that is
most of its work. Here the batch shrinks as rows end, and equal prompts (a GRPO group) are read once. Sampling is plain:
softmax at one temperature, torch's global generator (which checkpoints save).

`rollout` is this sampler in the form of TRL's `rollout_func`; everything after the sampling stays TRL's.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

_COMPACT_BELOW = 0.8  # drop finished rows once fewer than this share of the batch is still running


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int):
    """Reads each different prompt once. Returns cache, mask (B, L), next positions (B,) and logits (B, V)."""
    device = model.device
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    longest = max(len(prompt) for prompt in unique)
    ids = torch.full((len(unique), longest), pad_id)
    mask = torch.zeros((len(unique), longest), dtype=torch.long)
    for row, prompt in enumerate(unique):  # padded on the left: the last column is every prompt's last token
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    place = {prompt: row for row, prompt in enumerate(unique)}
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    cache.batch_select_indices(rows)
    return cache, mask[rows], positions[rows, -1] + 1, output.logits[rows, -1]


@torch.inference_mode()
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
    cache, mask, position, logits = _prefill(model, prompts, pad_id)
    rows = len(prompts)
    tokens = torch.full((rows, max_new_tokens), pad_id, device=model.device)
    lengths = torch.full((rows,), max_new_tokens, device=model.device)
    ends = torch.tensor(list(end_ids), device=model.device)
    alive = torch.arange(rows, device=model.device)  # which prompt each row of the batch belongs to
    running = torch.ones(rows, dtype=torch.bool, device=model.device)  # of the batch; False: ended, not yet dropped
    for step in range(max_new_tokens):
        chosen = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0]  # (rows of the batch,)
        tokens[alive[running], step] = chosen[running]
        ended = running & torch.isin(chosen, ends)
        lengths[alive[ended]] = step + 1
        running = running & ~ended
        left = int(running.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if left < _COMPACT_BELOW * len(running):
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, mask, position, chosen = alive[keep], mask[keep], position[keep], chosen[keep]
            running = running[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        position = position + 1
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


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
