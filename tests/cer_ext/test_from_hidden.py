"""linear_logprobs_and_entropy, forward: values against float64, whatever the tiles, dtypes and layouts."""

import pytest
import torch
from exact import assert_relative
from hypothesis import given, settings
from hypothesis import strategies as st

from cer_ext import linear_logprobs_and_entropy, logprobs_and_entropy, reference
from cer_ext.tile_plan import FEWEST_COLUMNS, plan_tiles, row_stride

LOW = [torch.bfloat16, torch.float16]


def head(device, rows=13, vocabulary=300, width=24, dtype=torch.float32, scale=1.0, seed=0):
    """hidden, weight, bias, target, with values that are multiples of 1/16: every product and sum of them is exact in
    float32, so the GEMM rounds nothing and the outputs can be held to float64 at the contract's 1e-5."""
    generator = torch.Generator().manual_seed(seed)

    def grid(*shape):
        return (torch.randint(-32, 33, shape, generator=generator) / 16.0).to(device, dtype)

    target = torch.randint(vocabulary, (rows,), generator=generator).to(device)
    return grid(rows, width) * scale, grid(vocabulary, width), grid(vocabulary), target


def smallest_workspace(width, dtype, device):
    """A workspace that holds one row of FEWEST_COLUMNS columns and little else."""
    upcast = dtype in LOW and device.type == "cpu"
    return FEWEST_COLUMNS * (8 + width * 8 * (2 if upcast else 1) + 8 * 3)


def check(*arguments, rtol=1e-5, **options):
    actual = linear_logprobs_and_entropy(*arguments, return_lse=True, **options)
    options.pop("workspace_bytes", None)
    expected = reference.linear_logprobs_and_entropy(
        *(x.double() if x is not None and x.is_floating_point() else x for x in arguments), return_lse=True, **options
    )
    for a, e, what in zip(actual, expected, ("logprobs", "entropy", "lse"), strict=True):
        assert_relative(a, e, rtol, what, atol=1e-6 if what == "lse" else 1e-14)
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, *LOW, torch.float64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_outputs_match_float64(device, dtype, with_bias):
    hidden, weight, bias, target = head(device, dtype=dtype)
    outputs = check(hidden, weight, target, bias if with_bias else None)
    assert outputs[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", LOW)
def test_logits_are_not_rounded_to_the_inputs_dtype(device, dtype):
    """Rounded to bfloat16, logits near 300 are off by 1 and these probabilities by a factor e."""
    hidden, weight, _, target = head(device, dtype=dtype, scale=8.0)
    logprobs, _, _ = check(hidden, weight, target)
    rounded, _ = logprobs_and_entropy((hidden.double() @ weight.double().T).to(dtype), target)
    assert (rounded - logprobs).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_tiles_do_not_show_in_the_result(device, rows, vocabulary, dtype):
    hidden, weight, bias, target = head(device, rows=rows, vocabulary=vocabulary, dtype=dtype)
    whole = check(hidden, weight, target, bias)
    least = smallest_workspace(24, dtype, device)
    for workspace_bytes in (least, 3 * least, 20 * least):
        tiled = check(hidden, weight, target, bias, workspace_bytes=workspace_bytes)
        for a, b in zip(tiled, whole, strict=True):
            assert_relative(a, b, 1e-6, f"workspace_bytes={workspace_bytes}", atol=1e-6)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"logit_scale": 0.125, "softcap": 10.0, "temperature": 1.5}])
@pytest.mark.parametrize("workspace_bytes", [None, 64 * 24 * 4 * 3])
def test_options_match_float64(device, options, workspace_bytes):
    hidden, weight, bias, target = head(device)
    check(hidden, weight, target, bias, workspace_bytes=workspace_bytes, **options)


def test_near_one_hot_rows_match_float64_through_the_gemm(device):
    hidden, weight, _, _ = head(device, vocabulary=200)
    weight[7] = torch.sign(hidden[0]) * 2.0
    target = torch.full((13,), 7, device=device)
    _, entropy, _ = check(hidden, weight, target)
    assert entropy.min() < 1e-5


def test_temperature_per_row_with_ignored_rows_and_tiles(device):
    hidden, weight, bias, target = head(device)
    target[::3] = -100
    temperature = torch.linspace(0.5, 3.0, 13, device=device)
    temperature[0] = -1.0  # of an ignored row: never used
    least = smallest_workspace(24, torch.float32, device)
    check(hidden, weight, target, bias, temperature=temperature, workspace_bytes=least)


def test_ignored_rows_are_zero_and_change_nothing_for_the_others(device):
    hidden, weight, bias, target = head(device)
    without = linear_logprobs_and_entropy(hidden, weight, target, bias, return_lse=True)
    hidden = torch.cat([hidden, torch.full_like(hidden[:4], torch.nan)])
    mixed = torch.cat([target, torch.full((4,), -100, device=device)])
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0)).to(device)
    outputs = linear_logprobs_and_entropy(hidden[order], weight, mixed[order], bias, return_lse=True)
    for a, b in zip(outputs, without, strict=True):
        back = torch.empty_like(a)
        back[order] = a
        assert (back[13:] == 0).all()
        assert_relative(back[:13], b, 1e-6, "rows that count")


def test_only_ignored_rows_give_zeros(device):
    hidden, weight, bias, target = head(device)
    hidden.requires_grad_()
    outputs = linear_logprobs_and_entropy(hidden, weight, torch.full_like(target, -100), bias, return_lse=True)
    assert all((x == 0).all() for x in outputs)
    outputs[1].sum().backward()
    assert (hidden.grad == 0).all()


def test_no_rows_give_no_rows(device):
    hidden, weight, bias, _ = head(device)
    hidden = hidden[:0].view(0, 3, 24).requires_grad_()
    weight.requires_grad_()
    target = torch.empty((0, 3), dtype=torch.long, device=device)
    outputs = linear_logprobs_and_entropy(hidden, weight, target, bias, return_lse=True)
    assert all(x.shape == (0, 3) for x in outputs)
    outputs[0].sum().backward()
    assert hidden.grad.shape == (0, 3, 24)
    assert (weight.grad == 0).all()


def test_leading_dimensions_are_rows(device):
    hidden, weight, bias, target = head(device, rows=12)
    flat = linear_logprobs_and_entropy(hidden, weight, target, bias)
    shaped = linear_logprobs_and_entropy(hidden.view(3, 2, 2, 24), weight, target.view(3, 2, 2), bias)
    single = linear_logprobs_and_entropy(hidden[5], weight, target[5], bias)
    for a, b, c in zip(flat, shaped, single, strict=True):
        assert torch.equal(a.view(3, 2, 2), b)
        assert_relative(c, a[5], 1e-6, "single row")


def test_any_strides_give_the_same_numbers(device):
    hidden, weight, bias, target = head(device, rows=12)
    expected = linear_logprobs_and_entropy(hidden, weight, target, bias)
    wide = torch.cat([hidden, hidden], 1)
    variants = {
        "weight stored transposed": (hidden, weight.T.contiguous().T),
        "weight as a column slice": (hidden, torch.cat([weight, weight], 1)[:, :24]),
        "hidden as a column slice": (wide[:, 24:], weight),
        "hidden in row steps": (hidden.repeat_interleave(2, 0)[::2], weight),
    }
    for name, (h, w) in variants.items():
        for a, b in zip(linear_logprobs_and_entropy(h, w, target, bias), expected, strict=True):
            assert_relative(a, b, 1e-6, name)


def test_autocast_casts_as_linear_would(device):
    hidden, weight, bias, target = head(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, bias)
    explicit = linear_logprobs_and_entropy(hidden.bfloat16(), weight.bfloat16(), target, bias.bfloat16())
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.equal(logprobs, explicit[0])
    assert torch.equal(entropy, explicit[1])


def test_autocast_lets_mixed_precision_through(device):
    hidden, weight, _, target = head(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        linear_logprobs_and_entropy(hidden.bfloat16(), weight, target)
    with pytest.raises(TypeError, match=r"weight: expected torch.bfloat16 like hidden, got torch.float32"):
        linear_logprobs_and_entropy(hidden.bfloat16(), weight, target)


def test_unchecked_bad_targets_are_nan_and_checked_ones_raise(device):
    hidden, weight, _, target = head(device)
    target[3] = 300
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, validate=False)
    assert logprobs.isnan().nonzero().tolist() == [[3]]
    assert entropy.isnan().nonzero().tolist() == [[3]]
    with pytest.raises(ValueError, match=r"target: expected 0 <= target < 300 .* got 300 at row 3"):
        linear_logprobs_and_entropy(hidden, weight, target, validate=True)


def test_two_threads_give_the_numbers_of_one():
    """Given the same logits. D = 8 on the grid: the GEMM is exact in any order."""
    hidden, weight, bias, target = head(torch.device("cpu"), rows=40, vocabulary=5000, width=8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = linear_logprobs_and_entropy(hidden, weight, target, bias)
        torch.set_num_threads(2)
        two = linear_logprobs_and_entropy(hidden, weight, target, bias)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 100_000),
    vocabulary=st.integers(1, 300_000),
    bytes_per_logit=st.sampled_from([4, 6, 8]),
    bytes_per_column=st.sampled_from([0, 64, 4096, 32768]),
    preferred_rows=st.sampled_from([1, 512, 4096]),
    preferred_columns=st.sampled_from([1, 2048, 2**31]),
    stride_unit=st.sampled_from([1, 16]),
    workspace_bytes=st.integers(1, 2**30),
)
def test_planned_tiles_cover_everything_and_fit(
    rows, vocabulary, bytes_per_logit, bytes_per_column, preferred_rows, preferred_columns, stride_unit, workspace_bytes
):
    def plan():
        return plan_tiles(
            rows,
            vocabulary,
            workspace_bytes=workspace_bytes,
            bytes_per_logit=bytes_per_logit,
            bytes_per_column=bytes_per_column,
            preferred_rows=preferred_rows,
            preferred_columns=preferred_columns,
            stride_unit=stride_unit,
        )

    fewest = row_stride(min(vocabulary, FEWEST_COLUMNS), stride_unit)
    if workspace_bytes < fewest * (bytes_per_logit + bytes_per_column):
        with pytest.raises(ValueError, match="workspace_bytes: expected at least"):
            plan()
        return
    tiling = plan()
    assert 1 <= tiling.rows <= rows
    assert 1 <= tiling.cols <= vocabulary
    stride = row_stride(tiling.cols, stride_unit)
    assert tiling.rows * stride * bytes_per_logit + tiling.cols * bytes_per_column <= workspace_bytes
    assert tiling.cols % stride_unit == 0 or tiling.cols == vocabulary
    for tiles, total in (
        (tiling.row_tiles(min(rows, 5000)), min(rows, 5000)),
        (tiling.column_tiles(vocabulary), vocabulary),
    ):
        covered = 0
        for tile in tiles:
            assert tile.start == covered < tile.stop
            covered = tile.stop
            if tile.stop > 20 * max(tiling.rows, tiling.cols):
                break
        else:
            assert covered == total


def test_a_workspace_too_small_for_any_tile_raises(device):
    hidden, weight, _, target = head(device)
    with pytest.raises(ValueError, match=r"workspace_bytes: expected at least 256 for these inputs, got 255"):
        linear_logprobs_and_entropy(hidden, weight, target, workspace_bytes=255)
