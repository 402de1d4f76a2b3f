"""verl's rows joined to whole responses, with their entropies and rewards.

In: one row per output of an agent loop, with its entropies, response mask and scores. Out: per response TECA, total
entropy, length and reward.

verl names a row `{uid}_{session}_{index}`: uid is the prompt, session one of its n samples, index an output of that
session, of which a plain single-turn rollout has one. A response is a session: the tokens of its rows in order, without
those the policy did not write (mask 0: tool results, padding). verl too scores a session, by its last row. Rows that
verl appends to fill up a batch (tag is_padding) belong to none.

    TECA = S / t      S = sum_i H_i over the t tokens that the policy wrote      H in nats, at the sampling temperature
    cer             1 + weight e^(-TECA)    if right, else 0
    total_entropy   1 + weight e^(-S / S0)  if right, else 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cer_ext import cer_reward, teca_last
from cer_ext.reward import group_scales
from cer_verl.settings import CERSettings


@dataclass(frozen=True)
class Session:
    """One response: the prompt it answers and the rows that hold it, in order."""

    prompt: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Responses:
    """What is known of the responses of a batch; every tensor is (sessions,), float64."""

    sessions: list[Session]
    teca: Tensor  # nats
    entropy_sum: Tensor  # nats
    length: Tensor  # tokens the policy wrote
    correct: Tensor  # bool
    reward: Tensor


def sessions_of(keys: Sequence[str], is_padding: Sequence[bool]) -> list[Session]:
    """Groups rows into sessions, in the order in which they appear.

    Raises:
        ValueError: a key that is not `{uid}_{session}_{index}`.
    """
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, (key, padding) in enumerate(zip(keys, is_padding, strict=True)):
        parts = key.rsplit("_", 2)
        if len(parts) != 3 or not parts[2].isdigit():
            raise ValueError(f"row {key!r}: expected a key like uid_session_index, as verl's agent loops write them")
        if not padding:
            rows.setdefault((parts[0], parts[1]), []).append((int(parts[2]), row))
    return [Session(uid, tuple(row for _, row in sorted(members))) for (uid, _), members in rows.items()]


def measure(
    keys: Sequence[str],
    is_padding: Sequence[bool],
    entropy: Sequence[Tensor],
    mask: Sequence[Tensor],
    score: Sequence[Tensor],
    settings: CERSettings,
) -> Responses:
    """Returns TECA, total entropy, length, correctness and reward of every response.

    Args:
        keys: (rows,) verl's names of the rows.
        is_padding: (rows,) whether verl made the row up.
        entropy, mask, score: (rows,) of (response tokens,): nats; 1 where the policy wrote the token; verl's rm_scores,
            whose sum over a session's last row says whether it is right.

    Raises:
        ValueError: an entropy of a token that the policy wrote is not finite or is negative.
    """
    sessions = sessions_of(keys, is_padding)
    written = [torch.cat([entropy[row][mask[row].bool()] for row in session.rows]).double() for session in sessions]
    for session, values in zip(sessions, written, strict=True):
        bad = ~(values.isfinite() & (values >= 0))
        if bad.any():
            token = int(bad.nonzero()[0])
            raise ValueError(
                f"entropy of token {token} of response {keys[session.rows[-1]]} is {values[token].item()}: expected a "
                "finite number of nats >= 0; the policy's logits are broken"
            )
    empty = torch.zeros(0, dtype=torch.float64)
    length = torch.tensor([len(values) for values in written], dtype=torch.int64)
    teca = teca_last(torch.cat([empty, *written]), cu_seqlens=torch.cat([length.new_zeros(1), length.cumsum(0)]))
    entropy_sum = torch.tensor([values.sum().item() for values in written], dtype=torch.float64)
    correct = torch.tensor([score[session.rows[-1]].sum().item() >= settings.right_from for session in sessions])
    correct = correct.bool()  # of no response: float
    exponent = teca
    if settings.reward == "total_entropy":
        prompts = [session.prompt for session in sessions]
        scales = group_scales(entropy_sum.tolist(), correct.tolist(), prompts)
        exponent = entropy_sum / (settings.scale or torch.tensor(scales, dtype=torch.float64))
    reward = cer_reward(exponent, correct, weight=settings.weight)
    return Responses(sessions, teca, entropy_sum, length.double(), correct, reward)


def rewards_by_row(responses: Responses, lengths: Sequence[int]) -> list[Tensor]:
    """Returns verl's rm_scores: (rows,) of (response tokens,), float32: the session's reward at the last token, else 0.

    Every row of a session gets its reward, as verl writes a session's score to all of its rows.
    """
    scores = [torch.zeros(length) for length in lengths]
    for session, reward in zip(responses.sessions, responses.reward.tolist(), strict=True):
        for row in session.rows:
            scores[row][-1:] = reward
    return scores
