"""The product of bfloat16 operands with float32 sums that makes the logits of bfloat16 heads: AVX512-BF16, AMX.

Held to a float64 product of the same operands: of D terms summed in float32 in any order, the error is at most
D eps / (1 - D eps) sum |a b| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), eps = 2^-24.
"""

import pytest
import torch
from exact import assert_relative
from test_from_hidden import check, head
from test_from_hidden_gradients import multiplications

from cer_ext import _C, build_info, linear_logprobs_and_entropy, linear_token_loss, ops, reference, tiles

EPS = 2.0**-24
MULTIPLY = ("avx512bf16", "amxbf16")  # the instruction sets that multiply bfloat16
needs_head_tile = pytest.mark.skipif(not ops.has_head_tile(), reason="this processor does not multiply bfloat16")


@pytest.fixture(params=_C.build()["cpu_isas_runnable"])
def isa(request):
    before = _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(params=[name for name in MULTIPLY if name in _C.build()["cpu_isas_runnable"]])
def multiplying_isa(request):
    before = _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


def operands(rows, cols, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).bfloat16()
    return hidden, torch.randn(cols, width, generator=generator).bfloat16()


def product(hidden, weight, logits=None):
    """hidden weight^T by head_tile."""
    rows, width = hidden.shape
    packed = torch.empty((rows, width + width % 2), dtype=torch.bfloat16)
    ops.pack_hidden(hidden, packed)
    logits = torch.full((rows, weight.shape[0]), torch.nan) if logits is None else logits
    ops.head_tile(packed, weight, logits)
    return logits


def assert_within_bound(logits, hidden, weight):
    exact = hidden.double() @ weight.double().T
    bound = 1.01 * hidden.shape[1] * EPS * (hidden.double().abs() @ weight.double().abs().T)
    error = (logits.double() - exact).abs() - bound
    assert not error.isnan().any()
    assert (error <= 0).all(), (
        f"worst at {divmod(int(error.argmax()), logits.shape[1])}: {error.max():.2e} over the bound"
    )


# Panels are 14 rows (AMX: 32, in tiles of 16), strips 32 columns, chunks 256 pairs: one below, at and above each, and
# several.
@needs_head_tile
@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("cols", [1, 16, 17, 31, 32, 33, 100])
def test_every_count_of_rows_and_columns_matches_float64(multiplying_isa, rows, cols):
    hidden, weight = operands(rows, cols, 70)
    assert_within_bound(product(hidden, weight), hidden, weight)


@needs_head_tile
@pytest.mark.parametrize("width", [1, 2, 3, 31, 32, 33, 511, 512, 513, 1023, 1025, 4096])
def test_every_width_matches_float64(multiplying_isa, width):
    hidden, weight = operands(17, 45, width)
    assert_within_bound(product(hidden, weight), hidden, weight)


@needs_head_tile
def test_exactly_representable_products_are_exact(multiplying_isa):
    hidden, weight, _, _ = head(torch.device("cpu"), rows=40, vocabulary=300, width=600, dtype=torch.bfloat16)
    assert torch.equal(product(hidden, weight).double(), hidden.double() @ weight.double().T)


@needs_head_tile
def test_strides_of_hidden_weight_and_logits_are_followed(multiplying_isa):
    hidden, weight = operands(20, 50, 101)
    expected = product(hidden, weight)
    wide_hidden, wide_weight = torch.full((20, 205), torch.nan).bfloat16(), torch.full((50, 109), torch.nan).bfloat16()
    wide_hidden[:, 3:104], wide_weight[:, 5:106] = hidden, weight
    wide = torch.full((20, 64), 7.0)
    assert torch.equal(product(wide_hidden[:, 3:104], wide_weight[:, 5:106], wide[:, 9:59]), expected)
    assert (wide[:, :9] == 7).all()
    assert (wide[:, 59:] == 7).all()
    one = weight[:1].expand(50, 101)  # row stride 0
    assert torch.equal(product(hidden, one), expected[:, :1].expand(20, 50))


@needs_head_tile
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_reach_their_row_or_column_and_no_other(multiplying_isa, value):
    for width in (37, 600):
        hidden, weight = operands(30, 70, width)
        clean = product(hidden, weight)
        hidden[20, width - 1] = value
        weight[40, 0] = value
        logits, expected = product(hidden, weight), hidden.float() @ weight.float().T
        assert torch.equal(logits.isnan(), expected.isnan())
        assert torch.equal(logits.isinf(), expected.isinf())
        assert torch.equal(logits[logits.isinf()].sign(), expected[expected.isinf()].sign())
        clean[20], clean[:, 40] = 0, 0
        logits[20], logits[:, 40] = 0, 0
        assert torch.equal(logits, clean)


@needs_head_tile
def test_a_logit_does_not_depend_on_threads_or_on_what_else_is_in_the_tile(multiplying_isa):
    hidden, weight = operands(45, 130, 777)
    whole = product(hidden, weight)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 64):  # 64: more threads than strips, so the rows are shared out too
            torch.set_num_threads(threads)
            assert torch.equal(product(hidden, weight), whole), f"{threads} threads"
    finally:
        torch.set_num_threads(before)
    for rows in (1, 5, 14, 32):
        for cols in (1, 7, 32, 64):
            tiled = torch.full_like(whole, torch.nan)
            for i in range(0, 45, rows):
                for j in range(0, 130, cols):
                    product(hidden[i : i + rows], weight[j : j + cols], tiled[i : i + rows, j : j + cols])
            assert torch.equal(tiled, whole), f"tiles of {rows} x {cols}"


@needs_head_tile
def test_nothing_to_multiply_writes_nothing_and_an_empty_sum_is_zero(multiplying_isa):
    hidden, weight = operands(3, 5, 8)
    assert product(hidden[:0], weight).shape == (0, 5)
    assert product(hidden, weight[:0]).shape == (3, 0)
    assert (product(hidden[:, :0], weight[:, :0]) == 0).all()


@needs_head_tile
def test_workspace_and_threads_do_not_show_in_the_log_probabilities():
    """Data on no grid: sums in another order would differ in their last bits."""
    hidden, weight = operands(45, 1000, 300)
    target = torch.arange(45)
    results = []
    before = torch.get_num_threads()
    try:
        for threads, workspace_bytes in ((1, None), (2, None), (2, 64 * 45 * 4), (2, 64 * 4 * 20)):
            torch.set_num_threads(threads)
            results.append(linear_logprobs_and_entropy(hidden, weight, target, workspace_bytes=workspace_bytes))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_relative(
                a, b, 2e-7, "another tiling", atol=1e-6
            )  # states merge in another order, logits are the same


def allocated_bytes(function) -> int:
    """All memory that torch allocates on the CPU while the function runs, whether or not it is given back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


def test_allocations_are_counted():
    assert 4096 <= allocated_bytes(lambda: torch.empty(1024)) < 5000


@needs_head_tile
def test_the_forward_pass_makes_no_float32_copies():
    """Of neither operand, whole or by tiles: what it allocates is less than the smaller of them in float32."""
    hidden, weight = operands(8, 200, 512)
    target = torch.arange(8)
    workspace_bytes = 64 * 8 * 4  # 8 rows of logits of 64 columns and not a byte more
    packed_bytes = 8 * 512 * 2
    used = allocated_bytes(
        lambda: linear_logprobs_and_entropy(hidden, weight, target, workspace_bytes=workspace_bytes, validate=False)
    )
    float32_hidden_bytes = 8 * 512 * 4
    assert workspace_bytes + packed_bytes <= used < float32_hidden_bytes


def gradients(function, hidden, weight, target):
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = function(*inputs, target)
    (0.7 * logprobs.sum() - 1.3 * entropy.sum()).backward()
    return tuple(x.grad for x in inputs)


def token_loss_gradients(hidden, weight, target, **options):
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_token_loss(*inputs, target, lambda lp, h, _: 0.7 * lp.sum() - 1.3 * h.sum(), **options).loss.backward()
    return tuple(x.grad for x in inputs)


def magnitudes(hidden, weight, target):
    """(|dlogits| |weight|, |dlogits|^T |hidden|): what the roundings of products and factors are relative to."""
    logits = (hidden.double() @ weight.double().T).requires_grad_()
    logprobs, entropy = reference.logprobs_and_entropy(logits, target)
    (dlogits,) = torch.autograd.grad(0.7 * logprobs.sum() - 1.3 * entropy.sum(), logits)
    return dlogits.abs() @ weight.double().abs(), dlogits.abs().T @ hidden.double().abs()


@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "transposed"])
@pytest.mark.parametrize("width", [1, 23, 64])
def test_every_instruction_set_keeps_the_contract(isa, layout, width):
    """bfloat16 heads to float64 of the same operands, 1e-5, multiplied by head_tile or not.

    Gradients that are multiplied in float32 are rounded once. On bfloat16 units dlogits are rounded as well (half an
    ulp each), and each tile's product (half an ulp of at most the sum of magnitudes).
    """
    hidden, weight, bias, target = head(torch.device("cpu"), rows=37, width=width, dtype=torch.bfloat16)
    if layout == "rows apart":
        hidden = torch.cat([hidden, hidden], 1)[:, width:]
        weight = torch.cat([weight, weight], 1)[:, :width]
    elif layout == "transposed":
        hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
    check(hidden, weight, target, bias)
    half_ulp = torch.finfo(torch.bfloat16).eps / 2
    expected = gradients(reference.linear_logprobs_and_entropy, hidden.double(), weight.double(), target)
    rounded = tiles.multiplies_bfloat16(hidden, weight)
    sums = magnitudes(hidden, weight, target) if rounded else (None, None)
    for actual in (
        gradients(linear_logprobs_and_entropy, hidden, weight, target),
        token_loss_gradients(hidden, weight, target),
    ):
        for a, e, s, what in zip(actual, expected, sums, ("grad_hidden", "grad_weight"), strict=True):
            if s is not None:
                allowed = half_ulp * (2.1 * s + e.abs()) + 1e-5 * e.abs().max()
                assert ((a.double() - e).abs() <= allowed).all(), what
                continue
            assert_relative(a, e, 1.05 * half_ulp, what, atol=1e-5 * float(e.abs().max()))


def test_build_info_says_what_multiplies_bfloat16_heads(isa):
    said = build_info()["cpu_bfloat16_logits"]
    assert ops.has_head_tile() == (isa in MULTIPLY) == ("head_tile" in said)
    if not ops.has_head_tile():
        assert isa in said
        with pytest.raises(RuntimeError, match=f"no product of bfloat16 in the instruction set {isa}"):
            product(*operands(2, 3, 4))


def plain_torch(hidden, weight, target):
    logp = torch.log_softmax((hidden @ weight.T).float(), -1)
    return logp.gather(-1, target[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


def compiled_torch(hidden, weight, target):
    return torch.compile(plain_torch, dynamic=False)(hidden, weight, target)


def trl_function(hidden, weight, target):
    kernels = pytest.importorskip("trl.kernels", reason="no TRL here")
    return kernels.ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, 4096, None, 1.0, ("entropy",))[:2]


@pytest.fixture(scope="module")
def trained_head():
    """Several row and column tiles: operands, and exact gradients of both."""
    hidden, weight = operands(70, 5000, 256)
    weight *= 2 / 16
    target = torch.arange(70) * 50
    return (hidden, weight, target), gradients(
        reference.linear_logprobs_and_entropy, hidden.double(), weight.double(), target
    )


def errors_of_the_norm(found, exact):
    return [float((a.double() - e).norm() / e.norm()) for a, e in zip(found, exact, strict=True)]


@needs_head_tile
@pytest.mark.parametrize("peer", [plain_torch, compiled_torch, trl_function], ids=lambda peer: peer.__name__)
def test_gradients_err_less_than_those_of_peers_that_round_their_logits(peer, trained_head):
    """Against float64: two passes; one pass with dlogits of all rows kept, and where they do not fit."""
    arguments, exact = trained_head
    theirs = errors_of_the_norm(gradients(peer, *arguments), exact)
    for found in (
        gradients(linear_logprobs_and_entropy, *arguments),
        token_loss_gradients(*arguments),
        token_loss_gradients(*arguments, workspace_bytes=32 * 5000 * 6),
    ):
        ours = errors_of_the_norm(found, exact)
        assert all(mine < 3e-3 and mine <= other for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)


@needs_head_tile
def test_products_of_a_trained_weight_are_made_once_from_the_dlogits_of_all_rows(monkeypatch):
    """One pass, several row tiles: two products beside the logits', rows without a gradient left out of them. Two
    passes: the same for every column tile."""
    hidden, weight = operands(40, 3000, 64)
    target = torch.arange(40)
    seen = multiplications(monkeypatch)
    needed = [x.requires_grad_() for x in (hidden.clone(), weight.clone())]
    weights = torch.ones(40)
    weights[[3, 17, 39]] = 0.0
    rows_seen = []

    def loss_fn(logprobs, entropy, rows):
        rows_seen.append(rows)
        return (weights[rows] * logprobs).sum()

    linear_token_loss(*needed, target, loss_fn, workspace_bytes=16 * 3000 * 4).loss.backward()
    assert len(rows_seen) == 3
    assert seen == [(37, 3000, 64), (3000, 37, 64)]
    expected = gradients_of_log_probabilities(hidden, weight, target, weights)
    for grad, e in zip((x.grad for x in needed), expected, strict=True):
        assert float((grad.double() - e).norm() / e.norm()) < 3e-3

    seen.clear()
    logprobs, _ = linear_logprobs_and_entropy(*needed, target, return_entropy=False)
    logprobs.sum().backward()
    assert [shape for shape in seen if shape[1] == 40] == [(1536, 40, 64), (1464, 40, 64)]


def gradients_of_log_probabilities(hidden, weight, target, weights):
    inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logprobs = reference.linear_logprobs_and_entropy(*inputs, target)[0]
    return torch.autograd.grad((weights.double() * logprobs).sum(), inputs)


@needs_head_tile
@pytest.mark.parametrize("rows", [64, 700])
def test_the_gradient_of_a_trained_weight_needs_no_float32_array_of_its_size(rows):
    """Where dlogits of all rows fit (64), and where they do not (700 > 2 D): the largest single allocation."""
    hidden, weight = operands(rows, 3000, 256)
    target = torch.arange(rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        token_loss_gradients(hidden, weight, target, workspace_bytes=32 * 3000 * 4)
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    bfloat16_bytes = 2 * weight.numel()
    assert bfloat16_bytes <= max(sizes) < 1.1 * bfloat16_bytes


@needs_head_tile
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("vocabulary", [501, 500, 2049 + 64])
def test_what_lies_behind_a_row_of_dlogits_reaches_no_gradient(vocabulary, one_pass, trained):
    """A NaN row poisons its own gradient and no other's hidden states, and memory that held NaN before none at all."""
    hidden, weight = operands(20, vocabulary, 16)
    hidden[5] = torch.nan
    target = torch.arange(20)
    for poison in (False, True):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        if poison:  # what the allocator hands out next
            sizes = (20 * 512, 20 * 2048, 20 * 2144, 20 * 16, 20 * vocabulary)
            garbage = [torch.full((size,), torch.nan).bfloat16() for size in sizes for _ in range(3)]
            del garbage
        if one_pass:
            linear_token_loss(*inputs, target, lambda lp, h, _: 0.7 * lp.sum() - 1.3 * h.sum()).loss.backward()
        else:
            logprobs, entropy = linear_logprobs_and_entropy(*inputs, target)
            (0.7 * logprobs.sum() - 1.3 * entropy.sum()).backward()
        assert inputs[0].grad.isnan().any(1).nonzero().flatten().tolist() == [5]
