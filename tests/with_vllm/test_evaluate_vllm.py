"""The vLLM engine against the scorer: entropies from inside its sampler are those of teacher forcing, token for token.

vLLM's attention needs heads of 32, so the tiny models get them here.
"""

from __future__ import annotations

import gc
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import ENDS, VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from trainer import evaluate
from trainer.evaluation import loading
from trainer.evaluation.requests import Request, Sampling
from trainer.evaluation.scoring import Scorer
from trainer.records.record_files import read_records

POSITIONS = 4096
SAMPLING = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_new_tokens=10)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("vllm_model")
    model = make_model("qwen3", head_dim=32, max_position_embeddings=POSITIONS, initializer_range=0.3)
    model.generation_config.max_length = None
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load(model_dir, tokenizer, adapter=None, sampling=SAMPLING):
    source = loading.ModelSource(str(model_dir), None, adapter and str(adapter), "float32", "cpu")
    return loading.load_engine(
        "vllm",
        source,
        sampling,
        tokenizer,
        longest_prompt=POSITIONS - sampling.max_new_tokens,
        batch_size=16,
        gpu_memory_utilization=0.5,
        seed=0,
    )


@pytest.fixture(scope="module")
def engine(model_dir, tokenizer):
    loaded = load(model_dir, tokenizer)
    yield loaded
    del loaded
    gc.collect()


def requests(count, longest=12):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [
        Request(tuple(torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()), seed)
        for seed, length in enumerate(lengths)
    ]


def worst_difference(model, asked, responses, temperature=SAMPLING.temperature):
    scored = Scorer(model, temperature=temperature).entropies(
        [(request.prompt_ids, response.token_ids) for request, response in zip(asked, responses, strict=True)]
    )
    for response, entropies in zip(responses, scored, strict=True):
        assert len(response.entropies) == len(response.token_ids) == len(entropies)
    return max(
        abs(a - b)
        for r, entropies in zip(responses, scored, strict=True)
        for a, b in zip(r.entropies, entropies, strict=True)
    )


def test_entropies_are_those_of_teacher_forcing_over_many_requests_in_few_slots(engine, model_dir):
    asked = requests(48)
    responses = engine.generate(asked)
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        assert (response.token_ids[-1] in ENDS) == (response.finish_reason == "stop")
        assert not any(token in ENDS for token in response.token_ids[:-1])
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    assert worst_difference(model, asked, responses) < 1e-4


def test_long_prompts_beside_short_ones_stay_aligned(engine, model_dir):
    asked = requests(6, longest=3900)
    assert max(len(request.prompt_ids) for request in asked) > 2048  # more than vLLM reads at once by default
    responses = engine.generate(asked)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    assert worst_difference(model, asked, responses) < 1e-4


def test_a_response_does_not_depend_on_its_neighbours(engine):
    asked = requests(20)
    together = engine.generate(asked)
    for number in (0, 7, 19):
        (alone,) = engine.generate([asked[number]])
        assert alone.token_ids == together[number].token_ids
        assert alone.entropies == pytest.approx(together[number].entropies, abs=1e-4)


def test_an_adapter_is_served(model_dir, tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    asked = requests(12)
    responses = load(model_dir, tokenizer, tmp_path / "adapter").generate(asked)
    base = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    without = worst_difference(base, asked, responses)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert worst_difference(adapted, asked, responses) < 1e-4
    assert without > 0.01


def test_an_adapter_on_the_head_is_refused_before_vllm_starts(model_dir, tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(model_dir, tie_word_embeddings=False)
    get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="changes lm_head, which vLLM does not serve"):
        load(model_dir, tokenizer, tmp_path / "adapter")


def test_the_command_resumes_with_none_lost_or_doubled(model_dir, tmp_path):
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps({"question": f"w{i} w{i + 1}", "answer": "1"}) + "\n" for i in range(10)))
    command = ["--model", str(model_dir), "--output", str(tmp_path / "out"), "--engine", "vllm", "--device", "cpu"]
    command += ["--benchmarks", "words", "--data", f"words={data}", "--samples", "3", "--max_new_tokens", "20"]
    command += ["--batch_size", "8"]
    assert evaluate.main(command) == 0
    path = tmp_path / "out" / "records-words-thinking.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:11]) + b"\n" + lines[11][:40])
    assert evaluate.main(command) == 0
    assert path.read_bytes().split(b"\n")[:11] == lines[:11]
    keys = [(record["id"], record["sample"]) for record in read_records(tmp_path / "out")]
    assert len(keys) == len(set(keys)) == 30
