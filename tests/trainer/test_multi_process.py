"""Two real processes (gloo, CPU) under DDP, FSDP2 and DeepSpeed ZeRO-3: the runs of multi_process_run.py compared.

FSDP2 takes its settings from the recipe that is shipped, by `accelerate launch`. ZeRO-3 needs deepspeed, which the
extra for tests does not install: `.ci/deepspeed VENV` does, and runs them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from multi_process_run import CASES, ZERO3
from safetensors.torch import load_file
from same_run import PARAMETER_TOLERANCE, assert_same_log, assert_same_parameters
from tiny_models import make_model, make_tokenizer

from trainer import grpo
from trainer.training.run_log import LOG_FILE, SAMPLES_FILE, read_log

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCHERS = {
    "ddp": TORCHRUN,
    "fsdp2": [
        *["accelerate.commands.launch", "--config_file", str(ROOT / "trainer/recipes/accelerate_fsdp2.yaml")],
        *["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"],
    ],
    "zero3": TORCHRUN,
}
WRAPPED = {"ddp": "DDP", "fsdp2": "FSDP2", "zero3": "ZeRO-3"}
RUNS = [(sharding, case) for case in CASES for sharding in CASES[case].shardings]


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }


def require_deepspeed(sharding: str) -> None:
    if sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("no deepspeed here")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(sharding, case, trainer) -> what each process left; a sharding is launched when it is first asked for."""
    folder = tmp_path_factory.mktemp("multi_process")
    for family in {case.family for case in CASES.values()}:
        make_model(family).save_pretrained(folder / family)
        make_tokenizer().save_pretrained(folder / family)
    launched: dict[str, subprocess.CompletedProcess] = {}

    def get(sharding: str, case: str, trainer: str) -> list[dict]:
        require_deepspeed(sharding)
        if sharding not in launched:
            program = str(Path(__file__).with_name("multi_process_run.py"))
            launched[sharding] = subprocess.run(
                [sys.executable, "-m", *LAUNCHERS[sharding], program, str(folder), sharding],
                capture_output=True,
                text=True,
                env=environment(),
                cwd=folder,
                timeout=900,
            )
        files = [folder / f"{sharding}.{case}.{trainer}.{rank}.pt" for rank in range(2)]
        if not all(file.is_file() for file in files):
            pytest.fail(f"{sharding}: {launched[sharding].stderr[-6000:]}", pytrace=False)
        return [torch.load(file, weights_only=False) for file in files]

    return get


@pytest.mark.parametrize(("sharding", "case"), RUNS)
def test_each_process_is_given_the_teca_of_its_own_completions(results, sharding, case):
    processes = results(sharding, case, "ours")
    # bfloat16 products against float64 ones: a row of another process would be off by several 10%.
    tolerance = 0.03 if "bfloat16" in case else 1e-5
    for process in processes:
        assert process["wrapped"] == WRAPPED[sharding]
        assert len(process["teca"]) == len(process["samples"]) >= 8
        assert process["teca"] == pytest.approx(process["plain_teca"], rel=tolerance)
    assert processes[0]["samples"] != processes[1]["samples"]
    every = [process["teca"] for process in processes]
    logged = [entry["teca"] for entry in processes[0]["log"] if "teca" in entry]
    per_log = len(every[0]) // len(logged)
    for index, value in enumerate(logged):
        part = [teca for process in every for teca in process[index * per_log : (index + 1) * per_log]]
        assert value == pytest.approx(sum(part) / len(part), rel=1e-5)


@pytest.mark.parametrize(
    ("sharding", "case"), [(s, c) for s, c in RUNS if CASES[c].stock or (s != "ddp" and "bfloat16" not in c)]
)
def test_run_equals_the_unsharded_run_of_stock_trl(results, sharding, case):
    """Of ours under DDP for LoRA on the head, which stock TRL refuses."""
    expected = results("ddp", case, "stock" if CASES[case].stock else "ours")
    for mine, theirs in zip(results(sharding, case, "ours"), expected, strict=True):
        assert mine["samples"] == theirs["samples"]
        assert_same_log(mine["log"], theirs["log"])
        assert_same_parameters(mine["weights"], theirs["weights"])
    moved = sum((mine["weights"][name] - before).norm() for name, before in mine["start"].items())
    assert moved > 1000 * PARAMETER_TOLERANCE["atol"], "too little was trained to compare anything"


@pytest.mark.parametrize(("sharding", "case"), [run for run in RUNS if run[0] == "fsdp2"])
def test_fsdp2_neither_rounds_nor_loses_the_reference(results, sharding, case):
    """accelerate would round log-probabilities to bfloat16; TRL would shard a reference that one process has read."""
    for process in results(sharding, case, "ours"):
        assert process["dtypes"] == {"torch.float32"}
        if CASES[case].arguments["beta"]:
            assert process["log"][0]["kl"] == pytest.approx(0, abs=1e-6)
            assert process["log"][2]["kl"] > 1e-5


@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_program_is_resumed_by_both_processes_to_the_same_numbers_and_writes_its_files_once(sharding, tmp_path):
    require_deepspeed(sharding)
    questions = [{"question": f"Tom has {n} apples and buys 7.", "answer": f"#### {n + 7}"} for n in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    options = "--max_completion_length 8 --max_steps 4 --save_strategy steps --save_steps 2 --beta 0.1"
    options += " --per_device_train_batch_size 4 --learning_rate 0.01"
    if sharding == "zero3":
        zero = {**ZERO3["zero_optimization"], "stage3_gather_16bit_weights_on_model_save": True}
        (tmp_path / "zero3.json").write_text(json.dumps({**ZERO3, "zero_optimization": zero}))
        options += " --deepspeed zero3.json"

    def train(folder: str, *more: str) -> Path:
        program = ["trainer.grpo", "--config", "smoke_gsm8k", "--dataset", "train.jsonl", "--output_dir", folder]
        done = subprocess.run(
            [sys.executable, "-m", *TORCHRUN, "-m", *program, *options.split(), *more],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return tmp_path / folder

    whole = train("whole")
    stopped = shutil.copytree(whole, tmp_path / "stopped")
    for left in ("checkpoint-4", "final"):
        shutil.rmtree(stopped / left)
    train("stopped", "--resume_from_checkpoint", "last")

    expected, got = (load_file(folder / "final" / "model.safetensors") for folder in (whole, stopped))
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    start = load_file(next(whole.glob("start-seed*")) / "model.safetensors")
    assert max((expected[name] - weight).abs().max() for name, weight in start.items()) > 1e-3
    events = [json.loads(line) for line in (whole / LOG_FILE).read_text().splitlines()]
    assert (events[0]["processes"], events[0]["wrapped"]) == (2, WRAPPED[sharding])
    assert [(event.get("event"), event["step"]) for event in events] == [
        *[("start", 0), (None, 1), (None, 2), (None, 3), (None, 4), ("end", 4)]
    ]
    assert len((whole / SAMPLES_FILE).read_text().splitlines()) == 2 * 4  # samples_per_log of the main process
    for before, after in zip(read_log(whole / LOG_FILE), read_log(stopped / LOG_FILE), strict=True):
        assert {name: before[name] for name in ("step", "loss", "kl", "teca", "reward", "grad_norm")} == {
            name: after[name] for name in ("step", "loss", "kl", "teca", "reward", "grad_norm")
        }


def test_the_embedded_sampler_is_refused_for_a_sharded_model(tmp_path, monkeypatch, capsys):
    """Its processes would make unequal numbers of forward passes, each of which gathers weights: a deadlock."""
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    places = ["--dataset", str(data), "--output_dir", str(tmp_path / "run")]
    assert grpo.main(["--config", "smoke_gsm8k", *places, "--sampler", "embedded"]) == 2
    assert "under FSDP and ZeRO-3 take --sampler trl" in capsys.readouterr().err
