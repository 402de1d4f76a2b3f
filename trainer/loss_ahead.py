"""TRL's loss before it is there: its gradient for tokens whose log-probability and entropy have just been made.

In: a GRPO trainer and a batch of its. Out: a prediction for trainer/one_pass_head.py: from logprobs (n,) and entropy
(n,) of some completion tokens, the gradient of the loss with respect to them.

No formula of a loss is written here. TRL's own _compute_loss is asked, for some tokens at a time, on a stand-in for the
trainer: the same attributes, but the model's pass answers with the rows in hand, nothing is logged, and no other
process is waited for. Where the loss is a sum over tokens (every loss type with importance ratios at token level, KL,
clipping, entropy bonus, importance correction of vLLM, masks that are known) the derivative of a token does not depend
on the others, so it is right whatever stands in their place. What stands there is the best guess at hand: those folded
before, and log-probabilities from before the update or from the engine that sampled.

    old_per_token_logps absent    ratios are x / x = 1 for every token and sequence, whatever the guess: also GSPO
                                  and VESPO are predicted exactly
    off-policy mask               the mean over a sequence, compared with a threshold: right unless the guess is off
                                  by as much as the sequence is far from the threshold
    top_entropy_quantile          needs every entropy of the batch first: those recorded while decoding, where they
                                  are (teca_source), else two passes

The true loss is computed by TRL as ever, after the pass, with its metrics. Tokens whose gradient is another one
are made up for there (one_pass_head.py), so a wrong guess costs time only; where many are, the run goes back to two
passes.
"""

# TRL's trainer is not typed:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from trainer.lm_head import carries_lora

MISSED_AT_MOST = 0.25  # of the tokens with a gradient: a missed one costs three GEMMs, a hit saves one

_GUESSES = ("old_per_token_logps", "sampling_per_token_logps")  # what log-probabilities will be, before they are made


def why_two_passes(
    trainer: GRPOTrainer, inputs: dict[str, Any], entropies: Tensor | None, corrects: bool
) -> str | None:
    """What keeps the loss on this batch from being known token by token; None if nothing does.

    `entropies` (B, C): of the completions, from decoding, or None. `corrects`: vLLM's correction is computed from the
    log-probabilities of this pass.
    """
    if getattr(trainer.args, "torch_compile", False):
        return "torch_compile would compile the model's forward anew for every batch"
    if carries_lora(_base(trainer)):
        return "the low-rank part of a head with LoRA is multiplied in two passes"
    if trainer.top_entropy_quantile < 1.0 and entropies is None:
        return "top_entropy_quantile needs the entropies of all tokens first, and none were recorded while decoding"
    if corrects and trainer.vllm_importance_sampling_mode.startswith("sequence"):
        return f"vllm_importance_sampling_mode={trainer.vllm_importance_sampling_mode!r} weighs a token by its sequence"
    if inputs.get("old_per_token_logps") is None and not (corrects and trainer.loss_type == "vespo"):
        return None
    if trainer.importance_sampling_level != "token":
        return f"importance_sampling_level={trainer.importance_sampling_level!r} makes one ratio out of many tokens"
    if trainer.loss_type == "vespo":
        return "loss_type='vespo' weighs a token by its whole sequence"
    return None


def _base(trainer: GRPOTrainer) -> PreTrainedModel:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if hasattr(model, "peft_config") else model


class LossAhead:
    """The gradient of a trainer's loss on one batch, some of its tokens at a time, in the order of completion_mask.

    Args:
        trainer: whose loss it is.
        inputs: what its `_compute_loss` gets.
        entropies: (B, C), from decoding; needed where top_entropy_quantile < 1.
        corrected: from log-probabilities (B, C) the batch with vLLM's correction, where this pass makes it; or None.
        missed: called with (rows, of) where the true gradient was another one.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        inputs: dict[str, Any],
        entropies: Tensor | None,
        corrected: Callable[[Tensor], dict[str, Any]] | None,
        missed: Callable[[int, int], None],
    ) -> None:
        self._corrected = (lambda logps: inputs) if corrected is None else corrected
        self.missed = missed
        mask = inputs["completion_mask"]
        self._places = mask.bool().view(-1).nonzero().view(-1)  # of the scored tokens among the (B * C)
        guess = next((inputs[name] for name in _GUESSES if inputs.get(name) is not None), None)
        self._logps = (
            torch.zeros(mask.shape, device=mask.device) if guess is None else guess.detach().nan_to_num(nan=0.0)
        )
        self._entropies = torch.zeros(mask.shape, device=mask.device)
        high_entropy = None
        if trainer.top_entropy_quantile < 1.0:
            assert entropies is not None
            written = mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]
            high_entropy = trainer.get_high_entropy_mask(entropies, written, 1 - trainer.top_entropy_quantile)
        self._trainer = _stand_in(trainer, high_entropy)

    def __call__(self, logprobs: Tensor, entropy: Tensor, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        places = self._places[rows]
        dtype, device = logprobs.dtype, self._logps.device
        with torch.enable_grad():
            leaves = [x.detach().to(device).requires_grad_() for x in (logprobs, entropy)]
            known = [x.to(dtype).view(-1) for x in (self._logps, self._entropies)]
            # (B, C), as TRL gets them from the model
            full = [k.index_put((places,), x).view_as(self._logps) for k, x in zip(known, leaves, strict=True)]
            self._trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (*full, None)
            inputs = self._corrected(full[0].detach())
            loss = GRPOTrainer._compute_loss(self._trainer, self._trainer.model, inputs)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        self._logps, self._entropies = (x.detach() for x in full)
        return found[0], found[1]


def _stand_in(trainer: GRPOTrainer, high_entropy: Tensor | None) -> GRPOTrainer:
    """An object with the trainer's attributes, on which `_compute_loss` leaves no trace."""
    other = object.__new__(type(trainer))
    vars(other).update(vars(trainer))
    other.accelerator = _Alone(trainer.accelerator.num_processes)
    other._metrics = defaultdict(lambda: defaultdict(list))
    other.aux_loss_enabled = False  # the router's, of the model's body
    other.get_high_entropy_mask = lambda *args: high_entropy
    return other


class _Alone:
    """What `_compute_loss` asks of an accelerator, without the other processes.

    Gathers and reductions are for metrics, which nobody reads here: zeros on the CPU, so that no device is waited for.
    """

    sync_gradients = False  # the adaptive entropy coefficient moves at the true loss

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes  # a factor of some losses

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor, device="cpu")

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return torch.zeros_like(tensor, device="cpu")
