"""logprobs_and_entropy, backward: dlogits against float64 and 50 digits, for each output alone and all together."""

import pytest
import torch
from exact import assert_relative, exact_row
from regimes import poisoned, regimes

from cer_ext import logprobs_and_entropy, reference

UPSTREAM = {
    "logprobs": (0.7, None, None),
    "entropy": (None, -1.3, None),
    "lse": (None, None, 0.4),
    "logprobs and entropy": (0.7, -1.3, None),
    "all": (0.7, -1.3, 0.4),
}


def gradient(function, logits, target, upstream, **options):
    logits = logits.detach().clone().requires_grad_()
    outputs = function(logits, target, return_lse=True, **options)
    used = [(g * torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape), x)
            for g, x in zip(upstream, outputs, strict=True) if g is not None]  # fmt: skip
    (result,) = torch.autograd.grad([x for _, x in used], logits, [g for g, _ in used])
    return result


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 2, 17, 1025])
def test_dlogits_match_float64_in_every_regime(device, vocabulary, dtype, upstream):
    for name, (logits, target) in regimes(vocabulary).items():
        if upstream != "entropy" and "target at one" in name:
            continue  # the logprob there is -inf: its gradient is compared below
        logits, target = logits.to(device, dtype), target.to(device)
        for options in ({}, {"temperature": 0.7, "logit_scale": 0.5, "softcap": 25.0}):
            actual = gradient(logprobs_and_entropy, logits, target, UPSTREAM[upstream], **options)
            expected = gradient(reference.logprobs_and_entropy, logits.double(), target, UPSTREAM[upstream], **options)
            # Entries where log p + H crosses zero are compared on the scale of their row.
            assert_relative(actual, expected, 1e-5, f"{name} {options} dlogits", atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_dlogits_round_once(device, dtype):
    for name, (logits, target) in regimes(333).items():
        if "target at one" in name:
            continue
        logits, target = logits.to(device, dtype), target.to(device)
        actual = gradient(logprobs_and_entropy, logits, target, UPSTREAM["all"])
        expected = gradient(reference.logprobs_and_entropy, logits.double(), target, UPSTREAM["all"])
        half_ulp = torch.finfo(dtype).eps / 2
        assert actual.dtype == dtype
        assert_relative(actual, expected, 1.01 * half_ulp, name, atol=2e-7)


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("gap", [12.0, 18.0, 24.0])
def test_near_one_hot_dlogits_match_50_digits_relatively(device, gap, upstream):
    """Where 1 - p is 1e-9, the gradient of the logit that wins is as small, and has its digits all the same."""
    values = 0.25 * torch.arange(-8, 8).float()
    values[5] = gap
    for shift in (0.0, 1000.0):
        logits = values + shift
        for target in (5, 0):
            weights = tuple(0.0 if g is None else g for g in UPSTREAM[upstream])
            expected = torch.tensor([exact_row(logits.tolist(), target, upstream=weights).dlogits]).double()
            actual = gradient(
                logprobs_and_entropy, logits[None].to(device), torch.tensor([target], device=device), UPSTREAM[upstream]
            )
            assert_relative(actual, expected, 1e-5, f"gap {gap} shift {shift} target {target} dlogits")


def test_minus_infinity_gets_an_exactly_zero_gradient(device):
    logits, target = (x.to(device) for x in regimes(20)["half -inf"])
    dlogits = gradient(logprobs_and_entropy, logits.float(), target, UPSTREAM["all"])
    assert (dlogits[:, ::2][logits[:, ::2] == -torch.inf] == 0).all()
    assert dlogits.isfinite().all()


def test_ignored_rows_get_exactly_zero_gradients(device):
    for logits in poisoned(70).values():
        target = torch.tensor([-100, -100], device=device)
        assert (gradient(logprobs_and_entropy, logits.to(device).float(), target, UPSTREAM["all"]) == 0).all()


def test_rows_with_zero_upstream_gradients_get_exactly_zero_gradients(device):
    logits = torch.cat([*poisoned(70).values(), torch.randn(1, 70, dtype=torch.float64)]).float().to(device)
    logits.requires_grad_()
    target = torch.zeros(len(logits), dtype=torch.long, device=device)
    upstream = torch.zeros(len(logits), device=device)
    upstream[-1] = 1.0
    logprobs, entropy = logprobs_and_entropy(logits, target)
    (dlogits,) = torch.autograd.grad((logprobs, entropy), logits, (upstream, torch.zeros_like(upstream)))
    assert (dlogits[:-1] == 0).all()
    assert dlogits[-1].abs().sum() > 0


def test_rows_without_a_distribution_get_nan_gradients(device):
    for name, logits in poisoned(70).items():
        target = torch.zeros(2, dtype=torch.long, device=device)
        assert gradient(logprobs_and_entropy, logits.to(device).float(), target, UPSTREAM["all"]).isnan().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dlogits_do_not_depend_on_strides(device, dtype):
    base = torch.randn(3, 6, 40, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    for view in (lambda x: x[:, :-1], lambda x: x[..., 3:], lambda x: x.transpose(0, 1), lambda x: x.transpose(1, 2)):
        a = base.clone().requires_grad_()
        b = base.clone().requires_grad_()
        logits = view(a)
        target = torch.arange(logits.shape[:-1].numel(), device=device).view(logits.shape[:-1]) % logits.shape[-1]
        torch.cat([x.flatten() for x in logprobs_and_entropy(logits, target)]).sum().backward()
        torch.cat([x.flatten() for x in logprobs_and_entropy(view(b).contiguous(), target)]).sum().backward()
        assert torch.equal(a.grad, b.grad)


def test_expanded_logits_gather_the_gradients_of_all_their_rows(device):
    row = torch.randn(1, 50, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([3, 4, 3], device=device)
    ours = logprobs_and_entropy(row.expand(3, 50), target)
    theirs = reference.logprobs_and_entropy(row.expand(3, 50), target)
    (a,) = torch.autograd.grad(ours[0].sum() + ours[1].sum(), row)
    (b,) = torch.autograd.grad(theirs[0].sum() + theirs[1].sum(), row)
    assert_relative(a, b, 1e-12, "gradient", atol=1e-14)


def test_upstream_gradients_of_any_stride_are_read_right(device):
    logits = torch.randn(4, 9, dtype=torch.float64, device=device)
    target = torch.arange(4, device=device)
    results = []
    for make in (lambda g: g, lambda g: torch.stack([g, g], 1)[:, 1], lambda g: g[:1].expand(4)):
        x = logits.clone().requires_grad_()
        logprobs_and_entropy(x, target)[0].backward(make(torch.full((4,), 0.3, dtype=torch.float64, device=device)))
        results.append(x.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_dlogits_do_not_depend_on_the_number_of_threads():
    logits, target = regimes(20011)["peaked"]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradient(logprobs_and_entropy, logits.float(), target, UPSTREAM["all"]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
