"""Runs of the registered trainer, all of verl real but the generation server; every number computed again by hand.

By hand: entropies from the start model in float64, right and wrong from the text, rewards, advantages.
"""

import json
import math
import statistics
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from verl_on_cpu import compose_config, make_run, make_tokenizer, save_model, small

from cer_verl.entropy_history import FILE_NAME
from cer_verl.prepare_data import verl_rows

FIELDS = ["prompts", "responses", "entropy", "response_mask", "rm_scores", "advantages", "old_log_probs"]
TEMPERATURE = 0.9


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    problems = [
        {"prompt": [{"role": "user", "content": f"w{i} w{(i * 5) % 12}"}], "ground_truth": "3", "id": str(i)}
        for i in range(12)
    ]
    path = str(tmp_path_factory.mktemp("data") / "problems.parquet")
    verl_rows(datasets.Dataset.from_list(problems), "toy", "train").to_parquet(path)
    return path


def run(model: Path, data: str, folder: Path, monkeypatch, *overrides: str, steps: int, **options):
    """(trainer, rows of every step as verl stored them, logged values of every step)."""
    log = folder / "log.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(log))
    options = {
        "data__train_files": data,
        "data__val_files": data,
        "trainer__total_training_steps": steps,
        "trainer__total_epochs": 1000,
        "trainer__default_local_dir": folder / "checkpoints",
        "trainer__logger": "[file]",
        "actor_rollout_ref__rollout__temperature": TEMPERATURE,
        **options,
    }
    trainer, agent_loops = make_run(compose_config(*small(model, **options), *overrides))
    seen, compute_advantage = [], trainer._compute_advantage

    def watched(batch, *args, **kwargs):
        import transfer_queue as tq

        made = compute_advantage(batch, *args, **kwargs)
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        rows = {name: [row.clone() for row in rows[name].unbind()] for name in FIELDS}
        seen.append([dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)])
        for row, key, tag in zip(seen[-1], batch.keys, batch.tags, strict=True):
            row.update(prompt=key.rsplit("_", 2)[0], is_padding=tag.get("is_padding", False))
        return made

    trainer._compute_advantage = watched
    trainer.fit(agent_loops)
    logged = {entry["step"]: entry["data"] for entry in map(json.loads, log.read_text().splitlines())}
    return trainer, seen, logged


def by_hand(rows: list[dict], model: Path, reward) -> None:
    """Adds entropies, correctness, reward and advantage; `reward` takes the rows of a prompt and one of them."""
    policy = transformers.LlamaForCausalLM.from_pretrained(model).double()
    tokenizer = make_tokenizer()
    for row in rows:
        tokens = torch.cat([row["prompts"], row["responses"]])[None]
        with torch.no_grad():
            logits = policy.lm_head(policy.model(tokens).last_hidden_state)[0]
        logp = (logits / TEMPERATURE).log_softmax(-1)
        row["H"] = -(logp.exp() * logp).sum(-1)[len(row["prompts"]) - 1 : -1]
        boxed = [word for word in tokenizer.decode(row["responses"]).split() if word.startswith("\\boxed")]
        row["right"] = not row["is_padding"] and boxed[-1:] == [r"\boxed{3}"]
    for prompt in {row["prompt"] for row in rows}:
        group = [row for row in rows if row["prompt"] == prompt]
        rewards = [reward(group, row) if row["right"] else 0.0 for row in group]
        for row, value in zip(group, rewards, strict=True):
            row["reward"] = value
            row["advantage"] = (value - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-6)


def mean_entropy(group: list[dict], row: dict) -> float:
    return 1 + 0.5 * math.exp(-row["H"].mean().item())


def total_entropy(group: list[dict], row: dict) -> float:
    scale = statistics.median(other["H"].sum().item() for other in group if other["right"])
    return 1 + 2.0 * math.exp(-row["H"].sum().item() / max(scale, 1.0))


@pytest.mark.parametrize(
    ("reward", "prompts", "overrides"),
    [
        (mean_entropy, 4, []),
        (total_entropy, 3, ["+cer.reward=total_entropy", "+cer.weight=2"]),  # 12 rows, which verl fills up to 16
    ],
)
def test_rewards_and_advantages_are_those_of_a_hand_computation(
    reward, prompts, overrides, model, data, process_group, transfer_queue, tmp_path, monkeypatch
):
    _, (rows,), logged = run(model, data, tmp_path, monkeypatch, *overrides, steps=1, data__train_batch_size=prompts)
    real = [row for row in rows if not row["is_padding"]]
    assert len(real) == 4 * prompts
    assert len(rows) == 16
    by_hand(rows, model, reward)
    assert 0 < sum(row["right"] for row in real) < len(real)
    for row in real:
        torch.testing.assert_close(row["entropy"].double(), row["H"], rtol=1e-5, atol=1e-5)
        assert row["rm_scores"][:-1].abs().sum() == 0
        assert row["rm_scores"][-1].item() == pytest.approx(row["reward"], rel=1e-5)
        assert row["advantages"].tolist() == pytest.approx([row["advantage"]] * len(row["H"]), rel=1e-3, abs=1e-4)
    for row in rows:
        if row["is_padding"]:
            assert row["rm_scores"].abs().sum() == row["advantages"].abs().sum() == 0
    teca = [row["H"].mean().item() for row in real]
    expected = {
        "cer/accuracy": statistics.fmean(row["right"] for row in real),
        "cer/reward/mean": statistics.fmean(row["reward"] for row in real),
        "critic/score/mean": statistics.fmean(row["reward"] for row in real),  # verl's own name for it
        "cer/teca/mean": statistics.fmean(teca),
        "cer/teca/right": statistics.fmean(t for t, row in zip(teca, real, strict=True) if row["right"]),
        "cer/teca/wrong": statistics.fmean(t for t, row in zip(teca, real, strict=True) if not row["right"]),
        "cer/entropy_per_response/mean": statistics.fmean(row["H"].sum().item() for row in real),
        "cer/response_length/mean": statistics.fmean(len(row["H"]) for row in real),
        "cer/padding_alarm": 0.0,
    }
    for name, value in expected.items():
        assert logged[1][name] == pytest.approx(value, rel=1e-5), name


def test_validation_measures_entropies_and_a_resumed_run_keeps_its_history(
    model, data, process_group, transfer_queue, tmp_path, monkeypatch
):
    validated = {
        "trainer__val_before_train": True,
        "trainer__save_freq": 1,
        "actor_rollout_ref__rollout__val_kwargs__temperature": 0.5,
        "actor_rollout_ref__rollout__val_kwargs__do_sample": True,
    }
    trainer, _, logged = run(model, data, tmp_path, monkeypatch, steps=2, **validated)
    first = {name.removeprefix("val-aux/toy/"): value for name, value in logged[0].items()}
    assert 0 < first["teca/mean@1"] < math.log(23)  # nats; 23 words
    assert first["entropy_sum/mean@1"] > first["teca/mean@1"]
    assert 1 <= first["response_length/mean@1"] <= 6
    assert logged[0]["val-core/toy/acc/mean@1"] <= first["cer_reward/mean@1"] * 1.0001  # 1 to 1.5 where right, else 0
    # The servers sleep while the policy scores, and get its weights again.
    assert trainer.checkpoint_manager.calls[:3] == ["wake", "sleep", "wake"]
    assert transfer_queue.kv_list("val") in ({}, None, {"val": {}})  # rows made up for the workers are gone as well

    history = json.loads((tmp_path / "checkpoints/global_step_2" / FILE_NAME).read_text())
    assert history["teca"] == pytest.approx([logged[step]["cer/teca/mean"] for step in (1, 2)])
    assert history["length"] == pytest.approx([logged[step]["cer/response_length/mean"] for step in (1, 2)])
    resumed, _, after = run(model, data, tmp_path, monkeypatch, steps=3, trainer__save_freq=1)
    assert list(after) == [3]
    assert resumed.cer_history.teca == pytest.approx([*history["teca"], after[3]["cer/teca/mean"]])


@pytest.mark.slow
def test_a_run_learns_to_answer_and_to_be_sure_of_it(model, data, process_group, transfer_queue, tmp_path, monkeypatch):
    """The whole loop: what is rewarded becomes likely. Generation is ours, the rest is verl."""
    _, _, logged = run(model, data, tmp_path, monkeypatch, steps=40, actor_rollout_ref__actor__optim__lr=1e-2)

    def mean(name: str, steps: range) -> float:
        return statistics.fmean(logged[step][name] for step in steps)

    start, end = range(1, 6), range(36, 41)
    assert mean("cer/accuracy", start) < 0.5
    assert mean("cer/accuracy", end) > 0.8
    assert mean("cer/teca/mean", end) < 0.75 * mean("cer/teca/mean", start)
    assert mean("cer/reward/mean", end) > mean("cer/accuracy", end)
