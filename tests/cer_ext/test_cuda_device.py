"""What only a GPU can show: no wait for the device, streams, graphs, a second device, alignment, exhausted memory.

They skip without one; `python -m bench.gpu.prove` runs them first. Values are held to the float64 reference on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import cer_ext
from cer_ext import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

ROWS, WIDTH, VOCABULARY = 48, 64, 5003
IGNORE = -100


class Inputs:
    """A bfloat16 head on `device`, its target with ignored rows, and what float64 gives for it."""

    def __init__(self, device: str = "cuda", seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(ROWS, WIDTH, generator=random).bfloat16().to(device)
        self.weight = (torch.randn(VOCABULARY, WIDTH, generator=random) * 0.3).bfloat16().to(device)
        self.target = torch.randint(VOCABULARY, (ROWS,), generator=random).to(device)
        self.target[::7] = IGNORE

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()

    def check(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...] = ()) -> None:
        hidden, weight = (x.cpu().double().requires_grad_() for x in (self.hidden, self.weight))
        expected = reference.linear_logprobs_and_entropy(hidden, weight, self.target.cpu())
        for got, want in zip(outputs, expected, strict=True):
            torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=1e-5, atol=1e-5)
        if gradients:
            wanted = torch.autograd.grad(sum(x.sum() for x in expected), (hidden, weight))
            for got, want in zip(gradients, wanted, strict=True):
                assert (got.cpu().double() - want).norm() / want.norm() < 1e-2


def head_step(inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    hidden, weight = inputs.leaves()
    outputs = cer_ext.linear_logprobs_and_entropy(hidden, weight, inputs.target)
    return outputs, torch.autograd.grad(sum(x.sum() for x in outputs), (hidden, weight))


def one_pass_step(inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    hidden, weight = inputs.leaves()
    result = cer_ext.linear_token_loss(
        hidden, weight, inputs.target, lambda logprobs, entropy, rows: logprobs.sum() + entropy.sum()
    )
    return (result.logprobs, result.entropy), torch.autograd.grad(result.loss, (hidden, weight))


STEPS = {"two passes": head_step, "one pass": one_pass_step}


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> Callable[[Inputs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    return STEPS[request.param]


@pytest.fixture
def refuse_waits() -> Iterator[Callable[[bool], None]]:
    """Switches whether a wait of the host for the device is an error."""
    yield lambda refuse: torch.cuda.set_sync_debug_mode("error" if refuse else "default")
    torch.cuda.set_sync_debug_mode("default")


def test_the_kernels_that_build_info_names_are_there() -> None:
    assert cer_ext.build_info()["cuda_backend"].startswith(("native kernels", "kernels compiled at first use"))


def test_nothing_waits_for_the_device(step: Callable, refuse_waits: Callable[[bool], None]) -> None:
    inputs = Inputs()
    step(inputs)  # what is loaded or compiled at first use may wait
    torch.cuda.synchronize()
    refuse_waits(True)
    outputs, gradients = step(inputs)
    average = cer_ext.teca(outputs[1].view(4, -1), torch.ones(4, ROWS // 4, dtype=torch.bool, device="cuda"))
    refuse_waits(False)
    inputs.check(outputs, gradients)
    expected = reference.teca(outputs[1].view(4, -1).cpu().double(), torch.ones(4, ROWS // 4, dtype=torch.bool))
    torch.testing.assert_close(average.cpu().double(), expected, rtol=1e-6, atol=1e-6)


def test_a_side_stream_is_followed(step: Callable) -> None:
    """The inputs are still being made on the stream when the kernels are launched there."""
    inputs, stream = Inputs(), torch.cuda.Stream()
    busy = torch.randn(4096, 4096, device="cuda")
    wanted = inputs.hidden.clone()
    inputs.hidden.fill_(torch.nan)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        inputs.hidden.copy_(wanted)
        outputs, gradients = step(inputs)
    stream.synchronize()
    inputs.check(outputs, gradients)


def test_a_captured_graph_replays_with_new_inputs() -> None:
    inputs, later = Inputs(), Inputs(seed=1)
    hidden, weight = inputs.leaves()

    def forward_and_backward() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outputs = cer_ext.linear_logprobs_and_entropy(hidden, weight, inputs.target)
        return outputs, torch.autograd.grad(sum(x.sum() for x in outputs), (hidden, weight))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_and_backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs, gradients = forward_and_backward()
    for source in (inputs, later, inputs):
        with torch.no_grad():
            hidden.copy_(source.hidden)
            weight.copy_(source.weight)
            inputs.target.copy_(later.target if source is later else Inputs().target)
        graph.replay()
        torch.cuda.synchronize()
        source.check(outputs, gradients)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_the_tensors_device_counts_not_the_current_one(step: Callable) -> None:
    inputs = Inputs("cuda:1")
    with torch.cuda.device(0):
        outputs, gradients = step(inputs)
    assert all(tensor.device == torch.device("cuda:1") for tensor in (*outputs, *gradients))
    inputs.check(outputs, gradients)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
@pytest.mark.parametrize("vocabulary", [1, 1001, 4099])
def test_rows_may_begin_anywhere(vocabulary: int, offset: int, dtype: torch.dtype, in_place: bool) -> None:
    """Odd V and odd offsets: every row has another alignment than the one before it."""
    random = torch.Generator().manual_seed(vocabulary + offset)
    values = torch.randn(5, vocabulary, generator=random).mul(3).to(dtype)
    target = torch.randint(vocabulary, (5,), generator=random)
    memory = torch.full((offset + values.numel() + 8,), torch.nan, dtype=dtype, device="cuda")
    leaf = memory[offset : offset + values.numel()].view(5, vocabulary)
    leaf.copy_(values)
    leaf = leaf.detach().requires_grad_()
    logits = leaf.view(5, vocabulary) * 1 if in_place else leaf
    outputs = cer_ext.logprobs_and_entropy(logits, target.cuda(), inplace_backward=in_place)
    wide = values.double().requires_grad_()
    expected = reference.logprobs_and_entropy(wide, target)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), leaf)
    (want,) = torch.autograd.grad(expected[0].sum() + expected[1].sum(), wide)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-2, atol=1e-3 if dtype == torch.bfloat16 else 1e-5)
    around = torch.cat((memory[:offset], memory[offset + values.numel() :]))
    assert around.isnan().all()


def test_exhausted_memory_is_torchs_error_and_leaves_nothing_behind(step: Callable) -> None:
    inputs = Inputs()
    step(inputs)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    wide = torch.zeros(4096, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    weight = torch.zeros(151936, WIDTH, dtype=torch.bfloat16, device="cuda")
    target = torch.zeros(4096, dtype=torch.int64, device="cuda")
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
        with pytest.raises(torch.OutOfMemoryError):
            cer_ext.linear_logprobs_and_entropy(wide, weight, target, workspace_bytes=2**30)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del wide, weight, target
    assert torch.cuda.memory_allocated() == before
    outputs, gradients = step(inputs)
    inputs.check(outputs, gradients)
