"""A family of small arithmetic problems in English, with numbers and phrasings held out.

In: family, split.  Out: problems, the same on every machine, in an order shuffled once.

    sums         a + b,          a in 1..20, b in 1..9
    large_sums   a + b,          a and b in 11..99
    differences  a - b,          a in 2..20, b in 1..9, b <= a
    products     a b,            a in 2..12, b in 2..9
    stories      a + b or a - b  in one sentence of somebody's things, a in 2..20, b in 2..9
    two_steps    a + b + c       a story of two changes, a in 5..20, b and c of 2..9 up or down
    mixed        sums, differences and products

Held out ("test"): a quarter of the number tuples of each family, chosen by hash, asked in phrasings that training never
uses. So a right answer is neither a remembered question nor a remembered pair. The numbers of the worked examples
(trainer/prompts) are in neither split.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from itertools import product

FAMILIES = ("sums", "large_sums", "differences", "products", "stories", "two_steps", "mixed")
SPLITS = ("train", "test")
_MIXED = ("sums", "differences", "products")
_HELD_OUT_SHARE = 4  # one in so many number tuples
_SHOWN = {(4, 3), (3, 4), (6, 5), (5, 6), (12, 5), (6, 2), (2, 6)}  # in the worked examples
_STORY_PROBLEMS = 512  # of each split; names and things make many more

_TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "sums": {
        "train": ("What is {a} + {b}?", "Calculate {a} + {b}.", "What do you get if you add {b} to {a}?"),
        "test": ("How much is {a} + {b}?", "What is the sum of {a} and {b}?", "Find {a} plus {b}."),
    },
    "differences": {
        "train": ("What is {a} - {b}?", "Calculate {a} - {b}.", "What is left if you take {b} from {a}?"),
        "test": ("How much is {a} - {b}?", "What is {a} minus {b}?", "Find the difference of {a} and {b}."),
    },
    "products": {
        "train": ("What is {a} * {b}?", "Calculate {a} * {b}.", "What do you get if you multiply {a} by {b}?"),
        "test": ("How much is {a} * {b}?", "What is {a} times {b}?", "Find the product of {a} and {b}."),
    },
}
_TEMPLATES["large_sums"] = _TEMPLATES["sums"]
_NAMES = {"train": ("Tom", "Ann", "Ben", "Eva", "Sam", "Lily"), "test": ("Max", "Zoe", "Leo", "Mia")}
_THINGS = {"train": ("apples", "books", "coins", "cards", "pencils"), "test": ("shells", "stamps", "marbles")}
_GAINS = {"train": ("buys {n} more", "finds {n} more"), "test": ("gets {n} more",)}
_LOSSES = {"train": ("sells {n}", "loses {n}"), "test": ("gives away {n}",)}


@dataclass(frozen=True)
class ArithmeticProblem:
    """One question; the id is unique in its family and split."""

    id: str
    family: str
    question: str
    answer: int


def arithmetic_problems(family: str, split: str) -> list[ArithmeticProblem]:
    """Every problem of a family and split (stories: 512 drawn ones), shuffled the same way each time.

    Raises ValueError for a family or split that is none.
    """
    if family not in FAMILIES:
        raise ValueError(f"no arithmetic problems called {family!r}: expected one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"arithmetic.{family} has no split {split!r}: expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"{family} {split}")
    if family == "mixed":
        problems = [problem for part in _MIXED for problem in arithmetic_problems(part, split)]
        rng.shuffle(problems)
        return problems
    if family in ("stories", "two_steps"):
        return _stories(family, split, rng)
    problems = [
        ArithmeticProblem(f"{family}-{a}-{b}-{number}", family, template.format(a=a, b=b), _answer(family, a, b))
        for a, b in _pairs(family)
        if (a, b) not in _SHOWN and _is_held_out(family, (a, b)) == (split == "test")
        for number, template in enumerate(_TEMPLATES[family][split])
    ]
    rng.shuffle(problems)
    return problems


def _pairs(family: str) -> list[tuple[int, int]]:
    firsts, seconds = {
        "sums": (range(1, 21), range(1, 10)),
        "large_sums": (range(11, 100), range(11, 100)),
        "differences": (range(2, 21), range(1, 10)),
        "products": (range(2, 13), range(2, 10)),
    }[family]
    return [(a, b) for a, b in product(firsts, seconds) if family != "differences" or b <= a]


def _answer(family: str, a: int, b: int) -> int:
    return a * b if family == "products" else a - b if family == "differences" else a + b


def _is_held_out(family: str, numbers: tuple[int, ...]) -> bool:
    return zlib.crc32(f"{family} {numbers}".encode()) % _HELD_OUT_SHARE == 0


def _stories(family: str, split: str, rng: random.Random) -> list[ArithmeticProblem]:
    found: dict[str, ArithmeticProblem] = {}
    while len(found) < _STORY_PROBLEMS:
        steps = 2 if family == "two_steps" else 1
        start = rng.randint(5, 20) if steps == 2 else rng.randint(2, 20)
        changes = tuple(rng.choice((1, -1)) * rng.randint(2, 9) for _ in range(steps))
        numbers = (start, *changes)
        if (start, abs(changes[0])) in _SHOWN or _is_held_out(family, numbers) != (split == "test"):
            continue
        if min(start + sum(changes[: n + 1]) for n in range(steps)) < 0:
            continue
        name, thing = rng.choice(_NAMES[split]), rng.choice(_THINGS[split])
        told = [rng.choice((_GAINS if change > 0 else _LOSSES)[split]).format(n=abs(change)) for change in changes]
        question = (
            f"{name} has {start} {thing}. {name} {f'. Then {name} '.join(told)}. How many {thing} does {name} have now?"
        )
        identity = f"{family}-{len(found)}"
        found.setdefault(question, ArithmeticProblem(identity, family, question, sum(numbers)))
    return list(found.values())
