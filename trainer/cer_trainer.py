"""CERTrainer: TRL's GRPO trainer with the fused head of cer_ext, and TECA of every rollout for the reward functions.

In: what trl.GRPOTrainer takes. Out: what it gives, and two more keyword arguments to every reward function, one number
per completion, under the policy that is trained and at the sampling temperature:

    teca         (1/|o|) sum_t H_t      mean token entropy of the completion, in nats (TECA at its last token)
    entropy_sum         sum_t H_t       its total, in nats: a mean is diluted by certain tokens, a total is not

over the tokens that the policy wrote (tool results and tokens forced by an early exit don't count). Both also go to
the log and to the table of completions. A completion without any such token has no entropy: NaN, which TRL treats as
"no reward".

Everything else is TRL's: generation, groups, advantages, losses, KL, adapters, logging, checkpoints, distribution.

Where the entropies come from, `teca_source`:

rollout    From decoding: the engine that draws a token knows its distribution, so no further pass is needed. Engines:
           transformers' generate (trainer/sampling/generate_processor.py), vLLM in this process (vllm_generation.py),
           or a rollout_func that returns them. It is the entropy of softmax(z / T) under the weights and the precision
           of that engine. The training forward finds the entropies of the same tokens under the policy; their
           difference is logged (teca/rollout_difference, _max), and a warning given where rounding cannot explain it.
scoring    From a pass of the policy. TRL makes one before the rewards are known (for old_per_token_logps) if its steps
           are misaligned or vLLM's importance correction is on; then the entropies of that pass are taken (in training
           mode, so with dropout if the model has any). Otherwise one more pass without gradient is made, in evaluation
           mode: it draws no random number, so training goes on exactly as in TRL. Never from the pass of the
           reference, which with PEFT runs the same model with another adapter.
auto       rollout where it can be had, else scoring (tools, continuous batching, a server, other rollout_funcs).

TRL's correction for vLLM (vllm_importance_sampling_correction, on by default) asks for the policy's log-probabilities
of every rollout, for which TRL makes a pass. With TECA from decoding nothing else needs that pass; where each batch of
rollouts serves one update the training forward has those log-probabilities, and the correction is computed there
(trainer/sampling/importance_correction.py): the same loss without the pass.

`head_mode` says how often the head's logits are made in training. two_pass: for the values, and again in the backward.
one_pass: once, with the gradient of TRL's loss asked for some tokens at a time (loss_ahead.py, one_pass_head.py): the
same loss, metrics and gradients. Where the loss cannot be known token by token a batch gets two passes, and a line says
why.

With `early_exit` the thinking of a response is ended once its running TECA is low enough
(trainer/sampling/early_exit.py). Forced tokens are masked from the loss, as tool results are.

The TRL privates this rests on are named, with the pinned version, in tests/trainer/test_trl_contract.py.
"""

# TRL's trainer is not typed:
# pyright: reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false
# pyright: reportOptionalIterable=false
# pyright: reportArgumentType=false
# pyright: reportCallIssue=false
# pyright: reportOperatorIssue=false
# pyright: reportUnhashable=false

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.utils import is_peft_available

from cer_ext import teca_last
from trainer.sampling import vllm_support

with vllm_support.trl_version_warnings_quiet():  # CERTrainer says once what was tested
    import trl
    from trl.models import prepare_fsdp
    from trl.trainer import grpo_trainer
    from trl.trainer.utils import pad

from trainer import loss_ahead
from trainer.lm_head import add_fused_lm_head, evaluation_mode, has_auxiliary_loss
from trainer.sampling import batch_images, importance_correction, rollout_entropy, rollout_output
from trainer.sampling.batch_teca import BatchTeca
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.generate_processor import recorded_generate
from trainer.sampling.teca_requests import Decoded

log = logging.getLogger(__name__)

TECA_SOURCES = ("auto", "rollout", "scoring")
HEAD_MODES = ("two_pass", "one_pass")
_REWARD_KEYWORDS = ("teca", "entropy_sum")
_DECODED = "decoded"  # what a rollout_func of ours returns: a teca_requests.Decoded per completion
_ROLLOUT_ENTROPIES = "rollout_entropies"  # (B, C) in the batches of TRL


class CERTrainer(trl.GRPOTrainer):
    """`trl.GRPOTrainer` whose reward functions also receive `teca` and `entropy_sum` (list[float], nats).

    A `rollout_func` that knows the entropies of its own sampling may return them per token, as `decoded`
    (list[teca_requests.Decoded]), or `teca` and `entropy_sum` itself; then no pass is made for them. None counts as
    not returned.

    All arguments of `trl.GRPOTrainer` are taken, and these:

    Args:
        teca_source: "auto", "rollout" or "scoring"; see this file's header.
        early_exit: the rule that ends a response's thinking, or None.
        share_prompts: run a prompt once for all its completions in a micro-batch, where that is less work and the model
            allows it (trainer/shared_prompts.py); otherwise, or if False, every row runs with its own.
        head_mode: "two_pass" or "one_pass"; see this file's header.

    Raises:
        ValueError: at construction, where the model's head can't be served, where the data already has a column of one
            of these names, or where entropies or an early exit are asked of a rollout that cannot give them. In
            training, where what a rollout_func returned is no set of rollouts (trainer/sampling/rollout_output.py).

    Examples:
        >>> def reward(completions, teca, **kwargs):
        ...     return [math.exp(-value) for value in teca]
        >>> trainer = CERTrainer(model, reward, args=GRPOConfig(...), train_dataset=dataset)  # doctest: +SKIP
    """

    def __init__(
        self,
        *args,
        teca_source: str = "auto",
        early_exit: EarlyExit | None = None,
        share_prompts: bool = True,
        head_mode: str = "two_pass",
        **kwargs,
    ):
        for name, value, choices in (("teca_source", teca_source, TECA_SOURCES), ("head_mode", head_mode, HEAD_MODES)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}")
        self.teca_source, self.early_exit, self.share_prompts = teca_source, early_exit, share_prompts
        self.head_mode = head_mode
        # Set before TRL's own construction, which ends in methods overridden here.
        self._rollout_entropy: tuple[list[float], list[float]] | None = None
        self._awaits_old_pass = False
        self._completion_lengths: list[int] | None = None  # of rollouts that wait to be scored with their images
        self._made_trl_score = False
        self._rollout_tool_mask: list[list[int]] | None = None
        self._decoded: list[Decoded] | None = None  # of the rollouts in hand
        self._decoded_step = -1
        self._training_entropies: Tensor | None = None
        self._uncorrected: dict | None = None  # the batch of a loss whose correction is still to be computed
        self._has_warned = False
        self._loss_ahead: loss_ahead.LossAhead | None = None
        self._two_passes_said: set[str] = set()
        with _names_of_ours(self), vllm_support.trl_version_warnings_quiet():
            super().__init__(*args, **kwargs)
        # TRL goes by the configuration, which many models share whose forward has no such loss.
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.aux_loss_enabled = self.aux_loss_enabled and has_auxiliary_loss(model)
        if self.rollout_func is not None:
            self.rollout_func = rollout_output.checked(self.rollout_func)
        self._check_rollouts()
        self._check_columns()

    def _check_rollouts(self) -> None:
        reason = self._no_entropies_from_rollout
        if reason is not None and (self.early_exit is not None or self.teca_source == "rollout"):
            wanted = "early_exit" if self.early_exit is not None else "teca_source='rollout'"
            raise ValueError(f"{wanted} needs a rollout that shows its logits: {reason}")
        if self.early_exit is not None:
            self.early_exit.check_limit(self.args.max_completion_length)

    @property
    def _no_entropies_from_rollout(self) -> str | None:
        """Why the rollout gives no entropies; None if it does, or if only its rollout_func knows."""
        if self.tools:
            return "with tools a completion is generated in several turns"
        if self.rollout_func is not None:
            return None
        if self.use_vllm and self.vllm_mode != "colocate":
            return "TRL's client of a vLLM server hands over none (vllm_mode='colocate' does)"
        if self.use_transformers_continuous_batching:
            return "transformers' continuous batching takes no logits processor"
        return None

    @property
    def _records_rollout(self) -> bool:
        """Whether entropies are recorded while the engine generates."""
        wanted = self.teca_source != "scoring" or self.early_exit is not None
        return wanted and self.rollout_func is None and self._no_entropies_from_rollout is None

    @property
    def _corrects_in_loss(self) -> bool:
        """Whether vLLM's correction is computed from the training forward: its weights are those of the rollout."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return (
            self.use_vllm
            and self.args.vllm_importance_sampling_correction
            and self.args.gradient_accumulation_steps % generate_every == 0
            and self._records_rollout
            and self.teca_source != "scoring"
        )

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

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self._decoded = None
        if not self._records_rollout:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self.use_vllm:
            result = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            self._decoded = self.vllm_generation.take_decoded()
            return result
        teca = BatchTeca(
            prompt_ids,
            temperature=self.temperature,
            limit=self.args.max_completion_length,
            device=self.accelerator.device,
            rule=self.early_exit,
        )
        with recorded_generate(self.accelerator.unwrap_model(self.model_wrapped), teca):
            completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self._decoded = teca.decoded([len(ids) for ids in completion_ids])
        return completion_ids, logprobs

    def _generate(self, prompts: list):
        if not self.tools:  # whose images TRL hands over in another way
            batch_images.require_no_mixture(prompts)
        self._decoded = None
        rollouts = list(super()._generate(prompts))
        prompt_ids, completion_ids, tool_mask, _, _, extra_fields, images, _ = rollouts
        self._decoded = extra_fields.pop(_DECODED, self._decoded)
        if self.early_exit is not None:
            if self._decoded is None:
                raise ValueError("early_exit is set, but rollout_func made none: return 'decoded', see CERTrainer")
            tool_mask = self._masked_with(tool_mask)
            rollouts[2] = tool_mask
        self._rollout_entropy = None
        self._awaits_old_pass = False
        self._rollout_tool_mask = tool_mask
        given = [key for key in _REWARD_KEYWORDS if key in extra_fields]
        if given and len(given) != len(_REWARD_KEYWORDS):
            raise ValueError(f"rollout_func returned {given} only; return {list(_REWARD_KEYWORDS)} or neither")
        given = tuple(extra_fields.pop(key) for key in given)
        if given and self.teca_source != "scoring":
            self._rollout_entropy = given
        elif self._decoded is not None and self.teca_source != "scoring":
            self._keep_decoded_entropy(completion_ids)
        elif self.teca_source == "rollout":
            raise ValueError("teca_source='rollout', but rollout_func returned no entropies; see CERTrainer")
        elif self._scored_by_trl and not self._some_rollout_is_masked(completion_ids):
            self._awaits_old_pass = True
        elif images is not None or (self._is_vlm and self.rollout_func is not None):
            self._await_images(completion_ids)
        else:
            self._score_rollouts(prompt_ids, completion_ids)
        return tuple(rollouts)

    def _masked_with(self, tool_mask: list[list[int]] | None) -> list[list[int]]:
        """TRL's mask of tokens that the policy wrote, without those that the early exit forced; counts the exits."""
        masks = rollout_entropy.written_by_policy(self._decoded, self.early_exit)
        for one, mask in zip(self._decoded, masks, strict=True):
            self._log_metric("early_exit/share", float(one.fired is not None))
            self._log_metric("early_exit/forced_tokens", float(len(mask) - sum(mask)))
        if tool_mask is None:
            return masks
        return [[a & b for a, b in zip(*pair, strict=True)] for pair in zip(tool_mask, masks, strict=True)]

    def _keep_decoded_entropy(self, completion_ids: list[list[int]]) -> None:
        """`teca` and `entropy_sum` from decoding."""
        entropies = [one.entropies for one in self._decoded]
        if [len(row) for row in entropies] != [len(ids) for ids in completion_ids]:
            raise RuntimeError("the rollout gave another number of entropies than of tokens")
        masks = self._rollout_tool_mask or [[1] * len(row) for row in entropies]
        self._rollout_entropy = rollout_entropy.teca_and_sum(entropies, masks)
        self._decoded_step = self.state.global_step

    def _generate_and_score_completions(self, inputs):
        num_iterations = self.num_iterations
        try:
            with self._without_trls_correction():
                output = super()._generate_and_score_completions(batch_images.without_absent_images(inputs))
        finally:
            self.num_iterations, self._completion_lengths = num_iterations, None
        if self._made_trl_score:
            output.pop("old_per_token_logps")
            self._made_trl_score = False
        if self._decoded is not None and self.teca_source != "scoring":
            entropies = [one.entropies for one in self._decoded]
            output[_ROLLOUT_ENTROPIES] = rollout_entropy.padded(
                entropies, output["completion_ids"].size(1), output["completion_ids"].device
            )
        return output

    @contextmanager
    def _without_trls_correction(self) -> Iterator[None]:
        """Meanwhile TRL makes no pass for vLLM's correction, if the loss computes it."""
        given = self.vllm_importance_sampling_correction
        self.vllm_importance_sampling_correction = given and not self._corrects_in_loss
        try:
            yield
        finally:
            self.vllm_importance_sampling_correction = given

    def _compute_loss(self, model, inputs):
        self._training_entropies = None
        self._uncorrected = inputs if self._corrects_in_loss else None
        rollout = inputs.get(_ROLLOUT_ENTROPIES)
        if self.head_mode == "one_pass" and torch.is_grad_enabled():
            self._loss_ahead = self._known_ahead(inputs, rollout)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._loss_ahead = None
        # Later steps on the same rollouts have other weights.
        if rollout is not None and self.state.global_step == self._decoded_step:
            mask = inputs["completion_mask"]
            mask = mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]
            self._compare_entropies(rollout, self._training_entropies, mask)
        self._training_entropies = None
        return loss

    def _known_ahead(self, inputs: dict, entropies: Tensor | None) -> loss_ahead.LossAhead | None:
        """The loss of a batch, token by token; None, and a line that says why, where it needs two passes."""
        reason = loss_ahead.why_two_passes(self, inputs, entropies, corrects=self._corrects_in_loss)
        if reason is None:
            corrected = functools.partial(self._corrected, inputs) if self._corrects_in_loss else None
            return loss_ahead.LossAhead(self, inputs, entropies, corrected, self._loss_was_another)
        if reason not in self._two_passes_said:
            self._two_passes_said.add(reason)
            self._say_two_passes(reason)
        return None

    def _loss_was_another(self, tokens: int, of: int) -> None:
        if tokens > loss_ahead.MISSED_AT_MOST * of and self.head_mode == "one_pass":
            self.head_mode = "two_pass"
            self._say_two_passes(f"the gradient of {tokens} of {of} tokens is not what TRL's loss has for them alone")

    def _say_two_passes(self, reason: str) -> None:
        if self.accelerator.is_main_process:
            log.warning("head_mode one_pass: the head makes two passes, because %s", reason)

    def _corrected(self, inputs: dict, logps: Tensor) -> dict:
        """The batch of a loss whose log-probabilities (B, C) are known now, with vLLM's correction."""
        mask = inputs["completion_mask"]
        mask = mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]
        ratio = importance_correction.weights(
            logps,
            inputs["sampling_per_token_logps"],
            mask,
            mode=self.vllm_importance_sampling_mode,
            low=self.vllm_importance_sampling_clip_min,
            high=self.vllm_importance_sampling_clip_max,
        )
        return {**inputs, "importance_sampling_ratio": ratio}

    def _correct(self, inputs: dict, logps: Tensor) -> None:
        """Put vLLM's correction into the batch of a loss; log it."""
        inputs.update(self._corrected(inputs, logps))
        sampled, ratio = inputs["sampling_per_token_logps"], inputs["importance_sampling_ratio"]
        mask = inputs["completion_mask"]
        mask = mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]
        values = importance_correction.measurements(logps, sampled, mask, ratio)
        values = self.accelerator.gather(values[None])  # (processes, 5)
        reduced = [values[:, 0].mean(), values[:, 1].max(), values[:, 2].min(), values[:, 3].mean(), values[:, 4].max()]
        mode = "train" if self.model.training else "eval"
        for name, value in zip(importance_correction.MEASUREMENT_NAMES, reduced, strict=True):
            self._metrics[mode][name].append(value.item())

    def _compare_entropies(self, rollout: Tensor, training: Tensor, mask: Tensor) -> None:
        """Log how far the entropies from decoding are from the training forward's; warn if rounding can't be why."""
        values = torch.stack(rollout_entropy.differences(rollout, training, mask))
        values = self.accelerator.gather(values[None])  # (processes, 2)
        mean, largest = values[:, 0].mean().item(), values[:, 1].max().item()
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["teca/rollout_difference"].append(mean)
        self._metrics[mode]["teca/rollout_difference_max"].append(largest)
        dtypes = [torch.bfloat16] if self.args.bf16 or self.args.fp16 else [p.dtype for p in self.model.parameters()]
        limit = rollout_entropy.bound(dtypes)
        if mean > limit and not self._has_warned and self.accelerator.is_main_process:
            self._has_warned = True
            log.warning(
                "entropies from decoding differ from the training forward's by %.3g nats a token in the mean (at most "
                "%.3g; rounding explains %.3g): TECA is that of the distribution that was sampled from. Dropout, a "
                "penalty, quantised weights or key/value cache, or stale weights can be why; --teca_source scoring "
                "takes TECA from the policy",
                mean,
                largest,
                limit,
            )

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

    def _await_images(self, completion_ids: list[list[int]]) -> None:
        """Have the rollouts scored with their images, once TRL has prepared those: at its first pass.

        Where TRL would make none, its steps are reported as misaligned (no number of accumulation steps is a multiple
        of more than itself). TRL then uses our pass as its own; what it keeps of it is dropped.
        """
        self._completion_lengths = [len(ids) for ids in completion_ids]
        self._made_trl_score = not self._scored_by_trl
        if self._made_trl_score:
            self.num_iterations = self.args.gradient_accumulation_steps + 1

    def _score_with_images(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args, **kwargs):
        """A pass of the policy over rollouts as TRL hands them over, those that it hides as truncated included."""
        lengths = torch.tensor(self._completion_lengths, device=input_ids.device)
        self._completion_lengths = None
        mask = torch.arange(logits_to_keep, device=input_ids.device) < lengths[:, None]  # (B, C)
        attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], mask.to(attention_mask.dtype)], dim=1)
        with evaluation_mode(self.model):
            result = super()._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, logits_to_keep, *args, **{**kwargs, "compute_entropy": True}
            )
        self._keep_rollout_entropy(result[1], mask)
        return result

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # TRL's first pass after `_generate` is the policy's, if it makes one; the reference's comes after it.
        is_old_pass, self._awaits_old_pass = self._awaits_old_pass, False
        with_images = self._completion_lengths is not None
        if (is_old_pass or with_images) and model is not self.model:
            raise RuntimeError("TRL scored the rollouts under another model than the policy before their rewards")
        if with_images:
            result = self._score_with_images(input_ids, attention_mask, logits_to_keep, *args, **kwargs)
            if self._made_trl_score:
                return result
        if is_old_pass:
            kwargs["compute_entropy"] = True
        if self._loss_ahead is not None:
            model = functools.partial(model, loss_ahead=self._loss_ahead)
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if is_old_pass:
            self._keep_rollout_entropy(result[1], attention_mask[:, -logits_to_keep:])
        self._training_entropies = result[1]
        uncorrected, self._uncorrected = self._uncorrected, None
        if uncorrected is not None:
            self._correct(uncorrected, result[0])
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
def _names_of_ours(trainer: CERTrainer) -> Iterator[None]:
    """While TRL constructs a trainer, some names of its module stand for ours.

    `add_fused_lm_head` is called once per model at the one point where it belongs: after TRL has chosen, wrapped and
    cast the models, before FSDP or DeepSpeed take them. Patching afterwards would be too late for the reference.
    `VLLMGeneration` is where TRL starts vLLM.
    """
    fused_head = functools.partial(add_fused_lm_head, share_prompts=trainer.share_prompts)
    ours = {"add_fused_lm_head": fused_head, "prepare_fsdp": _prepare_fsdp}
    if is_peft_available():
        ours["BaseTunerLayer"] = _NoAdapterIsRefused
    ours["VLLMGeneration"] = lambda *args, **kwargs: _vllm_generation(trainer, *args, **kwargs)
    with _construction:
        theirs = {name: getattr(grpo_trainer, name) for name in ours}
        try:
            for name, value in ours.items():
                setattr(grpo_trainer, name, value)
            yield
        finally:
            for name, value in theirs.items():
                setattr(grpo_trainer, name, value)


def _vllm_generation(trainer: CERTrainer, *args, **kwargs):
    """TRL's VLLMGeneration that also records entropies and makes early exits."""
    from trainer.sampling.vllm_generation import RecordingVLLMGeneration  # imports vLLM

    return RecordingVLLMGeneration(*args, records=trainer._records_rollout, rule=trainer.early_exit, **kwargs)
