"""The experiment of a recipe: its stages, how it goes on, and the numbers it reads off records."""

from __future__ import annotations

import importlib
import json

import pytest

from trainer.experiment.__main__ import main, parser
from trainer.experiment.policies_compared import compare, measure
from trainer.experiment.reading_page import reading_page
from trainer.experiment.stages import BEFORE, Plan, policy_name, stages
from trainer.experiment.where_entropy_sits import split_at_answer
from trainer.prompts.prompt import prompt_of, read_prompt
from trainer.records.record_files import RecordWriter
from trainer.tiny.model import build_model
from trainer.tiny.tokenizer import byte_tokenizer


def record(identity: str, tokens: list[str], entropies: list[float], *, truth: str, right: bool, end: str = "stop"):
    running = [sum(entropies[: n + 1]) / (n + 1) for n in range(len(entropies))]
    return {
        "id": identity,
        "benchmark": "arithmetic.sums",
        "method": "thinking",
        "sample": 0,
        "question": f"question {identity}",
        "ground_truth": truth,
        "prompt": "p",
        "response": "".join(tokens),
        "extracted_answer": truth if right else None,
        "is_correct": right,
        "response_length": len(tokens),
        "finish_reason": end,
        "tokens": tokens,
        "token_ids": list(range(len(tokens))),
        "token_entropies": entropies,
        "teca": running,
    }


def write(directory, records) -> None:
    directory.mkdir(parents=True)
    with RecordWriter(directory, "arithmetic.sums", "thinking") as writer:
        writer.append(records)


@pytest.fixture
def plan(tmp_path) -> Plan:
    return Plan(
        output=tmp_path,
        recipe="smollm2_sums",
        model="smollm2",
        dtype="bfloat16",
        dataset="arithmetic.sums",
        temperature=0.8,
        max_new_tokens=64,
        rewards=("cer", "my.module:shorter"),
        seeds=(0, 1),
        problems=2,
        samples=1,
        options=("--max_steps", "2"),
    )


def test_a_response_is_split_where_its_right_number_first_stands():
    tokens = ["11", "2 + ", "1", " = ", "1", "2", ". So", " 12"]
    split = split_at_answer(record("a", tokens, [1.0] * 5 + [0.5, 0.25, 0.125], truth="12", right=True))
    # not in "112", nor in the 1 of "12": the token that completes "12" is the sixth
    assert (split.tokens_before, split.tokens_after) == (6, 2)
    assert (split.nats_before, split.nats_after) == (5.5, 0.375)
    assert split_at_answer(record("b", ["12", ".5"], [1.0, 1.0], truth="12", right=False)) is None
    assert split_at_answer(record("c", ["It is 12", "."], [1.0, 1.0], truth="12", right=True)).tokens_before == 1


def test_numbers_of_a_policy_are_those_of_its_records(plan):
    first = record("1", ["7", " is", " it"], [1.0, 2.0, 3.0], truth="7", right=True)
    second = record("2", ["no"] * 5, [0.5] * 5, truth="9", right=False, end="length")
    write(plan.evaluation(BEFORE), [first, second])
    numbers, per_problem = measure(plan.evaluation(BEFORE))
    assert list(per_problem["accuracy"]) == [1.0, 0.0]
    expected = {"problems": 2, "responses": 2, "accuracy": 0.5, "length": 4.0, "length_right": 3, "clipped": 0.5}
    expected |= {"answered": 0.5, "appears": 0.5, "teca": 1.25, "entropy_sum": 4.25, "tokens_before": 1}
    expected |= {"tokens_after": 2, "nats_before": 1.0, "nats_after": 5.0}
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["accuracy_low"] <= 0.5 <= numbers["accuracy_high"]


def test_differences_are_paired_by_problem(plan):
    write(plan.evaluation(BEFORE), [record(i, ["7"] * 4, [1.0] * 4, truth="7", right=i == "1") for i in "12"])
    after = policy_name("cer", 0)
    write(plan.evaluation(after), [record(i, ["7"] * 3, [1.0] * 3, truth="7", right=True) for i in "12"])
    found = compare(plan)
    assert list(found) == [BEFORE, after]  # what is not there yet is left out
    assert (found[after]["d_accuracy"], found[after]["d_length"]) == (0.5, -1.0)
    assert (found[after]["d_length_low"], found[after]["d_length_high"]) == (-1.0, -1.0)  # every problem: one less
    page = reading_page(plan, after)
    assert page.count("## question") == 2
    assert "**before**: wrong (7 is right), 4 tokens, TECA 1.000" in page


def test_stages_are_the_projects_commands_in_order(plan):
    found = stages(plan)
    assert [stage.name for stage in found][:5] == [
        "before",
        "cer-seed0",
        "cer-seed0 after",
        "shorter-seed0",
        "shorter-seed0 after",
    ]
    assert len(found) == 9
    assert not any(stage.ended for stage in found)
    training = found[3].shown()
    assert training.startswith("python -m trainer.grpo --config smollm2_sums --reward my.module:shorter --seed 0")
    assert "--max_steps 2" in training
    assert "--resume_from_checkpoint" not in training
    write(plan.evaluation(BEFORE), [record("1", ["7"], [1.0], truth="7", right=True)])
    assert not stages(plan)[0].ended  # one record of two


def test_an_interrupted_training_goes_on_and_one_that_ended_is_told_as_it_was_begun(plan, monkeypatch):
    directory = plan.training("cer-seed0")
    monkeypatch.setattr("trainer.experiment.stages.complete_checkpoints", lambda of: [of / "checkpoint-4"])
    assert stages(plan)[1].shown().endswith("--resume_from_checkpoint last")
    (directory / "final").mkdir(parents=True)
    (directory / "final" / "prompt.json").write_text("{}")
    training = stages(plan)[1]
    assert training.ended
    assert "--resume_from_checkpoint" not in training.shown()


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, seed=0, max_positions=8192).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def in_this_process(stage) -> int:
    """The stage's own command, without a new interpreter for each."""
    _, module, *words = stage.command
    command = importlib.import_module(module)
    if module == "trainer.plots":
        return command.main(command.parser().parse_args(words))
    return command.main(words)


def test_quick_goes_all_the_way_and_on_where_it_stopped(byte_model, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--quick", "--rewards", "cer", "accuracy", "--output", str(output), "--"]
    words += ["--model_name_or_path", str(byte_model), "--dtype", "float32", "--use_cpu", "true", "--report_to", "none"]
    ran = []

    def stops_at_the_second_training(stage) -> int:
        if stage.name == "accuracy-seed0":
            return 130
        ran.append(stage.name)
        return in_this_process(stage)

    assert main(parser().parse_args(words), stops_at_the_second_training) == 130
    assert ran == ["before", "cer-seed0", "cer-seed0 after"]
    assert "cer-seed0" in (output / "table.md").read_text()  # what is there can be read already

    ran.clear()
    assert main(parser().parse_args(words), lambda stage: ran.append(stage.name) or in_this_process(stage)) == 0
    assert ran == ["accuracy-seed0", "accuracy-seed0 after", "figures"]
    results = json.loads((output / "results.json").read_text())
    assert list(results["policies"]) == ["before", "cer-seed0", "accuracy-seed0"]
    assert all(numbers["responses"] == 4 for numbers in results["policies"].values())
    assert results["commands"][0].startswith("python -m trainer.evaluate --model")
    assert prompt_of(output) == prompt_of(output / "runs" / "cer-seed0" / "final") == read_prompt("count_and_check")
    assert (output / "figures" / "training.png").stat().st_size > 10_000
    assert (output / "responses.md").read_text().count("**before**") == 3

    ran.clear()
    assert main(parser().parse_args(words), lambda stage: ran.append(stage.name) or 0) == 0
    assert ran == ["figures"]
    capsys.readouterr()
    assert main(parser().parse_args(["--list", *words])) == 0
    assert capsys.readouterr().out.count("ended") == 5
