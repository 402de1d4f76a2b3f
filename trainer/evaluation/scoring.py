"""Entropies of given responses, teacher-forced, in memory that does not grow with the vocabulary times the length.

In: a causal LM, (prompt, response) token ids. Out: for response token i the entropy, in nats, of

    softmax(z / T),   z = softcap * tanh(logit_scale * (h W^T + b) / softcap),   h the hidden state before token i

The sequence goes through the body in chunks with a key/value cache, so activations are those of one chunk; each chunk's
hidden states go to cer_ext.linear_logprobs_and_entropy, whose workspace is bounded. Only the cache grows with
the length. The plain way holds logits (L, V), their float32 log-softmax and a product of both: 30 GB for
16384 tokens of a vocabulary of 151936.

Sequences of a batch are padded on the right, where a causal model never looks, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cer_ext import linear_logprobs_and_entropy
from trainer.lm_head import active_head, add_fused_lm_head, backbone, head_operands, logit_transform

DEFAULT_CHUNK_TOKENS = 2048


class Scorer:
    """Scores responses with one model.

    Args:
        model: causal language model of transformers in evaluation mode, bare or with LoRA by PEFT.
        temperature: what the logits are divided by.
        chunk_tokens: tokens that go through the body at once, over all sequences of a batch.
        workspace_bytes: of the head's logits; None: cer_ext's default.

    Raises:
        ValueError: the model's logits are not those of the equation above, or its adapter is none that can be served.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        workspace_bytes: int | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}: expected a number > 0")
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {chunk_tokens}: expected at least 1")
        peft_config = getattr(model, "peft_config", {})
        for name, config in peft_config.items():
            if config.is_prompt_learning:
                raise ValueError(
                    f"adapter {name!r} is {config.peft_type}: virtual tokens cannot be scored; merge or use LoRA"
                )
        self.causal_lm = model.get_base_model() if peft_config else model
        add_fused_lm_head(self.causal_lm)  # compares the head's equation with the model's own logits
        self.temperature, self.chunk_tokens, self.workspace_bytes = temperature, chunk_tokens, workspace_bytes
        self.logit_scale, self.softcap = logit_transform(self.causal_lm.config.get_text_config())

    @torch.inference_mode()
    def entropies(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """One entropy per response token of each (prompt, response); no prompt may be empty."""
        for prompt, response in sequences:
            if len(prompt) == 0 and len(response):
                raise ValueError("a response without a prompt: its first token follows nothing, so has no distribution")
        device = self.causal_lm.device
        longest = max((len(prompt) + len(response) - 1 for prompt, response in sequences), default=0)
        if longest <= 0:
            return [[] for _ in sequences]
        inputs = torch.zeros((len(sequences), longest), dtype=torch.long)  # (B, L): all but the last token
        target = torch.full((len(sequences), longest), -1)  # (B, L): the token after it, -1 outside the response
        for row, (prompt, response) in enumerate(sequences):
            ids = torch.tensor([*prompt, *response])
            inputs[row, : len(ids) - 1] = ids[:-1]
            target[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
        inputs, target = inputs.to(device), target.to(device)

        cache = DynamicCache(config=self.causal_lm.config)
        width = max(1, self.chunk_tokens // len(sequences))
        scored = torch.zeros((len(sequences), longest), device=device)  # (B, L)
        for start in range(0, longest, width):
            chunk = slice(start, min(start + width, longest))
            hidden = backbone(self.causal_lm)(
                input_ids=inputs[:, chunk],
                position_ids=torch.arange(chunk.start, chunk.stop, device=device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state  # (B, W, D)
            wanted = target[:, chunk] >= 0
            if bool(wanted.any()):
                scored[:, chunk][wanted] = self._head(hidden[wanted], target[:, chunk][wanted])
        rows = scored.tolist()
        return [
            row[len(prompt) - 1 : len(prompt) - 1 + len(response)] if len(response) else []
            for row, (prompt, response) in zip(rows, sequences, strict=True)
        ]

    def _head(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Hidden states (N, D) and the tokens that follow (N,) -> entropies (N,)."""
        head = active_head(self.causal_lm.get_output_embeddings())
        hidden, weight, bias = head_operands(head, hidden)
        _, entropy = linear_logprobs_and_entropy(
            hidden,
            weight,
            target,
            bias,
            temperature=self.temperature,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            workspace_bytes=self.workspace_bytes,
        )
        return entropy.float()
