"""One's own data on the command line: questions as messages, rows without an answer, files that cannot be read."""

from __future__ import annotations

import json

import pytest

from trainer import evaluate, grpo
from trainer.prompts.prompt import Prompt, prompt_of
from trainer.records.record_files import read_records
from trainer.tiny.model import build_model
from trainer.tiny.tokenizer import byte_tokenizer

QUESTIONS = [f"What is {a} + 1? Answer after ####." for a in range(4)]
VERL = [
    {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": str(a + 1)},
    }
    for a, question in enumerate(QUESTIONS)
]
NO_ANSWER = {**VERL[0], "reward_model": {"style": "rule", "ground_truth": None}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, seed=0, max_positions=2048).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(model, directory, rows, *options):
    path = directory / "mine[1].jsonl"  # a path, and no pattern
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--config", "smoke_gsm8k", "--dataset", path, "--model_name_or_path", model, "--dtype", "float32"]
    words += ["--max_steps", 1, "--report_to", "none", "--per_device_train_batch_size", 2]
    words += ["--num_generations", 2, "--max_completion_length", 4, "--use_cpu", "true"]
    return grpo.main([*map(str, words), "--output_dir", str(directory / "out"), *options])


def asked(directory):
    return str(json.loads((directory / "out" / "samples.jsonl").read_text().splitlines()[0])["prompt"])


def test_messages_are_trained_on_as_they_are_and_evaluated_in_the_same_way(model, tmp_path, capsys):
    assert train(model, tmp_path, [*VERL, NO_ANSWER], "--skip_bad_rows", "true") == 0
    told = capsys.readouterr().out
    assert "skip_bad_rows: 1 rows left out; the first: " in told
    assert "record 5, column 'reward_model.ground_truth': expected an answer as text or number, got None" in told
    assert any(question in asked(tmp_path) for question in QUESTIONS)
    assert "boxed" not in asked(tmp_path)
    assert prompt_of(tmp_path / "out") == Prompt()

    words = [
        "--model",
        tmp_path / "out" / "final",
        "--benchmarks",
        "mine",
        "--data",
        f"mine={tmp_path / 'mine[1].jsonl'}",
    ]
    words += ["--max_new_tokens", 2, "--limit", 1, "--output", tmp_path / "evaluated"]
    if (tmp_path / "out" / "final" / "adapter_config.json").exists():
        words[:2] = ["--model", model, "--adapter", tmp_path / "out" / "final"]
    assert evaluate.main([str(word) for word in words]) == 0
    (record,) = read_records(tmp_path / "evaluated")
    tokenizer = byte_tokenizer()
    assert record["prompt"] == tokenizer.apply_chat_template(
        VERL[0]["prompt"], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert (record["id"], record["ground_truth"]) == ("0", "1")


def test_an_instruction_that_is_asked_for_is_put_behind_the_question_of_messages(model, tmp_path):
    assert train(model, tmp_path, VERL, "--instruction", "Box it.") == 0
    assert any(f"{question}\n\nBox it." in asked(tmp_path).replace("\\n", "\n") for question in QUESTIONS)
    assert prompt_of(tmp_path / "out") == Prompt(instruction="Box it.")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            '{"question": "café", "answer": "1"}\n'.encode("latin-1"),
            "line 1: byte 18 (0xe9) is not UTF-8. If the file is",
        ),
        (b'{"question": "q", "answer": NaN}\n', "record 1, column 'answer': nan is no answer"),
        (json.dumps(NO_ANSWER).encode(), "record 1, column 'reward_model.ground_truth': expected an answer"),
        (
            b'{"prompt": [{"role": "assistant", "content": "q"}], "answer": "1"}\n',
            "messages that end in the user's question",
        ),
    ],
)
def test_data_that_cannot_be_used_is_explained_before_a_model_is_loaded(
    model, tmp_path, capsys, monkeypatch, content, told
):
    import transformers

    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded first")
    )
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    words = ["--config", "smoke_gsm8k", "--dataset", path, "--model_name_or_path", model, "--use_cpu", "true"]
    assert grpo.main([*map(str, words), "--report_to", "none", "--output_dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m trainer.grpo: error: dataset: ")
    assert told in message
