"""Tiny models, a word-level tokenizer, prompts and a reward, made on the spot: no network, nothing stored.

The tokenizer has one token per word and a chat template; every model family that treats its logits differently has one
representative of two layers.
"""

from __future__ import annotations

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
WORDS = [f"w{i}" for i in range(43)]
ENDS = [1, 11, 18, 25, 32, 39, 46]
VOCABULARY = len(SPECIAL) + len(WORDS)  # 49: no multiple of a vector width
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)

_BODY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    # Wide enough that the distributions are far from uniform and a wrong scale or softcap shows.
    "initializer_range": 0.4,
}
FAMILIES = {
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "granite": ("Granite", {"logits_scaling": 3.0, "tie_word_embeddings": False}),
    "phi": ("Phi", {}),  # a bias on the head
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "router_aux_loss_coef": 0.1,
        },
    ),
}


def make_model(family: str, seed: int = 0, **overrides) -> transformers.PreTrainedModel:
    """A model of the family with random weights, biases included."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**_BODY, **options, **overrides})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.3)
    # Several words end a completion, so that lengths differ and every batch holds padding.
    model.generation_config.eos_token_id = ENDS
    return model.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompts(count: int = 8, conversational: bool = False) -> Dataset:
    """Prompts of unequal length, so that every batch is padded; `goal` is a further column for the rewards."""
    texts = [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(1 + i % 4)) for i in range(count)]
    shown = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    return Dataset.from_dict({"prompt": shown, "goal": [i % 5 for i in range(count)]})


def count_reward(completion_ids, goal, **kwargs) -> list[float]:
    """Deterministic, and different within nearly every group: how many tokens leave the remainder `goal` modulo 5."""
    return [sum(token % 5 == g for token in ids) + 0.01 * len(ids) for ids, g in zip(completion_ids, goal, strict=True)]
