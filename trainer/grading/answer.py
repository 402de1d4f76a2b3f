r"""The structure of an answer, and when two answers are equal.

In: two texts in the spelling of normalize.py. Out: equal or not. An answer is read as one of

    Scalar      a number, an expression or prose, with a unit and a name if it has them: x = 5 cm
    Sequence    (a, b) and intervals [a, b): in order, same brackets;  {a, b} and bare a, b: in any order;  unions
    Matrix      entry by entry

Rules where notation leaves a choice:
- A unit or a name (x = 5) that one side leaves out is no difference; one that both state must agree (5 cm is not 5 m).
- 50% equals 50 (the percent sign as a unit left out) and 0.5 (its value). 0.5% does not equal 0.5: below one, a number
  is a value and no percentage.
- Decimals are exact: 0.33 is not 1/3, and 3.14 is not \pi.
- A base is a unit: 52_8 equals 52, but not 52_7, and not its decimal value.
- a \pm b is the pair of its values. An inequality in one variable is an interval.
- 1,000 is a number, unless reading both sides as lists makes them equal: (1,234) equals (1, 234).
- Prose compares without case, spaces and punctuation; if the gold is one letter A to J, so is "(C) because".
- Where the gold is no equation, an answer "2 + 3 = 5" is its last side.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from trainer.grading.exact import evaluate
from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN
from trainer.grading.units import read_unit

MAX_DEPTH = 32
MAX_ITEMS = 64

_OPENING, _CLOSING = "([{" + TEXT_OPEN, ")]}" + TEXT_CLOSE
_CONJUNCTION = re.compile(rf"(?:,\s*)?{TEXT_OPEN}\s*,?\s*(?:or|and)\s*{TEXT_CLOSE}")
_PLAIN_CONJUNCTION = re.compile(r"(?:\s*,)?\s(?:or|and)\s", re.IGNORECASE)
_LABEL = re.compile(rf"{TEXT_OPEN}[^{TEXT_CLOSE}]*(?:=|:|\bis){TEXT_CLOSE}\s*(?=[^\s])")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_NAME = re.compile(
    r"([A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?'?\s?(?:\([A-Za-z]\))?)\s*(?:=|\\in|\\approx)(?![A-Za-z])\s*(.+)"
)
_RELATION = re.compile(r"(\\le|\\ge|\\ne|<|>|=|\\approx)(?![A-Za-z])")
_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*([0-9]{1,2})\s*\}?")
_MATRIX = re.compile(r"\\begin\{matrix\}(.*)\\end\{matrix\}")
_CHOICE = re.compile(r"\(?([A-J])\)?")
_CHOSEN = re.compile(r"(?:(?:option|choice|answer)\s*)?\(?([A-Ja-j])(?:\)|[.:]|$)")
_PROSE = re.compile(rf"[{TEXT_OPEN}]|(?<![\\A-Za-z])[A-Za-z]{{3,}}")
_LETTERS = re.compile(r"[A-Za-z ]*")
_FREE_SPACE = re.compile(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z\s])\s+")
_NOT_IN_PROSE = re.compile(r"[^0-9a-z+\-*/=<>^:\\]")


@dataclass(frozen=True)
class Scalar:
    text: str
    value: Fraction | None = None
    unit: str = ""
    name: str = ""

    @property
    def is_prose(self) -> bool:
        return self.value is None and bool(_PROSE.search(self.text) or _LETTERS.fullmatch(self.text))


@dataclass(frozen=True)
class Sequence:
    items: tuple
    kind: str  # "ordered", "set", "list" or "union"
    brackets: str = ""
    name: str = ""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple, ...]
    name: str = ""


Answer = Scalar | Sequence | Matrix
Judge = Callable[[str, str], bool]


def equivalent(gold: str, answer: str, judge: Judge) -> bool:
    """Returns True if the normalised texts state the same answer; `judge` compares two LaTeX expressions."""
    if not gold or not answer:
        return False
    if gold == answer:
        return True
    if _nesting(gold) > MAX_DEPTH or _nesting(answer) > MAX_DEPTH:
        return False
    if _same(read(gold), read(answer), judge):
        return True
    if _THOUSANDS.search(gold) or _THOUSANDS.search(answer):
        return _same(read(gold, thousands=False), read(answer, thousands=False), judge)
    return False


def _nesting(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        deepest = max(deepest, abs(depth))
    return deepest


# Reading


@lru_cache(maxsize=4096)
def read(text: str, *, thousands: bool = True) -> Answer:
    """Returns the structure of a normalised answer."""
    text = _CONJUNCTION.sub(" , ", text)
    if TEXT_OPEN not in text:
        text = _PLAIN_CONJUNCTION.sub(" , ", text)
    text = _LABEL.sub("", text, count=1) if text.startswith(TEXT_OPEN) else text
    if thousands:
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return _read(text)


def _read(text: str) -> Answer:
    text = text.strip().removeprefix("+").strip()
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[1]) if row.strip()]
        return Matrix(tuple(tuple(_read(entry) for entry in row.split("&")) for row in rows[:MAX_ITEMS]))
    parts = _split(text, r"\cup")
    if len(parts) > 1:
        return Sequence(tuple(map(_read, parts)), "union")
    parts = _split(text, ",")
    if len(parts) > 1:
        return Sequence(tuple(map(_read, parts)), "list")
    if (named := _NAME.fullmatch(text)) and not _RELATION.search(named[2]):
        return replace(_read(named[2]), name=named[1].replace(" ", ""))
    if enclosed := _enclosed(text):
        return enclosed
    if r"\pm" in text:
        signs = [text.replace(r"\pm", sign, 1).replace(r"\mp", other, 1) for sign, other in ("+-", "-+")]
        if not any(r"\pm" in side for side in signs):
            return Sequence(tuple(map(_read, signs)), "list")
    return _interval(text) or _read_scalar(text)


def _split(text: str, separator: str) -> list[str]:
    """Splits where `separator` (or a semicolon, for a comma) stands outside every bracket."""
    if separator not in text and ";" not in text:
        return [text]
    separators = (",", ";") if separator == "," else (separator,)
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and (found := next((s for s in separators if text.startswith(s, position)), None)):
            parts.append(text[start:position])
            position += len(found)
            start = position
        else:
            position += 1
    parts.append(text[start:])
    if len(parts) > MAX_ITEMS or not all(part.strip() for part in parts):
        return [text]
    return parts


def _enclosed(text: str) -> Answer | None:
    """What one pair of brackets around the whole text makes of it: a set, a tuple, an interval, or just its inside."""
    is_set = text.startswith(r"\{") and text.endswith(r"\}")
    opening, closing = (r"\{", r"\}") if is_set else (text[:1], text[-1:])
    if not is_set and not (opening and opening in "([{" and closing in ")]}"):
        return None
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and position >= len(opening) - 1 and position < len(text) - 1:
            return None
    inside = text[len(opening) : -len(closing)].strip()
    if not inside:
        return Sequence((), "set") if is_set else None
    parts = _split(inside, ",")
    if len(parts) == 1:
        return _read(inside) if opening + closing in ("()", "{}", "[]", r"\{\}") else None
    items = tuple(map(_read, parts))
    return Sequence(items, "set") if is_set or opening == "{" else Sequence(items, "ordered", opening + closing)


def _interval(text: str) -> Sequence | None:
    """x > 2, 2 < x, 1 \\le x < 3 as the interval they are."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(parts) not in (3, 5) or any(relation not in (r"\le", r"\ge", "<", ">") for relation in parts[1::2]):
        return None
    if any(relation[-1] in "e>" and relation != r"\le" for relation in parts[1::2]):  # turn > and \ge round
        flip = {">": "<", r"\ge": r"\le"}
        if any(relation not in flip for relation in parts[1::2]):
            return None
        parts = [flip.get(part, part) for part in reversed(parts)]
    variable = re.compile(r"[A-Za-z]")
    if len(parts) == 3:
        left_is_variable = bool(variable.fullmatch(parts[0]))
        if left_is_variable == bool(variable.fullmatch(parts[2])):
            return None
        parts = [r"-\infty", "<", *parts] if left_is_variable else [*parts, "<", r"\infty"]
    low, low_relation, name, high_relation, high = parts
    if not variable.fullmatch(name):
        return None
    brackets = ("(" if low_relation == "<" else "[") + (")" if high_relation == "<" else "]")
    return Sequence((_read(low), _read(high)), "ordered", brackets, name)


def _read_scalar(text: str) -> Scalar:
    value = evaluate(text)
    if value is not None:
        return Scalar(text, value)
    core, unit, factor = read_unit(text)
    if based := _BASE.fullmatch(core):
        core, unit = based[1], f"base {based[2]}"
    value = evaluate(core)
    if value is not None:
        value *= factor
    elif factor != 1:
        core, unit = text, ""
    return Scalar(core, value, unit)


# Comparing


def _same(gold: Answer, answer: Answer, judge: Judge) -> bool:
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return _same_scalar(gold, answer, judge)
    if isinstance(gold, Sequence) and isinstance(answer, Sequence):
        return _same_sequence(gold, answer, judge)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return len(gold.rows) == len(answer.rows) and all(
            _same_in_order(ours, theirs, judge) for ours, theirs in zip(gold.rows, answer.rows, strict=True)
        )
    return False


def _same_sequence(gold: Sequence, answer: Sequence, judge: Judge) -> bool:
    kinds = {gold.kind, answer.kind}
    if "ordered" in kinds:
        if kinds == {"ordered"}:
            if gold.brackets != answer.brackets:
                return False
        elif kinds != {"ordered", "list"} or (gold.brackets + answer.brackets) != "()":
            return False
        return _same_in_order(gold.items, answer.items, judge)
    if "union" in kinds and len(kinds) > 1:
        return False
    if kinds == {"set"}:  # {1, 1, 2} is {1, 2}
        return _covered(gold.items, answer.items, judge) and _covered(answer.items, gold.items, judge, turned=True)
    unmatched = list(answer.items)
    if len(gold.items) != len(unmatched):
        return False
    for item in gold.items:
        match = next((i for i, other in enumerate(unmatched) if _same(item, other, judge)), None)
        if match is None:
            return False
        del unmatched[match]
    return True


def _covered(items: tuple, others: tuple, judge: Judge, turned: bool = False) -> bool:
    """True if each item equals one of the others; `turned` keeps the gold on the left of the judge."""
    return all(
        any(_same(other, item, judge) if turned else _same(item, other, judge) for other in others) for item in items
    )


def _same_in_order(gold: tuple, answer: tuple, judge: Judge) -> bool:
    return len(gold) == len(answer) and all(_same(g, a, judge) for g, a in zip(gold, answer, strict=True))


def _same_scalar(gold: Scalar, answer: Scalar, judge: Judge) -> bool:
    if gold.value is None and (chosen := _CHOICE.fullmatch(_bare(gold.text))):
        theirs = _CHOSEN.match(_bare(answer.text))
        return bool(theirs) and theirs[1].upper() == chosen[1]
    if not _RELATION.search(gold.text) and (sides := _RELATION.split(answer.text))[1:]:
        if set(sides[1::2]) <= {"=", r"\approx"}:
            exact_sides = sides[: 2 * sides[1::2].index(r"\approx") + 1] if r"\approx" in sides else sides
            return _same(gold, replace(_read_scalar(exact_sides[-1].strip()), name=""), judge)
        return False
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.value is not None and answer.value is not None:
        return _same_number(gold, answer)
    if gold.is_prose or answer.is_prose:
        prose = _canonical_prose(gold.text)
        return bool(prose) and prose == _canonical_prose(answer.text) and gold.is_prose and answer.is_prose
    if _FREE_SPACE.sub("", gold.text) == _FREE_SPACE.sub("", answer.text):
        return True
    return judge(_latex(gold), _latex(answer))


def _same_number(gold: Scalar, answer: Scalar) -> bool:
    if gold.value == answer.value:
        is_mixed = (gold.unit == "percent") != (answer.unit == "percent")
        return not (is_mixed and 0 < abs(gold.value) < 1)
    if gold.unit == "percent" and not answer.unit:
        return gold.value / 100 == answer.value
    if answer.unit == "percent" and not gold.unit:
        return answer.value / 100 == gold.value
    return False


def _latex(scalar: Scalar) -> str:
    if scalar.value is None:
        return scalar.text
    sign, value = "-" if scalar.value < 0 else "", abs(scalar.value)
    return (
        f"{sign}{value.numerator}"
        if value.denominator == 1
        else rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"
    )


def _bare(text: str) -> str:
    return text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()


def _canonical_prose(text: str) -> str:
    return _NOT_IN_PROSE.sub("", text.casefold())
