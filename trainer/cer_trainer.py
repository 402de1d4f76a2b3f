"""CERTrainer: TRL's GRPO trainer with the fused head of cer_ext, and TECA of every rollout for the reward functions.

In: what trl.GRPOTrainer takes. Out: what it gives, and two more keyword arguments to every reward function, one number
per completion, under the policy that is trained and at the sampling temperature:

    teca         (1/|o|) sum_t H_t      mean token entropy of the completion, in nats (TECA at its last token)
    entropy_sum         sum_t H_t       its total, in nats: a mean is diluted by certain tokens, a total is not

over the tokens that the policy wrote (tool results don't count). Both also go to the log and to the table of
completions. A completion without any such token has no entropy: NaN, which TRL treats as "no reward".

Everything else is TRL's: generation, groups, advantages, losses, KL, adapters, logging, checkpoints, distribution.

Where the entropies come from. TRL scores the rollouts under the policy before their rewards are known (the pass for
old_per_token_logps) if its steps are misaligned or vLLM's importance correction is on; then they are read off that
pass, with whatever dropout is on in it. Otherwise one more pass without gradient is made, in evaluation mode: it draws
no random number, so training goes on exactly as in TRL. Never from the pass of the reference, which with PEFT runs the
same model with another adapter.

The TRL privates this rests on are named, with the pinned version, in tests/trainer/test_trl_contract.py.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import trl
from torch import Tensor
from transformers.utils import is_peft_available
from trl.models import prepare_fsdp
from trl.trainer import grpo_trainer
from trl.trainer.utils import pad

from cer_ext import teca_last

from .lm_head import add_fused_lm_head, evaluation_mode

_REWARD_KEYWORDS = ("teca", "entropy_sum")


class CERTrainer(trl.GRPOTrainer):
    """`trl.GRPOTrainer` whose reward functions also receive `teca` and `entropy_sum` (list[float], nats).

    A `rollout_func` that knows the entropies of its own sampling may return `teca` and `entropy_sum` itself; they are
    then passed on and no pass is made for them.

    Raises:
        ValueError: at construction, where the model's head can't be served, where the data already has a column of one
            of these names, or where images would need a pass that TRL does not make (see `_scored_by_trl`).

    Example:
        >>> def reward(completions, teca, **kwargs):
        ...     return [math.exp(-value) for value in teca]
        >>> trainer = CERTrainer(model, reward, args=GRPOConfig(...), train_dataset=dataset)  # doctest: +SKIP
    """

    def __init__(self, *args, **kwargs):
        # Set before TRL's own construction, which ends in methods overridden here.
        self._rollout_entropy: tuple[list[float], list[float]] | None = None
        self._awaits_old_pass = False
        self._rollout_tool_mask: list[list[int]] | None = None
        with _cer_head():
            super().__init__(*args, **kwargs)
        self._check_columns()

    def _check_columns(self) -> None:
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for split, dataset in {"train": self.train_dataset, **evaluation}.items():
            columns = set(getattr(dataset, "column_names", None) or ())
            taken = sorted(columns.intersection(_REWARD_KEYWORDS))
            if taken:
                raise ValueError(
                    f"the {split} dataset has columns {taken}, which CERTrainer gives to the reward functions itself; "
                    "rename them"
                )
            if columns.intersection(("image", "images")) and not self._scored_by_trl:
                raise ValueError(_NO_PASS_WITH_IMAGES)

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        # In mixed precision accelerate has FSDP2 round what the model returns: log-probabilities and entropies would
        # come back in bfloat16, ratios 1% off. Parameters and products stay in the precision that was asked for.
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy = getattr(plugin, "mixed_precision_policy", None)
        if getattr(policy, "output_dtype", None) is not None:
            plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)

    @property
    def _scored_by_trl(self) -> bool:
        """Whether TRL makes a pass of the policy over the rollouts before it asks for their rewards."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % generate_every != 0 or (
            self.use_vllm and self.vllm_importance_sampling_correction
        )

    def _generate(self, prompts: list):
        rollouts = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask, _, _, extra_fields, images, _ = rollouts
        self._rollout_entropy = None
        self._awaits_old_pass = False
        self._rollout_tool_mask = tool_mask
        given = [key for key in _REWARD_KEYWORDS if key in extra_fields]
        if given:
            if len(given) != len(_REWARD_KEYWORDS):
                raise ValueError(f"rollout_func returned {given} only; return {list(_REWARD_KEYWORDS)} or neither")
            self._rollout_entropy = tuple(extra_fields.pop(key) for key in _REWARD_KEYWORDS)
        elif self._scored_by_trl and not self._some_rollout_is_masked(completion_ids):
            self._awaits_old_pass = True
        elif images is not None or (self._is_vlm and self.rollout_func is not None):
            raise ValueError(_NO_PASS_WITH_IMAGES)
        else:
            self._score_rollouts(prompt_ids, completion_ids)
        return rollouts

    def _some_rollout_is_masked(self, completion_ids: list[list[int]]) -> bool:
        """Whether mask_truncated_completions hides a completion of any process from TRL's passes."""
        if not self.mask_truncated_completions:
            return False
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        truncated = torch.tensor([ids[-1] not in ends for ids in completion_ids], device=self.accelerator.device)
        return bool(self.accelerator.gather(truncated).any())

    def _score_rollouts(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> None:
        """One pass of the policy without gradient, padded and split into batches as TRL pads and splits its own."""
        device = self.accelerator.device
        ids, masks = [], []
        for tokens, side in ((prompt_ids, "left"), (completion_ids, "right")):
            tokens = [torch.tensor(row) for row in tokens]
            layout = {"padding_side": side, "pad_to_multiple_of": self.pad_to_multiple_of}
            ids.append(pad(tokens, padding_value=self._tokenizer.pad_token_id, **layout).to(device))
            masks.append(pad([torch.ones_like(row) for row in tokens], padding_value=0, **layout).to(device))
        training = self.model.training
        batch_size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        with torch.no_grad(), evaluation_mode(self.model):
            _, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat(ids, dim=1),  # (B, P+C)
                torch.cat(masks, dim=1),
                ids[1].size(1),
                batch_size=batch_size,
                compute_entropy=True,
            )
        self._keep_rollout_entropy(entropies, masks[1])

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # TRL's first pass after `_generate` is the policy's, if it makes one; the reference's comes after it.
        is_old_pass, self._awaits_old_pass = self._awaits_old_pass, False
        if is_old_pass:
            if model is not self.model:
                raise RuntimeError("TRL scored the rollouts under another model than the policy before their rewards")
            kwargs["compute_entropy"] = True
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if is_old_pass:
            self._keep_rollout_entropy(result[1], attention_mask[:, -logits_to_keep:])
        return result

    def _keep_rollout_entropy(self, entropies: Tensor, mask: Tensor) -> None:
        """Reduce the entropies (B, C) of the tokens the policy wrote to `teca` and `entropy_sum`."""
        mask = mask.bool()
        if self._rollout_tool_mask is not None:
            written = [torch.tensor(row) for row in self._rollout_tool_mask]
            written = pad(written, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
            mask = mask & written.to(mask.device).bool()
        entropies = entropies.detach().float()
        empty = ~mask.any(dim=1)
        teca = teca_last(entropies, mask).masked_fill(empty, math.nan)  # (B,)
        entropy_sum = (entropies * mask).sum(dim=1).masked_fill(empty, math.nan)
        self._rollout_entropy = (teca.tolist(), entropy_sum.tolist())

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._rollout_entropy is None:
            raise RuntimeError("TRL asked for the rewards before it scored the rollouts under the policy")
        for name, values in zip(_REWARD_KEYWORDS, self._rollout_entropy, strict=True):
            if len(values) != len(inputs):
                raise ValueError(f"{len(values)} values of {name} for {len(inputs)} completions")
            inputs = [{**row, name: value} for row, value in zip(inputs, values, strict=True)]
            self._log_completion_extra(name, values)
            for value in values:
                if math.isfinite(value):
                    self._log_metric(name, value)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)


_NO_PASS_WITH_IMAGES = (
    "TECA of rollouts with images can only be read off a pass that TRL itself makes over them: choose "
    "gradient_accumulation_steps that is no multiple of steps_per_generation * num_iterations, or use_vllm=True with "
    "vllm_importance_sampling_correction=True, and mask_truncated_completions=False"
)

_construction = threading.RLock()


class _NoAdapterIsRefused:
    """Stands for PEFT's adapter class in TRL's check that no adapter is on the head: its own head would ignore one."""


def _prepare_fsdp(model, accelerator):
    """TRL's prepare_fsdp, for the reference, once every process has its weights.

    With cpu_ram_efficient_loading one process per node reads them and the others hold zeros. accelerate hands the
    policy's weights on when it shards it; the reference would be sharded out of zeros.
    """
    if accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        for tensor in (*model.parameters(), *model.buffers()):
            sent = tensor.detach().to(accelerator.device)
            torch.distributed.broadcast(sent, src=0)
            tensor.data.copy_(sent)
    return prepare_fsdp(model, accelerator)


@contextmanager
def _cer_head() -> Iterator[None]:
    """While TRL constructs a trainer, three names of its module stand for ours.

    `add_fused_lm_head` is called once per model at the one point where it belongs: after TRL has chosen, wrapped and
    cast the models, before FSDP or DeepSpeed take them. Patching afterwards would be too late for the reference.
    """
    ours = {"add_fused_lm_head": add_fused_lm_head, "prepare_fsdp": _prepare_fsdp}
    if is_peft_available():
        ours["BaseTunerLayer"] = _NoAdapterIsRefused
    with _construction:
        theirs = {name: getattr(grpo_trainer, name) for name in ours}
        try:
            for name, value in ours.items():
                setattr(grpo_trainer, name, value)
            yield
        finally:
            for name, value in theirs.items():
                setattr(grpo_trainer, name, value)
