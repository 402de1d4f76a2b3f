r"""The structure of an answer: what kind of thing a normalised text states.

In: a text in the spelling of normalize.py. Out: one of

    Scalar      a number, an expression, a relation or prose, with a unit and a name if it has them: x = 5 cm
    Sequence    (a, b) and intervals [a, b): in order, same brackets;  ratios a : b;  {a, b} and bare a, b: in any
                order;  unions
    Matrix      entry by entry

An inequality in one variable is the interval of its solutions, also where two are joined by "and" or "or".
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from trainer.grading.exact import evaluate
from trainer.grading.inequalities import inequality_interval, joined_intervals
from trainer.grading.labels import without_label
from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN
from trainer.grading.number_words import join_numbers, spell_in_digits
from trainer.grading.units import read_unit

MAX_DEPTH = 32
MAX_ITEMS = 64

OPENING, CLOSING = "([{" + TEXT_OPEN, ")]}" + TEXT_CLOSE
_ANY_BRACKET = re.compile(f"[{re.escape(OPENING + CLOSING)}]")
RELATION = re.compile(r"(\\(?:le|ge|ne|approx)(?![A-Za-z])|<|>|=)")

_CONJUNCTION = re.compile(rf"(?:,\s*)?{TEXT_OPEN}\s*,?\s*(or|and)\s*{TEXT_CLOSE}")
_PLAIN_CONJUNCTION = re.compile(r"(?:(?:\s*,)?\s|(?<=[)\]}0-9]))(or|and)(?:\s|(?=[(\[{0-9\\-]))", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_BRACKET = re.compile(r"\\[{}]|[()\[\]]")
_NAME = re.compile(
    r"((?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|tau)(?![A-Za-z]))"
    r"(?:_\{?[A-Za-z0-9]{1,3}\}?)?'?\s?(?:\([A-Za-z]\))?)\s*(?:=|\\(?:in|approx)(?![A-Za-z]))\s*(.+)"
)
_TUPLE_NAME = re.compile(
    r"\(((?:\s*[A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?\s*,)+\s*[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?\s*)\)\s*=\s*(.+)"
)
_SET_BUILDER = re.compile(r"([A-Za-z])(?:\s*\\in\s*\\reals)?\s*[|:]\s*(.+)")
_RATIO = re.compile(rf"\s*(?::|{TEXT_OPEN}\s*to\s*{TEXT_CLOSE}|(?<=[0-9])\s+to\s+(?=[0-9]))\s*")
_RATIO_TERM = re.compile(r"(?!0[0-9])[0-9][0-9.,/]*|[0-9]*\\(?:sqrt|frac)[0-9{}]+|[0-9]*[a-z]")
_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*([0-9]{1,2})\s*\}?")
_MATRIX = re.compile(r"\\begin\{matrix\}(.*)\\end\{matrix\}")
_PROSE = re.compile(rf"[{TEXT_OPEN}]|(?<![\\A-Za-z])[^\W\d_]{{3,}}")
_LETTERS = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)*")
_ONE_QUANTITY = re.compile(rf"{TEXT_OPEN}\s*(-?(?:\\\$\s*)?[0-9][^{TEXT_OPEN}{TEXT_CLOSE}]*){TEXT_CLOSE}")
_WORDS_ONLY = re.compile(rf"[{TEXT_OPEN}{TEXT_CLOSE}A-Za-z .,'-]+")


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
    kind: str  # "ordered", "ratio", "set", "list" or "union"
    brackets: str = ""
    name: str = ""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple, ...]
    name: str = ""


Answer = Scalar | Sequence | Matrix


def nesting(text: str) -> int:
    """How deep brackets go."""
    deepest = depth = 0
    for bracket in _ANY_BRACKET.findall(text):
        depth += 1 if bracket in OPENING else -1
        deepest = max(deepest, abs(depth))
    return deepest


@lru_cache(maxsize=4096)
def read(text: str, *, thousands: bool = True) -> Answer:
    """Returns the structure of a normalised answer; `thousands`: 1,000 outside brackets is one number, and no list."""
    text = join_numbers(without_label(text))
    if _WORDS_ONLY.fullmatch(text) and len(text) > 1:
        text = spell_in_digits(without_marks(text)) or text
    elif whole := _ONE_QUANTITY.fullmatch(text):  # \\text{18 dollars}: as 18 \\text{dollars}
        text = whole[1].strip()
    if (solved := _joined_inequalities(text)) is not None:
        return solved
    text = _CONJUNCTION.sub(" , ", text)
    if TEXT_OPEN not in text:
        text = _PLAIN_CONJUNCTION.sub(" , ", text)
    if thousands:
        text = _without_thousands(text)
    return _read(text)


def _without_thousands(text: str) -> str:
    """1,000 as 1000. In brackets commas separate, unless some are followed by a space and these are not: (1,000, 2)."""
    if not any(bracket in text for bracket in ("(", "[", r"\{")):
        return _THOUSANDS.sub(_digits, text)
    kept, start = [], 0
    for first, end in _bracketed(text):
        inside = text[first:end]
        is_mixed = re.search(r",\s", inside) and not re.search(r",(?![0-9]{3}(?![0-9])|\s)", inside)
        kept += [_THOUSANDS.sub(_digits, text[start:first]), _THOUSANDS.sub(_digits, inside) if is_mixed else inside]
        start = end
    return "".join([*kept, _THOUSANDS.sub(_digits, text[start:])])


def _digits(number: re.Match) -> str:
    return number[0].replace(",", "")


def _bracketed(text: str) -> list[tuple[int, int]]:
    """(start, end) of the outermost groups in brackets; braces that TeX does not show are none."""
    groups, depth, start = [], 0, 0
    for bracket in _BRACKET.finditer(text):
        if bracket[0][-1] in OPENING:
            start = bracket.start() if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                groups.append((start, bracket.end()))
    return groups


def _joined_inequalities(text: str) -> Answer | None:
    """x > 1 and x < 2 as (1, 2);  x < 1 or x > 2 as a union."""
    if not any(sign in text for sign in ("<", ">", r"\le", r"\ge", r"\ne")):
        return None
    pattern = _CONJUNCTION if TEXT_OPEN in text else _PLAIN_CONJUNCTION
    first, *rest = pattern.split(text)
    joins = {word.casefold() for word in rest[::2]}
    if len(joins) != 1:
        return None
    joined = joined_intervals([first, *rest[1::2]], joins.pop())
    return None if joined is None else _read(joined)


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
    if named := _named(text):
        return named
    if enclosed := _enclosed(text):
        return enclosed
    if r"\pm" in text:
        signs = [text.replace(r"\pm", sign, 1).replace(r"\mp", other, 1) for sign, other in ("+-", "-+")]
        if not any(r"\pm" in side for side in signs):
            return Sequence(tuple(map(_read, signs)), "list")
    return _interval(text) or _ratio(text) or _read_scalar(text)


def _named(text: str) -> Answer | None:
    """x = 5, f(x) = x^2, x \\in (1, 2); (x, y) = (2, 3), whose items get the names."""
    if "=" not in text and r"\in" not in text and r"\approx" not in text:
        return None
    if (named := _NAME.fullmatch(text)) and not RELATION.search(named[2]):
        return replace(_read(named[2]), name=named[1].replace(" ", ""))
    if (named := _TUPLE_NAME.fullmatch(text)) and not RELATION.search(named[2]):
        names = [name.strip() for name in named[1].split(",")]
        whole = _read(named[2])
        if isinstance(whole, Sequence) and whole.kind in ("ordered", "list") and len(whole.items) == len(names):
            items = (replace(item, name=name) for item, name in zip(whole.items, names, strict=True))
            return replace(whole, items=tuple(items))
    return None


def _split(text: str, separator: str) -> list[str]:
    """Splits where `separator` (or a semicolon, for a comma) stands outside every bracket."""
    if separator not in text and ";" not in text:
        return [text]
    separators = (",", ";") if separator == "," else (separator,)
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        depth += (character in OPENING) - (character in CLOSING)
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
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0 and position >= len(opening) - 1 and position < len(text) - 1:
            return None
    inside = text[len(opening) : -len(closing)].strip()
    if not inside:
        return Sequence((), "set") if is_set else None
    if is_set and (builder := _SET_BUILDER.fullmatch(inside)):
        solutions = read(builder[2])
        return solutions if isinstance(solutions, Sequence) else None
    parts = _split(inside, ",")
    if len(parts) == 1:
        return _read(inside) if opening + closing in ("()", "{}", "[]", r"\{\}") else None
    items = tuple(map(_read, parts))
    return Sequence(items, "set") if is_set or opening == "{" else Sequence(items, "ordered", opening + closing)


def _interval(text: str) -> Sequence | None:
    """x > 2, 2 < x, 1 \\le x < 3, x \\ne 2 and \\reals as the intervals they are."""
    found = inequality_interval(text)
    if found is None:
        return None
    variable, intervals = found
    items = tuple(
        Sequence((_read(low), _read(high)), "ordered", brackets, variable) for brackets, low, high in intervals
    )
    return items[0] if len(items) == 1 else Sequence(items, "union")


def _ratio(text: str) -> Sequence | None:
    """3 : 4 and 3 to 4; no time of day (10:05)."""
    terms = _RATIO.split(text) if ":" in text or "to" in text else []
    if not 2 <= len(terms) <= 6 or not all(_RATIO_TERM.fullmatch(term) for term in terms):
        return None
    return Sequence(tuple(map(_read_scalar, terms)), "ratio")


def _read_scalar(text: str) -> Scalar:
    value = evaluate(text)
    if value is not None:
        return Scalar(text, value)
    evaluated = text
    if _WORDS_ONLY.fullmatch(text) and (spelled := spell_in_digits(without_marks(text))):
        text = spelled
    core, unit, factor = read_unit(text)
    if based := _BASE.fullmatch(core):
        core, unit = based[1], f"base {based[2]}"
    value = evaluate(core) if core != evaluated else None
    if value is not None:
        value *= factor
    elif factor != 1 or _PROSE.search(core):
        core, unit = text, ""
    return Scalar(core, value, unit)


def without_marks(text: str) -> str:
    """Prose without the marks around it."""
    return text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
