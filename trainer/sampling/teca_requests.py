"""What a request tells vLLM about entropies and early exit, and what comes back: both ends agree here.

In a request's SamplingParams.extra_args, which an OpenAI client sends as `vllm_xargs`:

    teca_key                  str or int   keep this request's entropies under this key until they are taken
    early_exit                float        threshold of the rule (early_exit.py), nats
    early_exit_min_tokens     int          no exit before so many tokens (default 32)
    early_exit_window         int          entropies in the mean, 0: all (default)
    early_exit_token_ids      [int]        what is written at the exit (default: the server's text)
    early_exit_closing_ids    [int]        what ends the thinking when the model writes it (default: token_ids)

Back, by `take_entropies`: for each key the responses that carried it, `n` of them for a request with n > 1. They are
told apart by their tokens: two responses with the same tokens have the same entropies.

No vLLM is imported here.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.sampling.early_exit import EarlyExit

KEY = "teca_key"
THRESHOLD = "early_exit"
MIN_TOKENS = "early_exit_min_tokens"
WINDOW = "early_exit_window"
TOKEN_IDS = "early_exit_token_ids"
CLOSING_IDS = "early_exit_closing_ids"
_NAMES = (KEY, THRESHOLD, MIN_TOKENS, WINDOW, TOKEN_IDS, CLOSING_IDS)
_PREFIXES = ("teca_", "early_exit")
DEFAULT_MIN_TOKENS = 32
_STAND_IN = (0,)  # for the server's text, where a request is checked without it

Key = str | int


def request_arguments(*, key: Key | None = None, rule: EarlyExit | None = None) -> dict[str, Any]:
    """`extra_args` of a request."""
    arguments: dict[str, Any] = {} if key is None else {KEY: key}
    if rule is not None:
        arguments |= {THRESHOLD: rule.threshold, MIN_TOKENS: rule.min_tokens, WINDOW: rule.window}
        arguments |= {TOKEN_IDS: list(rule.forced_ids), CLOSING_IDS: list(rule.closing_ids)}
    return arguments


def key_of(arguments: Mapping[str, Any] | None) -> Key | None:
    return None if arguments is None else arguments.get(KEY)


def rule_of(
    arguments: Mapping[str, Any] | None, default: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> EarlyExit | None:
    """The rule a request asks for, or None. default: the server's (forced_ids, closing_ids). Raises ValueError."""
    if arguments is None or arguments.get(THRESHOLD) is None:
        return None
    forced, closing = default if default is not None else (_STAND_IN, _STAND_IN)
    if TOKEN_IDS in arguments:
        forced = _token_ids(arguments, TOKEN_IDS)
        closing = forced
    if CLOSING_IDS in arguments:
        closing = _token_ids(arguments, CLOSING_IDS)
    return EarlyExit(
        _number(arguments, THRESHOLD, None),
        forced,
        closing,
        _integer(arguments, MIN_TOKENS, DEFAULT_MIN_TOKENS),
        _integer(arguments, WINDOW, 0),
    )


def check_arguments(arguments: Mapping[str, Any] | None, *, max_tokens: int | None) -> None:
    """Raise ValueError for arguments that are wrong, or a rule that can never fire within max_tokens."""
    if not arguments:
        return
    unknown = sorted(name for name in arguments if name.startswith(_PREFIXES) and name not in _NAMES)
    if unknown:
        raise ValueError(f"unknown request argument {', '.join(unknown)}: expected some of {', '.join(_NAMES)}")
    key = arguments.get(KEY)
    if key is not None and (isinstance(key, bool) or not isinstance(key, str | int)):
        raise ValueError(f"{KEY} is {key!r}: expected a string or an integer")
    rule = rule_of(arguments)
    if rule is None:
        given = [name for name in _NAMES[2:] if name in arguments]
        if given:
            raise ValueError(
                f"{', '.join(given)} without {THRESHOLD}, the threshold in nats: the rule could never fire"
            )
    elif max_tokens is not None:
        rule.check_limit(max_tokens)


def _number(arguments: Mapping[str, Any], name: str, default: float | None) -> float:
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}: expected a number")
    return float(value)


def _integer(arguments: Mapping[str, Any], name: str, default: int) -> int:
    value = _number(arguments, name, default)
    if value != int(value):
        raise ValueError(f"{name} is {value!r}: expected an integer")
    return int(value)


def _token_ids(arguments: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = arguments[name]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r}: expected a list of token ids")
    return tuple(value)


@dataclass(frozen=True)
class Decoded:
    """What decoding knows of a response.

    Args:
        entropies: of the distribution that each token was drawn from, nats; forced tokens have theirs too.
        fired: the place of the first forced token, None where there is none.
    """

    entropies: list[float]
    fired: int | None


def decoded(records: Sequence[Sequence], token_ids: Sequence[int], key: Key) -> Decoded:
    """The record, among those of a key, of the response with these tokens.

    Args:
        records: (tokens the engine knew, float32 bytes, fired or -1) each, as the worker hands them over.

    Raises:
        RuntimeError: there is none that covers the response.
    """
    token_ids = list(token_ids)
    for known, data, fired in records:
        # The engine may lag by a token (it is not told the last one under async scheduling) or be ahead (it went on
        # until it heard of a stop string).
        shared = min(len(known), len(token_ids))
        entropies = array("f", data)
        if (
            len(known) >= len(token_ids) - 1
            and len(entropies) >= len(token_ids)
            and list(known[:shared]) == token_ids[:shared]
        ):
            within = 0 <= fired < len(token_ids)
            return Decoded(list(entropies[: len(token_ids)]), fired if within else None)
    raise RuntimeError(
        f"vLLM drew {len(token_ids)} tokens for request {key!r} and kept no entropies for them ({len(records)} other "
        "records under that key); was the request sent without the processor, or are its entropies taken already?"
    )
