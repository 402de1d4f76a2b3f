"""What a run that goes on may change: named where it may, exit code 2 with both values where it may not."""

import json
import shutil

import pytest
import torch
from small_runs import small_options, steps_logged, write_problems

from trainer import grpo
from trainer.training import resume_settings
from trainer.training.config_error import ConfigError
from trainer.training.run_directory import settings_of

LORA = ("--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_target_modules", "q_proj", "v_proj")
SAVING = ("--save_strategy", "steps", "--save_steps", "1", "--num_iterations", "1", "--steps_per_generation", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A LoRA run stopped after one step, in the middle of the use of its rollouts."""
    directory = tmp_path_factory.mktemp("lora")
    assert grpo.main(small_options(directory, "--max_steps", "1", *LORA, *SAVING)) == 0
    return directory / "run"


@pytest.fixture
def go_on(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")

    def run(*options: str) -> int:
        every = ("--max_steps", "2", *LORA, *SAVING, "--resume_from_checkpoint", "last", *options)
        return grpo.main(small_options(tmp_path, *every))

    return run


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("--lora_target_modules", "k_proj"), "lora_target_modules: ['q_proj', 'v_proj'] -> k_proj"),
        (("--lora_alpha", "16"), "lora_alpha: 8 -> 16"),
        (("--lora_r", "8"), "lora_r: 4 -> 8"),
        (("--use_peft", "false"), "use_peft: True -> False"),
        (("--steps_per_generation", "4"), "steps_per_generation: 2 -> 4"),
        (("--num_generations", "8"), "num_generations: 4 -> 8"),
        (("--optim", "sgd"), "optim: adamw_torch_fused -> sgd"),
        (("--seed", "3"), "seed: 0 -> 3"),
        (("--temperature", "0.7"), "temperature: 1 -> 0.7"),
        (("--reward", "cer", "length_penalty"), "reward: ['cer', 'random'] -> ['cer', 'length_penalty']"),
        (("--max_samples", "10"), "training_data: 12 problems, "),
    ],
)
def test_setting_that_may_not_change_is_refused_with_both_values(go_on, changed, told, capsys):
    assert go_on(*changed) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "can't change on the way" in message


def test_what_may_change_is_named_and_the_run_goes_on(go_on, tmp_path, capsys):
    assert go_on("--max_steps", "2", "--save_total_limit", "3", "--logging_steps", "2") == 0
    out = capsys.readouterr().out
    assert "Changed since checkpoint-1: logging_steps: 1 -> 2; max_steps: 1 -> 2; save_total_limit: None -> 3" in out
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_another_learning_rate_is_named_and_takes_effect_in_the_next_step(go_on, tmp_path, capsys):
    constant = ("--lr_scheduler_type", "linear")
    assert go_on("--learning_rate", "3e-4", *constant) == 0
    assert "learning_rate: 0.0001 -> 0.0003" in capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in log if "learning_rate" in record}
    # the schedule is linear to zero at step 1, then asked for two steps: half way in the second
    assert rates[1] == pytest.approx(1e-4)
    optimizer = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert [group["initial_lr"] for group in optimizer["param_groups"]] == pytest.approx([3e-4] * 2)


def test_the_same_problems_from_another_place_are_the_same_data(go_on, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert go_on("--dataset", str(write_problems(tmp_path / "elsewhere" / "problems.jsonl"))) == 0
    assert steps_logged(tmp_path / "run") == [1, 2]


def test_checkpoint_without_an_optimizer_is_a_start_not_a_place_to_go_on_from(go_on, tmp_path, capsys):
    (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").unlink()  # as save_only_model leaves it
    assert go_on() == 2
    told = capsys.readouterr().err
    assert "it holds a model and no optimizer (save_only_model)" in told
    assert f"--model_name_or_path {tmp_path / 'run' / 'checkpoint-1'}" in told


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"use_peft": False}, "holds an adapter, but use_peft is False"),
        ({"use_peft": True, "lora_r": 8, "lora_alpha": 8}, "lora_r: 4 -> 8"),
        ({"use_peft": True, "lora_r": 4, "lora_alpha": 9}, "lora_alpha: 8 -> 9"),
        (
            {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["k_proj"]},
            r"lora_target_modules: \['q_proj', 'v_proj'\] -> \['k_proj'\]",
        ),
    ],
)
def test_checkpoint_of_stock_trl_is_compared_by_its_adapter(finished, tmp_path, now, told):
    shutil.copytree(finished / "checkpoint-1", tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "run.json").unlink()
    now = {"use_dora": False, "use_rslora": False, **now}
    with pytest.raises(ConfigError, match=told):
        resume_settings.check_checkpoint(tmp_path / "checkpoint-1", now)


def test_settings_of_a_checkpoint_hold_the_numbers_that_were_asked_for(finished):
    made_with = settings_of(finished / "checkpoint-1")
    expected = {"lora_r": 4, "lora_alpha": 8, "steps_per_generation": 2, "max_steps": 1, "seed": 0, "processes": 1}
    assert {name: made_with[name] for name in expected} == expected
    assert made_with["training_data"].startswith("12 problems, ")
