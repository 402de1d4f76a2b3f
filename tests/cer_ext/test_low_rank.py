"""A frozen head with a low-rank part, held to the wide product [h, u] [W, B]^T in float64; its memory; its GEMMs."""

import subprocess
import sys

import pytest
import torch
from exact import assert_relative

from cer_ext import reference, tiles
from cer_ext.low_rank import low_rank_logprobs_and_entropy

NAMES = ("hidden", "low_hidden", "low_weight", "bias")


def operands(rows=23, vocabulary=301, width=24, rank=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    target = torch.randint(vocabulary, (rows,), generator=generator)
    target[::7] = -100
    return {
        "hidden": normal(rows, width),
        "weight": normal(vocabulary, width, scale=0.4),
        "low_hidden": normal(rows, rank),
        "low_weight": normal(vocabulary, rank, scale=0.6),
        "bias": normal(vocabulary, scale=0.5),
        "target": target,
    }


def loss(logprobs, entropy, rows):
    advantages = torch.linspace(-1, 1, rows, dtype=logprobs.dtype)
    advantages[4] = 0.0
    return (advantages * (logprobs + 0.3 * entropy)).sum()


def ours(given, needed=NAMES, **options):
    leaves = {name: given[name].clone().requires_grad_(name in needed) for name in NAMES}
    outputs = low_rank_logprobs_and_entropy(
        leaves["hidden"],
        given["weight"],
        given["target"],
        leaves["low_hidden"],
        leaves["low_weight"],
        leaves["bias"],
        **options,
    )
    return outputs, torch.autograd.grad(loss(*outputs, len(given["target"])), [leaves[name] for name in needed])


def exact(given, needed=NAMES, **options):
    leaves = {name: given[name].double().clone().requires_grad_(name in needed) for name in NAMES}
    outputs = reference.linear_logprobs_and_entropy(
        torch.cat([leaves["hidden"], leaves["low_hidden"]], dim=1),
        torch.cat([given["weight"].double(), leaves["low_weight"]], dim=1),
        given["target"],
        leaves["bias"],
        **options,
    )
    return outputs, torch.autograd.grad(loss(*outputs, len(given["target"])), [leaves[name] for name in needed])


CASES = {
    "plain": {},
    "temperature, scale and cap": {"temperature": 0.7, "logit_scale": 0.5, "softcap": 3.0},
    "a temperature per row": {"temperature": torch.linspace(0.5, 2.0, 23)},
    "many tiles": {"workspace_bytes": 64 * 12 * 8},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]
)
def test_values_and_gradients_are_those_of_the_wide_product(case, dtype, rtol):
    options = dict(CASES[case])
    if case == "many tiles" and dtype in (torch.bfloat16, torch.float16):
        options["workspace_bytes"] *= 4  # copies of the weight's columns
    given = operands(dtype=dtype)
    (outputs, gradients), (right, right_gradients) = ours(given, **options), exact(given, **options)
    for found, expected, name in zip(outputs, right, ("logprobs", "entropy"), strict=True):
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_relative(found.double(), expected, 1e-12 if dtype == torch.float64 else 2e-6, name, atol=2e-6)
    for found, expected, name in zip(gradients, right_gradients, NAMES, strict=True):
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= rtol * expected.norm(), name


@pytest.mark.parametrize("needed", [("hidden",), ("low_hidden", "low_weight"), ("low_weight",), ("bias",)])
def test_each_gradient_alone(needed):
    given = operands()
    for found, expected in zip(ours(given, needed)[1], exact(given, needed)[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rank_beyond_the_width_and_rows_that_take_no_part():
    given = operands(rank=40, dtype=torch.bfloat16)
    given["hidden"][0] = given["low_hidden"][7] = torch.nan  # ignored rows
    found = ours(given)
    given["hidden"][0] = given["low_hidden"][7] = 0.0
    right = exact(given)
    for gradient, expected in zip(found[1], right[1], strict=True):
        assert (gradient.double() - expected).norm() <= 2e-2 * expected.norm()
    everything = operands()
    everything["target"][:] = -100
    assert all(not gradient.any() for gradient in ours(everything)[1])


def test_the_weight_is_multiplied_three_times_and_the_low_rank_part_four(monkeypatch):
    seen = []
    multiply = tiles.Matrices.multiply

    def record(self, a, b, out, *, accumulate):
        seen.append((a.shape[0], a.shape[1], b.shape[1]))
        return multiply(self, a, b, out, accumulate=accumulate)

    monkeypatch.setattr(tiles.Matrices, "multiply", record)
    given = operands(dtype=torch.float32)
    alive = int((given["target"] != -100).sum())
    ours(given, ("hidden", "low_hidden", "low_weight"))
    live = alive - 1  # one advantage is zero
    assert seen == [
        *[(alive, 24, 301), (alive, 3, 301)],
        *[(live, 24, 301), (live, 3, 301), (live, 301, 24), (live, 301, 3), (301, live, 3)],
    ]


MEASURE = """
import resource
import torch
from cer_ext.low_rank import low_rank_logprobs_and_entropy

torch.set_num_threads(1)
rows, vocabulary, width, rank = 64, 40000, 256, 4
weight = torch.zeros(vocabulary, width)
low_weight = torch.zeros(vocabulary, rank).requires_grad_()
small = torch.zeros(8, 8, requires_grad=True)
(small @ small).sum().backward()  # autograd's thread and the GEMM library are up
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hidden, low_hidden = torch.zeros(rows, width).requires_grad_(), torch.zeros(rows, rank).requires_grad_()
logprobs, entropy = low_rank_logprobs_and_entropy(
    hidden, weight, torch.zeros(rows, dtype=torch.long), low_hidden, low_weight, workspace_bytes=2**20
)
(logprobs.sum() + entropy.sum()).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_peak_memory_does_not_hold_a_copy_of_the_weight():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    wide = 40000 * (256 + 4) * 4  # the copy that [W, B] was, forward; its gradient was another
    gradients_of_low_weight = 2 * 40000 * 4 * 4
    assert int(done.stdout) <= 2**20 + gradients_of_low_weight + 12 * 2**20
    assert 2**20 + gradients_of_low_weight + 12 * 2**20 < wide / 2


def test_what_does_not_fit_is_refused():
    given = operands()
    low = given["low_hidden"], given["low_weight"]
    call = (given["hidden"], given["weight"], given["target"])
    with pytest.raises(ValueError, match="weight: requires grad"):
        low_rank_logprobs_and_entropy(call[0], call[1].clone().requires_grad_(), call[2], *low)
    with pytest.raises(ValueError, match=r"low_weight: expected shape \(301, 3\), got \(300, 3\)"):
        low_rank_logprobs_and_entropy(*call, low[0], low[1][:300])
    with pytest.raises(ValueError, match=r"low_hidden: expected shape \(23, 3\), got \(23, 2\)"):
        low_rank_logprobs_and_entropy(*call, low[0][:, :2], low[1])
    with pytest.raises(TypeError, match=r"low_hidden: expected torch.float64 like hidden, got torch.float32"):
        low_rank_logprobs_and_entropy(*call, low[0].float(), low[1])
    with pytest.raises(ValueError, match="target: expected 0 <= target < 301"):
        low_rank_logprobs_and_entropy(call[0], call[1], call[2] + 300, *low)
    with pytest.raises(ValueError, match=r"hidden: expected shape \(N, D\)"):
        low_rank_logprobs_and_entropy(call[0][None], call[1], call[2][None], *low)
