"""Early exit: a rule on the running TECA that ends the thinking once the model has decided.

In: the entropies H_i of the distributions that tokens 0..t of a response are drawn from, in nats. Out: whether token t
is the first of the texts that end the thinking, instead of what would have been drawn.

    mean_t = (1/(t+1)) sum_{i<=t} H_i                      TECA_t, or with a window W
    mean_t = (1/W) sum_{t-W<i<=t} H_i                      the mean of the last W entropies
    exit at the first t with   t + 1 >= min_tokens,  t + 1 >= W,  mean_t < threshold,  thinking not over before t

The forced text takes the places t, t+1, ... and the model goes on after it. H_t counts: the distribution of token t is
known before the token is drawn, so the rule costs no token. TECA averages over the whole response, so one that began
with high entropy falls under the threshold late; a window averages over the latest tokens alone.

Thinking is over once the response holds the closing tokens: the end token of the thinking (</think>), or, for a model
that has no such token, the forced text itself.

The same rule runs inside every engine (running_teca.py, on the engine's device) and here over a finished response
(`first_exit`), which the tests hold the engines to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEXT = "</think>"
_TAG = re.compile(r"<[^<>\s]+>")  # what thinking tokens look like: </think>, <|end_of_thought|>


@dataclass(frozen=True)
class EarlyExit:
    """The rule, in tokens.

    Args:
        threshold: nats; > 0. Above log V the exit always comes at min_tokens.
        forced_ids: what is written at the exit; at least one token.
        closing_ids: what ends the thinking when the model writes it; at least one token.
        min_tokens: no exit before so many tokens, the first forced one counted; >= 1.
        window: entropies in the mean; 0: all of the response.
    """

    threshold: float
    forced_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    min_tokens: int = 32
    window: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(
                f"early_exit is {self.threshold}: expected a finite number of nats > 0; an entropy is never below 0, "
                "so the rule could never fire"
            )
        if self.min_tokens < 1:
            raise ValueError(f"early_exit_min_tokens is {self.min_tokens}: expected at least 1")
        if self.window < 0:
            raise ValueError(f"early_exit_window is {self.window}: expected a number of tokens, or 0 for all")
        for name in ("forced_ids", "closing_ids"):
            ids = getattr(self, name)
            if not ids or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
                raise ValueError(f"early exit: {name} is {ids!r}: expected token ids, at least one")

    @property
    def first_token(self) -> int:
        """The first place of a response where the rule may fire."""
        return max(self.min_tokens, self.window) - 1

    def check_limit(self, max_new_tokens: int) -> None:
        """Raise ValueError if no response of so many tokens is long enough for the rule to fire."""
        if self.first_token >= max_new_tokens:
            name = "early_exit_min_tokens" if self.min_tokens >= self.window else "early_exit_window"
            raise ValueError(
                f"{name} is {self.first_token + 1}, and a response has at most {max_new_tokens} tokens: the rule could "
                "never fire"
            )


def end_tokens(tokenizer: PreTrainedTokenizerBase, text: str = DEFAULT_TEXT) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(forced_ids, closing_ids) of a text that ends the thinking.

    A tag in the text (</think>) must be one token of the model; it is what closes the thinking. A text without a tag is
    for models without thinking tokens ("\\nFinal answer:"): it is written as it is and closes by itself.

    Args:
        tokenizer: a tokenizer of transformers.
        text: not empty.

    Raises:
        ValueError: the text is empty or unknown to the tokenizer, or a tag in it is no token of the model.
    """
    vocabulary = tokenizer.get_vocab()
    tags = _TAG.findall(text)
    for tag in tags:
        if tag not in vocabulary:
            raise ValueError(
                f"early_exit_text {text!r}: the model has no token {tag}; name the token that ends its thinking, or, "
                "for a model without thinking tokens, a text that begins its answer"
            )
    forced = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not forced:
        raise ValueError(f"early_exit_text {text!r}: expected a text of at least one token")
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in forced:
        raise ValueError(f"early_exit_text {text!r}: the model's tokenizer cannot write it")
    return forced, ((vocabulary[tags[-1]],) if tags else forced)


def make_rule(
    tokenizer,
    threshold: float,
    *,
    min_tokens: int,
    window: int,
    text: str = DEFAULT_TEXT,
    max_new_tokens: int | None = None,
) -> EarlyExit:
    """The rule that options of a command line describe. Raises ValueError for one that is wrong or could never fire."""
    forced, closing = end_tokens(tokenizer, text)
    rule = EarlyExit(threshold, forced, closing, min_tokens, window)
    if max_new_tokens is not None:
        rule.check_limit(max_new_tokens)
    return rule


CLOSED_PROMPT_TAIL = 4  # tokens; a prompt that ends in "<think>\n\n</think>\n\n" asks for no thinking


def closed_by_prompt(rule: EarlyExit, prompt_ids: Sequence[int]) -> bool:
    """Whether the prompt has ended the thinking already: the closing tokens stand at its end, or nearly so."""
    width = len(rule.closing_ids)
    tail = list(prompt_ids)[-(width + CLOSED_PROMPT_TAIL) :]
    return any(tuple(tail[i : i + width]) == rule.closing_ids for i in range(len(tail) - width + 1))


def closes_at(rule: EarlyExit, token_ids: Sequence[int]) -> int | None:
    """The place after the closing tokens in a response, where they stand first; None where they do not."""
    width = len(rule.closing_ids)
    ends = range(width, len(token_ids) + 1)
    return next((end for end in ends if tuple(token_ids[end - width : end]) == rule.closing_ids), None)


def first_exit(
    rule: EarlyExit, entropies: Sequence[float], token_ids: Sequence[int], *, prompt_ids: Sequence[int] = ()
) -> int | None:
    """Where the rule fires in a response: the place of the first forced token; None where it does not.

    Args:
        entropies: of the distribution that each token was drawn from, nats.
        token_ids: the response, at least as far as the exit.
        prompt_ids: looked at for closed thinking; see `closed_by_prompt`.
    """
    if closed_by_prompt(rule, prompt_ids):
        return None
    closed = closes_at(rule, token_ids)
    running = [0.0]
    for t, entropy in enumerate(entropies):
        if t == closed:
            return None
        running.append(running[-1] + entropy)
        if t >= rule.first_token:
            count = rule.window or t + 1
            if (running[t + 1] - running[t + 1 - count]) / count < rule.threshold:
                return t
    return None


def forced_places(fired: int | None, rule: EarlyExit | None, length: int) -> range:
    """The places of a response of `length` tokens that the rule wrote; it fired at `fired`."""
    if fired is None or rule is None:
        return range(0)
    return range(fired, min(fired + len(rule.forced_ids), length))
