"""The same training run by CERTrainer and by stock TRL, compared number for number; and token statistics in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import count_reward, prompts
from trl import GRPOTrainer

from trainer.cer_trainer import CERTrainer

# Both trainers do the same arithmetic in float32 in another order; over three steps nothing else may differ.
LOG_TOLERANCE = {"rel": 2e-5, "abs": 2e-6}
PARAMETER_TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
_CLOCK = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time"}
_CLOCK |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
OURS = {"teca", "entropy_sum", "teca/rollout_difference", "teca/rollout_difference_max"}
OURS |= {f"eval_{name}" for name in OURS}


def run(trainer_class, model, tokenizer, arguments, reward=count_reward, dataset=None, **options):
    """Train; returns the trainer and every token that was sampled."""
    sampled = []

    def recorded(completion_ids, **kwargs):
        sampled.extend(completion_ids)
        return reward(completion_ids=completion_ids, **kwargs)

    trainer = trainer_class(
        model,
        recorded,
        args=arguments,
        train_dataset=prompts() if dataset is None else dataset,
        processing_class=tokenizer,
        **options,
    )
    trainer.start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    return trainer, sampled


def assert_same_run(ours, stock) -> None:
    """Same samples, same log (but the clock and what only we log), same parameters."""
    (our_trainer, our_samples), (stock_trainer, stock_samples) = ours, stock
    assert our_samples == stock_samples
    assert_same_log(our_trainer.state.log_history, stock_trainer.state.log_history)
    assert_same_parameters(dict(our_trainer.model.named_parameters()), dict(stock_trainer.model.named_parameters()))


def assert_same_log(ours: list[dict], stock: list[dict]) -> None:
    assert len(ours) == len(stock)
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine.keys() - OURS == theirs.keys() - OURS
        for key in theirs.keys() - _CLOCK:
            if theirs[key] is None:  # what TRL logs for a mean of nothing
                assert mine[key] is None, key
                continue
            assert mine[key] == pytest.approx(theirs[key], **LOG_TOLERANCE, nan_ok=True), (
                f"{key} at step {theirs['step']}: {mine[key]!r}, stock TRL {theirs[key]!r}"
            )


def assert_same_parameters(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == stock.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, stock[name], **PARAMETER_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def compare(
    load_model, tokenizer, arguments, *, family="qwen3", wrap=lambda model: model, options=dict, ours=None, **rest
):
    """The same run by stock TRL and, in both head modes, by ours.

    `options` makes fresh constructor arguments for each, `ours` are further ones that only CERTrainer knows.
    """

    def one(trainer_class, **only):
        return run(trainer_class, wrap(load_model(family)), tokenizer, arguments(), **options(), **only, **rest)

    stock = one(GRPOTrainer)
    for head_mode in ("two_pass", "one_pass"):
        result = one(CERTrainer, head_mode=head_mode, **(ours or {}))
        assert_same_run(result, stock)
    trainer, _ = result
    end = dict(trainer.model.named_parameters())
    moved = sum((end[name] - before).norm() for name, before in trainer.start.items())
    assert moved > 100 * PARAMETER_TOLERANCE["atol"], "too little was trained to compare anything"
    return trainer


def token_statistics_in_float64(
    model, prompt_ids, completion_ids, temperature
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probabilities and entropies of each completion's tokens: plain logits, one unpadded sequence at a time."""
    twin = copy.deepcopy(model).double().eval()
    log_probs, entropies = [], []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        with torch.no_grad():
            logits = twin(input_ids=torch.tensor([prompt + completion])).logits[0]
        log_p = (logits[len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
        log_probs.append(log_p.gather(-1, torch.tensor(completion)[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return log_probs, entropies
