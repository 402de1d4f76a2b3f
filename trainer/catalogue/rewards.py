"""Reward functions by name.

In: a name of REWARDS, or "package.module:function". Out: the function, imported when it is asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass

_ANYONES = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Reward:
    """One reward function."""

    function: str  # "module:function", in TRL's signature
    help: str  # what --help says of it
    title: str  # its row in a table
    options: tuple[str, ...] = ()  # of weight (--cer_weight), seed, max_length (--max_completion_length)


REWARDS = {
    "cer": Reward(
        "trainer.rewards.entropy:cer_reward",
        "1 + weight * exp(-TECA) if right, else 0",
        "CER: 1 + w exp(-TECA) if right",
        options=("weight",),
    ),
    "total_entropy": Reward(
        "trainer.rewards.entropy:total_entropy_reward",
        "the same with the completion's total entropy, which padding cannot dilute",
        "total entropy variant of CER",
        options=("weight",),
    ),
    "decided": Reward(
        "trainer.rewards.decided:decided_reward",
        "a price on what comes after the answer, while those that go on are not right more often",
        "decided: after the answer, if idle",
        options=("weight",),
    ),
    "accuracy": Reward("trainer.rewards.entropy:accuracy_reward", "1 if right, else 0", "control: accuracy only"),
    "length_penalty": Reward(
        "trainer.rewards.entropy:length_penalty_reward",
        "accuracy, less for longer answers",
        "control: accuracy, length penalty",
        options=("weight",),
    ),
    "kimi": Reward(
        "trainer.rewards.length:kimi_reward",
        "place between the group's shortest and longest, arXiv 2501.12599",
        "Kimi k1.5: place in the group",
        options=("weight",),
    ),
    "dapo": Reward(
        "trainer.rewards.length:dapo_reward",
        "soft overlong punishment, arXiv 2503.14476",
        "DAPO: soft overlong punishment",
        options=("max_length",),
    ),
    "efficient": Reward(
        "trainer.rewards.length:efficient_reward",
        "sigmoid of the standardised length, arXiv 2502.04463",
        "Arora, Zanette: sigmoid of length",
    ),
    "grpo_lambda": Reward(
        "trainer.rewards.length:grpo_lambda_reward",
        "the same for the prompts answered best, arXiv 2505.18086",
        "GRPO-lambda: only where accuracy is high",
    ),
    "gr3": Reward(
        "trainer.rewards.length:gr3_reward",
        "divided by relative length, arXiv 2603.10535",
        "GR3: divided by relative length",
    ),
    "conciser": Reward(
        "trainer.rewards.length:conciser_reward",
        "length only where all of a group are right, arXiv 2505.21178",
        "ConciseR: length where all are right",
        options=("weight", "max_length"),
    ),
    "l1_exact": Reward(
        "trainer.rewards.length:l1_exact_reward",
        "distance to the data's target_length, arXiv 2503.04697",
        "L1: distance to a target length",
    ),
    "l1_max": Reward(
        "trainer.rewards.length:l1_max_reward",
        "within the data's target_length, arXiv 2503.04697",
        "L1: within a target length",
    ),
    "random": Reward("trainer.rewards.entropy:random_reward", "a coin", "control: random reward", options=("seed",)),
}


def title(name: str) -> str:
    """How a reward is written in a table."""
    return REWARDS[name].title if name in REWARDS else name


def check_name(name: str) -> None:
    """Raise ValueError unless the name is one of REWARDS or has the form package.module:function."""
    if name not in REWARDS and not _ANYONES.fullmatch(name):
        raise ValueError(f"{name!r}: expected one of {', '.join(REWARDS)}, or package.module:function")


def find(name: str) -> Callable:
    """The function of a name.

    Raises:
        ValueError: no such name, module or function, or something that can't be called.
    """
    check_name(name)
    module, _, function = (REWARDS[name].function if name in REWARDS else name).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ValueError(f"{name!r}: there is no module {error.name} on the Python path") from error
    except AttributeError as error:
        raise ValueError(f"{name!r}: the module {module} has no {function}") from error
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, not a function")
    return found
