"""Decoding without copies of keys and values: the same bits, and no copies."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations import sdpa_attention

from trainer.sampling import decode as decoding
from trainer.sampling.grouped_attention import NAME, without_repeated_keys

PROMPTS = [[7, 8, 9], [7, 8, 9], [12, 13, 14, 15, 16], [20]]  # unequal: the batch is padded, so there is a mask


@pytest.fixture
def copies(monkeypatch):
    """How often transformers repeated keys or values for their groups."""
    counted = []
    stock = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: counted.append(n) or stock(x, n))
    return counted


def greedy(model, seen: list):
    def draw(logits, rows, step):
        seen.append(logits.clone())
        return logits.argmax(-1)

    return decoding.decode(model, PROMPTS, draw, max_new_tokens=6, end_ids=[1], pad_id=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
def test_decoding_gives_the_same_bits_without_copies(load_model, monkeypatch, copies, family, dtype):
    model = load_model(family, dtype=dtype).eval()
    seen: list[torch.Tensor] = []
    answers = greedy(model, seen)
    grouped_copies = len(copies)

    monkeypatch.setattr(decoding, "without_repeated_keys", lambda model: torch.no_grad())
    expected: list[torch.Tensor] = []
    assert greedy(model, expected) == answers
    assert len(expected) == len(seen)
    for ours, stock in zip(seen, expected, strict=True):
        assert torch.equal(ours, stock)
    if model.config._attn_implementation == "sdpa":
        assert grouped_copies == 0
        assert len(copies) > 0  # what stock attention does on the same batch


def test_the_implementation_is_the_models_own_after_the_block(load_model, tmp_path):
    model = load_model("qwen3")

    def fail_inside():
        with without_repeated_keys(model):
            assert model.config._attn_implementation == NAME
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert model.config._attn_implementation == "sdpa"
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    with without_repeated_keys(wrapped):
        assert model.config._attn_implementation == NAME
        model.config.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert model.config._attn_implementation == "sdpa"


def test_another_implementation_stays(load_model):
    model = load_model("qwen3", attn_implementation="eager")
    with without_repeated_keys(model):
        assert model.config._attn_implementation == "eager"
