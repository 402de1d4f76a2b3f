"""Reward functions for GRPO, in TRL's signature: usable in any TRL script.

entropy.py       the method's reward, its variant on the total entropy, the controls
length.py        what others have proposed against overthinking
decided.py       a price on what comes after the answer, while exploring does not pay
completions.py   completions as TRL hands them over: text, grade, groups, lengths
by_name.py       a name of trainer/catalogue/rewards.py -> the function with its options
"""

from trainer.name_clash import require_own_package
from trainer.rewards.by_name import reward_function
from trainer.rewards.entropy import (
    accuracy_reward,
    cer_reward,
    length_penalty_reward,
    random_reward,
    total_entropy_reward,
)

require_own_package()  # asked in trainer/__init__.py too, which another distribution may have overwritten

__all__ = [
    "accuracy_reward",
    "cer_reward",
    "length_penalty_reward",
    "random_reward",
    "reward_function",
    "total_entropy_reward",
]
