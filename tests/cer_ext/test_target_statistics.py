"""Several targets a row, target logits, top-1 and top-k of a linear head: against float64, and what they leave out."""

import pytest
import torch
from exact import assert_relative
from regimes import regimes
from test_from_hidden import LOW, head, smallest_workspace
from test_from_hidden_gradients import check as check_gradients
from test_from_hidden_gradients import multiplications

from cer_ext import (
    linear_logprobs_and_entropy,
    linear_target_statistics,
    linear_topk_logprobs,
    logprobs_and_entropy,
    reference,
    target_statistics,
)

OPTIONS = [{}, {"temperature": 0.8, "softcap": 20.0, "logit_scale": 0.5}, {"logit_scale": -1.0}]
DIFFERENTIABLE = ("logprobs", "logits", "entropy", "lse")


def targets_of(target, k, vocabulary):
    """(N, K): the row's target, others, one of them twice; one ignored, and one row of nothing else."""
    offsets = torch.tensor([0, 7, 7, 150, vocabulary - 1, 64, 1], device=target.device)[:k]
    several = (target[:, None] + offsets) % vocabulary
    several[2, -1] = -100
    several[5] = -100
    return several


def doubles(arguments):
    return [x.double() if x is not None and x.is_floating_point() else x for x in arguments]


def check(*arguments, rtol=1e-5, **options):
    actual = linear_target_statistics(*arguments, **options)
    expected = reference.linear_target_statistics(*doubles(arguments), **options)
    for a, e, what in zip(actual, expected, actual._fields, strict=True):
        assert a.shape == e.shape
        if what == "is_top1":
            assert torch.equal(a, e)
        else:
            assert_relative(a, e, rtol, what, atol=1e-6 if what in ("lse", "logits") else 1e-14)
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, *LOW, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("small_tiles", [False, True])
def test_statistics_match_float64(device, dtype, options, small_tiles):
    hidden, weight, bias, target = head(device, dtype=dtype, scale=0.5)
    workspace = {"workspace_bytes": smallest_workspace(24, dtype, device)} if small_tiles else {}
    for k in (1, 5, 7):
        check(hidden, weight, targets_of(target, k, 300), bias, **options, **workspace)
    check(hidden, weight, target, **options, **workspace)


@pytest.mark.parametrize(("name", "rows"), [(n, r) for n, r in regimes(257).items() if r[0].isfinite().all()])
def test_every_regime_matches_float64(name, rows):
    """The logits are the hidden states: the weight is the identity, and its product exact."""
    logits, target = rows
    several = torch.stack([target, (target + 1) % 257, logits.argmax(1)], 1)
    check(logits.float(), torch.eye(257), several)
    found = linear_topk_logprobs(logits.float(), torch.eye(257), 5)
    expected = torch.log_softmax(logits, 1).topk(5, dim=1)
    assert_relative(found.logprobs, expected.values, 1e-5, name, atol=1e-14)


def test_holes_of_minus_infinity_have_no_probability_and_poison_nothing():
    hidden, weight, bias, target = head(torch.device("cpu"))
    bias[::2] = -torch.inf
    several = torch.stack([target // 2 * 2, target // 2 * 2 + 1], 1)
    found = check(hidden, weight, several, bias)
    assert (found.logprobs[:, 0] == -torch.inf).all()
    inputs = [x.clone().requires_grad_() for x in (hidden, weight)]
    found = linear_target_statistics(*inputs, several, bias)
    (found.logprobs[:, 1].sum() + found.entropy.sum()).backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    top = linear_topk_logprobs(hidden, weight, 151, bias)
    assert (top.logprobs[:, 149].isfinite() & (top.logprobs[:, 150] == -torch.inf)).all()


def gradients(function, arguments, target, upstream, **options):
    inputs = [x.detach().clone().requires_grad_() for x in arguments]
    outputs = function(inputs[0], inputs[1], target, inputs[2], **options)
    found = dict(zip(("logprobs", "logits", "is_top1", "entropy", "lse"), outputs, strict=True))
    loss = sum((weights.to(found[name]) * found[name]).sum() for name, weights in upstream.items())
    loss.backward()
    return tuple(x.grad for x in inputs)


@pytest.mark.parametrize("names", [*((name,) for name in DIFFERENTIABLE), DIFFERENTIABLE], ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("small_tiles", [False, True])
def test_gradients_match_float64(device, names, dtype, small_tiles):
    *arguments, target = head(device, dtype=dtype, scale=0.5)
    several = targets_of(target, 6, 300)
    generator = torch.Generator().manual_seed(1)
    upstream = {
        name: torch.randn(several.shape if name in ("logprobs", "logits") else target.shape, generator=generator)
        for name in names
    }
    upstream = {name: grad.to(device) for name, grad in upstream.items()}
    workspace = {"workspace_bytes": smallest_workspace(24, dtype, device)} if small_tiles else {}
    actual = gradients(linear_target_statistics, arguments, several, upstream, **OPTIONS[1], **workspace)
    expected = gradients(reference.linear_target_statistics, doubles(arguments), several, upstream, **OPTIONS[1])
    check_gradients(actual, expected, 1e-12 if dtype == torch.float64 else 3e-6, " ".join(names))


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision_gradients_match_float64(device, dtype):
    *arguments, target = head(device, rows=60, dtype=dtype, scale=0.25)
    several = targets_of(target, 4, 300)
    upstream = {"logprobs": torch.linspace(-1, 1, several.numel(), device=device).view(several.shape)}
    actual = gradients(linear_target_statistics, arguments, several, upstream)
    expected = gradients(reference.linear_target_statistics, doubles(arguments), several, upstream)
    check_gradients(actual, expected, 4 * torch.finfo(dtype).eps / 2, str(dtype))


@pytest.mark.parametrize("gap", [10.0, 20.0, 25.0])
def test_gradients_of_nearly_certain_targets_keep_their_digits(gap):
    """1 - p is 1e-9 here: as a difference of float32 it would be 0. Three targets, the certain one twice."""
    logits = torch.linspace(-0.01, 0.01, 64).repeat(3, 1)
    logits[:, 20] = gap
    several = torch.tensor([[20, 20, 3], [20, -100, -100], [5, 20, 6]])
    upstream = torch.tensor([[1.0, 2.0, 0.0], [1.0, 5.0, 5.0], [0.0, 1.0, 0.0]])

    def grad(function, x):
        x = x.clone().requires_grad_()
        (upstream.to(x) * function(x, torch.eye(64, dtype=x.dtype), several)[0]).sum().backward()
        return x.grad

    actual = grad(linear_target_statistics, logits)
    expected = grad(reference.linear_target_statistics, logits.double())
    assert_relative(actual, expected, 1e-5, "grad_hidden", atol=1e-30)


def test_one_target_of_shape_k_is_the_single_target(device):
    hidden, weight, bias, target = head(device)
    target[4] = -100
    single = linear_logprobs_and_entropy(hidden, weight, target, bias, return_lse=True)
    several = linear_logprobs_and_entropy(hidden, weight, target[:, None], bias, return_lse=True)
    assert several[0].shape == (13, 1)
    assert_relative(several[0][:, 0], single[0], 1e-6, "logprobs", atol=1e-7)
    assert torch.equal(several[1], single[1])
    assert torch.equal(several[2], single[2])
    assert linear_logprobs_and_entropy(hidden, weight, target[:, None], return_entropy=False)[1] is None


@pytest.mark.parametrize("k", [1, 4, 70, 300])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("small_tiles", [False, True])
def test_topk_is_that_of_all_logits(device, k, options, small_tiles):
    hidden, weight, bias, _ = head(device, scale=0.37)
    workspace = {"workspace_bytes": smallest_workspace(24, torch.float32, device)} if small_tiles else {}
    found = linear_topk_logprobs(hidden, weight, k, bias, **options, **workspace)
    every = torch.arange(300, device=device).expand(13, 300)
    logp, *_, entropy, _ = reference.linear_target_statistics(*doubles((hidden, weight, every, bias)), **options)
    assert_relative(found.logprobs, logp.topk(k, dim=1).values, 1e-5, "logprobs", atol=1e-6)
    assert_relative(logp.gather(1, found.indices), found.logprobs, 1e-5, "at the indices", atol=1e-6)
    assert all(row.unique().numel() == k for row in found.indices)
    assert_relative(found.entropy, entropy, 1e-5, "entropy")


def test_topk_gradients_are_those_of_its_indices(device):
    *arguments, _ = head(device, dtype=torch.float64)

    def grads(function):
        inputs = [x.clone().requires_grad_() for x in arguments]
        logprobs, indices, entropy = function(*inputs)
        (torch.softmax(logprobs.detach() * 0.5, -1) * logprobs).sum().add(0.3 * entropy.sum()).backward()
        assert not indices.requires_grad
        return [x.grad for x in inputs]

    indices = linear_topk_logprobs(arguments[0], arguments[1], 9, arguments[2]).indices

    def of_these(hidden, weight, bias):
        found = reference.linear_target_statistics(hidden, weight, indices, bias)
        return found[0], indices, found[3]

    actual = grads(lambda hidden, weight, bias: linear_topk_logprobs(hidden, weight, 9, bias))
    check_gradients(actual, grads(of_these), 1e-12, "top-k")


def test_more_targets_cost_no_product_and_dead_rows_none(monkeypatch):
    hidden, weight, _, target = head(torch.device("cpu"))
    several = targets_of(target, 7, 300)
    hidden[5] = torch.nan  # ignored
    seen = multiplications(monkeypatch)
    inputs = [x.requires_grad_() for x in (hidden, weight)]
    found = linear_target_statistics(*inputs, several)
    assert seen == [(12, 24, 300)]
    found.logprobs[[1, 7]].sum().backward()
    assert seen[1:] == [(2, 24, 300), (2, 300, 24), (300, 2, 24)]
    assert all(x.grad.isfinite().all() for x in inputs)


def test_gradcheck(device):
    *arguments, target = head(device, rows=5, vocabulary=70, width=4, dtype=torch.float64, scale=0.25)
    several = targets_of(target.repeat(2)[:6], 3, 70)[:5]
    inputs = [x.requires_grad_() for x in arguments]

    def outputs(hidden, weight, bias):
        found = linear_target_statistics(hidden, weight, several, bias, temperature=0.7, softcap=5.0)
        return tuple(getattr(found, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(outputs, inputs)
    assert torch.autograd.gradcheck(lambda h, w, b: linear_topk_logprobs(h, w, 2, b).logprobs, inputs)
    (first,) = torch.autograd.grad(outputs(*inputs)[0].sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        first.sum().backward()


def test_opcheck():
    hidden, weight, bias, target = head(torch.device("cpu"), rows=4, vocabulary=40, width=3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    scalars = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    several = torch.stack([target, (target + 3) % 40], 1)
    several[1, 0] = -100
    several[2] = -100
    for chosen, k in ((several, 0), (None, 3)):
        arguments = (*inputs, chosen, k, None, scalars, -100, 0, True)
        torch.library.opcheck(torch.ops.cer_ext.hidden_targets_forward.default, arguments)


def test_compiled_code_has_one_graph_and_gives_the_same():
    *arguments, target = head(torch.device("cpu"), dtype=torch.float64)
    several = targets_of(target, 3, 300)

    def step(hidden, weight, bias):
        found = linear_target_statistics(hidden, weight, several, bias, temperature=0.9)
        top = linear_topk_logprobs(hidden, weight, 4, bias)
        return found.logprobs.sum() + found.entropy.sum() + (found.is_top1 * 1.0).sum() + top.logprobs.sum()

    def run(function):
        inputs = [x.clone().requires_grad_() for x in arguments]
        loss = function(*inputs)
        loss.backward()
        return (loss, *(x.grad for x in inputs))

    for a, b in zip(run(torch.compile(step, fullgraph=True)), run(step), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_shapes_without_rows_and_leading_dimensions(device):
    hidden, weight, _, target = head(device, rows=12)
    found = check(hidden.view(3, 4, 24), weight, target.view(3, 4, 1).repeat(1, 1, 2))
    assert found.logprobs.shape == (3, 4, 2)
    assert found.entropy.shape == (3, 4)
    check(hidden[0], weight, target[:3])  # one row, (K,)
    empty = linear_target_statistics(hidden[:0], weight, target[:0, None].expand(0, 3))
    assert empty.logprobs.shape == (0, 3)
    assert linear_topk_logprobs(hidden[:0], weight, 2).indices.shape == (0, 2)
    x = hidden.clone().requires_grad_()
    linear_target_statistics(x, weight, torch.full((12, 2), -100, device=device)).logprobs.sum().backward()
    assert (x.grad == 0).all()


def test_bad_arguments_are_named():
    hidden, weight, _, target = head(torch.device("cpu"))
    several = target[:, None].repeat(1, 2)
    several[3, 1] = 300
    with pytest.raises(ValueError, match="target: expected 0 <= target < 300"):
        linear_target_statistics(hidden, weight, several)
    unchecked = linear_target_statistics(hidden, weight, several, validate=False)
    assert unchecked.logprobs[3, 1].isnan()
    assert unchecked.entropy[3].isnan()
    assert unchecked.entropy[2].isfinite()
    with pytest.raises(ValueError, match="several a row, K >= 1"):
        linear_logprobs_and_entropy(hidden, weight, target[:, None].expand(13, 0))
    for k in (0, 301):
        with pytest.raises(ValueError, match="k: expected 1 <= k <= 300"):
            linear_topk_logprobs(hidden, weight, k)
    with pytest.raises(ValueError, match="logit_scale: expected a number that is not 0"):
        linear_topk_logprobs(hidden, weight, 2, logit_scale=0.0)


# ------------------------------------------------------------------------------------------- from logits that exist


def from_logits(function=target_statistics):
    """`function` of logits, under the signature of linear_target_statistics, for the identity as weight."""
    return lambda hidden, weight, target, bias=None, **options: function(hidden, target, **options)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_statistics_and_gradients_of_logits_match_float64(device, dtype, options):
    _, logits, _, target = head(device, vocabulary=13, width=257, dtype=dtype)
    several = targets_of(target % 257, 6, 257)
    eye = torch.eye(257, device=device, dtype=torch.float64)
    expected = reference.linear_target_statistics(logits.double(), eye, several, **options)
    found = target_statistics(logits, several, **options)
    for a, e, what in zip(found, expected, found._fields, strict=True):
        if what == "is_top1":
            assert torch.equal(a, e)
        else:
            assert_relative(a, e, 1e-5, what, atol=1e-6 if what in ("lse", "logits") else 1e-14)
    assert torch.equal(logprobs_and_entropy(logits, several, **options)[0], found.logprobs)

    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(x.shape, generator=generator).to(device) for x in (found[0], found[1], found[3], found[4])]

    def grad(function, x):
        x = x.clone().requires_grad_()
        outputs = function(x, eye.to(x.dtype), several, **options)
        kept = [outputs[i] for i in (0, 1, 3, 4)]
        return torch.autograd.grad(kept, x, [g.to(o) for g, o in zip(upstream, kept, strict=True)])[0]

    rtol = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 1.05 * torch.finfo(dtype).eps / 2)
    exact = grad(reference.linear_target_statistics, logits.double())
    assert_relative(grad(from_logits(), logits), exact, rtol, "dlogits", atol=rtol * 1e-2 * float(exact.abs().max()))


@pytest.mark.parametrize(("name", "rows"), regimes(257).items())
def test_every_regime_of_logits_matches_float64(name, rows):
    logits, target = rows
    several = torch.stack([target, (target + 1) % 257, logits.argmax(1)], 1)
    found = target_statistics(logits.float(), several)
    z = logits.float().double()
    log_p = torch.log_softmax(z, 1)
    assert_relative(found.logprobs, log_p.gather(1, several), 1e-5, name, atol=1e-14)
    assert torch.equal(found.is_top1, z.gather(1, several) == z.amax(1, keepdim=True))
    assert torch.equal(found.entropy, logprobs_and_entropy(logits.float(), target)[1])


def test_logits_of_any_layout_ignored_rows_and_a_valid_ignore_index():
    logits = torch.randn(3, 5, 41, generator=torch.Generator().manual_seed(3)).double()[:, 1:]
    several = torch.arange(24).view(3, 4, 2) % 41
    several[1, 2] = 0  # ignored below: a row, and a token of the vocabulary
    inputs = logits.clone()
    inputs[1, 2] = torch.nan
    x = inputs.requires_grad_()
    found = target_statistics(x[:, :], several, ignore_index=0)
    assert (found.logprobs[1, 2] == 0).all()
    assert found.entropy[1, 2] == 0
    (found.logprobs.sum() + found.entropy.sum() + found.lse.sum()).backward()
    assert (x.grad[1, 2] == 0).all()
    assert x.grad.isfinite().all()
    assert_relative(
        x.grad.sum(-1)[0], torch.ones(4).double(), 1e-9, "entropy and logprobs do not see a shift, lse does"
    )


def test_logits_gradcheck_opcheck_and_compile():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()
    several = torch.tensor([[1, 1, 3], [0, -100, 8], [-100, -100, -100], [4, 5, 6]])

    def outputs(x):
        found = target_statistics(x, several, temperature=0.7, softcap=5.0)
        return tuple(getattr(found, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(outputs, [logits])
    scalars = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    operator = torch.ops.cer_ext.logits_targets_forward.default
    torch.library.opcheck(operator, (logits, several, None, scalars, -100, True))
    compiled = torch.compile(outputs, fullgraph=True)
    for a, b in zip(compiled(logits), outputs(logits), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    with pytest.raises(ValueError, match="inplace_backward: expected one target a row, got several"):
        logprobs_and_entropy(logits * 1, several, inplace_backward=True)
