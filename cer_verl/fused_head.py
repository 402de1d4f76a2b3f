"""The fused head of cer_ext in the place of verl's FusedLinearForPPO.

In: hidden states, the weight of the head, the next tokens, a temperature. Out: their log-probabilities and entropies,
float32, with gradients to hidden states and weight.

    p = softmax(h W^T / T)        logprob = log p[token]        entropy = -sum p log p

verl's forwards (dense_common.py and those of the vision models) look the class up in its module in every call, so
setting one name replaces it for every model they serve. It is used where verl would use its own:

    actor_rollout_ref.model.use_fused_kernels=True
    actor_rollout_ref.model.fused_kernel_options.impl_backend=torch      verl's default

and leaves `liger` and `triton` to verl. What it does better than the class it replaces: entropies are folded in
float32 and not rounded to bfloat16; a frozen head (LoRA) costs no weight gradient; tokens without a gradient are left
out of the backward; a head that FSDP2 sharded is gathered (an untied one: verl puts it into a group of its own, where
its own class fails). What it does not do: a temperature per sample, logit scales, softcaps, biases and LoRA adapters on
the head itself. verl's forwards do not hand them over, so no fused backend of verl has them.
"""

from __future__ import annotations

import verl.utils.experimental.torch_functional as verl_functional
from torch import Tensor

from cer_ext import linear_logprobs_and_entropy
from trainer.unsharded import whole_weight


class FusedLinearForPPO(verl_functional.FusedLinearForPPO):
    """verl's module with our head as its backend `torch`; see the head of this file."""

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities and entropies, like `input_ids`, float32, nats.

        Args:
            hidden_states: (..., D).
            vocab_weights: (V, D), a tensor, or an FSDP2 parameter outside of its group's forward.
            input_ids: (...) the tokens to score, already shifted: token i belongs to hidden state i.
            temperature: what the logits are divided by.
        """
        if self.impl_backend != "torch":
            return super().forward(hidden_states, vocab_weights, input_ids, temperature)
        weight = whole_weight(vocab_weights, hidden_states.dtype, hidden_states.device)
        return linear_logprobs_and_entropy(hidden_states, weight, input_ids.long(), temperature=temperature)


def install() -> None:
    """Puts the class into verl's module; a second call changes nothing."""
    verl_functional.FusedLinearForPPO = FusedLinearForPPO
