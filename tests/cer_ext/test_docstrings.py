"""The examples in the public docstrings run and print what they say."""

import doctest
import importlib

import pytest

MODULES = [
    "from_logits",
    "from_hidden",
    "logits_targets",
    "hidden_targets",
    "token_loss",
    "teca",
    "reward",
    "build_info",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    results = doctest.testmod(importlib.import_module(f"cer_ext.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
