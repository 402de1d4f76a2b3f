r"""The reward of the method, its variant and its controls, in TRL's signature.

In: completions (plain strings or messages), the column `ground_truth`, and for the entropy rewards what
CERTrainer (trainer/cer_trainer.py) hands over per completion, in nats: `teca` (mean token entropy), `entropy_sum`.
Out: list[float | None], one per completion; None (TRL: no opinion) where the row has no ground truth.

    accuracy_reward         1 if right, else 0
    cer_reward              1 + weight e^(-TECA)                if right, else 0     (cer_ext.cer_reward)
    total_entropy_reward    1 + weight e^(-S / S0)              if right, else 0     S = sum_t H_t: padding cannot help
    length_penalty_reward   1 + weight e^(-L / L0)              if right, else 0     control: L = number of tokens
    random_reward           0 or 1 by a coin                                         control

The scales S0 and L0 are the medians of S and L over the right answers to the same prompt in the batch, those on other
processes too.
"""

import functools
import math
import random
import zlib

import torch

from cer_ext import cer_reward as reward_of_entropy
from cer_ext.reward import LEAST_SCALE_NATS, group_scales
from trainer.rewards.completions import Completion, LogMetric, Rewards, grade_completions, group_keys, lengths_of
from trainer.rewards.ranks import over_ranks

LEAST_SCALE_TOKENS = 1.0


def accuracy_reward(
    completions: list[Completion], ground_truth: list, *, log_metric: LogMetric = None, **kwargs
) -> Rewards:
    """1 if the final answer of the completion equals the ground truth (trainer.grading.grade), else 0.

    Args:
        completions: what TRL hands over, strings or lists of messages (the last message's text is graded).
        ground_truth: dataset column; None leaves a row without a reward.
        log_metric: TRL's hook; the share of right answers is logged as "accuracy".
    """
    correct = grade_completions(completions, ground_truth, log_metric)
    return [None if right is None else float(right) for right in correct]


def cer_reward(
    completions: list[Completion],
    ground_truth: list,
    teca: list[float] | None = None,
    *,
    weight: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """1 + weight e^(-TECA) if right, else 0: the published reward, `cer_ext.cer_reward` on graded completions.

    Args:
        teca: (completions,) TECA at the last token, nats, as trainer.cer_trainer.CERTrainer hands it over.
        weight: what certainty is worth beside a right answer.

    Raises:
        ValueError: `teca` is missing or not finite for a right answer.

    A mean is diluted by certain tokens, so this reward also pays for padding: see total_entropy_reward and
    trainer/training/padding_alarm.py. Source: arXiv 2510.02249.
    """
    correct = grade_completions(completions, ground_truth, log_metric)
    return _reward_of(correct, _checked("teca", teca, correct), weight)


def total_entropy_reward(
    completions: list[Completion],
    ground_truth: list,
    entropy_sum: list[float] | None = None,
    prompts: list | None = None,
    *,
    weight: float = 0.5,
    scale: float | None = None,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """1 + weight e^(-S / S0) if right, else 0, with S = sum_t H_t: every uncertain token costs, no certain one helps.

    S0 is the median S over the right answers to the same prompt, at least one nat. Why not a constant or the start
    model's total:
    - a problem that needs 1000 nats and one that needs 10 get the same resolution; with one scale for all, e^(-S/S0)
      is always about 0 for the first, and about 1 for the second;
    - the bonus orders right answers to one prompt, which is all that GRPO's group-relative advantages see; TRL divides
      by the group's deviation, so the fading of a global scale as S falls changes little in a group that is all right;
    - the median answer has 1 + weight/e at every stage of training, so entropy never outgrows correctness or fades;
    - nothing is kept between steps: no state to checkpoint or to agree on between ranks.
    The median, not the mean, so that one rambling answer does not make the others look alike. The floor of one nat
    stops the amplification of noise once a prompt is answered with certainty. A single right answer sets its own scale.
    Since the scale follows the group, the pressure never ends, however low S is: watch accuracy.

    Args:
        entropy_sum: (completions,) sum of the token entropies, nats, as CERTrainer hands it over.
        prompts: TRL's; equal prompts are one group, also where it is spread over processes.
        weight: what certainty is worth beside a right answer.
        scale: S0 in nats, instead of the median.

    Raises:
        ValueError: `entropy_sum` is missing or not finite for a right answer.
    """
    correct = grade_completions(completions, ground_truth, log_metric)
    totals = _checked("entropy_sum", entropy_sum, correct)
    if scale:
        scales = [scale] * len(totals)
    else:
        medians = functools.partial(group_scales, least=LEAST_SCALE_NATS)
        scales = over_ranks(medians, totals, correct, group_keys(prompts))
    return _reward_of(correct, [total / by for total, by in zip(totals, scales, strict=True)], weight)


def length_penalty_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    weight: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """Control: 1 + weight e^(-L / L0) if right, else 0, with L the tokens of the completion.

    The same shape and scale rule as total_entropy_reward, so what differs between the two is entropy against length.
    """
    lengths = [float(length) for length in lengths_of(completion_ids, "length_penalty_reward")]
    correct = grade_completions(completions, ground_truth, log_metric)
    medians = functools.partial(group_scales, least=LEAST_SCALE_TOKENS)
    scales = over_ranks(medians, lengths, correct, group_keys(prompts))
    return _reward_of(correct, [length / by for length, by in zip(lengths, scales, strict=True)], weight)


def random_reward(
    completions: list[Completion],
    ground_truth: list | None = None,
    completion_ids: list | None = None,
    *,
    seed: int = 0,
    trainer_state=None,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """Control: 0 or 1 by a fair coin that knows nothing of the answer; a resumed run tosses the same.

    The coin is seeded by `seed`, the step, the tokens of the whole batch and the position in it.
    """
    if ground_truth is not None:
        grade_completions(completions, ground_truth, log_metric)  # for the log only
    step = getattr(trainer_state, "global_step", 0)
    batch = zlib.crc32(repr(completion_ids or completions).encode(errors="replace"))
    coin = random.Random(f"{seed} {step} {batch}")
    return [float(coin.random() < 0.5) for _ in completions]


def _checked(name: str, values: list[float] | None, correct: list[bool | None]) -> list[float]:
    """The trainer's values as floats; NaN stands for an empty completion, which can't be right."""
    if values is None:
        raise ValueError(
            f"this reward needs {name!r} of every completion: train with trainer.cer_trainer.CERTrainer in place of "
            f"trl.GRPOTrainer, or return {name!r} from a rollout_func"
        )
    if len(values) != len(correct):
        raise ValueError(f"{len(values)} values of {name} for {len(correct)} completions")
    checked = []
    for position, (value, right) in enumerate(zip(values, correct, strict=True)):
        finite = value is not None and math.isfinite(value) and value >= 0
        if right and not finite:
            raise ValueError(f"{name} of completion {position} is {value}: expected a finite number of nats >= 0")
        checked.append(float(value) if finite else 0.0)
    return checked


def _reward_of(correct: list[bool | None], exponent: list[float], weight: float) -> Rewards:
    """cer_ext's reward with e^(-exponent); float64, so that close exponents do not tie."""
    values = reward_of_entropy(
        torch.tensor(exponent, dtype=torch.float64), torch.tensor([bool(right) for right in correct]), weight=weight
    )
    return [None if right is None else reward for right, reward in zip(correct, values.tolist(), strict=True)]
