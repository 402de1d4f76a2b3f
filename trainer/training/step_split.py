"""The completions of an optimizer step, and how they are split over processes and passes.

    completions of a step  =  processes * per_device_train_batch_size * gradient_accumulation_steps

In: the settings of a checkpoint and of the run that goes on from it. Out: whether the steps are the same ones, split
another way: after other hardware, or memory that ran out, a run may go on so. The order of prompts is that of the whole
batch, weights, optimizer and schedule are the same on every process, and TRL's losses are sums over the whole batch
that are rounded another way. What differs: random numbers, so the samples.

Not so, and refused: a step whose rollouts are still in use (each process holds its own, padded and shuffled), ZeRO's
partitions, and the loss bnpo, whose passes count alike however many tokens they hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.training.config_error import ConfigError


class StepSplit(NamedTuple):
    """See this file's header. Fields bear the names of the settings."""

    processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    steps_per_generation: int
    num_iterations: int

    @classmethod
    def of(cls, settings: Mapping) -> StepSplit | None:
        """None where the settings, of another version, don't say."""
        values = [settings.get(name) for name in cls._fields]
        return None if any(not isinstance(value, int) for value in values) else cls(*values)

    @property
    def completions(self) -> int:
        return self.processes * self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def generation(self) -> int:
        """Completions of one generation."""
        return self.processes * self.per_device_train_batch_size * self.steps_per_generation

    @property
    def passes_per_generation(self) -> int:
        """Passes that a process makes before it generates anew."""
        return self.steps_per_generation * self.num_iterations

    def __str__(self) -> str:
        return (
            f"{self.processes} processes x per_device_train_batch_size {self.per_device_train_batch_size} x "
            f"gradient_accumulation_steps {self.gradient_accumulation_steps} = {self.completions} completions a step"
        )


def may_differ(checkpoint: Path, before: Mapping, now: Mapping) -> frozenset[str]:
    """The settings that may differ because the steps are the same ones.

    Raises:
        ConfigError: they are, but can't be gone on with from this checkpoint.
    """
    old, new = StepSplit.of(before), StepSplit.of(now)
    if old is None or new is None or old == new:
        return frozenset()
    if (old.completions, old.generation, old.num_iterations) != (new.completions, new.generation, new.num_iterations):
        if old.processes == new.processes:
            return frozenset()  # told name by name
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint}: the step would be another one: {old}, with {old.generation} "
            f"completions a generation, before; {new}, with {new.generation}, now. Give --completions_per_update "
            f"{old.completions} and a per_device_train_batch_size that divides {old.completions} / {new.processes}, or "
            f"{old.processes} processes"
        )
    reason = _why_not(checkpoint, before, old, new)
    if reason is not None:
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint}: made by {old}; going on with {new} is not possible: {reason}"
        )
    return frozenset(name for name in StepSplit._fields if getattr(old, name) != getattr(new, name))


def _why_not(checkpoint: Path, before: Mapping, old: StepSplit, new: StepSplit) -> str | None:
    if before.get("deepspeed") and old.processes != new.processes:
        return (
            f"ZeRO's partitions of the optimizer are those of {old.processes} processes. Give as many; DeepSpeed's "
            "ds_to_universal makes partitions for other numbers"
        )
    if before.get("loss_type") == "bnpo":
        return "the loss bnpo takes the mean over each pass, so another split is another loss. Give the old one"
    steps = _global_step(checkpoint)
    if steps * old.gradient_accumulation_steps % old.passes_per_generation:
        every = old.passes_per_generation // old.gradient_accumulation_steps
        return (
            f"step {steps} lies between two uses of the same rollouts, which each process holds for itself. Give the "
            f"old split, or a checkpoint of a step that is a multiple of {every}"
        )
    return None


def _global_step(checkpoint: Path) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
