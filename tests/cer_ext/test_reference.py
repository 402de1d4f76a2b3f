"""cer_ext.reference against 50-digit arithmetic: the definition the kernels are held to must itself be right."""

import pytest
import torch
from exact import assert_relative, exact_row
from regimes import regimes

from cer_ext import reference


@pytest.mark.parametrize("name", regimes(11))
@pytest.mark.parametrize("transform", [{}, {"temperature": 0.6}, {"scale": 0.25, "softcap": 30.0, "temperature": 1.5}])
def test_reference_matches_50_digits(name, transform):
    logits, target = regimes(11)[name]
    upstream = (0.7, -1.3, 0.4)
    rows = [exact_row(x.tolist(), int(t), upstream=upstream, **transform) for x, t in zip(logits, target, strict=True)]
    logits.requires_grad_()
    options = {"logit_scale" if k == "scale" else k: v for k, v in transform.items()}
    outputs = reference.logprobs_and_entropy(logits, target, return_lse=True, **options)
    for output, field in zip(outputs, ("logprob", "entropy", "lse"), strict=True):
        # float64 near zero: an absolute error of a few ulps of 1, relative 1e-8 at H = 1e-8.
        exact = torch.tensor([getattr(row, field) for row in rows], dtype=torch.float64)
        assert_relative(output, exact, 1e-12, field, atol=3e-15)
    if all(torch.isfinite(output).all() for output in outputs):
        (gradient,) = torch.autograd.grad(sum(g * x.sum() for g, x in zip(upstream, outputs, strict=True)), logits)
        exact = torch.tensor([row.dlogits for row in rows], dtype=torch.float64)
        assert_relative(gradient, exact, 1e-10, "dlogits", atol=3e-15)


def test_reference_gradients_pass_gradcheck():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 6, -100], [3, 3, 1]])

    def f(hidden, weight, bias):
        return reference.linear_logprobs_and_entropy(
            hidden, weight, target, bias, temperature=0.8, softcap=4.0, logit_scale=0.5, return_lse=True
        )

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


def test_reference_teca_is_the_mean_of_the_entropies_so_far():
    entropy = torch.tensor([[3.0, 1.0, float("nan"), 5.0], [2.0, 2.0, 2.0, 2.0]])
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])
    assert reference.teca(entropy, mask).tolist() == [[3.0, 2.0, 0.0, 3.0], [0.0] * 4]
    assert reference.teca_last(entropy, mask).tolist() == [3.0, 0.0]
    packed = torch.tensor([4.0, 2.0, 7.0])
    cu_seqlens = torch.tensor([0, 2, 2, 3])
    assert reference.teca(packed, cu_seqlens=cu_seqlens).tolist() == [4.0, 3.0, 7.0]
    assert reference.teca_last(packed, cu_seqlens=cu_seqlens).tolist() == [3.0, 0.0, 7.0]


def test_reference_reward_is_the_published_mean_of_both_rewards():
    last = torch.tensor([0.0, 0.25, 3.0, 0.25])
    correct = torch.tensor([True, True, True, False])
    published = torch.where(correct, (1 + (torch.exp(-last) + 1)) / 2, 0.0)
    assert_relative(reference.cer_reward(last, correct), published, 1e-7, "reward")
