"""linear_token_loss: the loss and gradients of the two-pass way, in one pass, and what it refuses."""

import pytest
import torch
from exact import assert_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from test_from_hidden import LOW, head
from test_from_hidden_gradients import check, multiplications

from cer_ext import linear_logprobs_and_entropy, linear_token_loss, reference, tile_plan


def policy_loss(advantages, old_logprobs=None):
    """A clipped policy gradient with an entropy bonus: nonlinear in both, a sum over tokens."""

    def loss_fn(logprobs, entropy, rows):
        taken = advantages[rows].to(logprobs)
        old = logprobs.detach() - 0.1 if old_logprobs is None else old_logprobs[rows].to(logprobs)
        ratio = torch.exp(logprobs - old)
        surrogate = torch.minimum(ratio * taken, ratio.clamp(0.8, 1.15) * taken)
        return -(surrogate + 0.01 * taken * entropy**2).sum()

    return loss_fn


def one_pass(hidden, weight, bias, target, loss_fn, needed=(True, True, True), scale=1.0, **options):
    inputs = [x.detach().clone().requires_grad_(need) for x, need in zip((hidden, weight, bias), needed, strict=True)]
    result = linear_token_loss(inputs[0], inputs[1], target, loss_fn, inputs[2], **options)
    (scale * result.loss).backward()
    return result, tuple(x.grad for x in inputs)


def two_passes(hidden, weight, bias, target, loss_fn, scale=1.0, function=None, **options):
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    function = function or reference.linear_logprobs_and_entropy
    logprobs, entropy = function(inputs[0], inputs[1], target, inputs[2], **options)
    loss = loss_fn(logprobs.flatten(), entropy.flatten(), slice(0, target.numel()))
    (scale * loss).backward()
    return (loss, logprobs, entropy), tuple(x.grad for x in inputs)


def workspace(rows, dtype=torch.float32, vocabulary=300, width=24, device=None):
    """Enough for `rows` rows of the vocabulary and no more."""
    size = 8 if dtype == torch.float64 else 4
    upcast = dtype in LOW and (device is None or device.type == "cpu")
    return rows * vocabulary * (size + 2 * (dtype in LOW and not upcast)) + vocabulary * width * size * upcast


def doubles(arguments):
    return (*(x.double() for x in arguments[:3]), arguments[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows_at_a_time", [1, 5, None])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "softcap": 20.0, "logit_scale": 0.5}], ids=str)
def test_loss_and_gradients_match_float64(device, options, rows_at_a_time, dtype):
    arguments = head(device, dtype=dtype, scale=0.5)
    arguments[3][5] = -100
    loss_fn = policy_loss(torch.linspace(-1, 1, 13, device=device))
    small = {} if rows_at_a_time is None else {"workspace_bytes": workspace(rows_at_a_time, dtype)}
    actual, gradients = one_pass(*arguments, loss_fn, **options, **small)
    expected, right = two_passes(*doubles(arguments), loss_fn, **options)
    rtol = 1e-12 if dtype == torch.float64 else 4e-6
    check(gradients, right, rtol, str(options))
    for a, e, what in zip(actual, expected, ("loss", "logprobs", "entropy"), strict=True):
        assert a.dtype == dtype
        assert_relative(a, e, rtol, what, atol=rtol if what == "loss" else 1e-14)  # the loss is a sum that cancels


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("rows_at_a_time", [7, None])
def test_low_precision_gradients_round_once_after_the_upstream_factor(device, rows_at_a_time, dtype):
    arguments = head(device, rows=200, dtype=dtype, scale=0.25)
    loss_fn = policy_loss(torch.linspace(-1, 1, 200, device=device))
    small = {} if rows_at_a_time is None else {"workspace_bytes": workspace(rows_at_a_time, dtype, device=device)}
    _, gradients = one_pass(*arguments, loss_fn, scale=0.3, **small)
    _, right = two_passes(*doubles(arguments), loss_fn, scale=0.3)
    half_ulp = torch.finfo(dtype).eps / 2
    check(gradients, right, 1.05 * half_ulp if device.type == "cpu" else 4 * half_ulp, str(dtype))
    assert all(gradient.dtype == dtype for gradient in gradients)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12),
    vocabulary=st.sampled_from([1, 2, 63, 300, 2049, 4500]),
    at_a_time=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_pattern_of_rows(rows, vocabulary, at_a_time, seed):
    """Ignored rows, rows without a gradient, temperatures per row: as the two-pass way, whatever the row tiles."""
    generator = torch.Generator().manual_seed(seed)
    arguments = head(torch.device("cpu"), rows, vocabulary, width=5, scale=0.5, seed=seed)
    arguments[3][torch.rand(rows, generator=generator) < 0.3] = -100
    advantages = torch.randn(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.6)
    options = {"temperature": 0.5 + torch.rand(rows, generator=generator)}
    small = {"workspace_bytes": workspace(at_a_time, vocabulary=vocabulary)}
    (loss, *outputs), gradients = one_pass(*arguments, policy_loss(advantages), **options, **small)
    (right_loss, *right_outputs), right = two_passes(*doubles(arguments), policy_loss(advantages), **options)
    for a, e, name in zip(gradients, right, ("grad_hidden", "grad_weight", "grad_bias"), strict=True):
        assert_relative(a, e.float(), 1e-5, name, atol=1e-6 + 1e-5 * float(e.abs().max()))
    for a, e in zip(outputs, right_outputs, strict=True):
        assert_relative(a, e, 1e-5, "output", atol=1e-6)
    assert_relative(loss, right_loss, 1e-5, "loss", atol=1e-5)


def test_the_loss_function_sees_every_row_once_and_in_order(device):
    hidden, weight, bias, target = head(device)
    target[[0, 3, 4, 5, 12]] = -100
    whole, _ = linear_logprobs_and_entropy(hidden, weight, target, bias)
    seen = []

    def loss_fn(logprobs, entropy, rows):
        assert logprobs.shape == entropy.shape == (rows.stop - rows.start,)
        assert_relative(logprobs, whole[rows], 1e-6, "logprobs", atol=1e-6)
        seen.append(rows)
        return logprobs.sum()

    one_pass(hidden, weight, bias, target, loss_fn, workspace_bytes=workspace(3))
    assert len(seen) > 2
    assert [rows.start for rows in seen] == [0, *(rows.stop for rows in seen[:-1])]
    assert seen[-1].stop == 13


def test_a_frozen_weight_costs_two_gemms_and_a_trained_one_three(device, monkeypatch):
    arguments = head(device)
    loss_fn = policy_loss(torch.linspace(-1, 1, 13, device=device))
    seen = multiplications(monkeypatch)
    one_pass(*arguments, loss_fn, needed=(True, False, False))
    assert seen == [(13, 24, 300), (13, 300, 24)]
    seen.clear()
    one_pass(*arguments, loss_fn)
    assert seen == [(13, 24, 300), (13, 300, 24), (300, 13, 24)]


def test_ignored_rows_and_rows_without_a_gradient_are_left_out_on_cpu(monkeypatch):
    hidden, weight, bias, target = head(torch.device("cpu"))
    target[[2, 6]] = -100
    hidden[[2, 4]] = torch.nan  # row 4 has a zero gradient: NaN times zero is nowhere formed
    advantages = torch.zeros(13)
    advantages[[1, 2, 7]] = torch.tensor([1.0, 5.0, -2.0])

    def loss_fn(logprobs, entropy, rows):
        return (torch.where(advantages[rows] != 0, logprobs, 0.0) * advantages[rows]).sum()

    seen = multiplications(monkeypatch)
    _, gradients = one_pass(hidden, weight, bias, target, loss_fn)
    assert seen == [(11, 24, 300), (2, 300, 24), (300, 2, 24)]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0] != 0).any(dim=1).nonzero().flatten().tolist() == [1, 7]


def test_without_gradients_the_loss_is_asked_for_once_and_no_row_is_kept(device, monkeypatch):
    hidden, weight, bias, target = head(device)
    monkeypatch.setattr(tile_plan, "plan_whole_rows", None)  # would fail
    calls = []

    def loss_fn(logprobs, entropy, rows):
        calls.append(rows)
        return logprobs.sum() + entropy.sum()

    result = linear_token_loss(hidden, weight, target, loss_fn, bias, workspace_bytes=workspace(1))
    with torch.no_grad():
        again = linear_token_loss(hidden.requires_grad_(), weight, target, loss_fn, bias)
    assert calls == [slice(0, 13)] * 2
    assert not result.loss.requires_grad
    assert not again.loss.requires_grad
    logprobs, entropy = linear_logprobs_and_entropy(hidden.detach(), weight, target, bias)
    assert_relative(result.loss, logprobs.sum() + entropy.sum(), 1e-5, "loss")


def test_leading_dimensions_and_no_entropy(device):
    hidden, weight, bias, target = head(device, rows=12)
    shaped = hidden.view(3, 4, 24).requires_grad_()

    def loss_fn(logprobs, entropy, rows):
        assert entropy is None
        return -logprobs.sum()

    result = linear_token_loss(shaped, weight, target.view(3, 4), loss_fn, bias, return_entropy=False)
    assert result.entropy is None
    assert result.logprobs.shape == (3, 4)
    assert not result.logprobs.requires_grad
    result.loss.backward()
    expected = hidden.detach().double().requires_grad_()
    logprobs, _ = reference.linear_logprobs_and_entropy(expected, weight.double(), target, bias.double())
    (-logprobs.sum()).backward()
    assert_relative(shaped.grad.view(12, 24), expected.grad, 4e-6, "grad_hidden", atol=1e-5)


@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_and_only_ignored_rows_give_zero_gradients(device, rows):
    hidden, weight, bias, _ = head(device, rows=rows)
    target = torch.full((rows,), -100, device=device)
    result, gradients = one_pass(hidden, weight, bias, target, lambda logprobs, entropy, rows: logprobs.sum())
    assert result.loss == 0
    assert result.logprobs.shape == (rows,)
    assert all((gradient == 0).all() for gradient in gradients)
    assert gradients[0].shape == (rows, 24)


def test_gradients_add_up_over_calls_and_a_tied_weight(device):
    _, weight, _, target = head(device, vocabulary=50)
    tokens = torch.arange(13, device=device) % 50
    loss_fn = policy_loss(torch.linspace(-1, 1, 13, device=device))
    ours, theirs = weight.detach().clone().requires_grad_(), weight.double().detach().requires_grad_()
    for _ in range(2):
        linear_token_loss(torch.tanh(ours[tokens]), ours, target % 50, loss_fn).loss.backward()
        logprobs, entropy = reference.linear_logprobs_and_entropy(torch.tanh(theirs[tokens]), theirs, target % 50)
        loss_fn(logprobs, entropy, slice(0, 13)).backward()
    assert_relative(ours.grad, theirs.grad, 4e-6, "tied weight", atol=1e-5)


def test_float32_gradients_are_given_away_and_not_copied(device):
    hidden, weight, _, target = head(device)
    weight.requires_grad_()
    loss = linear_token_loss(hidden, weight, target, total).loss
    (made,) = (x for x in loss.grad_fn.gradients if x is not None)
    address = made.data_ptr()
    del made
    loss.backward()
    assert weight.grad.data_ptr() == address


def test_autocast_casts_the_operands_and_not_the_loss(device):
    hidden, weight, bias, target = head(device)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = linear_token_loss(h, w, target, policy_loss(torch.ones(13, device=device)))
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert h.grad.dtype == w.grad.dtype == torch.float32
    _, right = two_passes(hidden, weight, torch.zeros_like(bias), target, policy_loss(torch.ones(13, device=device)))
    assert_relative(h.grad, right[0], 0.02, "grad_hidden", atol=0.02 * float(right[0].abs().max()))


def test_gradcheck(device):
    arguments = [x.requires_grad_() for x in head(device, 4, 9, 3, torch.float64)[:3]]
    target = torch.tensor([0, 8, -100, 3], device=device)
    options = {"temperature": 1.3, "softcap": 5.0, "workspace_bytes": 2 * 9 * 8}
    old = torch.linspace(-3, -2, 4, device=device).double()
    loss_fn = policy_loss(torch.tensor([1.0, -1.0, 2.0, 0.5], device=device), old)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_token_loss(h, w, target, loss_fn, b, **options).loss, arguments
    )


def test_compiled_code_breaks_the_graph_and_gives_the_same(device):
    hidden, weight, _, target = head(device)
    loss_fn = policy_loss(torch.linspace(-1, 1, 13, device=device))

    def step(h):
        return linear_token_loss(torch.tanh(h) * 2, weight, target, loss_fn).loss * 2

    gradients = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        h = hidden.clone().requires_grad_()
        function(h).backward()
        gradients.append(h.grad)
    assert_relative(gradients[1], gradients[0], 1e-6, "grad_hidden", atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ refusals


def total(logprobs, entropy, rows):
    return logprobs.sum()


def test_bad_loss_functions_are_named():
    hidden, weight, _, target = head(torch.device("cpu"))
    hidden.requires_grad_()
    with pytest.raises(TypeError, match="loss_fn: expected a function of"):
        linear_token_loss(hidden, weight, target, 1.0)
    with pytest.raises(TypeError, match=r"loss_fn: expected a floating point scalar .* shape \(13,\)"):
        linear_token_loss(hidden, weight, target, lambda logprobs, entropy, rows: logprobs)
    with pytest.raises(TypeError, match=r"loss_fn: expected a floating point scalar .* got float"):
        linear_token_loss(hidden, weight, target, lambda logprobs, entropy, rows: 0.5)
    with pytest.raises(ValueError, match="workspace_bytes: expected at least 1200 for these inputs, got 1199"):
        linear_token_loss(hidden, weight, target, total, workspace_bytes=1199)
    with pytest.raises(ValueError, match="got 300 at row 0"):
        linear_token_loss(hidden, weight, target * 0 + 300, total)


def test_another_tensor_that_requires_grad_is_refused_and_not_forgotten():
    hidden, weight, _, target = head(torch.device("cpu"))
    hidden.requires_grad_()
    beta = torch.ones(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"loss_fn: uses a tensor of shape \(2, 1\) that requires grad"):
        linear_token_loss(hidden, weight, target, lambda lp, h, rows: (lp * (beta * 2).exp().mean()).sum())
    linear_token_loss(hidden, weight, target, lambda lp, h, rows: (lp * beta.detach().mean()).sum()).loss.backward()


def test_a_second_backward_adds_and_a_double_one_is_refused():
    hidden, weight, _, target = head(torch.device("cpu"))
    hidden.requires_grad_()
    loss = linear_token_loss(hidden, weight, target, total).loss
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    (2 * loss).backward()
    assert_relative(hidden.grad, 3 * once, 1e-6, "grad_hidden")
    with pytest.raises(RuntimeError, match="given away by the first backward"):
        loss.backward()
    loss = linear_token_loss(hidden, weight, target, total).loss
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_a_loss_that_depends_on_nothing_gives_zero_gradients():
    hidden, weight, bias, target = head(torch.device("cpu"))
    result, gradients = one_pass(hidden, weight, bias, target, lambda lp, h, rows: torch.tensor(2.0))
    assert result.loss == 2.0
    assert all((gradient == 0).all() for gradient in gradients)


# -------------------------------------------------------------------------------------------------------------- memory


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 10**6),
    vocabulary=st.integers(1, 300_000),
    bytes_per_logit=st.sampled_from([4, 8]),
    bytes_per_tile_logit=st.sampled_from([0, 2]),
    bytes_per_column=st.integers(0, 2**16),
    columns=st.sampled_from([2048, 16896]),
    unit=st.sampled_from([16, 128]),
    stride_unit=st.sampled_from([1, 16]),
    workspace_bytes=st.integers(1, 2**30),
)
def test_planned_whole_rows_fit(workspace_bytes, **shape):
    def plan():
        return tile_plan.plan_whole_rows(workspace_bytes=workspace_bytes, **shape)

    unit = shape["unit"]

    def needed(rows, cols):
        stride, whole = (tile_plan.row_stride(width, shape["stride_unit"]) for width in (cols, shape["vocabulary"]))
        per_row = whole * shape["bytes_per_logit"] + stride * shape["bytes_per_tile_logit"]
        return rows * per_row + cols * shape["bytes_per_column"]

    if workspace_bytes < needed(1, tile_plan.even_columns(shape["vocabulary"], shape["columns"])):
        with pytest.raises(ValueError, match="workspace_bytes: expected at least"):
            plan()
        return
    tiling = plan()
    assert 1 <= tiling.rows <= shape["rows"]
    assert 1 <= tiling.cols <= min(shape["vocabulary"], shape["columns"])
    assert needed(tiling.rows, tiling.cols) <= workspace_bytes
    # Rows of a tile begin at aligned addresses, and GEMMs have no narrow rests.
    assert tiling.cols == shape["vocabulary"] or tiling.cols % tile_plan.FEWEST_COLUMNS == 0
    assert tiling.rows % 16 == 0 or tiling.rows < 16 or tiling.rows == shape["rows"]
    assert tiling.rows % unit == 0 or tiling.rows < unit or tiling.rows == shape["rows"]


@pytest.mark.parametrize("trained", [False, True])
def test_on_cuda_whole_rows_come_in_the_blocks_of_a_gemm(trained):
    """A GEMM works on 128 rows at a time, on 132 multiprocessors: a real head in the default workspace."""
    hidden = torch.empty(8192, 4096, dtype=torch.bfloat16, device="meta")
    tiling = tile_plan.plan_head(
        hidden,
        151936,
        device="cuda",
        real=torch.float32,
        workspace_bytes=0,
        extras=tile_plan.Extras(low_dlogits=True, weight_sums=trained),
        whole_rows=True,
        long_tiles=False,
    )
    assert tiling == (1024 if trained else 512, 16896)
