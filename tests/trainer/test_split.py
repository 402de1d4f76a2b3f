"""The same run in 1, 2 and 4 processes, and gone on with in another number of them: split_run.py, compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import split_run
import torch
from same_run import assert_same_parameters
from test_multi_process import LAUNCHERS, environment

PROGRAM = Path(split_run.__file__)
# Sums in another order, through four steps of Adam.
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}


def launch(folder: Path, sharding: str, processes: int, *runs: str) -> subprocess.CompletedProcess:
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if sharding == "fsdp2":
        launcher = [*LAUNCHERS["fsdp2"], "--num_processes", str(processes)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(PROGRAM), str(folder), sharding, *runs],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
        timeout=600,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """one, two, four: whole runs. one-two: begun by one process, gone on with by two; and so on in a ring."""
    folder = tmp_path_factory.mktemp("split")
    assert split_run.run(folder, "one") == 0
    for processes, runs in {2: ("two", "one-two=one/checkpoint-2"), 4: ("four", "two-four=two/checkpoint-2")}.items():
        done = launch(folder, "none", processes, *runs)
        assert done.returncode == 0, done.stderr[-6000:]
    assert split_run.run(folder, "four-one", folder / "four/checkpoint-2") == 0
    return folder


def result(folder: Path, name: str) -> dict:
    return torch.load(folder / f"{name}.pt", weights_only=False)


def assert_equal(got: dict, expected: dict) -> None:
    """Of the last step: what every completion was given; of every step: what was logged; the weights at the end."""
    assert got["rewards"].keys() == expected["rewards"].keys()
    for name, values in expected["rewards"].items():
        assert got["rewards"][name] == pytest.approx(values, **TOLERANCE), name
    assert got["advantages"] == pytest.approx(expected["advantages"], rel=1e-3, abs=1e-4)
    assert got["teca"] == pytest.approx(expected["teca"], **TOLERANCE)
    timed = {"step_time", "tokens_per_second", "peak_memory_gib"}
    for mine, theirs in zip(got["log"], expected["log"], strict=True):
        if "loss" not in theirs:
            continue
        assert mine.keys() == theirs.keys()
        for name in theirs.keys() - timed:
            if not name.startswith("time/"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), f"{name}, step {theirs['step']}"
    assert_same_parameters(got["weights"], expected["weights"])


@pytest.mark.parametrize("name", ["two", "four"])
def test_losses_rewards_of_groups_and_advantages_are_those_of_one_process(folder, name):
    expected = result(folder, "one")
    # Groups are spread: places 0-3, 4-7, 8-11 over processes of 6 or of 3 completions.
    assert all(len(values) == 12 for values in expected["rewards"].values())
    spread = [len(set(values)) > 2 for values in expected["rewards"].values()]
    assert sum(spread) >= len(split_run.REWARDS) - 1, "rewards that can't tell a group from a part of it"
    assert_equal(result(folder, name), expected)


@pytest.mark.parametrize("name", ["one-two", "two-four", "four-one"])
def test_checkpoint_of_some_processes_is_gone_on_with_by_others_to_the_same_numbers(folder, name):
    """The optimizer's state, the schedule and the place in the data, which is in the second epoch at the end."""
    assert_equal(result(folder, name), result(folder, "one"))
    assert (folder / name / "checkpoint-4").is_dir()
    moved = (result(folder, name)["weights"]["model.embed_tokens.weight"] - start_weights()).norm()
    assert moved > 0.1, "too little was trained to compare anything"


def start_weights() -> torch.Tensor:
    model = split_run.build_model(split_run.byte_tokenizer(), seed=1)
    return model.get_input_embeddings().weight.detach()


def test_fsdp2_goes_on_with_another_number_of_processes_too(folder):
    for processes, run in {2: "sharded", 4: "sharded-4=sharded/checkpoint-2"}.items():
        done = launch(folder, "fsdp2", processes, run)
        assert done.returncode == 0, done.stderr[-6000:]
    for name in ("sharded", "sharded-4"):
        assert_equal(result(folder, name), result(folder, "one"))
