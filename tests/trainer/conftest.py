"""Fixtures of the trainer's tests: the tiny models of tiny_models.py on disk, and the arguments of a short run.

Models are written to disk once per session, because TRL loads the reference from there.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_models import make_model, make_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


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
