"""The state of a step: what the next step depends on, and neither transformers nor TRL saves.

In: a TRL GRPO trainer between two steps.  Out: its state, for a checkpoint or to return to, and back into a trainer.

    step               micro-steps so far: where in the use of the rollouts the trainer is
    buffered_inputs    with steps_per_generation * num_iterations > gradient_accumulation_steps a step can fall between
                       two uses of the same rollouts; None where the next step generates anew
    metrics            with logging_steps > 1 the next logged value is a mean over both sides
    loss, last_logged  the same of the loss: its sum, and the step it was last logged in

Weights, optimizer and schedule are in every checkpoint; random states too, or in RandomState.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor


@dataclass
class StepState:
    """See this file's header."""

    step: int
    buffered_inputs: Any
    metrics: dict[str, list]
    loss: Tensor
    last_logged: int

    @classmethod
    def of(cls, trainer) -> StepState:
        generate_every = trainer.args.steps_per_generation * trainer.num_iterations
        in_use = trainer._step % generate_every != 0
        return cls(
            step=trainer._step,
            buffered_inputs=trainer._buffered_inputs if in_use else None,
            metrics={name: list(values) for name, values in trainer._metrics["train"].items()},
            loss=trainer._tr_loss.detach().clone(),
            last_logged=trainer._globalstep_last_logged,
        )

    @classmethod
    def of_all(cls, parts: list[dict], passes: int) -> StepState:
        """The state for every process of a run that goes on with another split, from those of the processes before.

        Args:
            parts: of each process before, between two generations.
            passes: micro-steps so far, at the new number of passes a step.
        """
        first = parts[0]
        return cls(
            step=passes,
            buffered_inputs=None,
            metrics=first["metrics"],  # of the whole batch on every process
            loss=torch.stack([part["loss"] for part in parts]).mean(0),  # what is logged is the mean over processes
            last_logged=first["last_logged"],
        )

    def restore(self, trainer) -> None:
        trainer._step = self.step
        trainer._buffered_inputs = self.buffered_inputs
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(self.metrics)
        self.restore_loss(trainer)

    def restore_loss(self, trainer) -> None:
        """Apart from the rest, as transformers sets the running loss to zero when it begins to train."""
        trainer._tr_loss = self.loss.to(trainer.args.device)
        trainer._globalstep_last_logged = self.last_logged


@dataclass
class RandomState:
    """The random generators of Python, NumPy, torch and every CUDA device."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), numpy.random.get_state(), torch.random.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.random.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
