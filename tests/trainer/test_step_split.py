"""Which splits of a step over processes and passes a run may go on with, and what is said of the others."""

from __future__ import annotations

import json

import pytest

from trainer.training import resume_settings
from trainer.training.config_error import ConfigError
from trainer.training.run_directory import write_run

BEFORE = {
    "processes": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "generation_batch_size": 32,
    "num_iterations": 1,
    "loss_type": "dapo",
    "deepspeed": None,
    "sharding": None,
}
ONE = {"processes": 1, "per_device_train_batch_size": 8}
FOUR = {"processes": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2}


def checked(tmp_path, before: dict, now: dict, step: int = 2) -> list[str]:
    checkpoint = tmp_path / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").touch()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_run(checkpoint, "a run", settings={**BEFORE, **before})
    return resume_settings.check_checkpoint(checkpoint, {**BEFORE, **before, **now})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (ONE, ["per_device_train_batch_size: 4 -> 8", "processes: 2 -> 1"]),
        (FOUR, ["gradient_accumulation_steps: 2 -> 1", "processes: 2 -> 4", "steps_per_generation: 4 -> 2"]),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 8},
            [
                "gradient_accumulation_steps: 2 -> 4",
                "per_device_train_batch_size: 4 -> 2",
                "steps_per_generation: 4 -> 8",
            ],
        ),
    ],
    ids=["fewer processes", "more processes", "after memory ran out"],
)
def test_another_split_of_the_same_step_is_told_and_allowed(now, told, tmp_path):
    assert checked(tmp_path, {}, now) == told


@pytest.mark.parametrize(
    ("before", "now", "step", "told"),
    [
        (
            {},
            {"processes": 4},
            2,
            "2 processes x .* = 16 completions a step, .* 4 processes .* = 32 completions a step",
        ),
        ({}, {"processes": 4}, 2, "--completions_per_update 16 .* divides 16 / 4, or 2 processes"),
        ({}, ONE, 1, "step 1 lies between two uses of the same rollouts.* a multiple of 2"),
        ({"num_iterations": 2}, ONE, 6, "step 6 lies between .* a multiple of 4"),
        ({"loss_type": "bnpo"}, ONE, 2, "the loss bnpo takes the mean over each pass"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, ONE, 2, "ZeRO's partitions .* are those of 2 processes"),
        ({}, {"sharding": "FSDP"}, 2, "sharding: None -> FSDP"),
        ({}, {"gradient_accumulation_steps": 4}, 2, "gradient_accumulation_steps: 2 -> 4"),
    ],
)
def test_other_splits_are_refused_with_the_reason(before, now, step, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        checked(tmp_path, before, now, step)
