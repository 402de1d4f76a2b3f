"""torch.compile(fullgraph=True): every argument may change between calls, and a new number is no reason to compile."""

import pytest
import torch
import torch._dynamo.testing
from exact import assert_relative

from cer_ext import cer_reward, linear_logprobs_and_entropy, logprobs_and_entropy, reference

CALLS = 10  # torch gives up at the ninth compilation of a function


@pytest.fixture(autouse=True)
def forget_compiled_functions():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


def numbers(call: int, kind: type) -> dict:
    """Another value for every argument that is a number; integers also where a float is usual."""
    return {
        "temperature": kind(1 + call) if kind is int else 0.5 + 0.1 * call,
        "ignore_index": -100 - call,
        "logit_scale": kind(1 + call % 3) if kind is int else 0.5 + 0.05 * call,
        "softcap": kind(5 + call) if kind is int else 5.5 + call,
    }


def from_hidden(hidden, weight, target, options, module=None):
    return (module or linear_logprobs_and_entropy)(torch.tanh(hidden), weight, target, **options)


def from_logits(hidden, weight, target, options, module=None):
    return (module or logprobs_and_entropy)(torch.tanh(hidden) @ weight.T, target, **options)


@pytest.mark.parametrize("kind", [float, int])
@pytest.mark.parametrize(
    ("function", "definition"),
    [(from_hidden, reference.linear_logprobs_and_entropy), (from_logits, reference.logprobs_and_entropy)],
)
def test_numbers_may_change_at_every_call_without_a_new_graph(function, definition, kind):
    run, counter = compiled(function)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(33, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    for call in range(CALLS):
        options = numbers(call, kind)
        if function is from_hidden:
            options["workspace_bytes"] = 100_000 + call
        target = torch.tensor([3, 1, options["ignore_index"], 32, call])
        results = []
        for logprobs, entropy in (
            run(hidden, weight, target, options),
            function(hidden, weight, target, options, definition),
        ):
            loss = logprobs.sum() - (entropy**2).sum()
            results.append((logprobs, entropy, *torch.autograd.grad(loss, (hidden, weight))))
        for ours, right in zip(*results, strict=True):
            assert_relative(ours, right, 1e-11, f"call {call}", atol=1e-13)
    assert counter.frame_count == 2  # the first values as constants, then any


@pytest.mark.parametrize("flag", ["return_entropy", "return_lse", "validate"])
def test_flags_may_change_between_calls(flag):
    run, _ = compiled(from_hidden)
    hidden, weight, target = torch.randn(5, 4), torch.randn(33, 4), torch.arange(5)
    for value in (True, False, True):
        options = {flag: value}
        for ours, eager in zip(
            run(hidden, weight, target, options), from_hidden(hidden, weight, target, options), strict=True
        ):
            assert (ours is None) == (eager is None)
            assert ours is None or torch.equal(ours, eager)


def test_a_temperature_may_become_a_tensor_and_a_number_again():
    run, _ = compiled(from_logits)
    hidden, weight, target = torch.randn(5, 4), torch.randn(33, 4), torch.arange(5)
    for temperature in (0.7, torch.linspace(0.5, 2, 5), 1.3, 2, torch.linspace(1, 3, 5)):
        options = {"temperature": temperature}
        for ours, eager in zip(
            run(hidden, weight, target, options), from_logits(hidden, weight, target, options), strict=True
        ):
            assert torch.equal(ours, eager)


def test_the_weight_of_the_reward_may_change_at_every_call():
    run, counter = compiled(lambda teca, correct, weight: cer_reward(teca, correct, weight=weight))
    teca, correct = torch.tensor([0.1, 0.7, 2.0]), torch.tensor([True, False, True])
    for call in range(CALLS):
        weight = 0.1 * call
        right = torch.where(correct, 1 + weight * torch.exp(-teca.double()), 0.0)
        assert_relative(run(teca, correct, weight), right.float(), 1e-6, f"call {call}")
    assert counter.frame_count == 2


def test_a_bad_number_is_refused_in_compiled_code_after_good_ones():
    run, _ = compiled(from_hidden)
    hidden, weight, target = torch.randn(5, 4), torch.randn(33, 4), torch.arange(5)
    for temperature in (0.7, 0.9, 1.1):
        run(hidden, weight, target, {"temperature": temperature})
    with pytest.raises(Exception, match="temperature: expected a positive finite number"):
        run(hidden, weight, target, {"temperature": -1.0})
