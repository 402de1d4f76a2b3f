"""Two steps of the registered trainer, all of verl real but the generation server: rewards and advantages by hand."""

import math
import statistics

import datasets
import pytest
from verl_on_cpu import compose_config, make_run, save_model, small

from cer_verl.prepare_data import verl_rows

FIELDS = ["entropy", "response_mask", "rm_scores", "advantages"]


def test_rewards_and_advantages_are_those_of_a_hand_computation(process_group, transfer_queue, tmp_path, capsys):
    model = save_model(tmp_path / "model", tied=False)
    problems = datasets.Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"w{i} w{(i * 5) % 12}"}], "ground_truth": "3", "id": str(i)}
            for i in range(12)
        ]
    )
    data = str(tmp_path / "train.parquet")
    verl_rows(problems, "toy", "train").to_parquet(data)
    options = {
        "data__train_files": data,
        "data__val_files": data,
        "trainer__total_training_steps": 2,
        "trainer__total_epochs": 50,
        "trainer__val_before_train": True,
        "trainer__default_local_dir": str(tmp_path / "checkpoints"),
        "trainer__logger": "[console]",
    }
    trainer, agent_loops = make_run(compose_config(*small(model, **options)))
    seen, compute_advantage = [], trainer._compute_advantage

    def watched(batch, *args, **kwargs):
        made = compute_advantage(batch, *args, **kwargs)
        rows = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        seen.append((list(batch.keys), {name: [row.clone() for row in rows[name].unbind()] for name in FIELDS}))
        return made

    trainer._compute_advantage = watched
    trainer.fit(agent_loops)
    assert len(seen) == 2
    right = 0
    for keys, rows in seen:
        rewards = {}
        for key, entropy, mask, scores in zip(keys, *(rows[name] for name in FIELDS[:3]), strict=True):
            written = entropy[mask.bool()].double()
            rewards[key] = scores.sum().item()
            if rewards[key]:
                right += 1
                assert rewards[key] == pytest.approx(1 + math.exp(-written.mean().item()) / 2, rel=1e-5)
        groups = {}
        for key in keys:
            groups.setdefault(key.split("_")[0], []).append(rewards[key])
        for key, mask, advantages in zip(keys, rows["response_mask"], rows["advantages"], strict=True):
            group = groups[key.split("_")[0]]
            expected = (rewards[key] - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6)
            assert advantages[mask.bool()].tolist() == pytest.approx([expected] * int(mask.sum()), rel=1e-4, abs=1e-4)
    assert right > 0
    told = capsys.readouterr().out
    for name in ("cer/teca/mean", "cer/entropy_per_response/mean", "cer/padding_alarm", "val-aux/toy/teca"):
        assert name in told, name
