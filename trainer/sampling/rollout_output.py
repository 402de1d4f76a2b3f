"""What a `rollout_func` returned, checked where it comes in: a line that names the key, not a crash deep in TRL.

In: the function that a person gave to the trainer. Out: the same function, whose answer is lists of plain numbers.

    prompt_ids, completion_ids   a row of token ids per prompt that was handed in; no completion is empty, for even one
                                 that says nothing has its end token
    logprobs, env_mask           None, or a number per token of each completion
    decoded                      None, or a teca_requests.Decoded per completion
    teca, entropy_sum            None (the trainer scores the rollouts itself), or nats per completion; NaN for one of
                                 which the policy wrote no token

Tensors and arrays are taken for the lists of their rows, as TRL takes them: padding in them counts as tokens. Other
keys are handed on to the reward functions as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.sampling.teca_requests import Decoded

_REQUIRED = ("prompt_ids", "completion_ids", "logprobs")
_PER_TOKEN = ("logprobs", "env_mask")
_PER_COMPLETION = ("teca", "entropy_sum")


def checked(rollout_func: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """`rollout_func` with its answer checked; see this file's header.

    Raises (where it is called):
        TypeError, ValueError: the key that is not as it must be, what was expected and what came.
    """

    @functools.wraps(rollout_func, updated=())
    def rollout(prompts: list, *args, **kwargs) -> dict[str, Any]:
        return checked_output(rollout_func(prompts, *args, **kwargs), len(prompts))

    return rollout


def checked_output(output: Any, count: int) -> dict[str, Any]:
    """What a rollout_func returned for `count` prompts, as lists of plain numbers."""
    if not isinstance(output, Mapping):
        raise TypeError(f"rollout_func returned {_kind(output)}: expected a dict with {', '.join(_REQUIRED)}")
    missing = [key for key in _REQUIRED if key not in output]
    if missing:
        raise ValueError(f"rollout_func returned no {', '.join(missing)}; it returned {', '.join(map(str, output))}")
    plain = dict(output)
    for key in ("prompt_ids", "completion_ids"):
        plain[key] = [_token_ids(key, row, ids) for row, ids in enumerate(_rows(key, output[key], count))]
    lengths = [len(ids) for ids in plain["completion_ids"]]
    for key in _PER_TOKEN:
        if output.get(key) is not None:
            rows = enumerate(_rows(key, output[key], count))
            plain[key] = [_per_token(key, row, values, lengths[row]) for row, values in rows]
    for key in _PER_COMPLETION:
        if key in output and output[key] is None:
            del plain[key]
        elif key in output:
            plain[key] = [_nats(key, row, value) for row, value in enumerate(_rows(key, output[key], count))]
    if "decoded" in output and output["decoded"] is None:
        del plain["decoded"]
    elif "decoded" in output:
        plain["decoded"] = _rows("decoded", output["decoded"], count)
        for row, one in enumerate(plain["decoded"]):
            _check_decoded(row, one, lengths[row])
    return plain


def _rows(key: str, values: Any, count: int) -> list:
    rows = _listed(values)
    if rows is None:
        raise TypeError(f"rollout_func returned {_kind(values)} as {key}: expected a list, one entry per prompt")
    if len(rows) != count:
        raise ValueError(f"rollout_func returned {len(rows)} {key} for {count} prompts: expected one per prompt")
    return rows


def _token_ids(key: str, row: int, values: Any) -> list[int]:
    ids = _listed(values)
    if ids is None or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        shown = _kind(values) if ids is None else f"{ids[:8]!r}"
        raise TypeError(f"rollout_func returned {shown} as {key}[{row}]: expected a list of token ids (integers)")
    if not ids:
        least = "at least the token that ends it" if key == "completion_ids" else "at least one token"
        raise ValueError(f"rollout_func returned no token as {key}[{row}]: expected {least}")
    if min(ids) < 0:
        raise ValueError(f"rollout_func returned {min(ids)} in {key}[{row}]: expected token ids of at least 0")
    return ids


def _per_token(key: str, row: int, values: Any, length: int) -> list:
    numbers = _listed(values)
    if numbers is None:
        raise TypeError(f"rollout_func returned {_kind(values)} as {key}[{row}]: expected a number per token")
    if len(numbers) != length:
        raise ValueError(
            f"rollout_func returned {len(numbers)} values as {key}[{row}], whose completion has {length} tokens"
        )
    return numbers


def _nats(key: str, row: int, value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        raise TypeError(f"rollout_func returned None as {key}[{row}]: give nats for every completion, or None for all")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"rollout_func returned {_kind(value)} as {key}[{row}]: expected a number of nats")
    if math.isinf(value):
        raise ValueError(f"rollout_func returned {value} as {key}[{row}]: expected a finite number of nats")
    return float(value)


def _check_decoded(row: int, one: Any, length: int) -> None:
    if not isinstance(one, Decoded):
        raise TypeError(f"rollout_func returned {_kind(one)} as decoded[{row}]: expected a teca_requests.Decoded")
    if len(one.entropies) != length:
        raise ValueError(
            f"rollout_func returned {len(one.entropies)} entropies as decoded[{row}], whose completion has {length} "
            "tokens"
        )


def _listed(values: Any) -> list | None:
    """A list, tuple, tensor or array as a list of plain values; None for what is none of them."""
    if hasattr(values, "tolist"):
        values = values.tolist()
        return values if isinstance(values, list) else None
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return [value.item() if _is_scalar_tensor(value) else value for value in values]
    return None


def _is_scalar_tensor(value: Any) -> bool:
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
