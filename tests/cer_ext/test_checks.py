"""Bad input: each case raises a TypeError or ValueError that names the argument, what was expected and what came."""

import math

import pytest
import torch
from torch import tensor

from cer_ext import linear_logprobs_and_entropy, logprobs_and_entropy

LOGITS = torch.zeros(2, 3, 5)
TARGET = torch.zeros(2, 3, dtype=torch.long)
HIDDEN = torch.zeros(2, 3, 4)
WEIGHT = torch.zeros(5, 4)
HALF = torch.zeros(5, dtype=torch.float16)

FROM_LOGITS = [
    (TypeError, "logits: expected a torch.Tensor or an array with __dlpack__, got list", ([[0.0]], tensor([0]))),
    (TypeError, "logits: expected one of torch.float32.*got torch.int64", (LOGITS.long(), TARGET)),
    (TypeError, "logits: expected one of torch.float32.*got torch.complex64", (LOGITS.to(torch.complex64), TARGET)),
    (TypeError, "logits: expected a dense tensor", (torch.zeros(2, 5).to_sparse(), TARGET[0, :2])),
    (ValueError, r"logits: expected shape \(..., V\) with V >= 1, got \(2, 3, 0\)", (LOGITS[..., :0], TARGET)),
    (ValueError, r"logits: expected shape \(..., V\) with V >= 1, got \(\)", (tensor(0.0), tensor(0))),
    (ValueError, "target: expected on cpu like logits, got on meta", (LOGITS, TARGET.to("meta"))),
]
FROM_HIDDEN = [
    (TypeError, "hidden: expected one of torch.float32.*got torch.int64", (HIDDEN.long(), WEIGHT, TARGET)),
    (TypeError, "weight: expected a torch.Tensor", (HIDDEN, None, TARGET)),
    (TypeError, "weight: expected torch.float32 like hidden, got torch.float64", (HIDDEN, WEIGHT.double(), TARGET)),
    (ValueError, "weight: expected on cpu like hidden, got on meta", (HIDDEN, WEIGHT.to("meta"), TARGET)),
    (ValueError, r"weight: expected shape \(V, D\).* D = 4.*got \(4, 5\)", (HIDDEN, WEIGHT.T, TARGET)),
    (ValueError, r"weight: expected shape \(V, D\).*got \(5,\)", (HIDDEN, WEIGHT[:, 0], TARGET)),
    (ValueError, r"weight: expected shape \(V, D\) with V >= 1.*got \(0, 4\)", (HIDDEN, WEIGHT[:0], TARGET)),
    (ValueError, r"hidden: expected shape \(..., D\), got \(\)", (tensor(0.0), WEIGHT, tensor(0))),
    (ValueError, r"bias: expected shape \(V,\) = \(5,\), got \(4,\)", (HIDDEN, WEIGHT, TARGET, torch.zeros(4))),
    (TypeError, "bias: expected torch.float32 like hidden, got torch.float16", (HIDDEN, WEIGHT, TARGET, HALF)),
]  # fmt: skip
TARGETS = [
    (TypeError, r"target: expected torch.int64 \(or torch.int32\), got torch.float32", TARGET.float()),
    (TypeError, "target: expected torch.int64.*got torch.bool", TARGET.bool()),
    (ValueError, r"target: expected shape \(2, 3\).*got \(3, 2\)", TARGET.T),
    (ValueError, r"target: expected shape \(2, 3\).*got \(6,\)", TARGET.view(-1)),
    (ValueError, "target: expected 0 <= target < 5 or ignore_index=-100, got 5 at row 4", tensor([[0] * 3, [0, 5, 9]])),
    (ValueError, "target: .*got -1 at row 0", TARGET - 1),
]  # fmt: skip
OPTIONS = [
    (ValueError, "temperature: expected a positive finite number.*got 0", {"temperature": 0.0}),
    (ValueError, "temperature: expected a positive finite number.*got -1", {"temperature": -1}),
    (ValueError, "temperature: .*got inf", {"temperature": math.inf}),
    (ValueError, "temperature: .*got nan", {"temperature": math.nan}),
    (ValueError, "temperature: .*got 5e-324", {"temperature": 5e-324}),
    (TypeError, "temperature: expected a positive finite number or a tensor.*got bool", {"temperature": True}),
    (TypeError, "temperature: .*got str", {"temperature": "1"}),
    (TypeError, "temperature: .*got NoneType", {"temperature": None}),
    (TypeError, "temperature: expected a floating point tensor, got torch.int64", {"temperature": TARGET + 1}),
    (ValueError, r"temperature: expected shape \(2, 3\).*got \(3,\)", {"temperature": torch.ones(3)}),
    (ValueError, "temperature: expected on cpu", {"temperature": torch.ones(2, 3, device="meta")}),
    (ValueError, "temperature: has no gradient", {"temperature": torch.ones(2, 3, requires_grad=True)}),
    (ValueError, "temperature: .*got 0.0 in row 4", {"temperature": torch.ones(2, 3) - tensor([[0, 0, 0], [0, 1, 0]])}),
    (ValueError, "temperature: .*got nan in row 0", {"temperature": torch.full((2, 3), torch.nan)}),
    (ValueError, "temperature: .*got inf in row 0", {"temperature": torch.full((2, 3), torch.inf)}),
    (ValueError, "softcap: expected None or a positive finite number, got 0", {"softcap": 0.0}),
    (ValueError, "softcap: .*got -3", {"softcap": -3}),
    (TypeError, "softcap: .*got bool", {"softcap": False}),
    (ValueError, "logit_scale: expected a finite number, got nan", {"logit_scale": math.nan}),
    (TypeError, "logit_scale: expected a number, got Tensor", {"logit_scale": tensor(1.0)}),
    (TypeError, "ignore_index: expected an integer, got float", {"ignore_index": -100.0}),
    (TypeError, "ignore_index: expected an integer, got bool", {"ignore_index": False}),
    (ValueError, "ignore_index: expected a 64-bit integer", {"ignore_index": 2**63}),
    (TypeError, "return_entropy: expected True or False, got 1", {"return_entropy": 1}),
    (TypeError, "return_lse: expected True or False, got None", {"return_lse": None}),
    (TypeError, "validate: expected True or False, got 'no'", {"validate": "no"}),
]


@pytest.mark.parametrize(("error", "match", "arguments"), FROM_LOGITS)
def test_bad_logits_are_named(error, match, arguments):
    with pytest.raises(error, match=match):
        logprobs_and_entropy(*arguments)


@pytest.mark.parametrize(("error", "match", "arguments"), FROM_HIDDEN)
def test_bad_operands_are_named(error, match, arguments):
    with pytest.raises(error, match=match):
        linear_logprobs_and_entropy(*arguments)


@pytest.mark.parametrize(("error", "match", "target"), TARGETS)
def test_bad_targets_are_named(error, match, target):
    with pytest.raises(error, match=match):
        logprobs_and_entropy(LOGITS, target)
    with pytest.raises(error, match=match):
        linear_logprobs_and_entropy(HIDDEN, WEIGHT, target)
    with pytest.raises(error, match=match):  # with a gradient the checks are the same
        linear_logprobs_and_entropy(HIDDEN.clone().requires_grad_(), WEIGHT, target)


@pytest.mark.parametrize(("error", "match", "options"), OPTIONS)
def test_bad_options_are_named(error, match, options):
    with pytest.raises(error, match=match):
        logprobs_and_entropy(LOGITS, TARGET, **options)
    with pytest.raises(error, match=match):
        linear_logprobs_and_entropy(HIDDEN, WEIGHT, TARGET, **options)


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "1G"])
def test_a_bad_workspace_is_named(value):
    with pytest.raises((TypeError, ValueError), match="workspace_bytes: expected"):
        linear_logprobs_and_entropy(HIDDEN, WEIGHT, TARGET, workspace_bytes=value)


def test_a_bad_inplace_backward_is_named():
    with pytest.raises(TypeError, match="inplace_backward: expected True or False, got 'yes'"):
        logprobs_and_entropy(LOGITS, TARGET, inplace_backward="yes")


def test_numbers_of_every_python_kind_are_numbers():
    numpy = pytest.importorskip("numpy", reason="no NumPy here")
    expected = logprobs_and_entropy(LOGITS, TARGET, temperature=2.0, ignore_index=-1)
    for temperature, ignore_index in (
        (2, -1),
        (numpy.float32(2), numpy.int32(-1)),
        (numpy.float64(2), numpy.int64(-1)),
    ):
        actual = logprobs_and_entropy(LOGITS, TARGET, temperature=temperature, ignore_index=ignore_index)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_an_array_that_cannot_be_shared_is_named():
    numpy = pytest.importorskip("numpy", reason="no NumPy here")
    with pytest.raises(TypeError, match="logits: this ndarray cannot be shared through DLPack"):
        logprobs_and_entropy(numpy.array([["a", "b"]]), TARGET[0, :1])


def test_temperature_values_on_a_device_are_not_read_but_make_the_row_nan(device):
    temperature = tensor([[1.0, 0.0, -1.0], [torch.nan, torch.inf, 2.0]], device=device)
    outputs = logprobs_and_entropy(
        LOGITS.to(device), TARGET.to(device), temperature=temperature, validate=False, return_lse=True
    )
    for x in outputs:
        assert x.isnan().tolist() == [[False, True, True], [True, True, False]]
