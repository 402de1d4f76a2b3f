"""The console table, log.jsonl, samples.jsonl, TensorBoard, and the alarm, of a real short run."""

import json

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from trainer.sampling.rollout import rollout
from trainer.tiny.model import build_model
from trainer.tiny.problems import draw_problems
from trainer.tiny.tokenizer import word_tokenizer
from trainer.training import run_log, survival
from trainer.training.arguments import RunArguments
from trainer.training.run import build


def length_reward(completions, completion_ids, log_metric, **kwargs):
    log_metric("accuracy", 0.25)
    log_metric("no_answer", 0.5)
    return [float(len(ids) % 5) for ids in completion_ids]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(output directory, trainer, console) of three steps with everything on."""
    import contextlib
    import io

    output_dir = tmp_path_factory.mktemp("run")
    tokenizer = word_tokenizer()
    start = tmp_path_factory.mktemp("start")
    build_model(tokenizer, seed=0).save_pretrained(start)
    from transformers import Qwen3ForCausalLM

    config = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=3,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=10,
        beta=0.01,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=["tensorboard"],
    )
    data = [{"prompt": [{"role": "user", "content": p.question}]} for p in draw_problems(8, seed=0, held_out=False)]
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        trainer = build(
            RunArguments(samples_per_log=2),
            config,
            model=Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32),
            processing_class=tokenizer,
            reward_funcs=[length_reward],
            train_dataset=Dataset.from_list(data),
            rollout_func=rollout,
        )
        assert survival.train(trainer) == 0
    return output_dir, trainer, console.getvalue()


def test_log_holds_every_number_of_every_step(finished):
    records = run_log.read_log(finished[0] / run_log.LOG_FILE)
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        for _, _, names, _ in run_log.COLUMNS:
            assert any(isinstance(record.get(name), float) for name in names), names
        assert record["accuracy"] == 0.25
        assert record["no_answer"] == 0.5
        assert 0 < record["teca"] <= torch.tensor(125.0).log().item()
        assert record["padding_alarm"] == 0.0
        assert all(record[f"time/{part}"] > 0 for part in ("generate", "score", "train"))
        assert 0.1 < record["peak_memory_gib"] < 64
        assert record["time/generate"] + record["time/score"] + record["time/train"] < record["step_time"] * 1.5 + 1
    assert records[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert records[2]["kl"] > 0


def test_tokens_per_second_are_those_of_prompts_and_completions(finished):
    records = run_log.read_log(finished[0] / run_log.LOG_FILE)
    tokens = [record["num_tokens"] for record in records]
    for before, after, record in zip(tokens, tokens[1:], records[1:], strict=False):
        parts = sum(record[f"time/{part}"] for part in ("generate", "score", "train"))
        # wall time of a step is at least its measured parts
        assert 0 < record["tokens_per_second"] <= (after - before) / parts * 1.01


def test_samples_hold_completions_with_their_teca_and_reward(finished):
    samples = [json.loads(line) for line in (finished[0] / run_log.SAMPLES_FILE).read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 1, 2, 2, 3, 3]
    for sample in samples:
        assert sample["prompt"].startswith("[user] ")
        assert sample["completion"].startswith("[assistant] ")
        assert sample["teca"] > 0
        assert sample["length_reward"] == float(sample["tokens"] % 5)


def test_console_shows_one_row_per_step_under_one_heading(finished):
    lines = [line for line in finished[2].splitlines() if line.strip()]
    assert lines.pop(0) == "1 process on cpu; nothing wraps the model"
    assert lines[0] == run_log.table_heading()
    assert [int(line.split()[0]) for line in lines[1:4]] == [1, 2, 3]
    assert len(lines) == 4
    assert len(set(map(len, lines))) == 1  # columns are aligned
    assert len(lines[0]) < 120


def test_tensorboard_has_the_measured_values(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in finished[0].rglob("events.out.tfevents*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    names = {name.removeprefix("train/") for name in accumulator.Tags()["scalars"]}
    assert {"teca", "reward", "time/generate", "tokens_per_second", "peak_memory_gib", "padding_alarm"} <= names
    logged = [record["teca"] for record in run_log.read_log(finished[0] / run_log.LOG_FILE)]
    assert [event.value for event in accumulator.Scalars("train/teca")] == pytest.approx(logged, rel=1e-6)


def test_log_survives_a_torn_line_a_restart_and_a_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    run_log.append_line(path, {"event": "start", "step": 0})
    for step in (1, 2, 3):
        run_log.append_line(path, {"step": step, "loss": step / 10})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run_log.append_line(path, {"event": "resume", "step": 2})
    run_log.append_line(path, {"step": 3, "loss": 33.0})
    run_log.append_line(path, {"event": "end", "step": 3, "train_runtime": 1.0})
    assert run_log.read_log(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 33.0}]
    assert path.read_text().count("\n") == 8  # nothing was lost or rewritten
    run_log.append_line(path, {"event": "start", "step": 0})
    assert run_log.read_log(path) == []


def test_missing_values_show_as_dashes_and_nan_is_null(tmp_path):
    row = run_log.table_row(7, {"reward": 0.5, "kl": None})
    assert row.split()[:2] == ["7", "0.500"]
    assert row.split().count("-") == len(run_log.COLUMNS) - 1
    assert run_log._finite(float("nan")) is None
    assert run_log._finite(2.0) == 2.0
    with pytest.raises(ValueError):
        run_log.append_line(tmp_path / "x", {"value": float("nan")})


def test_alarm_sounds_once_when_teca_falls_while_length_rises(finished, capsys):
    trainer = finished[1]
    saved = trainer.state.log_history
    try:
        trainer.state.log_history = []
        sounded = []
        for step in range(40):
            trainer._metrics["train"]["teca"] = [0.3 - 0.005 * step + 0.001 * (step % 3)]
            trainer._metrics["train"]["completions/mean_length"] = [100.0 + 2 * step + step % 4]
            logs = trainer._check_padding()
            sounded.append(logs["padding_alarm"])
            trainer.state.log_history.append(
                {
                    "teca": trainer._metrics["train"]["teca"][0],
                    "completions/mean_length": trainer._metrics["train"]["completions/mean_length"][0],
                    **logs,
                }
            )
    finally:
        trainer.state.log_history = saved
        trainer._metrics["train"].clear()
    assert sounded[0] == 0.0
    assert sounded[-1] == 1.0
    assert capsys.readouterr().out.count("ALARM") == 1
