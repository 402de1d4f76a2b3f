"""The head in verl's place: beside float64, beside verl's own class, in verl's engine, on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import verl.utils.experimental.torch_functional as verl_functional
from one_update import full_parameters, update
from verl_on_cpu import compose_config, make_worker, save_model, small

from cer_verl.fused_head import FusedLinearForPPO

VERLS_OWN = FusedLinearForPPO.__base__


def operands(dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 16, dtype=dtype).requires_grad_()
    weight = torch.randn(301, 16, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(301, (2, 7))


def outputs_and_gradients(head, dtype=torch.float32):
    hidden, weight, tokens = operands(dtype)
    logprobs, entropy = head(hidden, weight, tokens, temperature=0.7)
    (logprobs * torch.arange(14).view(2, 7) - 0.3 * entropy).sum().backward()
    return logprobs, entropy, hidden.grad, weight.grad


def in_float64():
    hidden, weight, tokens = operands()
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logp = (hidden @ weight.T / 0.7).log_softmax(-1)
    logprobs, entropy = logp.gather(-1, tokens[..., None])[..., 0], -(logp.exp() * logp).sum(-1)
    (logprobs * torch.arange(14).view(2, 7) - 0.3 * entropy).sum().backward()
    return logprobs, entropy, hidden.grad, weight.grad


def test_verl_uses_the_head_and_it_is_nearer_to_float64_than_verls_own():
    assert verl_functional.FusedLinearForPPO is FusedLinearForPPO
    exact = in_float64()
    for name, ours, theirs, true in zip(
        ("logprobs", "entropy", "grad of hidden", "grad of weight"),
        outputs_and_gradients(FusedLinearForPPO()),
        outputs_and_gradients(VERLS_OWN()),
        exact,
        strict=True,
    ):
        error, scale = (ours.double() - true).abs().max().item(), true.abs().max().item()
        assert error < 1e-6 * scale, f"{name}: {error}"
        assert error <= 2 * (theirs.double() - true).abs().max().item(), name


def test_entropy_of_bfloat16_is_not_rounded_to_bfloat16():
    hidden, weight, tokens = (operand.detach() for operand in operands())
    low = FusedLinearForPPO()(hidden.bfloat16(), weight.bfloat16(), tokens)[1]
    exact = (hidden.bfloat16().double() @ weight.bfloat16().double().T).log_softmax(-1)
    exact = -(exact.exp() * exact).sum(-1)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 1e-5
    theirs = VERLS_OWN()(hidden.bfloat16(), weight.bfloat16(), tokens)[1]
    assert (theirs - exact).abs().max() > 1e-3


def test_a_frozen_head_gets_no_gradient_and_other_backends_stay_verls(monkeypatch):
    hidden, weight, tokens = operands()
    FusedLinearForPPO()(hidden, weight.detach(), tokens)[0].sum().backward()
    assert hidden.grad is not None
    called = []
    monkeypatch.setattr(VERLS_OWN, "forward", lambda self, *args: called.append(self.impl_backend) or args)
    FusedLinearForPPO(impl_backend="liger")(hidden, weight, tokens)
    assert called == ["liger"]


@pytest.mark.parametrize(("tied", "strategy"), [(True, "fsdp2"), (False, "fsdp2")])
def test_one_update_by_verls_loss_equals_the_unfused_one(tied, strategy, process_group, tmp_path):
    """Entropies, log-probabilities, loss and every parameter, with an entropy bonus, at a temperature."""
    model = save_model(tmp_path, tied=tied)

    def run(fused: bool):
        options = {
            "actor_rollout_ref__model__use_fused_kernels": fused,
            "actor_rollout_ref__actor__strategy": strategy,
        }
        worker = make_worker(compose_config(*small(model, **options), *SGD))
        before = full_parameters(worker)
        scored, metrics = update(worker)
        return before, scored, metrics, full_parameters(worker)

    before, scored, metrics, after = run(fused=False)
    _, fused_scored, fused_metrics, fused_after = run(fused=True)
    for name in ("log_probs", "entropy"):
        for ours, theirs in zip(fused_scored[name].unbind(), scored[name].unbind(), strict=True):
            # without the last position: no token follows it, and what verl puts there differs by its path
            torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-5, atol=1e-5)
    assert fused_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-5, abs=1e-7)
    assert fused_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-4)
    assert max((after[name] - before[name]).abs().max().item() for name in before) > 1e-2
    for name in before:
        step, fused_step = after[name] - before[name], fused_after[name] - before[name]
        assert (fused_step - step).abs().max() <= 2e-5 * max(step.abs().max(), 1e-3), name


SGD = [
    "actor_rollout_ref.actor.optim.optimizer=SGD",
    "actor_rollout_ref.actor.optim.lr=1.0",
    "actor_rollout_ref.actor.grad_clip=1e9",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "actor_rollout_ref.actor.optim.weight_decay=0",
]


def test_an_untied_head_sharded_over_two_ranks_is_updated_as_on_one(process_group, tmp_path):
    model = save_model(tmp_path / "model", tied=False)
    halves = [
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",  # of four responses two are a rank's
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
    ]
    settings = [*small(model), *SGD, *halves]
    worker = make_worker(compose_config(*settings))
    before = full_parameters(worker)
    update(worker)
    one = full_parameters(worker)
    program = [sys.executable, str(Path(__file__).with_name("one_update.py")), str(tmp_path), *settings]
    port = str(int(os.environ["MASTER_PORT"]) + 1)
    ranks = [
        subprocess.Popen(
            program,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    two = torch.load(tmp_path / "parameters.pt")
    for name, parameter in one.items():
        step = parameter - before[name]
        assert (two[name] - before[name] - step).abs().max() <= 5e-5 * max(step.abs().max(), 1e-3), name
