"""The run scripts against verl's real configuration, and the data that they train on through verl's own data set."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import create_rl_dataset, need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl_on_cpu import compose_config, make_tokenizer, save_model

import cer_verl
from cer_verl.prepare_data import main as prepare_data
from cer_verl.settings import CERSettings, read_settings

SCRIPTS = Path(cer_verl.__file__).parent / "scripts"
PUBLISHED = {  # arXiv 2510.02249 and its code
    "data.train_batch_size": 128,
    "data.max_prompt_length": 512,
    "data.max_response_length": 4096,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.5,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
    "actor_rollout_ref.actor.optim.lr": 3e-6,
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_coef": 1e-3,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "actor_rollout_ref.model.lora_rank": 64,
    "actor_rollout_ref.model.lora_alpha": 32,
    "actor_rollout_ref.model.target_modules": "all-linear",
    "algorithm.adv_estimator": "grpo",
    "algorithm.use_kl_in_reward": False,
    "trainer.total_epochs": 5,
    "trainer.v1.trainer_mode": "cer_sync",
}


def asked_for(script: str, folder: Path, *overrides: str) -> tuple[str, list[str]]:
    """(variables and module, overrides): what the script runs, caught by a `python` that runs nothing."""
    python = folder / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$VERL_USE_EXTERNAL_MODULES" "$@"\n')
    python.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPTS / script, *overrides], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    plugin, *arguments = done.stdout.splitlines()
    assert arguments[:2] == ["-m", "verl.trainer.main_ppo"]
    return plugin, arguments[2:]


@pytest.mark.parametrize("size", ["4b", "8b"])
def test_scripts_ask_verl_for_the_published_run(size, tmp_path):
    plugin, overrides = asked_for(f"qwen3_{size}_gsm8k.sh", tmp_path, "trainer.n_gpus_per_node=4")
    assert plugin == "cer_verl.plugin"
    config = compose_config(*overrides)  # hydra refuses a key that verl does not have
    for key, value in PUBLISHED.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value, key
    assert config.trainer.n_gpus_per_node == 4
    assert config.actor_rollout_ref.model.path == f"Qwen/Qwen3-{size.upper()}"
    assert read_settings(config) == CERSettings("cer", 0.5)
    # verl's own checks and dataclasses, which refuse what the schema lets through. By another rollout's name: the one
    # check of vLLM's, that its LoRA kernels have a rank of 64, imports vLLM.
    checked = compose_config(*overrides, "actor_rollout_ref.rollout.name=sglang")
    validate_config(checked, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    assert need_reference_policy(config)
    assert not need_critic(config)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine.strategy == "fsdp2"
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    score = get_custom_reward_fn(config)
    assert score("gsm8k", r"so \boxed{72}", "72") == {"score": 1.0, "acc": 1.0}
    assert score("gsm8k", r"so \boxed{71}", "72") == {"score": 0.0, "acc": 0.0}


def test_prepared_data_is_read_by_verls_own_data_set(tmp_path, capsys):
    records = [{"question": "w1 w2", "answer": "w3\n#### 3"}, {"question": "w4", "answer": "#### 1"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    output = tmp_path / "train.parquet"
    assert prepare_data([str(tmp_path / "sums.jsonl"), "--instruction", "w5", "--output", str(output)]) == 0
    assert f"2 problems -> {output}" in capsys.readouterr().out
    config = compose_config(f"actor_rollout_ref.model.path={save_model(tmp_path / 'model', tied=True)}")
    rows = create_rl_dataset(str(output), config.data, make_tokenizer(), None, is_train=True)
    assert len(rows) == 2
    assert rows[0]["raw_prompt"] == [{"role": "user", "content": "w1 w2\n\nw5"}]
    assert rows[0]["reward_model"] == {"ground_truth": "3", "style": "rule"}
    assert [row["index"] for row in rows] == [0, 1]


def test_a_source_that_is_not_there_is_an_error_of_one_line(tmp_path, capsys):
    assert prepare_data([str(tmp_path / "nothing.jsonl"), "--output", str(tmp_path / "out.parquet")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()
