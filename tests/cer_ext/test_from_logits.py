"""logprobs_and_entropy, forward: values against float64, in every regime, dtype, layout and instruction set."""

import pytest
import torch
from exact import assert_relative, exact_row
from hypothesis import given, settings
from hypothesis import strategies as st
from regimes import poisoned, regimes

from cer_ext import _C, build_info, logprobs_and_entropy, reference

RTOL = 1e-5  # DESIGN.md, "Numbers"
RUNNABLE = build_info()["cpu_isas_runnable"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=RUNNABLE)
def cpu_isa(request):
    before = _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


def check(logits, target, rtol=RTOL, **options):
    """All three outputs against float64 on the same values."""
    actual = logprobs_and_entropy(logits, target, return_lse=True, **options)
    expected = reference.logprobs_and_entropy(logits.detach().double(), target, return_lse=True, **options)
    for a, e, what in zip(actual, expected, ("logprobs", "entropy", "lse"), strict=True):
        assert a.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
        assert a.device == logits.device
        # Below 1e-9 the float64 reference itself has no five digits left; lse may pass through zero.
        assert_relative(a, e, rtol, what, atol=1e-6 if what == "lse" else 1e-14)
    assert not bool((actual[1] < 0).any()), "negative entropy"
    return actual


# Vocabularies: one entry; around one vector; around the block a kernel takes at a time; odd.
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 15, 16, 17, 1023, 1024, 1025, 4099])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_match_float64_in_every_regime(device, dtype, vocabulary):
    for logits, target in regimes(vocabulary).values():
        check(logits.to(device, dtype), target.to(device))


def test_outputs_match_float64_at_a_real_vocabulary(device):
    for name, (logits, target) in regimes(151936).items():
        if name in ("moderate", "peaked", "shift 1000", "near one-hot, gap 25, its target"):
            check(logits.to(device, torch.float32), target.to(device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_matches_float64(cpu_isa, dtype):
    assert build_info()["cpu_isa"] == cpu_isa
    for vocabulary in (1, 33, 2051):
        for logits, target in regimes(vocabulary).values():
            check(logits.to(dtype), target)
            check(logits.to(dtype), target, temperature=0.7, logit_scale=0.5, softcap=20.0)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("gap", [12.0, 18.0, 22.0, 26.0])
def test_near_one_hot_rows_match_50_digits(device, gap, shift):
    logits = 0.25 * torch.arange(-8, 8).float()  # exact in float32 at any of these shifts
    logits[5] = gap
    logits += shift
    for target in (5, 0):
        row = exact_row(logits.tolist(), target)
        outputs = logprobs_and_entropy(logits[None].to(device), torch.tensor([target], device=device))
        for output, value in zip(outputs, (row.logprob, row.entropy), strict=True):
            assert_relative(output, torch.tensor([value]), RTOL, f"gap {gap} shift {shift} target {target}")


@pytest.mark.parametrize(
    "options", [{"temperature": 0.3}, {"temperature": 7}, {"logit_scale": -0.5}, {"softcap": 15.0}]
)
def test_options_match_float64(device, options):
    for logits, target in regimes(129).values():
        check(logits.to(device, torch.float32), target.to(device), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_temperature_per_row_matches_each_row_alone(device, dtype):
    logits, target = regimes(65)["moderate"]
    logits, target = logits.to(device), target.to(device)
    temperature = torch.tensor([0.25, 1.0, 1.5, 8.0], device=device, dtype=dtype)
    together = logprobs_and_entropy(logits, target, temperature=temperature, return_lse=True)
    for i, t in enumerate(temperature.tolist()):
        alone = logprobs_and_entropy(logits[i : i + 1], target[i : i + 1], temperature=t, return_lse=True)
        for a, b in zip(together, alone, strict=True):
            assert_relative(a[i : i + 1], b, 1e-13, f"row {i}")


def test_rows_without_a_distribution_are_nan(device):
    for name, logits in poisoned(70).items():
        target = torch.tensor([0, 69], device=device)
        logprobs, entropy, lse = logprobs_and_entropy(logits.to(device).float(), target, return_lse=True)
        assert logprobs.isnan().all(), name
        assert entropy.isnan().all(), name
        assert (lse == -torch.inf).all() if name == "all -inf" else lse.isnan().all(), name


def test_ignored_rows_are_zero_whatever_they_hold(device):
    for logits in poisoned(70).values():
        outputs = logprobs_and_entropy(
            logits.to(device).float(), torch.tensor([-100, -100], device=device), return_lse=True
        )
        assert all(x.tolist() == [0.0, 0.0] for x in outputs)


def test_ignore_index_may_be_any_integer(device):
    logits, target = regimes(9)["moderate"]
    target = torch.tensor([3, 4, 3, 0], device=device)
    logprobs, _, _ = check(logits.to(device), target, ignore_index=3)
    assert (logprobs == 0).tolist() == [True, False, True, False]


def test_a_target_that_is_no_token_is_nan_where_it_is_not_checked(device):
    logits = torch.zeros(4, 5, device=device)
    target = torch.tensor([5, -1, 4, -100], device=device)
    outputs = logprobs_and_entropy(logits, target, return_lse=True, validate=False)
    for x in outputs:
        assert x.isnan().tolist() == [True, True, False, False]


def test_a_target_that_is_no_token_raises_where_it_is_checked(device):
    logits = torch.zeros(2, 2, 5, device=device)
    target = torch.tensor([[0, 4], [7, -3]], device=device)
    with pytest.raises(ValueError, match=r"target: expected 0 <= target < 5 .*got 7 at row 2"):
        logprobs_and_entropy(logits, target, validate=True)


def test_no_rows_give_no_rows_and_an_empty_gradient(device):
    for shape in ((0, 5), (3, 0, 5)):
        logits = torch.empty(shape, device=device, requires_grad=True)
        target = torch.empty(shape[:-1], dtype=torch.long, device=device)
        outputs = check(logits, target)
        sum(x.sum() for x in outputs).backward()
        assert sum(x.sum() for x in outputs).item() == 0.0
        assert torch.equal(logits.grad, torch.zeros(shape, device=device))


def test_a_single_row_needs_no_batch_dimension(device):
    logits, target = regimes(31)["moderate"]
    one = check(logits[2].to(device, torch.float32), target[2].to(device))
    assert one[0].shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_give_the_same_numbers(device, dtype):
    """Slices, transposes, steps, expansions: bitwise what the contiguous copy gives."""
    base = torch.randn(3, 6, 40, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    wide = torch.randn(4, 3, 5, 90, device=device, generator=torch.Generator(device).manual_seed(1)).to(dtype)
    layouts = {
        "all but the last token": base[:, :-1],
        "odd columns offset": base[..., 3:],
        "rows in steps": base[:, ::2],
        "columns in steps": base[..., ::3],
        "transposed rows": base.transpose(0, 1),
        "columns not last in memory": base.transpose(1, 2),
        "expanded row": base[0, 0].expand(2, 5, 40),
        "expanded column": base[..., :1].expand(3, 6, 8),
        "four dimensions": wide[:, :, 1:4, 7:60],
        "one column, large stride": base[..., 5:6],
    }
    for name, logits in layouts.items():
        target = torch.arange(logits.shape[:-1].numel(), device=device).view(logits.shape[:-1]) % logits.shape[-1]
        temperature = 0.5 + torch.rand(target.shape, device=device, generator=torch.Generator(device).manual_seed(2))
        for options in ({}, {"temperature": temperature}):
            strided = logprobs_and_entropy(logits, target, return_lse=True, **options)
            dense = logprobs_and_entropy(logits.contiguous(), target, return_lse=True, **options)
            for a, b in zip(strided, dense, strict=True):
                assert torch.equal(a, b), name


def test_non_contiguous_target_is_read_right(device):
    logits, _ = regimes(9)["moderate"]
    target = torch.tensor([[1, 0], [2, 0], [3, 0], [-100, 0]], device=device)[:, 0]
    check(logits.to(device), target)


def test_int32_target_is_int64_target(device):
    logits, target = regimes(9)["moderate"]
    a = logprobs_and_entropy(logits.to(device), target.to(device, torch.int32))
    b = logprobs_and_entropy(logits.to(device), target.to(device))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_unwanted_outputs_are_absent(device):
    logits, target = (x.to(device) for x in regimes(9)["moderate"])
    both = logprobs_and_entropy(logits, target)
    assert len(both) == 2
    logprobs, entropy = logprobs_and_entropy(logits, target, return_entropy=False)
    assert entropy is None
    assert torch.equal(logprobs, both[0])
    logprobs, entropy, lse = logprobs_and_entropy(logits, target, return_entropy=False, return_lse=True)
    assert entropy is None
    assert_relative(lse, torch.logsumexp(logits, -1), 1e-12, "lse")


def test_results_do_not_depend_on_the_number_of_threads():
    logits, target = regimes(20011)["peaked"]
    logits = logits.float().repeat(5, 1)
    target = target.repeat(5)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(logprobs_and_entropy(logits, target, return_lse=True))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    vocabulary=st.integers(1, 300),
    scale=st.sampled_from([1e-3, 1.0, 10.0, 200.0]),
    shift=st.sampled_from([0.0, 1000.0, -3e4]),
    temperature=st.floats(0.05, 20.0),
    softcap=st.none() | st.floats(1.0, 100.0),
    dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 7),
    share_ignored=st.sampled_from([0.0, 0.5, 1.0]),
    share_inf=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_random_rows_match_float64(
    rows, vocabulary, scale, shift, temperature, softcap, dtype, offset, share_ignored, share_inf, seed
):
    generator = torch.Generator().manual_seed(seed)
    wide = scale * torch.randn(rows, vocabulary + offset, generator=generator) + shift
    wide[torch.rand(wide.shape, generator=generator) < share_inf] = -torch.inf
    logits = wide.to(dtype)[:, offset:]  # any alignment of the rows
    target = torch.randint(vocabulary, (rows,), generator=generator)
    target[torch.rand(rows, generator=generator) < share_ignored] = -100
    logits = logits.clone().clamp(max=6e4) if dtype == torch.float16 else logits
    check(logits, target, temperature=temperature, softcap=softcap)


def test_arrays_of_other_libraries_are_read_in_place():
    numpy = pytest.importorskip("numpy", reason="no NumPy here")
    logits = numpy.random.default_rng(0).normal(size=(3, 8)).astype(numpy.float32)
    target = numpy.array([1, 2, -100])
    ours = logprobs_and_entropy(logits, target)
    torchs = logprobs_and_entropy(torch.from_numpy(logits), torch.from_numpy(target))
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
