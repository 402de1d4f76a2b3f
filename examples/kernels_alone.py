"""The kernels alone: log-probabilities, entropies, TECA and the CER reward from hidden states. Any machine, a second.

    python examples/kernels_alone.py

A language model ends in a head: logits = hidden @ weight.T, one number per token of the vocabulary. For two responses
of 512 tokens over a vocabulary of 151936 that is 622 MB in float32, and plain torch makes several copies. `cer_ext`
makes the logits tile by tile, keeps a few numbers per token, and makes the tiles again for the gradients.
"""

from __future__ import annotations

import torch

from cer_ext import build_info, cer_reward, linear_logprobs_and_entropy, teca


def main() -> dict[str, torch.Tensor]:
    print(build_info(), "\n")  # which kernels were built, and which will be used here

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    responses, length, width, vocabulary = 2, 8, 64, 5000  # (B, L, D, V); small, so that plain torch can check us
    hidden = torch.randn(responses, length, width, device=device, requires_grad=True)  # what the model's body gives
    weight = torch.randn(vocabulary, width, device=device)  # the head
    tokens = torch.randint(vocabulary, (responses, length), device=device)  # what was sampled

    # The second response has 5 tokens; the rest is padding. Targets of -100 cost nothing and give 0.
    mask = torch.arange(length, device=device) < torch.tensor([[8], [5]], device=device)
    targets = tokens.where(mask, -100)

    # One pass over the head. Both results are float32, (B, L), and differentiable.
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, targets, temperature=4.0)

    # TECA: the mean of the entropies so far, at every token. Its last value says how much the response explored.
    so_far = teca(entropy.detach(), mask)
    last = so_far.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    reward = cer_reward(last, torch.tensor([True, False], device=device))  # the first answer is right, the second wrong
    print("token entropy (nats):", entropy[0].tolist())
    print("TECA:                ", so_far[0].tolist())
    print("reward:              ", reward.tolist(), "= 1 + exp(-TECA)/2 where right, else 0\n")

    # Any loss of the two goes backward; here REINFORCE. The (B, L, V) logits never exist, forward or backward.
    loss = -(logprobs * (reward - reward.mean()).unsqueeze(1)).sum()
    loss.backward()

    # The same in plain torch, which holds the logits and their softmax.
    everything = ((hidden @ weight.T) / 4.0).log_softmax(-1)  # (B, L, V)
    theirs = -(everything.exp() * everything).sum(-1)
    difference = (entropy - theirs)[mask].abs().max()
    print(f"largest difference of an entropy from plain torch: {difference.item():.1e}")
    return {"entropy": entropy, "plain": theirs, "mask": mask, "reward": reward, "gradient": hidden.grad}


if __name__ == "__main__":
    main()
