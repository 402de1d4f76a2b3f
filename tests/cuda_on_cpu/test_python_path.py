"""The Python path of CUDA tensors, from the public functions to the kernels, against float64, on a CPU.

The device is pretended (pretended_cuda.py), the kernels are the PTX that NVRTC makes of them, run thread by thread.
What is shown: the dispatch to the CUDA side, mixed-precision products, tiles, rows split over blocks, rows kept where a
CPU leaves them out, one stream and one device throughout, autocast, and that nothing on the way waits for the device.
"""

from __future__ import annotations

import ctypes
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from kernel_programs import compile_library
from kernel_ptx import OPTIMISATION, missing, nvrtc_ptx, translate
from pretended_cuda import HostSync, load_kernels, on_cuda, pretended_cuda, to_host
from torch import Tensor

import cer_ext
from cer_ext import reference, tiles

IGNORE = -100


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Translated from NVRTC's PTX; from the source where NVRTC is missing."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it compiles the kernels for the CPU")
    into = tmp_path_factory.mktemp("python_path")
    if missing("nvrtc", "sm_90a"):
        return load_kernels(compile_library("emulated_kernels", into))
    translate(nvrtc_ptx("sm_90a"), into / "headers")
    options = {"kernels": into / "headers", "optimisation": OPTIMISATION, "warnings": ("-w",)}
    return load_kernels(compile_library("emulated_kernels", into, **options))


@pytest.fixture
def launched(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with pretended_cuda(kernels, monkeypatch) as names:
        yield names


class Head:
    """A small head on the pretended device and its outputs and gradients in float64."""

    def __init__(self, dtype: torch.dtype, rows: int = 37, width: int = 24, vocabulary: int = 1003, bias: bool = False):
        random = torch.Generator().manual_seed(rows + vocabulary)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        self.hidden, self.weight = (
            normal(rows, width).to(dtype),
            (3 * width**-0.5 * normal(vocabulary, width)).to(dtype),
        )
        self.bias = normal(vocabulary).to(dtype) if bias else None
        self.target = torch.randint(vocabulary, (rows,), generator=random)
        self.target[min(3, rows - 1)] = IGNORE
        self.temperature = torch.rand(rows, generator=random, dtype=torch.float64) + 0.5
        self.upstream = normal(rows), normal(rows)
        self.upstream[0][::3] = self.upstream[1][::3] = 0.0  # rows that add nothing
        self.tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5, torch.float64: 1e-10}[dtype]

    def tensors(self, trained: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden, weight = on_cuda(self.hidden).requires_grad_(), on_cuda(self.weight).requires_grad_(trained)
        return hidden, weight, None if self.bias is None else on_cuda(self.bias).requires_grad_(trained)

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """(logprobs, entropy) and the gradients of hidden, weight and bias for the upstream ones."""
        inputs = [x.double().requires_grad_() for x in (self.hidden, self.weight, self.bias) if x is not None]
        bias = inputs[2] if self.bias is not None else None
        outputs = reference.linear_logprobs_and_entropy(
            inputs[0], inputs[1], self.target, bias, temperature=self.temperature
        )
        return [x.detach() for x in outputs], list(torch.autograd.grad(outputs, inputs, self.upstream))

    def check(self, got: list[Tensor], expected: list[Tensor]) -> None:
        for have, want in zip(got, expected, strict=True):
            error = (to_host(have).double() - want).norm() / want.norm()
            assert error < self.tolerance, float(error)


def check_outputs(got: tuple[Tensor, Tensor], expected: list[Tensor]) -> None:
    for have, want in zip(got, expected, strict=True):
        torch.testing.assert_close(to_host(have).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_head_in_tiles_gives_float64s_outputs_and_gradients(
    launched: list[str], dtype: torch.dtype, bias: bool
) -> None:
    head = Head(dtype, bias=bias)
    hidden, weight, offset = head.tensors()
    target, temperature = on_cuda(head.target), on_cuda(head.temperature)
    outputs = cer_ext.linear_logprobs_and_entropy(
        hidden, weight, target, offset, temperature=temperature, workspace_bytes=1 << 16
    )
    expected, gradients = head.expected()
    check_outputs(outputs, expected)
    upstream = [on_cuda(x.to(outputs[0].dtype)) for x in head.upstream]
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    head.check(torch.autograd.grad(outputs, inputs, upstream), gradients)
    assert sum(name.startswith("cer_fold_tile") for name in launched) > 1
    assert sum(name.startswith("cer_grad_tile") for name in launched) > 1


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_pass_gives_the_loss_and_gradients_of_float64(
    launched: list[str], dtype: torch.dtype, trained: bool
) -> None:
    head = Head(dtype)
    hidden, weight, _ = head.tensors(trained)
    g, h = (on_cuda(x.float()) for x in head.upstream)
    result = cer_ext.linear_token_loss(
        hidden,
        weight,
        on_cuda(head.target),
        lambda logprobs, entropy, rows: (g[rows] * logprobs + h[rows] * entropy).sum(),
        temperature=on_cuda(head.temperature),
        workspace_bytes=1 << 17,
    )
    expected, gradients = head.expected()
    check_outputs((result.logprobs, result.entropy), expected)
    loss = sum((x * y).sum() for x, y in zip(head.upstream, expected, strict=True))
    torch.testing.assert_close(to_host(result.loss).double(), loss, rtol=1e-4, atol=1e-4)
    inputs = [hidden, weight] if trained else [hidden]
    head.check(torch.autograd.grad(result.loss, inputs), gradients[: len(inputs)])
    assert sum(name == "cer_finish_rows" for name in launched) > 1  # several tiles of rows


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_several_targets_and_the_largest_give_float64s_outputs_and_gradients(
    launched: list[str], dtype: torch.dtype, trained: bool
) -> None:
    head = Head(dtype)
    several = torch.stack([head.target, (head.target + 1).clamp(min=0) % 1003, head.target], 1)  # one of them twice
    hidden, weight, _ = head.tensors(trained)
    options = {"temperature": on_cuda(head.temperature), "workspace_bytes": 1 << 16}
    found = cer_ext.linear_target_statistics(hidden, weight, on_cuda(several), **options)
    exact = [x.double().requires_grad_() for x in (head.hidden, head.weight)]
    expected = reference.linear_target_statistics(*exact, several, temperature=head.temperature)
    for name, have, want in zip(found._fields, found, expected, strict=True):
        if name == "is_top1":
            assert (to_host(have) == want).all()
        else:
            torch.testing.assert_close(to_host(have).double(), want.detach(), rtol=1e-5, atol=1e-5)

    g = torch.linspace(-1, 1, several.numel()).view(several.shape).double()
    h = head.upstream[1]
    inputs = [hidden, weight] if trained else [hidden]
    got = torch.autograd.grad(
        [found.logprobs, found.entropy], inputs, [on_cuda(x.to(found.logprobs.dtype)) for x in (g, h)]
    )
    wanted = torch.autograd.grad([expected[0], expected[3]], exact, [g, h])
    head.check(list(got), list(wanted[: len(inputs)]))

    top = cer_ext.linear_topk_logprobs(hidden, weight, 5, **options)
    every = torch.arange(1003).expand(len(several), 1003)
    logp = reference.linear_target_statistics(*exact, every, temperature=head.temperature)[0].detach()
    torch.testing.assert_close(to_host(top.logprobs).double(), logp.topk(5).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logp.gather(1, to_host(top.indices)), logp.topk(5).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("workspace_bytes", [1 << 16, 1 << 22])
def test_tiles_of_an_odd_vocabulary_begin_their_rows_at_aligned_addresses(
    launched: list[str], one_pass: bool, workspace_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V = 1003, D = 24, several tiles or one: logits and dlogits, as results and as operands of the products."""
    head = Head(torch.bfloat16)
    strides: set[int] = set()
    multiply = tiles.Matrices.multiply

    def record(self, a, b, out, *, accumulate):
        for x in (a, b, out):
            strides.add(max(x.stride()))
        return multiply(self, a, b, out, accumulate=accumulate)

    monkeypatch.setattr(tiles.Matrices, "multiply", record)
    hidden, weight, _ = head.tensors()
    target, workspace = on_cuda(head.target), max(workspace_bytes, 1 << 18 if one_pass else 0)
    if one_pass:
        loss = cer_ext.linear_token_loss(
            hidden, weight, target, lambda logprobs, entropy, rows: logprobs.sum(), workspace_bytes=workspace
        ).loss
    else:
        loss = cer_ext.linear_logprobs_and_entropy(hidden, weight, target, workspace_bytes=workspace)[0].sum()
    torch.autograd.grad(loss, [hidden, weight])
    strides.discard(24)  # of hidden states and weight
    assert strides
    assert all(stride % 16 == 0 for stride in strides), strides


def test_few_rows_are_split_over_blocks_and_merged(launched: list[str]) -> None:
    head = Head(torch.bfloat16, rows=2, width=8, vocabulary=40_000)
    hidden, weight, _ = head.tensors()
    outputs = cer_ext.linear_logprobs_and_entropy(
        hidden, weight, on_cuda(head.target), temperature=on_cuda(head.temperature)
    )
    check_outputs(outputs, head.expected()[0])
    assert "cer_merge_splits" in launched


def test_rows_of_nan_that_are_ignored_reach_nothing(launched: list[str]) -> None:
    """A CPU leaves ignored rows out; here they are kept, as nobody may wait to count them."""
    head = Head(torch.bfloat16)
    _, gradients = head.expected()
    head.hidden[3] = torch.nan
    hidden, weight, _ = head.tensors()
    target, temperature = on_cuda(head.target), on_cuda(head.temperature)
    outputs = cer_ext.linear_logprobs_and_entropy(hidden, weight, target, temperature=temperature)
    assert to_host(outputs[0])[3] == to_host(outputs[1])[3] == 0.0
    upstream = [on_cuda(x.float()) for x in head.upstream]
    head.check(torch.autograd.grad(outputs, (hidden, weight), upstream), gradients)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_give_the_outputs_and_gradients_of_float64(
    launched: list[str], dtype: torch.dtype, in_place: bool
) -> None:
    random = torch.Generator().manual_seed(2)
    values = torch.randn(3, 5, 777, generator=random, dtype=torch.float64).mul(3).to(dtype)
    labels = torch.randint(777, (3, 5), generator=random)
    labels[1, 2] = IGNORE
    g, h = (torch.randn(3, 5, generator=random, dtype=torch.float64) for _ in range(2))
    leaf = on_cuda(values).requires_grad_()
    logits = leaf * 1 if in_place else leaf  # a leaf's memory is not ours to overwrite
    outputs = cer_ext.logprobs_and_entropy(logits, on_cuda(labels), inplace_backward=in_place)
    wide = values.double().requires_grad_()
    expected = reference.logprobs_and_entropy(wide, labels)
    check_outputs(outputs, [x.detach() for x in expected])
    (got,) = torch.autograd.grad(outputs, leaf, (on_cuda(g.float()), on_cuda(h.float())))
    (want,) = torch.autograd.grad(expected, wide, (g, h))
    rounding = 1e-2 if dtype == torch.bfloat16 else 2e-5
    assert (to_host(got).double() - want).norm() / want.norm() < rounding
    assert Counter(name.split("_")[1] for name in launched) == {"fold": 1, "finish": 1, "grad": 1}


def test_teca_and_the_reward_follow_their_definitions(launched: list[str]) -> None:
    random = torch.Generator().manual_seed(3)
    entropy = torch.rand(3, 300, generator=random)
    mask = torch.arange(300) < torch.tensor([[300], [17], [1]])
    leaf = on_cuda(entropy).requires_grad_()
    average, last = cer_ext.teca(leaf, on_cuda(mask)), cer_ext.teca_last(leaf, on_cuda(mask))
    wide = entropy.double().requires_grad_()
    expected, expected_last = reference.teca(wide, mask), reference.teca_last(wide, mask)
    torch.testing.assert_close(to_host(average).double(), expected.detach(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(to_host(last).double(), expected_last.detach(), rtol=1e-6, atol=0.0)
    (got,) = torch.autograd.grad(average.sum() + last.sum(), leaf)
    (want,) = torch.autograd.grad(expected.sum() + expected_last.sum(), wide)
    torch.testing.assert_close(to_host(got).double(), want, rtol=1e-5, atol=1e-7)
    reward = cer_ext.cer_reward(last.detach(), on_cuda(torch.tensor([True, False, True])))
    want = (1 + torch.exp(-expected_last.detach()) / 2) * torch.tensor([1, 0, 1])
    torch.testing.assert_close(to_host(reward).double(), want, rtol=1e-6, atol=0.0)


@pytest.fixture
def autocast() -> Iterator[None]:
    """torch.autocast("cuda") turns itself off where there is no CUDA; this is what it sets."""
    was = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", was[0])
    torch.set_autocast_dtype("cuda", was[1])


def test_under_autocast_operands_are_cast_and_everything_else_is_not(launched: list[str], autocast: None) -> None:
    head = Head(torch.float32)
    hidden, weight, _ = head.tensors()
    target = on_cuda(head.target)
    temperature = on_cuda(head.temperature)
    outputs = cer_ext.linear_logprobs_and_entropy(hidden, weight, target, temperature=temperature)
    g, h = (on_cuda(x.float()) for x in head.upstream)
    gradients = torch.autograd.grad(outputs, (hidden, weight), (g, h))
    one_pass = cer_ext.linear_token_loss(
        hidden,
        weight,
        target,
        lambda logprobs, entropy, rows: (g[rows] * logprobs + h[rows] * entropy).sum(),
        temperature=temperature,
    )
    assert all(tensor.dtype == torch.float32 for tensor in (*outputs, *gradients, one_pass.loss))
    rounded = Head(torch.float32)
    rounded.hidden, rounded.weight = (x.bfloat16().float() for x in (head.hidden, head.weight))
    rounded.tolerance = 1e-2  # dlogits and gradients pass through bfloat16
    expected, expected_gradients = rounded.expected()
    check_outputs(outputs, expected)
    rounded.check(gradients, expected_gradients)
    rounded.check(torch.autograd.grad(one_pass.loss, (hidden, weight)), expected_gradients)
    assert any("bfloat16" in name for name in launched)


def test_a_wait_for_the_device_is_noticed(launched: list[str]) -> None:
    tensor = on_cuda(torch.arange(4.0))
    for wait in (
        lambda: tensor.sum().item(),
        lambda: tensor.cpu(),
        lambda: tensor[tensor > 1],
        lambda: bool(tensor[0]),
    ):
        with pytest.raises(HostSync):
            wait()
    head = Head(torch.float32)
    hidden, weight, _ = head.tensors()
    with pytest.raises(HostSync):  # it was asked for
        cer_ext.linear_logprobs_and_entropy(hidden, weight, on_cuda(head.target), validate=True)


def test_a_tensor_on_the_cpu_among_those_on_cuda_is_refused(launched: list[str]) -> None:
    head = Head(torch.float32)
    hidden, weight, _ = head.tensors()
    with pytest.raises(ValueError, match="target: expected on cuda:0 like hidden, got on cpu"):
        cer_ext.linear_logprobs_and_entropy(hidden, weight, head.target)
