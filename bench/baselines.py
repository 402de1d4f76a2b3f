"""What we are compared with, each once: the same inputs in, (logprobs, entropy) out.

Every function is one peer's own code, called the way its users call it; nothing here is ours. The physical limits,
which no implementation can beat, stand at the end.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from trl.kernels import chunked_logprob as trl_kernels

Outputs = tuple[torch.Tensor, torch.Tensor | None]


# From logits (N, V) -------------------------------------------------------------------------------------------------
def plain_torch(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    """log_softmax, gather, entropy, in float32: what most trainers write."""
    logp = torch.log_softmax(logits.float(), -1)
    return logp.gather(-1, target[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


compiled_torch = torch.compile(plain_torch, dynamic=False)


def trl_fold(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    """TRL's fold of a logits tile into running statistics, and what its function makes of them."""
    n, vocabulary = logits.shape
    m = torch.full((n,), float("-inf"), device=logits.device)
    s, xs, unused, target_logit = (torch.zeros(n, device=logits.device) for _ in range(4))
    fold = trl_kernels._forward_kernel[(n,)] if trl_kernels._use_triton(logits.device) else trl_kernels._forward_tile
    fold(
        *(logits, logits.stride(0), target, m, s, xs, unused, unused, unused, target_logit, 0, vocabulary),
        *(1.0, 1.0, 1.0),  # logit_scale, softcap, inverse temperature
        HAS_SOFTCAP=False,
        HAS_ENTROPY=True,
        HAS_LOG_SUM_SQ_PROBS=False,
        HAS_MEAN_LOGITS=False,
        HAS_IS_TOP1=False,
        BLOCK_SIZE=trl_kernels._BLOCK_SIZE,
    )
    log_z = m + s.log()
    return target_logit - log_z, log_z - xs / s


def trl_grad(
    logits: torch.Tensor, target: torch.Tensor, log_z: torch.Tensor, entropy: torch.Tensor, grads: Outputs
) -> torch.Tensor:
    """TRL's backward of one tile: the logits become their gradient, in place."""
    n, vocabulary = logits.shape
    block = trl_kernels._BLOCK_SIZE
    grid = (n, -(-vocabulary // block))
    grad = trl_kernels._backward_kernel[grid] if trl_kernels._use_triton(logits.device) else trl_kernels._backward_tile
    grad(
        *(logits, logits.stride(0), target, log_z, entropy, *grads, 0, vocabulary, 1.0, 1.0, 1.0),
        HAS_SOFTCAP=False,
        HAS_LOGPROB_GRAD=True,
        HAS_ENTROPY_GRAD=True,
        BLOCK_SIZE=block,
    )
    return logits


FROM_LOGITS: dict[str, Callable[..., Outputs]] = {
    "plain torch": plain_torch,
    "torch.compile": compiled_torch,
    "trl fold": trl_fold,
}


# From hidden (N, D) and weight (V, D) ---------------------------------------------------------------------------------
def plain_torch_head(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return plain_torch(hidden @ weight.T, target)


compiled_torch_head = torch.compile(plain_torch_head, dynamic=False)


def trl_head(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    """The function behind TRL's fused head, with the chunk size its trainers use."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = trl_kernels.ChunkedLogProbFunction.apply(
        hidden, weight, None, target, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",)
    )
    return outputs[0], outputs[1]


def torch_linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    """torch's own chunked head. It has no entropy: it does less than the others."""
    options = torch.nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options), None


FROM_HIDDEN: dict[str, Callable[..., Outputs]] = {
    "plain torch": plain_torch_head,
    "torch.compile": compiled_torch_head,
    "trl function": trl_head,
}
if hasattr(F, "linear_cross_entropy"):  # torch >= 2.12
    FROM_HIDDEN["torch linear_cross_entropy (no entropy)"] = torch_linear_cross_entropy


# TECA of (B, L) -------------------------------------------------------------------------------------------------------
def plain_torch_teca(entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    counts = mask.cumsum(-1).clamp(min=1)
    return (entropy * mask).cumsum(-1) / counts * mask


# Physical limits --------------------------------------------------------------------------------------------------
def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes (but for an odd rest) as int32, which torch streams at the speed of memory whatever the dtype."""
    flat, in_a_word = tensor.view(-1), max(1, 4 // tensor.element_size())
    return flat[: flat.numel() // in_a_word * in_a_word].view(torch.int32)


def read_once(words: torch.Tensor) -> torch.Tensor:
    """Every byte read, none written."""
    return words.max()


def rewrite_in_place(words: torch.Tensor) -> torch.Tensor:
    """Every byte read and written."""
    return words.bitwise_xor_(1)
