"""teca and teca_last: values and gradients against float64, padded and packed, and what masked positions may hold."""

import pytest
import torch
from exact import assert_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from cer_ext import reference, teca, teca_last


def test_teca_is_the_mean_of_the_entropies_so_far(device):
    entropy = torch.tensor([[3.0, 1.0, 8.0, 0.0]], device=device)
    assert teca(entropy).tolist() == [[3.0, 2.0, 4.0, 3.0]]
    assert teca_last(entropy).tolist() == [3.0]


def test_masked_positions_are_zero_and_do_not_count(device):
    entropy = torch.tensor([[torch.nan, 3.0, torch.inf, 1.0, torch.nan], [1.0, 2.0, 3.0, 4.0, 5.0]], device=device)
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], device=device)
    for m in (mask, mask.bool(), mask.to(torch.uint8), mask.to(torch.int32)):
        assert teca(entropy, m).tolist() == [[0.0, 3.0, 0.0, 2.0, 0.0], [0.0] * 5]
        assert teca_last(entropy, m).tolist() == [2.0, 0.0]


def test_masked_positions_get_exactly_zero_gradients(device):
    entropy = torch.full((2, 4), torch.nan, device=device)
    entropy[0, 1], entropy[0, 3] = 3.0, 1.0
    entropy.requires_grad_()
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]], device=device)
    upstream = torch.tensor([[torch.nan, 1.0, torch.nan, 1.0], [torch.nan] * 4], device=device)
    teca(entropy, mask).backward(upstream)
    assert entropy.grad.tolist() == [[0.0, 1.5, 0.0, 0.5], [0.0] * 4]
    entropy.grad = None
    teca_last(entropy, mask).backward(torch.tensor([1.0, 5.0], device=device))
    assert entropy.grad.tolist() == [[0.0, 0.5, 0.0, 0.5], [0.0] * 4]


def test_packed_responses_equal_the_same_responses_padded(device):
    lengths = [3, 0, 1, 6]
    generator = torch.Generator().manual_seed(0)
    packed = torch.rand(sum(lengths), generator=generator, dtype=torch.float64).to(device).requires_grad_()
    cu_seqlens = torch.tensor([0, 3, 3, 4, 10], device=device)
    padded = torch.zeros(4, 6, dtype=torch.float64, device=device)
    mask = torch.arange(6, device=device) < torch.tensor(lengths, device=device)[:, None]
    padded[mask] = packed.detach()
    padded.requires_grad_()
    for dtype in (torch.int64, torch.int32):
        flat = teca(packed, cu_seqlens=cu_seqlens.to(dtype))
        assert torch.equal(flat, teca(padded, mask)[mask])
        assert torch.equal(teca_last(packed, cu_seqlens=cu_seqlens.to(dtype)), teca_last(padded, mask))
    flat.square().sum().backward()
    teca(padded, mask).square().sum().backward()
    assert_relative(packed.grad, padded.grad[mask], 1e-14, "gradient")


def test_any_leading_dimensions_and_strides(device):
    entropy = torch.rand(3, 2, 5, device=device)
    expected = reference.teca(entropy)
    assert_relative(teca(entropy), expected, 1e-6, "teca")
    assert_relative(teca(entropy[0, 0]), expected[0, 0], 1e-6, "one response")
    assert teca_last(entropy[0, 0]).shape == ()
    strided = torch.rand(5, 4, device=device).T
    assert_relative(teca(strided), reference.teca(strided), 1e-6, "transposed")
    mask = torch.rand(5, 4, device=device).T > 0.5
    assert_relative(teca(strided, mask), reference.teca(strided, mask), 1e-6, "transposed mask")


def test_nothing_in_nothing_out(device):
    for shape in ((0, 5), (3, 0), (0,)):
        entropy = torch.empty(shape, device=device, requires_grad=True)
        out, last = teca(entropy), teca_last(entropy)
        assert out.shape == shape
        assert last.tolist() == torch.zeros(shape[:-1]).tolist()
        (out.sum() + last.sum()).backward()
        assert entropy.grad.shape == shape
    assert teca_last(torch.empty(0, device=device), cu_seqlens=torch.tensor([0], device=device)).shape == (0,)
    two_empty = torch.tensor([0, 0, 0], device=device)
    assert teca_last(torch.empty(0, device=device), cu_seqlens=two_empty).tolist() == [0.0, 0.0]


def test_low_precision_entropies_are_averaged_in_float32(device):
    entropy = torch.rand(2, 300, device=device).bfloat16()
    assert teca(entropy).dtype == torch.float32
    assert_relative(teca(entropy), reference.teca(entropy.double()), 1e-6, "teca")


def test_a_long_response_keeps_its_digits(device):
    """32768 tokens: a float32 running sum would be off in the fifth digit."""
    entropy = torch.rand(2, 32768, device=device, generator=torch.Generator(device).manual_seed(0))
    assert_relative(teca(entropy), reference.teca(entropy.double()), 1e-6, "teca")
    leaf = entropy.clone().requires_grad_()
    teca(leaf).sum().backward()
    double = entropy.double().requires_grad_()
    reference.teca(double).sum().backward()
    assert_relative(leaf.grad, double.grad, 1e-5, "gradient")


@settings(max_examples=60, deadline=None)
@given(
    responses=st.integers(0, 6),
    length=st.integers(0, 40),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_random_masks_match_float64(responses, length, share, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    entropy = (5 * torch.rand(responses, length, generator=generator)).to(dtype)
    mask = torch.rand(responses, length, generator=generator) < share
    upstream = torch.randn(responses, length, generator=generator).to(dtype)
    upstream_last = torch.randn(responses, generator=generator).to(dtype)
    ours, theirs = entropy.clone().requires_grad_(), entropy.double().requires_grad_()
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    for function, up in ((teca, upstream), (teca_last, upstream_last)):
        expected = getattr(reference, function.__name__)(theirs, mask)
        actual = function(ours, mask)
        assert_relative(actual, expected, rtol, function.__name__)
        actual.backward(up)
        expected.backward(up.double())
    assert_relative(ours.grad, theirs.grad, rtol, "gradient", atol=3 * rtol)


PAIR = torch.ones(2)


@pytest.mark.parametrize(
    ("error", "match", "arguments", "options"),
    [
        (TypeError, "entropy: expected a torch.Tensor", ([1.0],), {}),
        (TypeError, "entropy: expected one of torch.float32", (torch.ones(3, dtype=torch.long),), {}),
        (ValueError, r"entropy: expected shape \(..., L\), got \(\)", (torch.tensor(1.0),), {}),
        (ValueError, r"mask: expected shape \(1, 2\) like entropy, got \(1, 1\)", (PAIR[None], tensor([[1]])), {}),
        (TypeError, "mask: expected bool or integers 0 and 1, got torch.float32", (PAIR, PAIR), {}),
        (ValueError, r"mask: expected bool or 0 and 1, got 2 at index \[1\]", (PAIR, tensor([1, 2])), {}),
        (ValueError, "packed ones", (PAIR, PAIR.bool()), {"cu_seqlens": tensor([0, 2])}),
        (TypeError, "cu_seqlens: expected torch.int32 or torch.int64", (PAIR,), {"cu_seqlens": tensor([0.0, 2])}),
        (ValueError, r"entropy: expected shape \(total,\)", (torch.ones(1, 2),), {"cu_seqlens": tensor([0, 2])}),
        (ValueError, r"cu_seqlens: expected shape \(responses \+ 1,\)", (PAIR,), {"cu_seqlens": tensor(2)}),
        (ValueError, "got 1 and 2", (PAIR,), {"cu_seqlens": tensor([1, 2])}),
        (ValueError, "got 0 and 3", (PAIR,), {"cu_seqlens": tensor([0, 3])}),
        (ValueError, "non-decreasing values, got 5 before 1 at index 1", (PAIR,), {"cu_seqlens": tensor([0, 5, 1, 2])}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error, match, arguments, options):
    for function in (teca, teca_last):
        with pytest.raises(error, match=match):
            function(*arguments, **options)
