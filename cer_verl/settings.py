"""The keys under `cer` in verl's configuration, and the configurations that `cer_sync` refuses.

In: verl's hydra configuration, with `+cer.reward=total_entropy` and the like on the command line. Out: CERSettings.
Every refusal is one line that names the key and says what to set.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

REWARDS = ("cer", "total_entropy")


@dataclass(frozen=True)
class CERSettings:
    """What `+cer.KEY=VALUE` may set.

    reward: cer, 1 + weight e^(-TECA) where right; or total_entropy, 1 + weight e^(-S/S0), which padding cannot game.
    weight: what certainty is worth beside a right answer; 0.5 is the published value.
    scale: S0 of total_entropy in nats; None takes the median S of the right answers to the same prompt.
    right_from: a response is right if verl's score for it is at least this. 0.5 fits scores of 0 and 1 and of -1 and 1.
    measure_validation: measure entropies in validation too: one more forward and weight sync for each validation batch.
    """

    reward: str = "cer"
    weight: float = 0.5
    scale: float | None = None
    right_from: float = 0.5
    measure_validation: bool = True

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"cer.reward is {self.reward!r}: expected one of {', '.join(REWARDS)}")
        _check_number("weight", self.weight, at_least=0.0)
        _check_number("right_from", self.right_from)
        if self.scale is not None:
            _check_number("scale", self.scale, above=0.0)
            if self.reward != "total_entropy":
                raise ValueError(f"cer.scale belongs to cer.reward=total_entropy; cer.reward is {self.reward}")
        if not isinstance(self.measure_validation, bool):
            raise ValueError(f"cer.measure_validation is {self.measure_validation!r}: expected true or false")


def _check_number(name: str, value: Any, *, at_least: float = -math.inf, above: float = -math.inf) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < at_least or value <= above:
        bound = f" >= {at_least:g}" if at_least > -math.inf else f" > {above:g}" if above > -math.inf else ""
        raise ValueError(f"cer.{name} is {value!r}: expected a finite number{bound}")


def read_settings(config: DictConfig) -> CERSettings:
    """Returns the settings under `cer` and checks that verl's configuration makes entropies.

    Raises:
        ValueError: an unknown or impossible key under `cer`, or a configuration under which there is nothing to reward.
    """
    given = OmegaConf.select(config, "cer", default=None) or {}
    given = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if not isinstance(given, dict):
        raise ValueError(f"cer is {given!r}: expected keys under it, as in +cer.weight=0.5")
    known = [field.name for field in dataclasses.fields(CERSettings)]
    for key in given:
        if key not in known:
            raise ValueError(f"cer.{key} is unknown: expected one of {', '.join(known)}")
    _refuse(config)
    return CERSettings(**given)


def _refuse(config: DictConfig) -> None:
    """What can't work, said before a model is loaded."""

    def value(key: str) -> Any:
        return OmegaConf.select(config, key, default=None)

    if value("algorithm.rollout_correction.bypass_mode"):
        raise ValueError(
            "algorithm.rollout_correction.bypass_mode=True skips the pass over the responses that makes the entropies: "
            "set it to False for trainer_mode=cer_sync"
        )
    if value("trainer.use_v1") is False:
        raise ValueError("trainer.use_v1=False selects verl's old trainer, which knows no trainer_mode: set it to True")
    if value("reward.reward_model.enable"):
        raise ValueError(
            "reward.reward_model.enable=True scores with a model: cer_sync needs to know whether an answer is right, "
            "so use a rule (reward.custom_reward_function) and set it to False"
        )
    if value("algorithm.filter_groups.enable"):
        raise ValueError(
            "algorithm.filter_groups.enable=True drops groups that are all right before their entropies are known, and "
            "those are what CER orders: set it to False"
        )
