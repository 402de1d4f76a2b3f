"""vLLM's correction from the training forward: the numbers of TRL's own code, run beside ours."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types

import pytest
import torch
from trl.trainer import grpo_trainer

from trainer.sampling.importance_correction import MODES, measurements, weights


def trls_weights(policy, sampled, mask, *, mode, low, high):
    """The block of TRL that computes the factors, compiled out of its source."""
    source = textwrap.dedent(inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions))
    (block,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and any("per_token_logps_diff = (" in ast.unparse(line) for line in node.body[:2])
    )
    names = {
        "self": types.SimpleNamespace(
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=low,
            vllm_importance_sampling_clip_max=high,
        ),
        "completion_mask": mask,
        "tool_mask": None,
        "old_per_token_logps": policy,
        "sampling_per_token_logps": sampled,
        **vars(grpo_trainer),
    }
    exec(compile(ast.Module([block], []), "TRL", "exec"), names)
    return names["vllm_importance_sampling_ratio"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    policy = -torch.rand((5, 7), generator=generator) * 4
    sampled = policy + 0.8 * torch.randn((5, 7), generator=generator)
    sampled[1, 2] = float("nan")  # what vLLM could not score
    mask = (torch.arange(7) < torch.tensor([7, 5, 3, 1, 0])[:, None]).int()
    return policy, sampled, mask


@pytest.mark.parametrize("bounds", [(None, 2.0), (0.5, 1.5), (None, None)])
@pytest.mark.parametrize("mode", MODES)
def test_factors_are_trls(batch, mode, bounds):
    low, high = bounds
    if mode.endswith("truncate") and bounds == (None, None):
        high = 3.0  # torch.clamp, which TRL calls, wants one of the two
    found = weights(*batch, mode=mode, low=low, high=high)
    torch.testing.assert_close(found, trls_weights(*batch, mode=mode, low=low, high=high), rtol=0, atol=0)
    assert found.shape == ((5, 1) if mode.startswith("sequence") else (5, 7))
    assert len(found.unique()) > 1


def test_factors_by_hand():
    policy, sampled = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    expected = {
        "token_truncate": [1.2, 1 / torch.e, 1],
        "token_mask": [0, 1 / torch.e, 1],
        "sequence_mask": [torch.e**-0.5],
    }
    for mode, factors in expected.items():
        assert weights(policy, sampled, mask, mode=mode, low=None, high=1.2).tolist()[0] == pytest.approx(factors)


def test_no_gradient_goes_through_the_factors(batch):
    policy = batch[0].requires_grad_()
    assert not weights(policy, *batch[1:], mode="token_truncate", low=None, high=2.0).requires_grad


def test_measurements_are_over_the_tokens_that_count():
    policy, sampled = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, float("nan"), 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    ratio = weights(policy, sampled, mask, mode="token_truncate", low=None, high=3.0)
    expected = [0.5, 0.5, 1.0, (torch.e**0.5 + 1) / 2, torch.e**0.5]
    assert measurements(policy, sampled, mask, ratio).tolist() == pytest.approx(expected)
    assert measurements(policy, sampled, 0 * mask, ratio).tolist() == [0.0] * 5


def test_an_unknown_mode_is_refused(batch):
    with pytest.raises(ValueError, match="token_truncated"):
        weights(*batch, mode="token_truncated", low=None, high=2.0)
