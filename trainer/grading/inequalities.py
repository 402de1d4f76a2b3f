r"""Inequalities in one variable as the intervals of their solutions.

In: normalised text: x > 2, 2<x, 1 \le x < 3, x \ne 2, \reals, \reals \setminus \{2\}. Out: the variable and its
intervals, whose ends are still text: ("x", [("()", "2", r"\infty")]). Several inequalities joined by "and" or "or"
become one text of intervals if their ends are numbers that can be put in order.
"""

import re
from fractions import Fraction

from trainer.grading.exact import approximate

Interval = tuple[str, str, str]  # brackets, lower end, upper end

_RELATION = re.compile(r"(\\(?:le|ge|ne)(?![A-Za-z])|<|>)")
_TURNED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|gamma|phi|lambda|mu)(?![A-Za-z])\s?")
_COORDINATE = re.compile(r"(?<![A-Za-z\\])[xyz](?![A-Za-z])")
_WITHOUT = re.compile(r"\\reals\s*(?:\\setminus|-|/)\s*\\\{([^{}]+)\\\}")
_LOWEST, _HIGHEST = r"-\infty", r"\infty"


def inequality_interval(text: str) -> tuple[str, list[Interval]] | None:
    """Returns (variable, intervals) of an inequality or of a set of reals, or None if the text is neither."""
    text = text.strip()
    if text == r"\reals":
        return "", [("()", _LOWEST, _HIGHEST)]
    if without := _WITHOUT.fullmatch(text):
        return _all_but(without[1].split(","), "")
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(parts) not in (3, 5) or "=" in text or not all(parts):
        return None
    relations = parts[1::2]
    if relations == [r"\ne"]:
        left_is_variable = bool(_VARIABLE.fullmatch(parts[0]))
        variable, point = (parts[0], parts[2]) if left_is_variable else (parts[2], parts[0])
        return _all_but([point], variable) if _VARIABLE.fullmatch(variable) else None
    if all(relation in (">", r"\ge") for relation in relations):
        parts = [_TURNED.get(part, part) for part in reversed(parts)]
    elif not all(relation in ("<", r"\le") for relation in relations):
        return None
    if len(parts) == 3:
        left_is_variable = bool(_VARIABLE.fullmatch(parts[0]))
        if left_is_variable == bool(_VARIABLE.fullmatch(parts[2])):
            return None
        parts = [_LOWEST, "<", *parts] if left_is_variable else [*parts, "<", _HIGHEST]
    low, low_relation, variable, high_relation, high = parts
    if not _VARIABLE.fullmatch(variable) or _COORDINATE.search(low + " " + high):  # y > 2x + 3 is a half-plane
        return None
    brackets = ("(" if low_relation == "<" else "[") + (")" if high_relation == "<" else "]")
    return variable.strip(), [(brackets, low, high)]


def _all_but(points: list[str], variable: str) -> tuple[str, list[Interval]] | None:
    ends = _in_order(points)
    if ends is None:
        return None
    lows, highs = [_LOWEST, *ends], [*ends, _HIGHEST]
    return variable, [("()", low, high) for low, high in zip(lows, highs, strict=True)]


def _in_order(points: list[str]) -> list[str] | None:
    values = [_end_value(point) for point in points]
    if None in values:
        return points if len(points) == 1 else None
    return [point for _, point in sorted(zip(values, points, strict=True))]


def _end_value(text: str) -> float | Fraction | None:
    text = text.replace(" ", "")
    return {_LOWEST: float("-inf"), _HIGHEST: float("inf"), "+\\infty": float("inf")}.get(text) or approximate(text)


def joined_intervals(inequalities: list[str], join: str) -> str | None:
    """Inequalities in the same variable as one text of intervals: their union ("or") or what they share ("and").

    \\emptyset if nothing is shared; None if one is no inequality, the variables differ or the ends have no order.
    """
    found = [inequality_interval(inequality) for inequality in inequalities]
    if len(found) < 2 or None in found or len({variable for variable, _ in found}) != 1:
        return None
    intervals = [interval for _, several in found for interval in several]
    if join == "or":
        return r" \cup ".join(f"{brackets[0]}{low},{high}{brackets[1]}" for brackets, low, high in intervals)
    if any(len(several) > 1 for _, several in found):
        return None
    lows = [(_end_value(low), brackets[0] == "(", low, brackets[0]) for brackets, low, _ in intervals]
    highs = [(_end_value(high), brackets[1] == "]", high, brackets[1]) for brackets, _, high in intervals]
    if any(end[0] is None for end in lows + highs):
        return None
    low, high = max(lows), min(highs)
    return f"{low[3]}{low[2]},{high[2]}{high[3]}" if low[0] < high[0] else r"\emptyset"
