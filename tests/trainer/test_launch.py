"""A launch that fell back without a word is refused, and a run says what wraps its model."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import small_options
from test_multi_process import environment

from trainer import grpo
from trainer.training import launch
from trainer.training.arguments import make_parser
from trainer.training.config_error import ConfigError
from trainer.training.run_log import LOG_FILE

RECIPE = Path(launch.__file__).parents[1] / "recipes/accelerate_fsdp2.yaml"
ONE_PROCESS_FOR_TWO = "distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nuse_cpu: true\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--config_file", "cpu.yaml"],
            "error: num_processes: accelerate launch was asked for several processes and has started one",
        ),
        (
            ["--config_file", str(RECIPE), "--num_processes", "2", "--mixed_precision", "no"],
            "error: distributed_type: FSDP of accelerate's configuration is asked for, but on this cpu it would be 2 "
            "processes with DDP",
        ),
    ],
    ids=["MULTI_CPU starts one process", "FSDP on a CPU is DDP"],
)
def test_accelerate_on_a_cpu_is_refused_by_every_process_before_anything_is_loaded(options, told, tmp_path):
    (tmp_path / "cpu.yaml").write_text(f"compute_environment: LOCAL_MACHINE\n{ONE_PROCESS_FOR_TWO}")
    program = ["-m", "trainer.grpo", *small_options(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0", *program],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if told in line]
    assert len(said) == (2 if "2 processes" in told else 1)
    assert all("torchrun --nproc_per_node N -m trainer.grpo" in line for line in said)
    assert "exit status 2" in done.stderr or "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run" / LOG_FILE).exists()


ACCELERATE = {"ACCELERATE_DYNAMO_BACKEND": "NO"}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("environment", "processes", "device", "fsdp", "told"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 1, CPU, None, "WORLD_SIZE is 2, .* give --use_cpu true"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, GPU, None, "OMPI_COMM_WORLD_SIZE is 4, .* torchrun --nproc_per_node"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1, GPU, None, "srun has started 8 tasks that know nothing of each other"),
        ({}, 1, CPU, "full_shard", "fsdp is asked for, but on this cpu it would be one process that shards nothing"),
        ({}, 1, GPU, True, "fsdp is asked for, but on this cuda it .*: launch with accelerate launch"),
    ],
)
def test_what_fell_back_is_refused(environment, processes, device, fsdp, told):
    config = SimpleNamespace(world_size=processes, device=device, fsdp=fsdp)
    with pytest.raises(ConfigError, match=told):
        launch.check_launch(config, environment)


@pytest.mark.parametrize(
    ("environment", "processes", "device", "fsdp"),
    [
        ({}, 1, CPU, None),
        (ACCELERATE, 1, CPU, None),  # accelerate launch of one process
        ({"MASTER_ADDR": "node-0"}, 1, CPU, None),  # a cluster's profile
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}, 2, CPU, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", **ACCELERATE}, 1, GPU, None),
        ({"PMI_SIZE": "4"}, 4, CPU, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}, 16, GPU, True),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "8", "LOCAL_RANK": "0", **ACCELERATE}, 8, GPU, None),
    ],
)
def test_launches_that_did_what_they_were_asked_to_are_left_alone(environment, processes, device, fsdp):
    launch.check_launch(SimpleNamespace(world_size=processes, device=device, fsdp=fsdp), environment)


def test_a_run_says_on_the_console_and_in_its_log_what_wraps_the_model(tmp_path, capsys):
    assert grpo.main(small_options(tmp_path, "--max_steps", "1")) == 0
    assert "1 process on cpu; nothing wraps the model\n" in capsys.readouterr().out
    started = json.loads((tmp_path / "run" / LOG_FILE).read_text().splitlines()[0])
    told = {"processes": 1, "machines": 1, "device": "cpu", "backend": None, "wrapped": "nothing"}
    assert started == {"event": "start", "step": 0, **told}


def test_a_model_that_is_not_sharded_as_asked_for_stops_the_run_before_its_first_step(tmp_path, monkeypatch, capsys):
    """However the launcher fell back: here as accelerate does on a CPU, unseen by the check of the environment."""
    monkeypatch.setattr(grpo, "check_launch", lambda config: None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert grpo.main(small_options(tmp_path, "--max_steps", "1", "--sampler", "trl")) == 2
    told = "error: FSDP is asked for, and this is what there is: 1 process on cpu; nothing wraps the model"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            launch.Wrapped(2, 1, "cpu", "gloo", launch.DDP),
            "2 processes on one machine (cpu, gloo); .* DDP: each holds all",
        ),
        (
            launch.Wrapped(16, 2, "cuda", "nccl", launch.FSDP2),
            "16 processes on 2 machines .* FSDP2: each holds 1/16 of it",
        ),
        (launch.Wrapped(8, 1, "cuda", "nccl", "ZeRO-3"), "by ZeRO-3: each holds 1/8 of it"),
    ],
)
def test_what_there_is_is_told_in_words(found, told):
    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), str(found))


def test_options_of_the_page_on_several_nodes_exist_and_its_script_is_bash():
    page = (Path(__file__).parents[2] / "docs/multi-node.md").read_text()
    script = page.split("```bash\n")[1].split("```")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    command = script.split("-m trainer.grpo")[1].split("code=$?")[0]
    known = {action.dest for action in make_parser()._actions} | {"config"}
    named = re.findall(r"--(\w+)", command)
    assert len(named) >= 8
    assert set(named) <= known
    served = script.split("trl vllm-serve")[1].split(" &\n")[0]
    from trl.scripts.vllm_serve import ScriptArguments

    assert set(re.findall(r"--(\w+)", served)) <= {field.name for field in dataclasses.fields(ScriptArguments)}
