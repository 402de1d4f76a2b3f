"""Under torch.autocast every operation gives the numbers that it gives outside for operands cast by hand.

Our products keep float32 sums: autocast, which rounds the results of torch's own, must not reach them.
"""

import pytest
import torch
from exact import assert_relative
from test_from_hidden import head

from cer_ext import (
    cer_reward,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
    teca,
    teca_last,
)


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def low(request):
    return request.param


def one_pass(hidden, weight, target, bias, advantages):
    def loss_fn(logprobs, entropy, rows):
        return (advantages[rows] * (logprobs + 0.3 * entropy**2)).sum()

    return linear_token_loss(hidden, weight, target, loss_fn, bias).loss


def two_passes(hidden, weight, target, bias, advantages):
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, bias)
    return (advantages * (logprobs + 0.3 * entropy**2)).sum()


def step(function, operands, target, advantages, device, low, autocast, trained):
    """Loss and gradients; the backward pass runs under autocast too."""
    inputs = [x.detach().clone().requires_grad_(need) for x, need in zip(operands, trained, strict=True)]
    with torch.autocast(device.type, dtype=low, enabled=autocast):
        loss = function(inputs[0], inputs[1], target, inputs[2], advantages)
        loss.backward()
    return [loss, *(x.grad for x, need in zip(inputs, trained, strict=True) if need)]


@pytest.mark.parametrize("given", ["float32", "low"])
@pytest.mark.parametrize("trained", [(True, False, False), (True, True, True)], ids=["frozen", "trained"])
@pytest.mark.parametrize("function", [one_pass, two_passes])
def test_heads_with_and_without_rows_that_have_no_gradient(device, low, function, trained, given):
    *operands, target = head(device)
    if given == "low":
        operands = [x.to(low) for x in operands]
    target[5] = -100
    full = torch.linspace(-1, 1, 13, device=device)
    for advantages in (full, torch.where(torch.arange(13, device=device) % 2 == 0, full, 0.0)):
        inside = step(function, operands, target, advantages, device, low, True, trained)
        by_hand = [x.to(low) for x in operands]
        outside = step(function, by_hand, target, advantages, device, low, False, trained)
        for i, (ours, right) in enumerate(zip(inside, outside, strict=True)):
            assert ours.dtype == (torch.float32 if i == 0 else operands[i - 1].dtype)
            # Rounded once to the dtype that was cast to: by us outside, by autocast's own cast inside.
            assert_relative(ours, right.to(ours.dtype), 0.01 if i else 1e-6, f"result {i}", atol=1e-6)


def test_float64_heads_are_not_cast(device, low):
    hidden, weight, _, target = head(device, dtype=torch.float64)
    with torch.autocast(device.type, dtype=low):
        inside = linear_logprobs_and_entropy(hidden, weight, target)
    for a, b in zip(inside, linear_logprobs_and_entropy(hidden, weight, target), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_logits_are_taken_as_they_are(device, low, inplace_backward):
    hidden, weight, _, target = head(device)
    results = []
    for autocast in (True, False):
        logits = (hidden @ weight.T).requires_grad_()
        with torch.autocast(device.type, dtype=low, enabled=autocast):
            outputs = logprobs_and_entropy(logits * 1.0, target, return_lse=True, inplace_backward=inplace_backward)
            sum(x.sum() for x in outputs).backward()
        results.append((*outputs, logits.grad))
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_teca_and_reward_stay_in_float32(device, low):
    entropy = torch.rand(3, 7, device=device, generator=torch.Generator(device).manual_seed(0))
    mask = torch.arange(7, device=device) < torch.tensor([[7], [3], [0]], device=device)
    correct = torch.tensor([True, True, False], device=device)
    results = []
    for autocast in (True, False):
        leaf = entropy.clone().requires_grad_()
        with torch.autocast(device.type, dtype=low, enabled=autocast):
            averages, last = teca(leaf, mask), teca_last(leaf, mask)
            reward = cer_reward(last, correct)
            (averages.sum() + reward.sum()).backward()
        results.append((averages, last, reward, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
