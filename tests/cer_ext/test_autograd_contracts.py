"""What torch expects of a differentiable operation: gradcheck, opcheck, compile, checkpointing, and clear refusals."""

import itertools
import warnings

import pytest
import torch
from exact import assert_relative
from torch.utils.checkpoint import checkpoint

from cer_ext import (
    from_hidden,
    from_logits,
    linear_logprobs_and_entropy,
    linear_token_loss,
    logprobs_and_entropy,
    reference,
    teca_last,
)
from cer_ext import teca as teca_of
from cer_ext.transform import Scalars

# cer_ext.teca is the function; its module is needed for the registered ops.
TECA_FORWARD = torch.ops.cer_ext.teca_forward.default
TECA_BACKWARD = torch.ops.cer_ext.teca_backward.default

TARGET = torch.tensor([3, -100, 69, 0, 40])
OUTPUTS = {"logprobs": [0], "entropy": [1], "lse": [2], "logprobs and entropy": [0, 1], "all": [0, 1, 2]}


def doubles(device, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device).requires_grad_() for s in shapes]


# ------------------------------------------------------------------------------------------------------------ gradcheck


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "logit_scale": 0.5, "softcap": 3.0}])
def test_gradcheck_from_logits(device, outputs, options):
    (logits,) = doubles(device, (5, 70))
    target = TARGET.to(device)

    def f(logits):
        result = logprobs_and_entropy(logits, target, return_lse=True, **options)
        return tuple(result[i] for i in OUTPUTS[outputs])

    assert torch.autograd.gradcheck(f, (logits,))


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_gradcheck_from_hidden(device, outputs):
    hidden, weight, bias = doubles(device, (5, 3), (70, 3), (70,))
    target = TARGET.to(device)
    temperature = torch.linspace(0.5, 2.0, 5, device=device)

    def f(hidden, weight, bias):
        result = linear_logprobs_and_entropy(
            hidden, weight, target, bias, temperature=temperature, softcap=5.0, return_lse=True, workspace_bytes=1024
        )
        return tuple(result[i] for i in OUTPUTS[outputs])

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


def test_gradcheck_teca(device):
    padded, packed = doubles(device, (3, 6), (7,))
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0] * 6, [1] * 6], device=device)
    cu_seqlens = torch.tensor([0, 3, 3, 7], device=device)
    assert torch.autograd.gradcheck(lambda x: (teca_of(x, mask), teca_last(x, mask)), (padded,))
    assert torch.autograd.gradcheck(
        lambda x: (teca_of(x, cu_seqlens=cu_seqlens), teca_last(x, cu_seqlens=cu_seqlens)), (packed,)
    )


# ------------------------------------------------------------------------------------------------------------- opcheck


def scalars(temperature=1.0):
    return Scalars(temperature).pack(), -100


def op_calls(device):
    logits = torch.randn(5, 70, device=device)
    hidden, weight, bias = (
        torch.randn(5, 3, device=device),
        torch.randn(70, 3, device=device),
        torch.randn(70, device=device),
    )
    target = TARGET.to(device)
    temperature = torch.full((5,), 0.5, device=device)
    stats = from_logits.FORWARD(logits, target, None, *scalars(), True, True, False, True)[3]
    grad = torch.randn(5, device=device)
    entropy = torch.rand(2, 4, device=device)
    mask = torch.tensor([[True, True, False, True], [False] * 4], device=device)
    cu_seqlens = torch.tensor([0, 3, 8], device=device)

    def leaf(x):
        return x.clone().requires_grad_()

    return {
        "logits_forward": (from_logits.FORWARD, (leaf(logits), target, None, *scalars(), True, True, False, True)),
        "logits_forward, per row": (
            from_logits.FORWARD,
            (leaf(logits), target, temperature, *scalars(), True, False, False, True),
        ),
        "logits_backward": (from_logits.BACKWARD, (logits, target, None, stats, grad, grad, None, *scalars())),
        "logits_backward_": (
            from_logits.BACKWARD_IN_PLACE,
            (logits.clone(), target, None, stats, grad, None, grad, *scalars()),
        ),
        "hidden_forward": (
            from_hidden.FORWARD,
            (leaf(hidden), leaf(weight), leaf(bias), target, None, *scalars(), True, True, 0, True),
        ),
        "hidden_forward, frozen": (
            from_hidden.FORWARD,
            (leaf(hidden), weight, None, target, temperature, *scalars(), False, False, 2048, True),
        ),
        "hidden_backward": (
            from_hidden.BACKWARD,
            (hidden, weight, bias, target, None, stats, grad, grad, grad, *scalars(), 0, True, True, True),
        ),
        "teca_forward": (TECA_FORWARD, (leaf(entropy), mask, None, True)),
        "teca_forward, packed": (TECA_FORWARD, (leaf(entropy.view(-1)), None, cu_seqlens, True)),
        "teca_backward": (TECA_BACKWARD, (entropy, mask, None, entropy, entropy[:, 0].contiguous())),
    }


@pytest.mark.parametrize("room", [from_logits, from_hidden])
def test_an_op_takes_its_arguments_by_the_names_and_in_the_order_of_the_code(room):
    assert [argument.name for argument in room.FORWARD._schema.arguments] == list(room.ForwardArguments._fields)


@pytest.mark.parametrize("call", op_calls(torch.device("cpu")))
def test_opcheck(device, call):
    op, arguments = op_calls(device)[call]
    torch.library.opcheck(op, arguments)


# ------------------------------------------------------------------------------------------------------------- compile


@pytest.fixture(autouse=True)
def forget_compiled_functions():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_from_logits_compiles_to_one_graph_forward_and_backward(device, dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def loss(logits, target):
        logprobs, entropy, lse = logprobs_and_entropy(
            logits * 1.5, target, temperature=0.7, softcap=9.0, return_lse=True, inplace_backward=True
        )
        return (logprobs + 0.3 * entropy - 0.1 * lse).sum()

    for rows, vocabulary in ((5, 33), (7, 65)):
        (logits,) = doubles(device, (rows, vocabulary))
        target = torch.arange(rows, device=device)
        (actual,) = torch.autograd.grad(loss(logits, target), logits)
        outputs = reference.logprobs_and_entropy(logits * 1.5, target, temperature=0.7, softcap=9.0, return_lse=True)
        (expected,) = torch.autograd.grad((outputs[0] + 0.3 * outputs[1] - 0.1 * outputs[2]).sum(), logits)
        assert_relative(actual, expected, 1e-11, "compiled gradient", atol=1e-13)


@pytest.mark.parametrize("dynamic", [False, True])
def test_from_hidden_compiles_to_one_graph_forward_and_backward(device, dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def loss(hidden, weight, target, temperature):
        hidden = torch.tanh(hidden)
        logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, temperature=temperature)
        mean = teca_last(entropy.view(1, -1)).sum()
        return logprobs.sum() + mean

    for rows, vocabulary in ((5, 33), (7, 65)):
        hidden, weight = doubles(device, (rows, 4), (vocabulary, 4))
        target = torch.arange(rows, device=device)
        temperature = torch.linspace(0.5, 2, rows, device=device)
        actual = torch.autograd.grad(loss(hidden, weight, target, temperature), (hidden, weight))
        outputs = reference.linear_logprobs_and_entropy(torch.tanh(hidden), weight, target, temperature=temperature)
        expected = torch.autograd.grad(outputs[0].sum() + outputs[1].mean(), (hidden, weight))
        for a, e in zip(actual, expected, strict=True):
            assert_relative(a, e, 1e-11, "compiled gradient", atol=1e-13)


def test_the_default_compiler_runs_it_too(device):
    """Inductor, once: the code it generates calls the ops with its own buffers."""

    @torch.compile(fullgraph=True)
    def loss(hidden, weight, target):
        logprobs, entropy = linear_logprobs_and_entropy(torch.relu(hidden), weight, target)
        return (logprobs * entropy).sum()

    hidden, weight = doubles(device, (5, 4), (33, 4))
    target = torch.arange(5, device=device)
    actual = torch.autograd.grad(loss(hidden, weight, target), (hidden, weight))
    outputs = reference.linear_logprobs_and_entropy(torch.relu(hidden), weight, target)
    expected = torch.autograd.grad((outputs[0] * outputs[1]).sum(), (hidden, weight))
    for a, e in zip(actual, expected, strict=True):
        assert_relative(a, e, 1e-11, "compiled gradient", atol=1e-13)


def test_bad_targets_raise_in_compiled_code_as_well():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(logits, target):
        return logprobs_and_entropy(logits, target)[0] * 2

    with pytest.raises(ValueError, match="target: expected 0 <= target < 4"):
        f(torch.zeros(2, 4), torch.tensor([0, 9]))


# -------------------------------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(device, use_reentrant):
    hidden, weight = doubles(device, (5, 4), (70, 4))
    target = TARGET.to(device)

    def head(hidden):
        logprobs, entropy = linear_logprobs_and_entropy(torch.tanh(hidden), weight, target)
        return (logprobs + entropy).sum()

    expected = torch.autograd.grad(head(hidden), (hidden, weight))
    checkpoint(head, hidden, use_reentrant=use_reentrant).backward()
    assert torch.equal(hidden.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])


# ------------------------------------------------------------------------------------------------------------- refusals


def test_double_backward_is_refused_clearly(device):
    hidden, weight = doubles(device, (5, 4), (70, 4))
    (entropies,) = doubles(device, (2, 5))
    target = TARGET.to(device)
    results = [
        (logprobs_and_entropy(hidden @ weight.T, target)[1], hidden),
        (linear_logprobs_and_entropy(hidden, weight, target)[0], hidden),
        (teca_of(entropies.exp()), entropies),
    ]
    for output, leaf in results:
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            gradient.sum().backward()


FORWARD_MODE = {
    "logits": lambda x: logprobs_and_entropy(x, torch.arange(3))[1],
    "hidden": lambda x: linear_logprobs_and_entropy(x, torch.ones(7, 4), torch.arange(3))[0],
    "weight": lambda x: linear_logprobs_and_entropy(torch.ones(3, 4), x, torch.zeros(3, dtype=torch.long))[0],
    "hidden, one pass": lambda x: linear_token_loss(x, torch.ones(7, 4), torch.arange(3), lambda a, h, r: a.sum()).loss,
    "entropy": teca_of,
    "entropy, last": teca_last,
}


@pytest.mark.parametrize("what", FORWARD_MODE)
@pytest.mark.parametrize("recording", [False, True])
def test_forward_mode_differentiation_is_refused_and_never_zero(what, recording):
    x = torch.rand(3, 4).requires_grad_(recording)
    with pytest.raises(RuntimeError, match=f"{what.split(',')[0]}: forward-mode differentiation.*not supported"):
        torch.func.jvp(FORWARD_MODE[what], (x,), (torch.ones_like(x),))


def test_forward_mode_differentiation_is_refused_in_compiled_code():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def tangent(x):
        return torch.func.jvp(FORWARD_MODE["hidden"], (x,), (torch.ones_like(x),))[1]

    with pytest.raises(Exception, match="forward-mode differentiation"):
        tangent(torch.rand(3, 4))


def test_vmap_runs_example_by_example(device):
    """There is no batching rule and none is needed (rows are the batch): torch's fallback loops, with a warning."""
    logits = torch.randn(3, 5, 70, device=device)
    target = TARGET.to(device).expand(3, 5)
    mapped = torch.vmap(logprobs_and_entropy)(logits, target)
    for a, b in zip(mapped, logprobs_and_entropy(logits, target), strict=True):
        assert torch.equal(a, b)


# --------------------------------------------------------------------------------------- what autograd must be told


def test_nothing_is_saved_where_nothing_needs_a_gradient(device):
    logits = torch.randn(5, 70, device=device)
    target = TARGET.to(device)
    assert not logprobs_and_entropy(logits, target)[0].requires_grad
    leaf = logits.clone().requires_grad_()
    with torch.no_grad():
        assert not logprobs_and_entropy(leaf, target)[0].requires_grad
    with torch.inference_mode():
        a = logprobs_and_entropy(leaf, target)
    b = logprobs_and_entropy(leaf, target)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_way_without_gradient_gives_the_numbers_of_the_way_with_it(device):
    hidden, weight = doubles(device, (5, 4), (70, 4))
    target = TARGET.to(device)
    recorded = linear_logprobs_and_entropy(hidden, weight, target, return_lse=True)
    plain = linear_logprobs_and_entropy(hidden.detach(), weight.detach(), target, return_lse=True)
    for a, b in zip(recorded, plain, strict=True):
        assert a.requires_grad
        assert torch.equal(a, b)


def test_inputs_changed_between_forward_and_backward_raise(device):
    target = TARGET.to(device)
    for changed in range(2):
        inputs = doubles(device, (5, 4), (70, 4))
        logprobs, _ = linear_logprobs_and_entropy(*inputs, target)
        with torch.no_grad():
            inputs[changed].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logprobs.sum().backward()


def test_gradients_of_two_backward_passes_add_up(device):
    hidden, weight = doubles(device, (5, 4), (70, 4))
    target = TARGET.to(device)
    loss = linear_logprobs_and_entropy(hidden, weight, target)[0].sum()
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.backward()
    assert torch.equal(hidden.grad, 2 * once)


def test_outputs_are_correct_for_every_pattern_of_missing_upstream_gradients(device):
    hidden, weight = doubles(device, (5, 4), (70, 4))
    target = TARGET.to(device)
    for pattern in itertools.product([0.0, 1.0], repeat=3):
        if not any(pattern):
            continue
        loss = [
            sum(x.sum() for x, on in zip(f(hidden, weight, target, return_lse=True), pattern, strict=True) if on)
            for f in (linear_logprobs_and_entropy, reference.linear_logprobs_and_entropy)
        ]
        ours, theirs = (torch.autograd.grad(x, (hidden, weight)) for x in loss)
        for a, e in zip(ours, theirs, strict=True):
            assert_relative(a, e, 1e-11, f"pattern {pattern}", atol=1e-13)


def test_autograd_finds_every_op_registered():
    """No "not differentiable" or "autograd kernel was not registered" warning in a plain training step."""
    hidden, weight = doubles(torch.device("cpu"), (5, 4), (70, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = linear_logprobs_and_entropy(hidden, weight, TARGET)[1].sum()
        loss.backward()
        logits = hidden @ weight.T
        logprobs_and_entropy(logits, TARGET, inplace_backward=True)[0].sum().backward()
