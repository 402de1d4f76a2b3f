"""linear_logprobs_and_entropy, backward: gradients of hidden, weight and bias against float64, and what is left out."""

import pytest
import torch
from exact import assert_relative
from test_from_hidden import LOW, head, smallest_workspace

from cer_ext import linear_logprobs_and_entropy, linear_token_loss, reference, tiles

UPSTREAM = {
    "logprobs": (0.7, None, None),
    "entropy": (None, -1.3, None),
    "lse": (None, None, 0.4),
    "all": (0.7, -1.3, 0.4),
}


def gradients(function, hidden, weight, bias, target, upstream, needed=(True, True, True), **options):
    inputs = [x.detach().clone().requires_grad_(need) for x, need in zip((hidden, weight, bias), needed, strict=True)]
    outputs = function(inputs[0], inputs[1], target, inputs[2], return_lse=True, **options)
    used = [(torch.full_like(x, g), x) for g, x in zip(upstream, outputs, strict=True) if g is not None]
    torch.autograd.backward([x for _, x in used], [g for g, _ in used])
    return tuple(x.grad for x in inputs)


def check(actual, expected, rtol, what):
    """Each gradient to `rtol` of its own largest entry: entries are sums whose terms cancel."""
    for a, e, name in zip(actual, expected, ("grad_hidden", "grad_weight", "grad_bias"), strict=True):
        if a is not None:
            assert_relative(a, e, rtol, f"{what} {name}", atol=rtol * float(e.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("small_tiles", [False, True])
def test_gradients_match_float64(device, small_tiles, upstream, dtype):
    arguments = head(device, dtype=dtype)
    arguments[3][5] = -100
    workspace = {"workspace_bytes": smallest_workspace(24, dtype, device)} if small_tiles else {}
    options = {"temperature": 0.8, "softcap": 20.0, "logit_scale": 0.5}
    actual = gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM[upstream], **options, **workspace)
    doubles = (*(x.double() for x in arguments[:3]), arguments[3])
    expected = gradients(reference.linear_logprobs_and_entropy, *doubles, UPSTREAM[upstream], **options)
    check(actual, expected, 1e-12 if dtype == torch.float64 else 2e-6, upstream)
    assert all(a.dtype == dtype for a in actual)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("small_tiles", [False, True])
def test_low_precision_gradients_accumulate_in_float32_and_round_once(device, small_tiles, dtype):
    arguments = head(device, rows=200, dtype=dtype, scale=0.25)
    workspace = {"workspace_bytes": smallest_workspace(24, dtype, device)} if small_tiles else {}
    actual = gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM["all"], **workspace)
    doubles = (*(x.double() for x in arguments[:3]), arguments[3])
    expected = gradients(reference.linear_logprobs_and_entropy, *doubles, UPSTREAM["all"])
    # On CUDA dlogits are low-precision operands of the GEMM as well: their roundings average out over 200 rows.
    half_ulp = torch.finfo(dtype).eps / 2
    check(actual, expected, 1.05 * half_ulp if device.type == "cpu" else 4 * half_ulp, str(dtype))
    assert all(a.dtype == dtype for a in actual)


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_needed_gradients_are_made_and_are_the_same(device, needed):
    arguments = head(device)
    everything = gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM["all"])
    some = gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM["all"], needed=needed)
    for a, b, need in zip(some, everything, needed, strict=True):
        assert (a is not None) == need
        if need:
            assert torch.equal(a, b)


def multiplications(monkeypatch):
    """Records the (rows, inner, cols) of every GEMM."""
    seen = []
    multiply = tiles.Matrices.multiply

    def record(self, a, b, out, *, accumulate):
        seen.append((a.shape[0], a.shape[1], b.shape[1]))
        return multiply(self, a, b, out, accumulate=accumulate)

    monkeypatch.setattr(tiles.Matrices, "multiply", record)
    return seen


def test_a_frozen_weight_costs_no_weight_gradient(device, monkeypatch):
    arguments = head(device)
    seen = multiplications(monkeypatch)
    gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM["all"], needed=(True, False, False))
    assert seen == [(13, 24, 300), (13, 24, 300), (13, 300, 24)]  # forward; recomputation, grad_hidden
    seen.clear()
    gradients(linear_logprobs_and_entropy, *arguments, UPSTREAM["all"], needed=(True, True, False))
    assert seen[2:] == [(13, 300, 24), (300, 13, 24)]


def test_without_upstream_gradients_nothing_runs(device, monkeypatch):
    hidden, weight, _, target = head(device)
    hidden.requires_grad_()
    seen = multiplications(monkeypatch)
    linear_logprobs_and_entropy(hidden, weight, target)
    seen.clear()
    (hidden.sum()).backward()
    assert seen == []


def test_rows_without_a_gradient_are_left_out_of_the_gemms_on_cpu(monkeypatch):
    hidden, weight, bias, target = head(torch.device("cpu"))
    hidden.requires_grad_()
    weight.requires_grad_()
    target[2] = -100
    upstream = torch.zeros(13)
    upstream[[1, 2, 7]] = torch.tensor([1.0, 5.0, -2.0])
    seen = multiplications(monkeypatch)
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, bias)
    assert seen == [(12, 24, 300)]
    seen.clear()
    torch.autograd.backward((logprobs, entropy), (upstream, torch.zeros(13)))
    assert seen == [(2, 24, 300), (2, 300, 24), (300, 2, 24)]
    grads = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logprobs, _ = reference.linear_logprobs_and_entropy(hidden, weight, target, bias)
    logprobs.backward(upstream)
    assert_relative(grads[0], hidden.grad, 2e-6, "grad_hidden", atol=2e-6)
    assert_relative(grads[1], weight.grad, 2e-6, "grad_weight", atol=2e-6)
    assert (grads[0][[0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]] == 0).all()


def test_a_row_with_a_zero_gradient_may_hold_anything(device):
    """Exactly left out: NaN times zero is nowhere formed, in hidden's gradient nor in the weight's."""
    hidden, weight, bias, target = head(device)
    hidden[4] = torch.nan
    hidden.requires_grad_()
    weight.requires_grad_()
    upstream = torch.ones(13, device=device)
    upstream[4] = 0.0
    linear_logprobs_and_entropy(hidden, weight, target, bias)[0].backward(upstream)
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_near_one_hot_gradients_keep_their_digits_through_the_gemm(device):
    """hidden = identity rows: grad_hidden is dlogits @ weight with one column that dominates; H is about 1e-7."""
    vocabulary = 120
    weight = torch.zeros(vocabulary, 2, device=device)
    weight[:, 0] = torch.linspace(-1, 0, vocabulary, device=device).float()
    weight[17, 0] = 18.0
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.5]], device=device)
    target = torch.tensor([17, 17], device=device)
    bias = torch.zeros(vocabulary, device=device)
    for upstream in UPSTREAM.values():
        actual = gradients(linear_logprobs_and_entropy, hidden, weight, bias, target, upstream)
        expected = gradients(
            reference.linear_logprobs_and_entropy, hidden.double(), weight.double(), bias.double(), target, upstream
        )
        assert_relative(actual[2], expected[2], 2e-5, "grad_bias (dlogits summed)", atol=1e-30)


def test_tied_weights_accumulate_both_gradients(device):
    """Embedding and head share one tensor, as in small language models."""
    _, weight, _, target = head(device, vocabulary=50)
    tokens = torch.arange(13, device=device) % 50
    results = []
    for function, w in (
        (linear_logprobs_and_entropy, weight),
        (reference.linear_logprobs_and_entropy, weight.double()),
    ):
        w = w.detach().clone().requires_grad_()
        logprobs, entropy = function(torch.tanh(w[tokens]), w, target % 50)
        (logprobs.sum() + entropy.sum()).backward()
        results.append(w.grad)
    assert_relative(results[0], results[1], 2e-6, "tied weight", atol=2e-6)


def test_autocast_gradients_arrive_in_the_parameters_dtype(device):
    hidden, weight, _, target = head(device)
    results = []
    for function in (linear_logprobs_and_entropy, None):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            if function is None:
                logits = torch.nn.functional.linear(h, w)
                logprobs = torch.log_softmax(logits.float(), -1).gather(1, target[:, None])[:, 0]
            else:
                logprobs, _ = function(h, w, target)
        logprobs.sum().backward()
        results.append((h.grad, w.grad))
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert_relative(ours, plain, 0.1, "gradient", atol=0.05 * float(plain.abs().max()))


def test_gradients_do_not_depend_on_strides(device):
    hidden, weight, bias, target = head(device)
    expected = gradients(linear_logprobs_and_entropy, hidden, weight, bias, target, UPSTREAM["all"])
    h = torch.cat([hidden, hidden], 1).requires_grad_()
    w = weight.T.contiguous().requires_grad_()
    b = bias.clone().requires_grad_()
    outputs = linear_logprobs_and_entropy(h[:, 24:], w.T, target, b, return_lse=True)
    torch.autograd.backward(outputs, [torch.full_like(x, g) for g, x in zip(UPSTREAM["all"], outputs, strict=True)])
    check((h.grad[:, 24:], w.grad.T, b.grad), expected, 1e-6, "strided")


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("held", [torch.nan, torch.inf])
def test_hidden_states_of_rows_without_a_gradient_reach_no_gradient(device, one_pass, held):
    """Padding may hold anything: zero times NaN is NaN, so such rows are kept out of the products."""
    hidden, weight, _, target = head(device)
    target[3] = -100
    upstream = torch.linspace(-1, 1, 13, device=device)
    upstream[7] = 0.0
    results = []
    for clean in (True, False):
        inputs = hidden.clone(), weight.clone()
        if not clean:
            inputs[0][[3, 7]] = held
        for x in inputs:
            x.requires_grad_()
        if one_pass:
            loss = linear_token_loss(
                *inputs, target, lambda lp, h, rows: torch.where(upstream[rows] != 0, upstream[rows] * lp, 0.0).sum()
            ).loss
        else:
            logprobs, _ = linear_logprobs_and_entropy(*inputs, target)
            loss = torch.where(upstream != 0, upstream * logprobs, 0.0).sum()
        loss.backward()
        results.append([x.grad for x in inputs])
    for dirty, right in zip(results[1], results[0], strict=True):
        assert torch.equal(dirty, right)
