"""What an engine is asked and what it answers.

Every engine takes a list of Requests and gives one Response for each, in order:

    token_ids      up to and with the end-of-sequence token
    entropies[i]   nats, of softmax(z_i / T) over the whole vocabulary, z_i the logits that the model gave for token i

that is, before repetition penalty, top-k, top-p and min-p, which all act on what is drawn and not on the entropy: it is
the model's uncertainty at this temperature, the quantity that teacher forcing and training see as well.

A request's seed depends on the run's seed, benchmark, method, problem and sample, and on nothing else. So a response
does not depend on where a run was interrupted, except for rounding: the other responses in the batch change the
rounding of matrix products and, rarely, a token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

ENGINES = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 takes the likeliest token; its entropies are those at temperature 1."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # 1: off; counts prompt and response. The published 1.15 was never applied
    max_new_tokens: int = 16384

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {expected}")

        check("temperature", 0 <= self.temperature < math.inf, "a finite number >= 0 (0: take the likeliest token)")
        check("top_p", 0 < self.top_p <= 1, "0 < top_p <= 1 (1: off)")
        check("top_k", self.top_k >= 0, "an integer >= 0 (0: off)")
        check("min_p", 0 <= self.min_p < 1, "0 <= min_p < 1 (0: off)")
        check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number > 0 (1: off)")
        check("max_new_tokens", self.max_new_tokens >= 1, "at least 1")

    @property
    def entropy_temperature(self) -> float:
        return self.temperature or 1.0


@dataclass(frozen=True)
class Request:
    """One response to generate."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Response:
    """One generated response; see this file's header."""

    token_ids: list[int]
    entropies: list[float]
    finish_reason: str  # "stop": it ended; "length": max_new_tokens was reached
    exit_at: int | None = None  # the place of the first token that an early exit forced


class Engine(Protocol):
    """Generates."""

    tells_steps: bool  # whether `stream` calls on_step after every token of the batch

    def generate(self, requests: list[Request], on_step: Callable[[int], None] | None = None) -> list[Response]:
        """All of them, in order."""
        ...

    def stream(
        self, requests: list[Request], *, slots: int, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Response]]:
        """(which request, response) as responses end; `slots` at once. on_step: told how many are under way."""
        ...


def request_seed(seed: int, benchmark: str, method: str, problem_id: str, sample: int) -> int:
    """The seed of one response, 0 <= seed < 2**63."""
    key = "\x00".join((str(seed), benchmark, method, problem_id, str(sample)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
