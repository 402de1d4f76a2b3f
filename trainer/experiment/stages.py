"""An experiment as a list of the project's own commands, each of which goes on where it was interrupted.

In: a recipe and what to compare.  Out: stages: a name, the command that it is, and whether it has ended.

    before              trainer.evaluate on the start model, asked as training will ask
    REWARD-seedS        trainer.grpo with this reward and seed, from that model
    REWARD-seedS after  trainer.evaluate on what came out, on the same held-out problems with the same draws

So every number of an experiment can be reproduced by hand, one command at a time. A kill costs at most a training step
or a batch of responses.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from trainer.records.record_files import read_records
from trainer.training.checkpoints import complete_checkpoints

BEFORE = "before"
EVALUATIONS = "evaluation"  # directory of the evaluations, one directory per policy
RUNS = "runs"  # directory of the training runs


@dataclass(frozen=True)
class Plan:
    """What is compared, and how it is asked.

    Args:
        output: directory of everything.
        recipe: what --config of trainer.grpo takes.
        model, dtype, dataset: of the recipe; evaluation takes the data set's held-out split.
        temperature, max_new_tokens: of the rollouts; evaluation samples alike.
        rewards, seeds: one training run each.
        problems, samples: held-out problems, and responses to each.
        options: further options of trainer.grpo.
    """

    output: Path
    recipe: str
    model: str
    dtype: str
    dataset: str
    temperature: float
    max_new_tokens: int
    rewards: tuple[str, ...]
    seeds: tuple[int, ...]
    problems: int
    samples: int
    options: tuple[str, ...] = ()

    def policies(self) -> list[str]:
        """Names of everything that is evaluated, the start model first."""
        return [BEFORE, *(policy_name(reward, seed) for seed in self.seeds for reward in self.rewards)]

    def evaluation(self, policy: str) -> Path:
        return self.output / EVALUATIONS / policy

    def training(self, policy: str) -> Path:
        return self.output / RUNS / policy


@dataclass(frozen=True)
class Stage:
    """One command."""

    name: str
    command: tuple[str, ...]  # after the interpreter
    ended: bool

    def shown(self) -> str:
        """As one types it."""
        import shlex

        return shlex.join(["python", *self.command])

    def words(self) -> list[str]:
        """As a process is started."""
        return [sys.executable, *self.command]


def policy_name(reward: str, seed: int) -> str:
    """A reward of anyone's, package.module:function, goes by its function."""
    return f"{reward.rpartition(':')[2]}-seed{seed}"


def stages(plan: Plan) -> list[Stage]:
    """Every stage in its order: the start model first, then seed by seed, reward by reward."""
    made = [_evaluation(plan, BEFORE)]
    for seed in plan.seeds:
        for reward in plan.rewards:
            made += [_training(plan, reward, seed), _evaluation(plan, policy_name(reward, seed))]
    return made


def figures(plan: Plan) -> Stage:
    """The figures of what is there, drawn anew each time."""
    found = [name for name in plan.policies() if any(plan.evaluation(name).glob("records-*.jsonl"))]
    command = ["-m", "trainer.plots", *(f"{name}={plan.evaluation(name)}" for name in found)]
    command += [f"{name}, training={plan.training(name)}" for name in found if name != BEFORE]
    command += ["--output", str(plan.output / "figures"), "--format", "png"]
    return Stage("figures", tuple(command), ended=False)


def _training(plan: Plan, reward: str, seed: int) -> Stage:
    name = policy_name(reward, seed)
    directory = plan.training(name)
    command = ["-m", "trainer.grpo", "--config", plan.recipe, "--reward", reward, "--seed", str(seed)]
    command += ["--output_dir", str(directory), *plan.options]
    ended = (directory / "final" / "prompt.json").is_file()
    if not ended and complete_checkpoints(directory):
        command += ["--resume_from_checkpoint", "last"]
    return Stage(name, tuple(command), ended)


def _evaluation(plan: Plan, policy: str) -> Stage:
    output = plan.evaluation(policy)
    command = ["-m", "trainer.evaluate", "--model", plan.model, "--dtype", plan.dtype]
    if policy != BEFORE:
        command += ["--adapter", str(plan.training(policy) / "final")]
    command += ["--benchmarks", plan.dataset, "--limit", str(plan.problems), "--samples", str(plan.samples)]
    command += ["--prompt", str(plan.output), "--temperature", str(plan.temperature), "--top_p", "1"]
    command += ["--max_new_tokens", str(plan.max_new_tokens), "--batch_size", "64", "--output", str(output)]
    name = policy if policy == BEFORE else f"{policy} after"
    return Stage(name, tuple(command), ended=_records(output) >= plan.problems * plan.samples)


def _records(directory: Path) -> int:
    try:
        return sum(1 for _ in read_records(directory))
    except FileNotFoundError:
        return 0
