"""The trainer `cer_sync`: verl's synchronous PPO trainer (V1) with the entropy of the responses in the reward.

In: verl's configuration with `trainer.v1.trainer_mode=cer_sync`, settings under `cer` (settings.py). Out: verl's run.

Reward managers of verl score responses while others are still sampled, and advantage estimators see scores and masks
alone: neither sees an entropy. But the trainer itself asks for the entropies with the old log-probabilities and
leaves them in the TransferQueue, between the two:

    sample -> score (right or wrong) -> old log-probabilities, entropies -> [here] -> advantages -> update

Here rm_scores, entropy and response_mask are read back and the CER reward (responses.py) takes the place of rm_scores,
from which verl makes its advantages, its metrics (critic/score, critic/rewards) and its dumps. No pass is added.

Validation has no such pass, so one is made for it; TECA and the rest are given to verl as further values of the rewards
(reward_extra_info), which it averages and logs by data source under val-aux/, and dumps, like its own. The score of
validation stays verl's: right or wrong.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from cer_verl.entropy_history import EntropyHistory
from cer_verl.responses import Responses, measure, rewards_by_row
from cer_verl.settings import read_settings


@register_trainer("cer_sync")
class CERTrainerSync(PPOTrainerSync):
    """verl's PPOTrainerSync with the CER reward; see the head of this file."""

    def __init__(self, config: DictConfig) -> None:
        """Reads the settings, then does what verl does.

        Raises:
            ValueError: a setting or a configuration that can't work (settings.py).
        """
        self.cer_settings = read_settings(config)
        self.cer_history = EntropyHistory()
        # verl takes every mode but "sync" for an asynchronous one: another replay buffer, prompts fetched one by one,
        # the queue saved with the model. This trainer is a synchronous one by another name.
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    # ------------------------------------------------------------------------------------------------------- training

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        rows = self._rows(batch)
        responses = self._measured(batch, rows)
        scores = rewards_by_row(responses, [len(mask) for mask in rows["response_mask"]])
        scores = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
        batch = tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({"rm_scores": scores}, batch_size=len(batch)),
        )
        metrics.update(self._metrics(responses))
        return batch

    def _rows(self, batch: KVBatchMeta) -> dict[str, list[torch.Tensor]]:
        """Entropy, mask and score of every row, each (response tokens,)."""
        fields = ["entropy", "response_mask", "rm_scores"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        missing = [field for field in fields if field not in data]
        if missing:
            raise ValueError(
                f"the TransferQueue holds no {' and no '.join(missing)} of {batch.keys[0]}: CER needs the entropies of "
                "the pass that makes the old log-probabilities, and a reward that scores every response"
            )
        return {field: list(data[field].unbind()) for field in fields}

    def _measured(self, batch: KVBatchMeta, rows: dict[str, list[torch.Tensor]]) -> Responses:
        is_padding = [tag.get("is_padding", False) for tag in batch.tags]
        return measure(
            batch.keys, is_padding, rows["entropy"], rows["response_mask"], rows["rm_scores"], self.cer_settings
        )

    def _metrics(self, responses: Responses) -> dict[str, float]:
        """What verl logs. "total" or "sum" in a name would make verl add the values up over the parts of a step."""
        correct = responses.correct
        means = {
            "cer/accuracy": correct.double(),
            "cer/reward/mean": responses.reward,
            "cer/teca/mean": responses.teca,
            "cer/teca/right": responses.teca[correct],
            "cer/teca/wrong": responses.teca[~correct],
            "cer/entropy_per_response/mean": responses.entropy_sum,
            "cer/response_length/mean": responses.length,
            "cer/response_length/right": responses.length[correct],
            "cer/response_length/wrong": responses.length[~correct],
        }
        logged = {name: values.mean().item() for name, values in means.items() if len(values)}
        if len(correct):
            alarm = self.cer_history.add(logged["cer/teca/mean"], logged["cer/response_length/mean"])
            logged["cer/padding_alarm"] = float(alarm)
        return logged

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self) -> None:
        # Before verl's files: what its tracker names as the latest checkpoint is then whole.
        self.cer_history.save(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps:
            trainer = self.config.trainer
            latest = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
            self.cer_history.load(Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else latest)

    # ------------------------------------------------------------------------------------------------------ validation

    def _validate(self) -> dict[str, float]:
        if not self.cer_settings.measure_validation:
            return super()._validate()
        sample = self.replay_buffer.sample

        def sample_and_measure(*args: Any, **kwargs: Any) -> tuple[KVBatchMeta, dict]:
            batch, metrics = sample(*args, **kwargs)
            if len(batch):  # else every response failed, and verl says so
                self._measure_validation(batch)
            return batch, metrics

        # verl gives subclasses no hook between sampling a validation batch and reading its values.
        self.replay_buffer.sample = sample_and_measure
        try:
            return super()._validate()
        finally:
            del self.replay_buffer.sample  # the instance's, which hides the class's

    def _measure_validation(self, batch: KVBatchMeta) -> None:
        """Adds TECA, total entropy, length and CER reward to the values that verl logs for every response.

        Entropies are those at the temperature of training, so that the two curves can be compared, whatever temperature
        validation samples at.
        """
        self.checkpoint_manager.sleep_replicas()  # the policy and the rollout engine share the device's memory
        filled = self._balance_batch(copy.deepcopy(batch), metrics={})  # as many rows as the workers can split
        super()._compute_old_log_prob(filled, metrics={})
        made_up = sorted(set(filled.keys) - set(batch.keys))
        if made_up:
            tq.kv_clear(keys=made_up, partition_id=batch.partition_id)
        self.checkpoint_manager.update_weights(self.global_steps)

        responses = self._measured(batch, self._rows(batch))
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        extra = [dict(row) for row in stored["extra_fields"]] if "extra_fields" in stored else [{} for _ in batch.keys]
        values = zip(
            responses.teca.tolist(),
            responses.entropy_sum.tolist(),
            responses.length.tolist(),
            responses.reward.tolist(),
            strict=True,
        )
        for session, (teca, entropy_sum, length, reward) in zip(responses.sessions, values, strict=True):
            measured = {"teca": teca, "entropy_sum": entropy_sum, "response_length": length, "cer_reward": reward}
            for row in session.rows:
                extra[row]["reward_extra_info"] = {**extra[row].get("reward_extra_info", {}), **measured}
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({"extra_fields": NonTensorStack(*extra)}, batch_size=len(batch)),
        )
