"""One entry in trainer/catalogue is all that a new reward, data set, method or design needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.catalogue import data_sets, methods, rewards
from trainer.catalogue.data_sets import DataSet
from trainer.catalogue.methods import Method
from trainer.catalogue.rewards import Reward, find
from trainer.datasets import load_problems
from trainer.experiment.result_table import BEFORE, result_table
from trainer.prompts.prompt import Prompt
from trainer.records.names import benchmarks_in_order, methods_in_order, title
from trainer.rewards import accuracy_reward, reward_function
from trainer.tiny import problems as word_problems

ROOT = Path(__file__).parents[2]
SETTINGS = ["--config", "smoke_gsm8k", "--report_to", "none", "--use_cpu", "true"]


def half_for_everyone(completions, **kwargs):
    """A stranger's reward, by its path."""
    return [0.5] * len(completions)


NOT_A_FUNCTION = 3


@pytest.fixture
def new_entries(monkeypatch):
    monkeypatch.setitem(
        rewards.REWARDS, "kindness", Reward("trainer.rewards:accuracy_reward", "1 for the kind", "kindness alone")
    )
    monkeypatch.setitem(data_sets.DATA_SETS, "gaokao", DataSet("GAOKAO", "nobody/gaokao"))
    monkeypatch.setitem(methods.METHODS, "haiku", Method("as a haiku", Prompt("Answer in seventeen syllables.", None)))
    monkeypatch.setitem(word_problems.DESIGNS, "stroll", word_problems.Design("exploration without an aim"))


ADDED_BEFORE_IMPORT = """
import sys
from trainer.catalogue.data_sets import DATA_SETS, DataSet
from trainer.catalogue.rewards import REWARDS, Reward
from trainer.tiny.problems import DESIGNS, Design

REWARDS["kindness"] = Reward("trainer.rewards:accuracy_reward", "1 for the kind", "kindness alone")
DATA_SETS["gaokao"] = DataSet("GAOKAO", "nobody/gaokao")
DESIGNS["stroll"] = Design("exploration without an aim")
from trainer import grpo
from trainer.training.arguments import RunArguments

run = RunArguments(reward=["kindness"], dataset="gaokao", tiny_design="stroll")
grpo.main(["--help"])
assert "torch" not in sys.modules
"""


def test_one_entry_reaches_the_command_line_and_the_help():
    done = subprocess.run([sys.executable, "-c", ADDED_BEFORE_IMPORT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for said in ("kindness (1 for the kind)", "aime25, gaokao,", "stroll (exploration without an aim)"):
        assert said in text


def test_one_entry_reaches_evaluation_and_its_help(new_entries, capsys):
    from trainer import evaluate
    from trainer.catalogue.methods import methods as chosen

    with pytest.raises(SystemExit):
        evaluate.parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "aime25, gaokao," in text
    assert "ccot, haiku" in text
    assert chosen(["haiku"])["haiku"].prompt.system_prompt == "Answer in seventeen syllables."


def test_one_entry_reaches_titles_and_order_of_reports(new_entries):
    assert benchmarks_in_order({"zebra", "gaokao", "gsm8k", "aime25"}) == ["gsm8k", "aime25", "gaokao", "zebra"]
    assert methods_in_order({"cer", "haiku", "thinking"}) == ["thinking", "haiku", "cer"]
    assert [title(name) for name in ("gaokao", "haiku", "cer", "tiny", "unheard")] == [
        *("GAOKAO", "as a haiku", "CER", "Embedded problems", "unheard")
    ]


def test_one_entry_reaches_the_report_of_an_evaluation(new_entries, tmp_path, capsys):
    from synthetic_records import make_record

    from trainer import report

    lines = [make_record(f"p{i}", benchmark="gaokao", method="haiku") for i in range(4)]
    (tmp_path / "records-gaokao-haiku.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.main(report.parser().parse_args([str(tmp_path)])) == 0
    shown = capsys.readouterr().out
    assert "GAOKAO" in shown
    assert "as a haiku" in shown


def test_one_entry_reaches_the_data(new_entries, tmp_path):
    (tmp_path / "gaokao").mkdir()
    (tmp_path / "gaokao" / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert load_problems("gaokao", data_dir=str(tmp_path))["ground_truth"] == ["2"]


def test_one_entry_reaches_the_table_of_the_experiment(new_entries):
    row = {"problems": 8, "accuracy": 1.0, "accuracy_low": 0.7, "accuracy_high": 1.0, "length": 10.0, "teca": 0.1}
    row |= {"entropy_sum": 1.0, "explorations": 0.0, "recaps": 0.0}
    assert reward_function("kindness")(completions=["\\boxed{7}"], ground_truth=["7"]) == [1.0]
    assert "| kindness alone " in result_table({BEFORE: row, "kindness": row}, design="stroll")


def test_anyones_reward_is_taken_by_its_path():
    assert find("test_catalogue:half_for_everyone")(["a", "b"]) == [0.5, 0.5]
    assert reward_function("trainer.rewards:accuracy_reward") is accuracy_reward
    from trainer.training import arguments

    mine = "test_catalogue:half_for_everyone"
    run, _, _ = arguments.parse([*SETTINGS, "--reward", "accuracy", mine, "--reward_weights", "1", "2"])
    assert run.reward == ["accuracy", mine]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cre", "reward is 'cre': expected one of cer, total_entropy"),
        ("no_such_package.rewards:mine", "reward 'no_such_package.rewards:mine': there is no module no_such_package"),
        ("test_catalogue:absent", "has no absent"),
        ("test_catalogue:NOT_A_FUNCTION", "is a int, not a function"),
    ],
)
def test_a_reward_that_is_not_there_is_refused_before_anything_is_loaded(name, said, capsys):
    from trainer import grpo

    assert grpo.main([*SETTINGS, "--reward", name]) == 2
    assert said in capsys.readouterr().err
