"""Scoring: teacher-forced entropies equal the definition in float64, however the sequence is cut."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import ENDS, make_model
from transformers import DynamicCache

from trainer import evaluate
from trainer.evaluation.engine_transformers import TransformersEngine
from trainer.evaluation.requests import Request, Sampling
from trainer.evaluation.scoring import Scorer
from trainer.records.record_files import read_records

SEQUENCES = [
    ((3, 7, 9, 4), tuple(range(6, 40))),
    ((3,), (8,)),
    ((3, 5, 6, 7, 8, 9, 10, 11, 4), (12, 13, 14, 1)),
    ((5, 6), ()),
]


def float64_entropies(model, sequences, temperature):
    """One sequence at a time, all logits at once, in float64."""
    found = []
    for prompt, response in sequences:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        log_p = (logits.double() / temperature).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        found.append(entropy[len(prompt) - 1 : len(prompt) - 1 + len(response)])
    return found


def assert_same(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, (ours, reference) in enumerate(zip(found, expected, strict=True)):
        difference = (torch.tensor(ours).double() - reference).abs()
        worst = int(difference.argmax()) if len(difference) else 0
        assert len(difference) == 0 or difference[worst] < 1e-5, f"sequence {row}, token {worst}"


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "cohere", "granite", "phi", "qwen3_moe"])
def test_entropies_equal_the_definition_in_every_family(family):
    model = make_model(family)
    expected = float64_entropies(model, SEQUENCES, 1.3)
    assert_same(Scorer(model, temperature=1.3, chunk_tokens=24).entropies(SEQUENCES), expected)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 8, 37, 1000])
@pytest.mark.parametrize("workspace_bytes", [None, 1024])
def test_neither_the_chunks_nor_the_workspace_show_in_the_result(chunk_tokens, workspace_bytes):
    model = make_model("gemma2")  # sliding and full attention in turn
    scorer = Scorer(model, temperature=0.8, chunk_tokens=chunk_tokens, workspace_bytes=workspace_bytes)
    assert_same(scorer.entropies(SEQUENCES), float64_entropies(model, SEQUENCES, 0.8))


def test_a_sliding_window_shorter_than_the_sequence_is_kept_over_chunks():
    model = make_model("gemma2", sliding_window=6)
    for chunk_tokens in (2, 16, 1000):
        scorer = Scorer(model, temperature=1.0, chunk_tokens=chunk_tokens)
        assert_same(scorer.entropies(SEQUENCES), float64_entropies(model, SEQUENCES, 1.0))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids="+".join)
def test_an_adapter_counts(targets):
    base = make_model("llama")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    expected = float64_entropies(model, SEQUENCES, 1.0)
    assert_same(Scorer(model, temperature=1.0, chunk_tokens=16).entropies(SEQUENCES), expected)
    with model.disable_adapter():
        without = float64_entropies(model, SEQUENCES, 1.0)
    assert (without[0] - expected[0]).abs().max() > 0.01


def test_an_adapter_of_virtual_tokens_is_refused():
    model = get_peft_model(make_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="virtual tokens"):
        Scorer(model, temperature=1.0)


def test_scoring_a_generated_response_gives_the_entropies_it_was_drawn_with():
    model = make_model("qwen3")
    asked = [Request(prompt, seed) for seed, (prompt, _) in enumerate(SEQUENCES)]
    sampling = Sampling(temperature=0.9, max_new_tokens=20)
    responses = TransformersEngine(model, sampling, stop_ids=ENDS, pad_id=0).generate(asked)
    scored = Scorer(model, temperature=0.9, chunk_tokens=8).entropies(
        [(request.prompt_ids, response.token_ids) for request, response in zip(asked, responses, strict=True)]
    )
    for response, entropies in zip(responses, scored, strict=True):
        assert response.entropies == pytest.approx(entropies, abs=1e-5)


def test_hidden_states_of_one_chunk_are_the_most_that_is_alive(monkeypatch):
    """The head never sees more rows than a chunk has, whatever the response's length is."""
    model = make_model("qwen3")
    scorer = Scorer(model, temperature=1.0, chunk_tokens=5)
    rows = []
    head = scorer._head
    monkeypatch.setattr(scorer, "_head", lambda hidden, target: rows.append(len(hidden)) or head(hidden, target))
    scorer.entropies([((3, 4), tuple(6 + i % 40 for i in range(50)))])
    assert sum(rows) == 50
    assert max(rows) <= 5


def test_a_response_needs_a_prompt():
    with pytest.raises(ValueError, match="without a prompt"):
        Scorer(make_model("qwen3"), temperature=1.0).entropies([((), (5, 6))])


# The command ----------------------------------------------------------------------------------------------------------
def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def run(model, path, output, *options):
    return evaluate.main(["--model", str(model), "--score", str(path), "--output", str(output), *options])


GIVEN = [
    {"question": "w1 w2", "response": "w3 w4 #### 7", "ground_truth": "7", "id": "a"},
    {"prompt": "w1 w2", "response": "w3", "id": "b", "benchmark": "gsm8k", "method": "cod", "sample": 2},
    {"question": "w5", "response": "", "finish_reason": "length"},
]


def test_given_responses_become_records(model_path, tmp_path):
    path = write_lines(tmp_path / "given.jsonl", *GIVEN)
    assert run(model_path("qwen3"), path, tmp_path / "out", "--temperature", "1") == 0
    records = {record["id"]: record for record in read_records(tmp_path / "out")}
    assert set(records) == {"a", "b", "3"}
    assert (records["a"]["benchmark"], records["a"]["method"]) == ("given", "given")
    assert (records["b"]["benchmark"], records["b"]["method"], records["b"]["sample"]) == ("gsm8k", "cod", 2)
    assert records["a"]["is_correct"]
    assert not records["b"]["is_correct"]
    assert records["b"]["prompt"] == "w1 w2"
    assert records["3"]["response_length"] == 0
    assert records["3"]["finish_reason"] == "length"
    assert "".join(records["a"]["tokens"]).startswith("w3 w4")
    for record in records.values():
        teca = [sum(record["token_entropies"][: i + 1]) / (i + 1) for i in range(record["response_length"])]
        assert record["teca"] == pytest.approx(teca, rel=1e-5)


def test_records_of_a_run_are_scored_token_for_token_and_a_torn_run_is_completed(model_path, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", *({"question": f"w{i}", "answer": "1"} for i in range(4)))
    model = model_path("qwen3")
    generated, scored = tmp_path / "generated", tmp_path / "scored"
    options = ["--benchmarks", "words", "--data", f"words={data}", "--samples", "2", "--max_new_tokens", "12"]
    assert evaluate.main(["--model", model, "--output", str(generated), *options]) == 0
    path = generated / "records-words-thinking.jsonl"
    assert run(model, path, scored, "--batch_size", "3") == 0
    before, after = list(read_records(generated)), list(read_records(scored))
    assert len(before) == 8
    for a, b in zip(before, after, strict=True):
        assert b["token_entropies"] == pytest.approx(a["token_entropies"], abs=2e-5)
        for key in ("id", "sample", "token_ids", "tokens", "response", "prompt", "is_correct", "finish_reason"):
            assert a[key] == b[key]

    whole = (scored / path.name).read_bytes()
    (scored / path.name).write_bytes(whole[: len(whole) // 2])
    assert run(model, path, scored, "--batch_size", "3") == 0
    assert (scored / path.name).read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"response": "w1"}, "line 2: neither prompt nor question"),
        ({"question": "w1"}, "line 2: neither response nor token_ids"),
        ({"question": "w1", "token_ids": [1, 10**6]}, "line 2: token_ids: expected integers from 0 to 48"),
        ({"question": 3, "response": "w1"}, "line 2: question is a int"),
        ([1], "line 2: expected a JSON object"),
        ({"question": "w1", "response": "w1", "id": "a"}, "line 2: id 'a', sample 0 comes twice"),
        ({"question": "w1", "response": "w1", "benchmark": "a/b"}, "line 2: benchmark name 'a/b'"),
        ({"question": "w1", "response": "w1 \ud83d"}, "line 2: response: character 4 is half of a surrogate pair"),
        ({"question": "\udc00", "response": "w1"}, "line 2: question: character 1 is half of a surrogate pair"),
        ({"prompt": "\udc00", "response": "w1"}, "line 2: prompt: character 1 is half of a surrogate pair"),
        ({"question": "w1", "response": "w1", "id": "\udc00"}, "line 2: id: character 1 is half of a surrogate pair"),
        ({"question": "w1", "response": "w1", "id": None}, "line 2: id is None: expected text or a whole number"),
        ({"question": "w1", "response": "w1", "id": True}, "line 2: id is True"),
        ({"question": "w1", "response": "w1", "ground_truth": None}, "line 2: ground_truth is null"),
        ({"question": "w1", "response": "w1", "answer": None}, "line 2: answer is null"),
        ({"question": "w1", "response": "w1", "answer": float("nan")}, "line 2: answer: nan is no answer"),
        ({"question": "w1", "response": "w1", "answer": True}, "line 2: answer: expected an answer as text or number"),
        ({"question": "w1", "response": "w1", "ground_truth": "\udc00"}, "line 2: ground_truth: character 1 is half"),
        ({"question": "w1", "response": "w1", "sample": True}, "line 2: sample is True"),
        ({"question": "w1", "token_ids": [True]}, "line 2: token_ids: expected integers"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_written(model_path, tmp_path, capsys, line, message):
    path = write_lines(tmp_path / "given.jsonl", GIVEN[0], line)
    assert run(model_path("qwen3"), path, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_not_utf8_or_no_json_is_named(model_path, tmp_path, capsys):
    path = tmp_path / "given.jsonl"
    for line, message in (
        (b'{"question": "w1", "response": "\xe9"}', "line 2: byte 33 (0xe9) is not UTF-8"),
        (b'{"question": "w1"', "line 2: Expecting"),
        (b"[" * 100_000, "line 2: nested too deeply"),
    ):
        path.write_bytes(json.dumps(GIVEN[0]).encode() + b"\n" + line + b"\n")
        assert run(model_path("qwen3"), path, tmp_path / "out") == 2
        assert f"{path}, {message}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_answers_are_read_exactly_and_of_a_list_any_one_is_right(model_path, tmp_path):
    big = 12345678901234567890123
    path = write_lines(
        tmp_path / "given.jsonl",
        {"question": "w1", "response": f"#### {big}", "ground_truth": big},
        {"question": "w1", "response": f"#### {big + 1}", "ground_truth": big},
        {"question": "w1", "response": "#### 7", "ground_truth": ["6", 7]},
        {"question": "w1", "response": "#### 8", "ground_truth": ["6", 7]},
        {"question": "w1", "response": "#### None", "ground_truth": ""},
    )
    assert run(model_path("qwen3"), path, tmp_path / "out", "--temperature", "1") == 0
    verdicts = {record["id"]: record["is_correct"] for record in read_records(tmp_path / "out")}
    assert verdicts == {"1": True, "2": False, "3": True, "4": False, "5": False}


def test_a_sequence_longer_than_the_model_is_refused(model_path, tmp_path, capsys):
    path = write_lines(tmp_path / "given.jsonl", {"question": "w1", "response": "w2 " * 70, "id": "long"})
    assert run(model_path("qwen3"), path, tmp_path / "out") == 2
    assert "id 'long', sample 0: prompt and response have" in capsys.readouterr().err


def test_another_temperature_in_an_old_directory_is_refused(model_path, tmp_path, capsys):
    path = write_lines(tmp_path / "given.jsonl", GIVEN[0])
    assert run(model_path("qwen3"), path, tmp_path / "out", "--temperature", "1") == 0
    assert run(model_path("qwen3"), path, tmp_path / "out", "--temperature", "0.8") == 2
    assert "temperature was 1.0, now 0.8" in capsys.readouterr().err


def test_the_body_keeps_a_cache_of_the_kind_the_model_asks_for():
    """What the chunks rest on: DynamicCache made from the config has a layer of the right kind for every layer."""
    cache = DynamicCache(config=make_model("gemma2").config)
    assert [layer.is_sliding for layer in cache.layers] == [True, False]
