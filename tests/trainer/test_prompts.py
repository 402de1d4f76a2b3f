"""Prompts as data: what a policy is asked in training, in its run and in evaluation."""

from __future__ import annotations

import json
import logging

import pytest

from trainer import evaluate, grpo
from trainer.prompts.prompt import Example, Prompt, prompt_of, read_prompt, write_prompt
from trainer.records.record_files import read_records
from trainer.records.settings import read_settings
from trainer.tiny.model import build_model
from trainer.tiny.tokenizer import byte_tokenizer

SHOWN = Prompt("Be brief.", "Box it.", (Example("What is 4 + 3?", "\\boxed{7}"),))


def test_examples_are_turns_and_the_instruction_follows_every_question():
    assert SHOWN.messages("What is 1 + 1?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 4 + 3?\n\nBox it."},
        {"role": "assistant", "content": "\\boxed{7}"},
        {"role": "user", "content": "What is 1 + 1?\n\nBox it."},
    ]
    assert Prompt().messages("x") == [{"role": "user", "content": "x"}]


def test_parts_are_replaced_and_left_out():
    assert SHOWN.with_parts(system_prompt="", instruction="Say it.") == Prompt(None, "Say it.", SHOWN.examples)
    assert SHOWN.with_parts() == SHOWN


def test_a_prompt_is_written_and_read_as_it_is(tmp_path):
    write_prompt(tmp_path, SHOWN)
    assert read_prompt(tmp_path) == read_prompt(tmp_path / "prompt.json") == prompt_of(tmp_path) == SHOWN
    (tmp_path / "checkpoint-4").mkdir()
    assert prompt_of(tmp_path / "checkpoint-4") == SHOWN  # a policy lies in the directory of its run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "expected a mapping"),
        ("sytem_prompt: a", "unknown sytem_prompt"),
        ("instruction: 3", "instruction is a int"),
        ("examples: [{question: a}]", "example 1: expected question and answer"),
        ("examples: [{question: a, answer: 7}]", "example 1: question and answer must be text"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_prompt_file_that_is_wrong_is_named(tmp_path, content, message):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_prompt(path)
    assert str(path) in str(raised.value)


def test_a_prompt_that_is_nowhere_names_the_packaged_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no packaged one of that name .*count_and_check, worked"):
        read_prompt("wrked")
    with pytest.raises(ValueError, match=r"holds no prompt\.json"):
        read_prompt(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, seed=0, max_positions=8192).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """One step of training on SHOWN, with the instruction replaced."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "asked.yaml").write_text(json.dumps(SHOWN.described()))
    options = ["--config", "smollm2_sums", "--prompt", str(directory / "asked.yaml"), "--instruction", "Say it."]
    options += ["--model_name_or_path", str(model), "--dtype", "float32", "--max_steps", "1", "--report_to", "none"]
    options += ["--per_device_train_batch_size", "2", "--completions_per_update", "2", "--num_generations", "2"]
    options += ["--max_completion_length", "4", "--use_cpu", "true", "--output_dir", str(directory / "out")]
    assert grpo.main(options) == 0
    return directory / "out"


TRAINED = Prompt("Be brief.", "Say it.", SHOWN.examples)


def evaluated(model, output, *options):
    words = ["--model", str(model), "--benchmarks", "arithmetic.sums", "--limit", "1", "--max_new_tokens", "2"]
    assert evaluate.main([*words, *map(str, options), "--output", str(output)]) == 0
    (record,) = read_records(output)
    return record["prompt"], read_settings(output)["prompt"]


def test_a_run_keeps_the_prompt_that_it_asked(run):
    assert prompt_of(run) == TRAINED
    assert json.loads((run / "final" / "prompt.json").read_text()) == TRAINED.described()
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert "Be brief." in str(sample["prompt"])
    assert "Say it." in str(sample["prompt"])


def test_evaluation_asks_as_the_policy_was_trained(run, model, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prompt, kept = evaluated(model, tmp_path, "--adapter", run / "final")
    assert "What is 4 + 3?\n\nSay it." in prompt
    assert kept == TRAINED.described()
    assert "as the policy was trained" in caplog.text


def test_evaluation_on_another_prompt_warns(run, model, tmp_path, caplog):
    prompt, kept = evaluated(model, tmp_path, "--adapter", run / "final", "--system_prompt", "")
    assert "Be brief." not in prompt
    assert "What is 4 + 3?\n\nSay it." in prompt  # the rest is the policy's
    assert kept["system_prompt"] is None
    assert "trained on another prompt" in caplog.text


def test_the_start_model_can_be_asked_as_a_run_asks(run, model, tmp_path, caplog):
    prompt, kept = evaluated(model, tmp_path, "--prompt", run)
    assert "What is 4 + 3?\n\nSay it." in prompt
    assert kept == TRAINED.described()
    assert "another prompt" not in caplog.text


def test_a_method_with_a_prompt_of_its_own_keeps_it(run, model, tmp_path):
    prompt, _ = evaluated(model, tmp_path, "--adapter", run / "final", "--methods", "cod")
    assert "minimum draft" in prompt
    assert "Say it." not in prompt


def test_a_resumed_run_does_not_change_its_prompt(run, model, capsys):
    options = [
        "--config",
        "smollm2_sums",
        "--prompt",
        "worked",
        "--model_name_or_path",
        str(model),
        "--use_cpu",
        "true",
    ]
    code = grpo.main([*options, "--output_dir", str(run), "--resume_from_checkpoint", "last", "--report_to", "none"])
    assert code == 2
    assert "885 problems" in capsys.readouterr().err  # as many as before, but asked otherwise
    assert prompt_of(run) == TRAINED
