"""inplace_backward=True: the gradient takes the logits' memory, and nobody ever computes with what was overwritten."""

import pytest
import torch
from exact import assert_relative
from torch.utils.checkpoint import checkpoint

from cer_ext import logprobs_and_entropy

MODIFIED = "modified by an inplace operation"


def make(device, rows=6, vocabulary=33, dtype=torch.float32):
    """A leaf, logits computed from it by an operation that does not save them, and targets."""
    generator = torch.Generator(device).manual_seed(0)
    leaf = torch.randn(rows, vocabulary, device=device, generator=generator).to(dtype).requires_grad_()
    target = torch.arange(rows, device=device) % vocabulary
    target[1] = -100
    return leaf, leaf * 2.0, target


def loss_of(logits, target, **options):
    logprobs, entropy = logprobs_and_entropy(logits, target, **options)
    return (logprobs * 0.7 + entropy * 0.3).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_in_place_gradient_equals_the_other_one_bitwise(device, dtype):
    leaf, logits, target = make(device, dtype=dtype)
    loss_of(logits, target).backward()
    expected, leaf.grad = leaf.grad, None
    logits = leaf * 2.0
    loss_of(logits, target, inplace_backward=True).backward()
    assert torch.equal(leaf.grad, expected)


def test_in_place_gradient_takes_the_memory_of_the_logits(device):
    leaf, logits, target = make(device)
    received = []
    logits.register_hook(lambda grad: received.append((grad.data_ptr(), grad.clone())))
    loss_of(logits, target, inplace_backward=True).backward()
    assert received[0][0] == logits.data_ptr()
    assert torch.equal(logits, received[0][1])
    assert torch.equal(leaf.grad, 2 * logits)


def test_in_place_gradient_reaches_a_linear_layer_right(device):
    """The use it is for: logits = hidden @ weight.T saves hidden and weight, not the logits."""
    generator = torch.Generator(device).manual_seed(1)
    hidden = torch.randn(2, 5, 8, device=device, generator=generator, requires_grad=True)
    weight = torch.randn(19, 8, device=device, generator=generator, requires_grad=True)
    target = torch.arange(10, device=device).view(2, 5)
    expected = torch.autograd.grad(loss_of(hidden @ weight.T, target), (hidden, weight))
    actual = torch.autograd.grad(loss_of(hidden @ weight.T, target, inplace_backward=True), (hidden, weight))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_a_second_backward_raises(device):
    leaf, logits, target = make(device)
    loss = loss_of(logits, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()
    assert torch.equal(leaf.grad, first)


def test_a_second_backward_raises_under_saved_tensor_hooks(device):
    """Hooks that hand the same tensor back take autograd's own version check out of the way."""
    _, logits, target = make(device)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        loss = loss_of(logits, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_hooks_that_copy_what_is_saved_leave_the_logits_alone(device):
    leaf, logits, target = make(device)
    before = logits.detach().clone()
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(logits, target, inplace_backward=True)
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    if device.type == "cuda":
        assert torch.equal(logits, before)
        loss.backward()
        assert torch.equal(leaf.grad, 2 * first)


@pytest.mark.parametrize(
    "other",
    [
        lambda logits: logits.square().sum(),  # saves its input
        lambda logits: (logits.view(-1) * logits.view(-1)).sum(),  # saves views of it
        lambda logits: logits.detach().mul(torch.ones((), requires_grad=True, device=logits.device)).sum(),
    ],
    ids=["saved itself", "saved views", "saved a detached alias"],
)
def test_whoever_else_saved_the_logits_raises(device, other):
    _, logits, target = make(device)
    others = other(logits)
    loss_of(logits, target, inplace_backward=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        others.backward()


def test_an_operation_that_saved_the_logits_as_its_result_raises(device):
    leaf, _, target = make(device)
    logits = leaf.exp()  # backward multiplies by the result
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss_of(logits, target, inplace_backward=True).backward()


def test_two_uses_of_the_same_logits_raise(device):
    _, logits, target = make(device)
    loss = loss_of(logits, target, inplace_backward=True) + loss_of(logits, target, inplace_backward=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_a_use_that_does_not_need_their_values_adds_its_gradient(device):
    leaf, logits, target = make(device)
    (loss_of(logits, target) + 3 * logits.sum()).backward()
    expected, leaf.grad = leaf.grad, None
    logits = leaf * 2.0
    (loss_of(logits, target, inplace_backward=True) + 3 * logits.sum()).backward()
    assert_relative(leaf.grad, expected, 1e-6, "gradient", atol=1e-6)


def test_logits_changed_after_the_forward_raise(device):
    _, logits, target = make(device)
    loss = loss_of(logits, target, inplace_backward=True)
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_logits_that_are_not_ours_to_overwrite_are_refused(device):
    leaf, _, target = make(device)
    untouched = leaf.detach().clone()
    with pytest.raises(ValueError, match="a leaf tensor that requires grad"):
        loss_of(leaf, target, inplace_backward=True)
    with pytest.raises(ValueError, match="a view of a leaf tensor"):
        loss_of(leaf.view(6, 33), target, inplace_backward=True)
    with pytest.raises(ValueError, match="a view of a leaf tensor"):
        loss_of(leaf[2:], target[2:], inplace_backward=True)
    assert torch.equal(leaf, untouched)


def test_logits_without_memory_of_their_own_are_refused(device):
    _, logits, target = make(device)
    for bad in (logits[:, 1:], logits.T.contiguous().T, logits[:1].expand(6, 33), logits[::2]):
        with pytest.raises(ValueError, match="expected contiguous logits"):
            loss_of(bad, target[: len(bad)], inplace_backward=True)


def test_create_graph_is_refused(device):
    leaf, logits, target = make(device)
    loss = loss_of(logits, target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_in_place_backward_works_under_checkpointing(device, use_reentrant):
    leaf, logits, target = make(device)
    loss_of(logits, target).backward()
    expected, leaf.grad = leaf.grad, None

    def head(x):
        return loss_of(x * 2.0, target, inplace_backward=True)

    checkpoint(head, leaf, use_reentrant=use_reentrant).backward()
    assert torch.equal(leaf.grad, expected)


def test_a_leaf_is_fine_where_nothing_is_recorded(device):
    leaf, _, target = make(device)
    with torch.no_grad():
        a = loss_of(leaf, target, inplace_backward=True)
    assert torch.equal(a, loss_of(leaf, target).detach())
