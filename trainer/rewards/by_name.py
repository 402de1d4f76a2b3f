"""A reward function by its name. In: a name and the program's options. Out: the function with those it takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from trainer.catalogue.rewards import REWARDS, find
from trainer.rewards.completions import Rewards


def reward_function(
    name: str, *, weight: float = 0.5, seed: int = 0, max_length: int | None = None
) -> Callable[..., Rewards]:
    """Returns a reward function with those of its options set that its entry names, under the name that TRL logs.

    Args:
        name: one of trainer.catalogue.rewards.REWARDS, or "package.module:function" of anyone's in TRL's signature,
            which gets no option.
        weight: what certainty (or shortness) is worth beside a right answer.
        seed: of the random control.
        max_length: at how many tokens a completion is cut off, for rewards that price the last stretch before it.

    Raises:
        ValueError: no such reward, or a weight that is no finite number >= 0.
    """
    function = find(name)
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is {weight}: expected a finite number >= 0")
    if name not in REWARDS:
        return function
    known = {"weight": weight, "seed": seed, "max_length": max_length}
    options = {option: known[option] for option in REWARDS[name].options}
    return functools.update_wrapper(functools.partial(function, **options), function)
