"""English number words at the start of an answer -> digits: "twenty-one apples" -> "21 apples".

In: plain text. Out: the text with its leading number in digits, or None if it starts with none. A number is read in
full or not at all: "two hundred and five", "minus three", "a dozen", "two thirds", "one and a half", "three point one
four"; "one twenty", "five two" and ordinals ("fifth") are no numbers.
"""

import re
from fractions import Fraction

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()  # noqa: SIM905
_UNITS = {word: value for value, word in enumerate(_SMALL)}
_TENS = {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)  # noqa: SIM905
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "twelfth": 12, "hundredth": 100, "halve": 2,
}  # fmt: skip
_WORDS = [*_UNITS, *_TENS, *_SCALES, "hundred", "dozen", "a", "an", "and", "point", "minus", "negative"]
_RUN = re.compile(
    rf"(?:(?:{'|'.join(sorted([*_WORDS, *_PARTS, *(part + 's' for part in _PARTS)], key=len, reverse=True))})"
    r"(?![A-Za-z])(?:\s*-\s*|\s+)?)+",
    re.IGNORECASE,
)
_AND_IN_A_NUMBER = re.compile(rf"\b(hundred|thousand|million)\s+and\s+(?={'|'.join([*_UNITS, *_TENS])})", re.IGNORECASE)
_CONTINUES_A_NUMBER = frozenset([*_UNITS, *_TENS, *_SCALES, "hundred", "dozen", "and"])
MAX_CHARS = 200


def join_numbers(text: str) -> str:
    """ "two hundred and five" without the "and" that is no conjunction."""
    return _AND_IN_A_NUMBER.sub(r"\1 ", text) if " and " in text else text


def spell_in_digits(text: str) -> str | None:
    """Returns `text` with the number it starts with in digits, or None if it starts with none."""
    run = _RUN.match(text[:MAX_CHARS])
    if not run:
        return None
    words = re.split(r"[\s-]+", run[0].strip(" -").casefold())
    rest = text[run.end() :]
    if rest and (rest[0] in "-'" or run[0].endswith("-")):  # one-way
        return None
    for count in range(len(words), 0, -1):
        value = _value(words[:count])
        if value is not None:
            left_over = words[count:]
            if not _CONTINUES_A_NUMBER.isdisjoint(left_over):
                return None
            number = str(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
            return " ".join([number, *left_over, rest]).strip()
    return None


def _value(words: list[str]) -> Fraction | None:
    if words[0] in ("minus", "negative"):
        value = _value(words[1:]) if words[1:] else None
        return None if value is None else -value
    if "point" in words:
        return _decimal(words)
    if "and" in words and (part := _part(words[len(words) - words[::-1].index("and") :])):
        whole = _whole(words[: len(words) - 1 - words[::-1].index("and")])
        return None if whole is None or part >= 1 else whole + part  # one and a half
    part = _part(words)
    return part if part is not None else _whole(words)


def _part(words: list[str]) -> Fraction | None:
    """half; a half; two thirds."""
    if words == ["half"]:
        return Fraction(1, 2)
    if len(words) < 2 or (denominator := _PARTS.get(words[-1].removesuffix("s"))) is None:
        return None
    numerator = Fraction(1) if words[:-1] in (["a"], ["an"]) else _whole(words[:-1])
    return None if numerator is None else numerator / denominator


def _decimal(words: list[str]) -> Fraction | None:
    place = words.index("point")
    whole, digits = _whole(words[:place] or ["zero"]), [_UNITS.get(word, 10) for word in words[place + 1 :]]
    if whole is None or not digits or max(digits) > 9:
        return None
    return whole + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def _whole(words: list[str]) -> Fraction | None:
    """Scales from large to small, each at most once, with a number below a thousand before each."""
    if len(words) >= 2 and words[-1] == "dozen":
        count = Fraction(1) if words[:-1] == ["a"] else _whole(words[:-1])
        return None if count is None else 12 * count
    total, group, largest = 0, [], 10**15
    for word in words:
        if scale := _SCALES.get(word):
            count = 1 if group == ["a"] else _below_a_thousand(group)
            if count is None or scale >= largest:
                return None
            total, group, largest = total + count * scale, [], scale
        else:
            group.append(word)
    if not group:
        return Fraction(total) if total else None
    count = _below_a_thousand(group)
    return None if count is None else Fraction(total + count)


def _below_a_thousand(words: list[str]) -> int | None:
    """Also nineteen hundred, which is not below it."""
    if "hundred" not in words:
        return _below_a_hundred(words)
    place = words.index("hundred")
    head = 1 if words[:place] == ["a"] else _below_a_hundred(words[:place])
    tail = _below_a_hundred(words[place + 1 :]) if words[place + 1 :] else 0
    return None if not head or tail is None else 100 * head + tail


def _below_a_hundred(words: list[str]) -> int | None:
    if len(words) == 1:
        return _UNITS.get(words[0], _TENS.get(words[0]))
    if len(words) == 2 and words[0] in _TENS and 0 < _UNITS.get(words[1], 0) < 10:
        return _TENS[words[0]] + _UNITS[words[1]]
    return None
