"""--eval_strategy and --eval_on_start from the command line, on problems of their own or held out from training."""

import json

import pytest
from small_runs import small_options, write_problems

from trainer import grpo
from trainer.training.run_directory import settings_of


@pytest.mark.parametrize("where", ["held out", "a file"])
def test_evaluation_is_logged_and_its_problems_are_not_trained_on(where, tmp_path):
    options = "--eval_strategy steps --eval_steps 1 --eval_on_start true --max_steps 2 --per_device_eval_batch_size 8"
    options += " --save_strategy steps --save_steps 2 --eval_samples 4"
    if where == "a file":
        options += f" --eval_dataset {write_problems(tmp_path / 'eval.jsonl', 6)}"
    assert grpo.main(small_options(tmp_path, *options.split())) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    evaluated = [record["step"] for record in log if "eval_reward" in record]
    assert evaluated == [0, 1, 2]
    trained_on = settings_of(tmp_path / "run" / "checkpoint-2")["training_data"]
    assert trained_on.startswith("8 problems" if where == "held out" else "12 problems")
    steps = [record for record in log if "time/train" in record]
    assert [record["step"] for record in steps] == [1, 2]
    for record in steps:  # evaluations between the steps are no part of them
        assert min(record["time/train"], record["time/score"], record["time/generate"]) > 0
    for record in log:
        if "eval_reward" in record:
            assert record["eval_teca"] == pytest.approx(5.55, abs=0.1)  # log 262 = 5.57: an untrained model
