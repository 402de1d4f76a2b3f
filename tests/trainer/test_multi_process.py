"""Two real processes (gloo, CPU) under DDP, FSDP2 and DeepSpeed ZeRO-3: the runs of multi_process_run.py compared.

FSDP2 takes its settings from the recipe that is shipped, by `accelerate launch`. ZeRO-3 needs deepspeed, which the
tests do not install: `DS_BUILD_OPS=0 pip install deepspeed`, and DS_ACCELERATOR=cpu.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from multi_process_run import CASES
from same_run import PARAMETER_TOLERANCE, assert_same_log, assert_same_parameters
from tiny_models import make_model, make_tokenizer

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
WRAPPED = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP", "zero3": "DeepSpeedEngine"}
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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(sharding, case, trainer) -> what each process left; a sharding is launched when it is first asked for."""
    folder = tmp_path_factory.mktemp("multi_process")
    for family in {case.family for case in CASES.values()}:
        make_model(family).save_pretrained(folder / family)
        make_tokenizer().save_pretrained(folder / family)
    launched: dict[str, subprocess.CompletedProcess] = {}

    def get(sharding: str, case: str, trainer: str) -> list[dict]:
        if sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("no deepspeed here")
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
        assert process["wrapped"].startswith(WRAPPED[sharding])
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
