"""Two-step word problems, and worked answers that explore more than they must.

In: a seed.  Out: problems (question, answer, the numbers behind it) and, for the warm start, responses to imitate.

    tom has 7 apples . he buys 3 more . then he loses 2 . how many apples does tom have now ?
    <think> tom starts with 7 apples . 7 + 3 = 10 . 10 - 2 = 8 . that gives 8 .
            wait we could quickly check this : 7 up 8 9 10 down 9 8 . that gives 8 .        (an exploration; K of them)
            </think> the answer is \\boxed{ 8 }

The opener of an exploration is drawn from 8*6*6*5*6 = 8640 phrases (9.06 nats over five tokens) and the way to compute
from four: there is entropy to save, and nothing to lose by saving it. Three designs of the warm-start responses:

    explore   K ~ U{0..4} explorations after the first calculation, all right: exploring is useless
    slips     each calculation goes wrong with probability 0.2; the response goes on until two results agree (at most
              six calculations), and then makes U{0..2} more: some exploring is useful, cutting all of it costs accuracy
    recap     like slips, and after the result is known R >= 0 recaps, P(one more) = 2/3: each recap is a copy of what
              has been said, so its tokens are certain. The counter-example to a mean entropy: since exploring helps,
              recaps are the cheaper way to a low mean

Held out: one eighth of the number triples (a, change b, change c), chosen by hash: no held-out sum is ever trained on.
"""

import hashlib
import random
from dataclasses import dataclass

NAMES = ("tom", "ann", "ben", "eva", "sam", "lily", "max", "zoe", "leo", "mia")
THINGS = ("apples", "books", "coins", "shells", "cards", "stamps", "marbles", "pencils", "stickers", "buttons")
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("loses", "sells", "breaks", "eats")
OPENER = (
    ("hmm", "wait", "well", "okay", "now", "actually", "maybe", "perhaps"),
    ("i", "we", "one", "you", "they", "people"),
    ("should", "could", "might", "can", "must", "would"),
    ("carefully", "quickly", "simply", "also", "again"),
    ("check", "test", "verify", "review", "confirm", "revisit"),
)
LARGEST_NUMBER = 24


@dataclass(frozen=True)
class Design:
    """How the responses of the warm start explore; see this file's header."""

    help: str
    slips: bool = False  # calculations go wrong, and the response goes on until two agree
    recaps: bool = False  # and repeats itself when the result is known


DESIGNS = {
    "explore": Design("useless exploration"),
    "slips": Design("exploration that catches slips", slips=True),
    "recap": Design("optional repetition that lowers TECA: the counter-example to a mean", slips=True, recaps=True),
}
MOST_EXPLORATIONS = 4
SLIP_PROBABILITY = 0.2
MOST_CALCULATIONS = 6  # of the slips design, until two agree
MOST_IDLE_EXPLORATIONS = 2  # of the slips design, after two agree
RECAP_PROBABILITY = 2 / 3
MOST_RECAPS = 8
HELD_OUT_SHARE = 8  # one in so many number triples

# Every word that a question or a response can hold besides the numbers and the tuples above.
_FIXED_WORDS = (
    "<think> </think> \\boxed{ } . : ? + - = up down by has more then he she how many does have now starts with that "
    "gives this net swap the answer is to recap so"
)
FIXED_WORDS = tuple(_FIXED_WORDS.split())


@dataclass(frozen=True)
class WordProblem:
    """a, then a change by b, then a change by c (changes are signed)."""

    name: str
    thing: str
    verbs: tuple[str, str]
    a: int
    b: int
    c: int

    @property
    def answer(self) -> int:
        return self.a + self.b + self.c

    @property
    def question(self) -> str:
        return (
            f"{self.name} has {self.a} {self.thing} . {self.name} {self.verbs[0]} {abs(self.b)} . "
            f"then {self.name} {self.verbs[1]} {abs(self.c)} . how many {self.thing} does {self.name} have now ?"
        )

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.a},{self.b},{self.c}".encode()).digest()
        return digest[0] % HELD_OUT_SHARE == 0


def draw_problem(rng: random.Random, held_out: bool) -> WordProblem:
    """A random problem from the held-out or the training triples."""
    while True:
        a = rng.randint(3, 9)
        b, c = (rng.choice((1, -1)) * rng.randint(2, 5) for _ in range(2))
        if a + b < 0 or a + c < 0 or a + b + c < 0:
            continue
        verbs = tuple(rng.choice(GAINS if change > 0 else LOSSES) for change in (b, c))
        problem = WordProblem(rng.choice(NAMES), rng.choice(THINGS), verbs, a, b, c)
        if problem.held_out == held_out:
            return problem


def draw_problems(count: int, *, seed: int, held_out: bool) -> list[WordProblem]:
    """`count` different problems, the same for the same seed."""
    rng = random.Random(f"{'held out' if held_out else 'train'} {seed}")
    found: dict[WordProblem, None] = {}
    while len(found) < count:
        found[draw_problem(rng, held_out)] = None
    return list(found)


def _sum_text(left: int, change: int, result: int) -> str:
    return f"{left} {'+' if change > 0 else '-'} {abs(change)} = {result} ."


def _count_text(start: int, end: int) -> str:
    """Counting from start to end, one number at a time."""
    if end == start:
        return ""
    step = 1 if end > start else -1
    return " ".join([("up" if step > 0 else "down"), *(str(n) for n in range(start + step, end + step, step))])


def _calculation(problem: WordProblem, way: str, error: tuple[int, int]) -> tuple[str, int]:
    """Text and result of one way to compute, with an error added to its first or second result."""
    a, b, c = problem.a, problem.b, problem.c
    if way == "swap":
        b, c = c, b
    if way == "net":
        size = abs(abs(b) + abs(c) if b * c > 0 else abs(b) - abs(c)) + error[0]
        sign = 1 if b + c >= 0 else -1
        operator = "+" if b * c > 0 else "-"
        high, low = max(abs(b), abs(c)), min(abs(b), abs(c))
        result = a + sign * size + error[1]
        text = f"net {high} {operator} {low} = {size} . {a} {'+' if sign > 0 else '-'} {size} = {result} ."
        return text, result
    middle = a + b + error[0]
    result = middle + c + error[1]
    if way == "count":
        counted = (_count_text(a, middle), _count_text(middle, result))
        return " ".join(["by", str(a), *filter(None, counted), "."]), result
    prefix = "swap " if way == "swap" else ""
    return f"{prefix}{_sum_text(a, b, middle)} {_sum_text(middle, c, result)}", result


def _attempt(rng: random.Random, problem: WordProblem, way: str, slip: bool) -> tuple[str, int]:
    """A calculation with its conclusion; with `slip`, one of its results is off by one."""
    while True:
        error = (0, 0)
        if slip:
            error = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1)))
        text, result = _calculation(problem, way, error)
        numbers = [int(word) for word in text.split() if word.lstrip("-").isdigit()]
        if all(0 <= number <= LARGEST_NUMBER for number in numbers) and 0 <= result <= LARGEST_NUMBER:
            return f"{text} that gives {result} .", result


def _exploration(rng: random.Random, problem: WordProblem, slip: bool) -> tuple[str, int]:
    opener = " ".join(rng.choice(words) for words in OPENER)
    text, result = _attempt(rng, problem, rng.choice(("direct", "count", "net", "swap")), slip)
    return f"{opener} this : {text}", result


def draw_response(rng: random.Random, problem: WordProblem, design: str) -> str:
    """A response to imitate, of one of the designs in this file's header."""
    slips = DESIGNS[design].slips
    parts = [f"<think> {problem.name} starts with {problem.a} {problem.thing} ."]
    text, result = _attempt(rng, problem, "direct", slips and rng.random() < SLIP_PROBABILITY)
    parts.append(text)
    if slips:
        results = [result]
        while len(results) < MOST_CALCULATIONS and len(set(results)) == len(results):
            text, result = _exploration(rng, problem, rng.random() < SLIP_PROBABILITY)
            parts.append(text)
            results.append(result)  # the last is the one that agrees with an earlier one
        result = results[-1]
        for _ in range(rng.randint(0, MOST_IDLE_EXPLORATIONS)):
            parts.append(_exploration(rng, problem, rng.random() < SLIP_PROBABILITY)[0])
    else:
        for _ in range(rng.randint(0, MOST_EXPLORATIONS)):
            text, result = _exploration(rng, problem, slip=False)
            parts.append(text)
    if DESIGNS[design].recaps:
        recap = (
            f"to recap : {problem.name} starts with {problem.a} {problem.thing} . {problem.name} {problem.verbs[0]} "
            f"{abs(problem.b)} . then {problem.name} {problem.verbs[1]} {abs(problem.c)} . that gives {result} ."
        )
        recaps = 0
        while recaps < MOST_RECAPS and rng.random() < RECAP_PROBABILITY:
            parts.append(recap)
            recaps += 1
    parts.append(f"</think> the answer is \\boxed{{ {result} }}")
    return " ".join(parts)


def count_explorations(response: str) -> int:
    """How many explorations a response holds (every opener ends in "this :")."""
    return response.count("this :")


def count_recaps(response: str) -> int:
    """How many recaps a response holds."""
    return response.count("to recap")
