"""python -m trainer.grpo as a person meets it: help, errors, the whole default in small, stop and resume."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import grpo
from trainer.training import arguments
from trainer.training.checkpoints import complete_checkpoints
from trainer.training.run_log import LOG_FILE, SAMPLES_FILE, read_log

ROOT = Path(__file__).resolve().parents[2]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "trainer.grpo", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def small(tmp_path: Path, *options: str) -> list[str]:
    """The default recipe with everything made small."""
    sizes = "--warm_start_steps 4 --max_steps 3 --held_out_problems 8 --max_completion_length 16 --save_steps 2"
    batch = "--per_device_train_batch_size 16"
    places = ["--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    return [*sizes.split(), *batch.split(), *places, *options]


# --- help


def test_help_explains_every_option_of_ours_without_loading_torch():
    import dataclasses

    code = "import sys; from trainer import grpo; grpo.main(['--help']); print({'torch', 'trl'} & set(sys.modules))"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert time.perf_counter() - started < 10  # 0.1 s of work; the bound is for a busy machine
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    flat = " ".join(done.stdout.split())
    for option in dataclasses.fields(arguments.RunArguments):
        assert f"--{option.name} VALUE {' '.join(option.metadata['help'].split()[:3])}" in flat, option.name
    for name in arguments.recipe_names():
        assert name in flat


def test_help_of_trl_lists_its_options_too(capsys):
    assert grpo.main(["--help-trl"]) == 0
    told = capsys.readouterr().out
    assert "--vllm_gpu_memory_utilization" in told
    assert "--lora_r" in told
    assert "--tiny_design" in told


# --- what is wrong is said before anything is loaded


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--learning_rat", "1"], "unknown option: --learning_rat (did you mean learning_rate"),
        (
            ["--config", "nowhere.yaml"],
            "config: no file nowhere.yaml, and no packaged recipe of that name (qwen3_4b_gsm8k",
        ),
        (["--config"], "--config needs a file or the name of a recipe"),
        (["--reward", "cre"], "reward is 'cre': expected one of cer, total_entropy, decided"),
        (["--tiny_design", "none"], "tiny_design is 'none': expected one of explore, slips, recap"),
        (["--cer_weight", "-1"], "cer_weight is -1.0: expected a number >= 0"),
        (["--warm_start_steps", "0"], "warm_start_steps is 0: expected at least 1"),
        (["--temperature", "0"], "temperature is 0.0: expected a number > 0"),
        (["--learning_rate", "0"], "learning_rate is 0.0: expected a number > 0"),
        (["--reward_weights", "1", "2"], "reward_weights has 2 values (1.0 2.0, from the command line) for 1 rewards"),
        (["--report_to", "wandb"], "report_to names wandb, but wandb is not installed: pip install wandb"),
        (["--use_vllm", "true"], "use_vllm needs vLLM 0.32.0: pip install"),
        (["--num_generations", "7"], "must be divisible by num_generations"),
        (
            ["--completions_per_update", "65"],
            "completions_per_update is 65 and gradient_accumulation_steps",
        ),
        (["--model_name_or_path", "Qwen/Qwen3-4B"], "dataset tiny goes with its own model"),
        (["--config", "smoke_gsm8k", "--controls", "random"], "controls are for the embedded experiment"),
        (["--config", "smoke_gsm8k", "--dataset", "gone.jsonl"], "dataset: no file gone.jsonl"),
        (["--config", "smoke_gsm8k", "--data_dir", "gone"], "data_dir: no directory gone"),
        (["--config", "smoke_gsm8k", "--model_name_or_path", "./gone"], "model_name_or_path: no directory ./gone"),
        (["--dataset", "gsm8k"], "dataset gsm8k needs model_name_or_path"),
        (["--resume_from_checkpoint", "last"], "no complete checkpoint in"),
        (["--resume_from_checkpoint", "gone/checkpoint-3"], "not a complete checkpoint"),
    ],
)
def test_wrong_command_line_is_explained_with_exit_code_2(options, told, capsys, tmp_path, monkeypatch):
    import transformers

    found = importlib.util.find_spec  # wandb and vLLM are absent here, whether they are installed or not
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("wandb", "vllm") else found(name, *a)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded first")
    )
    assert grpo.main(options) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m trainer.grpo: error: ")
    assert told in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("learning_rat: 1", "unknown option in the recipe: learning_rat (did you mean learning_rate"),
        ("max_steps: many", "max_steps in the recipe is 'many'"),
        ("num_generations: 8.5", "num_generations in the recipe is 8.5"),
        ("bf16: perhaps", "bf16 in the recipe is 'perhaps'"),
        ("- a list", "expected a mapping of options, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_recipe_is_explained_with_exit_code_2(recipe, told, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe)
    assert grpo.main(["--config", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_bad_value_on_the_command_line_names_its_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        grpo.main(["--max_steps", "many"])
    assert stopped.value.code == 2
    assert "--max_steps" in capsys.readouterr().err


def test_data_without_the_column_asked_for_is_explained(tmp_path, capsys):
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    options = ["--config", "smoke_gsm8k", "--dataset", str(data), "--output_dir", str(tmp_path / "run")]
    assert grpo.main([*options, "--answer_column", "gold"]) == 2
    assert "there is no column 'gold'" in capsys.readouterr().err


# --- the whole of it, in processes of its own


def test_default_in_small_is_stopped_goes_on_and_makes_table_curves_and_logs(tmp_path):
    """Warm start, CER, stopped by SIGINT in its second step; resumed: CER's rest, the control, the table."""
    process = subprocess.Popen(
        command(*small(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    told = ""
    for line in process.stdout:  # the table's row of step 1 has come: a step is under way
        told += line
        if re.match(r" +1 +\d\.\d{3}", line):
            process.send_signal(signal.SIGINT)
            break
    told += process.communicate(timeout=300)[0]
    run = tmp_path / "run"
    assert process.returncode == 130, told
    (saved,) = complete_checkpoints(run / "cer")
    assert f"--resume_from_checkpoint {saved}" in told
    assert not (run / "table.md").exists()

    done = subprocess.run(
        command(*small(tmp_path, "--resume_from_checkpoint", "last")),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "warm start (explore)" not in done.stderr  # from the cache
    table = (run / "table.md").read_text()
    assert table in done.stdout
    assert re.search(r"before \(warm start\).*\n\| CER.*\n\| control: accuracy only", table)
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    results = json.loads((run / "results.json").read_text())
    assert list(results["rows"]) == ["warm start", "cer", "accuracy"]
    for reward in ("cer", "accuracy"):
        assert [record["step"] for record in read_log(run / reward / LOG_FILE)] == [1, 2, 3]
        assert (run / reward / SAMPLES_FILE).stat().st_size > 0
        assert list((run / reward).rglob("events.out.tfevents*"))
        assert (run / reward / "final" / "model.safetensors").is_file()
        responses = [json.loads(line) for line in (run / reward / "responses.jsonl").read_text().splitlines()]
        assert len(responses) == results["rows"][reward]["problems"] == 8
        assert results["rows"][reward]["accuracy"] == sum(row["correct"] for row in responses) / 8
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(left) == 1


def test_smoke_recipe_trains_on_real_text_with_transformers_own_sampler(tmp_path):
    """GSM8K-shaped records through data, chat template, TRL's generation, grading and training."""
    data = tmp_path / "train.jsonl"
    rows = [
        {
            "question": f"Tom has {n} apples, eats 2 and buys 7. How many?",
            "answer": f"{n} - 2 + 7 = {n + 5}\n#### {n + 5}",
        }
        for n in range(3, 11)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--config", "smoke_gsm8k", "--dataset", str(data), "--output_dir", str(tmp_path / "run")]
    options += ["--sampler", "trl", "--max_completion_length", "12", "--max_steps", "2"]
    done = subprocess.run(command(*options), capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    records = read_log(tmp_path / "run" / LOG_FILE)
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert record["accuracy"] == 0.0
        assert record["teca"] == pytest.approx(5.55, abs=0.1)  # log 262 = 5.57: an untrained model
        assert record["grad_norm"] > 0
    sample = json.loads((tmp_path / "run" / SAMPLES_FILE).read_text().splitlines()[0])
    assert re.match(r"\[user\] Tom has \d+ apples.*\\boxed", sample["prompt"], re.DOTALL)
