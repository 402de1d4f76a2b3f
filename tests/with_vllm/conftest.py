"""Runs where vLLM is installed (.ci/vllm makes such an environment); the tiny models are those of tests/trainer."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))  # tiny_models.py

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from trainer.sampling import vllm_support

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; engines that tests share start before any test
    vllm_support.prepare_environment(cpu=True)


@pytest.fixture(scope="session")
def tokenizer():
    from tiny_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer):
    from engines import save_model

    path = tmp_path_factory.mktemp("vllm_model")
    save_model(path, tokenizer)
    return path


@pytest.fixture(scope="session")
def reference(model_dir):
    """The model in float64."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir).double().eval()
