"""Tiny models, a word-level tokenizer and a data set, made on the spot: no network, nothing stored.

The tokenizer has one token per word and a chat template; every model family that treats its logits differently has one
representative of two layers. Models are written to disk once per session, because TRL loads the reference from there.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
WORDS = [f"w{i}" for i in range(43)]
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
            "output_router_logits": True,
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
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def model_path(tmp_path_factory, tokenizer):
    """family -> folder with its model and tokenizer."""
    made: dict[str, Path] = {}

    def path(family: str) -> str:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_model(family).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return str(made[family])

    return path


@pytest.fixture
def load_model(model_path):
    """family -> a fresh copy of its model, as a person would load it."""
    return lambda family="qwen3", **options: AutoModelForCausalLM.from_pretrained(model_path(family), **options)


def prompts(count: int = 8, conversational: bool = False) -> Dataset:
    """Prompts of unequal length, so that every batch is padded; `goal` is a further column for the rewards."""
    texts = [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(1 + i % 4)) for i in range(count)]
    shown = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    return Dataset.from_dict({"prompt": shown, "goal": [i % 5 for i in range(count)]})


def count_reward(completion_ids, goal, **kwargs) -> list[float]:
    """Deterministic, and different within nearly every group: how many tokens leave the remainder `goal` modulo 5."""
    return [sum(token % 5 == g for token in ids) + 0.01 * len(ids) for ids, g in zip(completion_ids, goal, strict=True)]


@pytest.fixture
def config(tmp_path):
    """Arguments of a short CPU run that logs every step; keywords win."""

    def make(**options) -> GRPOConfig:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 8,
            "gradient_checkpointing": False,
            "temperature": 0.9,
            "seed": 11,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return GRPOConfig(**{**defaults, **options})

    return make
