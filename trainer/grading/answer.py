r"""When two answers are equal.

In: two texts in the spelling of normalize.py. Out: equal or not, by their structure (structure.py).

Rules where notation leaves a choice:
- A unit or a name (x = 5) that one side leaves out is no difference; one that both state must agree (5 cm is not 5 m).
- 50% equals 50 (the percent sign as a unit left out) and 0.5 (its value). 0.5% does not equal 0.5: below one, a number
  is a value and no percentage.
- Decimals are exact: 0.33 is not 1/3, and 3.14 is not \pi.
- A base that the answer leaves out is understood: for 52_8, 52 is right, and neither 52_7 nor 42. For 52, 52_8 is not.
- a \pm b is the pair of its values. An inequality in one variable is an interval.
- (1,000) is a pair. 1,000 is a number, unless reading both sides as lists makes them equal.
- A ratio 3 : 4 equals "3 to 4" alone, not 6 : 8 and not 3/4.
- i is the imaginary unit on both sides, or a variable on both, if one of them uses it as an index.
- Prose compares without case, spaces and punctuation, but numbers, brackets and signs in it count; if the gold is one
  letter A to J, so is "(C) because", but not "(C)(D)".
- Where the gold is no equation, an answer "x = 2 + 3 = 5" is its last side, if the first is a name or a label
  (labels.py) and no two sides contradict each other; "2x = 5" and "2 + 2 = 5" state no 5. "\frac{22}{7} \approx 3.14"
  states both.
- Where both are equations (or inequalities), they are equal if one is the other times a number: 2x - y + 3 = 0 for
  y = 2x + 3.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise

from trainer.grading.exact import approximate, evaluate, expand
from trainer.grading.labels import is_name
from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN
from trainer.grading.polynomial import Polynomial, variables_of
from trainer.grading.prose import canonical_prose
from trainer.grading.structure import (
    MAX_DEPTH,
    RELATION,
    Answer,
    Matrix,
    Scalar,
    Sequence,
    nesting,
    read,
    without_marks,
)

Judge = Callable[..., bool]  # (gold, answer, *, imaginary) -> equal

_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,100}(?:\.[0-9]{1,100})?")
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}")
_CHOICE = re.compile(r"\(?([A-J])\)?")
_CHOSEN = re.compile(r"(?:(?:option|choice|answer)\s*)?\(?([A-Ja-j])(?:\)|[.:]|$)")
_OTHER_CHOICE = re.compile(
    r"\s*[A-J](?![A-Za-z'])|.*?(?:\(\s*[A-Ja-j]\s*\)|(?:[,;/&+]|\b(?:and|or|nor|not))\s*\(?[A-J](?![A-Za-z']))"
)
_UNIT_WORDS = re.compile(rf"{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE}|\\\$|(?<![A-Za-z\\])[A-Za-z]{{3,}}(?![A-Za-z])")
_FREE_SPACE = re.compile(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z\s])\s+")
_INDEX_I = re.compile(r"_\s*\{?\s*i(?![A-Za-z])|(?<![A-Za-z\\])i\s*(?:=|\\in(?![A-Za-z]))")
_COORDINATES = ("xyz", "abc")


def equivalent(gold: str, answer: str, judge: Judge) -> bool:
    """Returns True if the normalised texts state the same answer; `judge` compares two LaTeX expressions."""
    if not gold or not answer:
        return False
    if gold == answer:
        return True
    if _PLAIN_NUMBER.fullmatch(gold) and _PLAIN_NUMBER.fullmatch(answer):
        return Decimal(gold) == Decimal(answer)  # nearly always
    if nesting(gold) > MAX_DEPTH or nesting(answer) > MAX_DEPTH:
        return False
    comparison = _Comparison(judge, imaginary=_i_is_imaginary(gold, answer))
    if comparison.same(read(gold), read(answer)):
        return True
    if (_THOUSANDS.search(gold) or _THOUSANDS.search(answer)) and _in_brackets(gold) == _in_brackets(answer):
        return comparison.same(read(gold, thousands=False), read(answer, thousands=False))
    return False


def _in_brackets(text: str) -> bool:
    return text.startswith(("(", "[", r"\{"))


def _i_is_imaginary(gold: str, answer: str) -> bool:
    """One decision for both sides: i is the imaginary unit unless one of them uses it as an index or a name."""
    if "i" not in gold and "i" not in answer:
        return False
    return not (_INDEX_I.search(gold) or _INDEX_I.search(answer))


class _Comparison:
    """The rules of equality for one pair of answers; the gold is always the first argument."""

    def __init__(self, judge: Judge, *, imaginary: bool):
        self.judge = judge
        self.imaginary = imaginary

    def same(self, gold: Answer, answer: Answer) -> bool:
        if isinstance(gold, Scalar) and isinstance(answer, Scalar):
            if gold.value is not None and answer.value is not None:
                return (
                    _names_agree(gold, answer) and _units_agree(gold.unit, answer.unit) and _same_number(gold, answer)
                )
            verdict = self.same_relation(gold, answer) if _is_relation(gold) and _is_relation(answer) else None
            if verdict is not None:
                return verdict
            return _names_agree(gold, answer) and self.same_scalar(gold, answer)
        if not _names_agree(gold, answer):
            return False
        if isinstance(gold, Sequence) and isinstance(answer, Sequence):
            return self.same_sequence(gold, answer)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            return len(gold.rows) == len(answer.rows) and all(map(self.same_in_order, gold.rows, answer.rows))
        return False

    # Several values

    def same_sequence(self, gold: Sequence, answer: Sequence) -> bool:
        kinds = {gold.kind, answer.kind}
        if kinds == {"ratio"}:
            return self.same_in_order(gold.items, answer.items)
        if "ratio" in kinds:
            return False
        if "ordered" in kinds:
            if kinds == {"ordered"}:
                if gold.brackets != answer.brackets:
                    return False
            elif kinds != {"ordered", "list"} or (gold.brackets + answer.brackets) != "()":
                return False
            if not _all_named(gold) or not _all_named(answer):
                return self.same_in_order(_in_usual_order(gold), _in_usual_order(answer))
        elif kinds == {"set"}:  # {1, 1, 2} is {1, 2}
            return self.covers(gold.items, answer.items) and all(
                any(self.same(item, other) for item in gold.items) for other in answer.items
            )
        unmatched = list(answer.items)
        if len(gold.items) != len(unmatched):
            return False
        for item in gold.items:
            match = next((i for i, other in enumerate(unmatched) if self.same(item, other)), None)
            if match is None:
                return False
            del unmatched[match]
        return True

    def covers(self, items: tuple, others: tuple) -> bool:
        return all(any(self.same(item, other) for other in others) for item in items)

    def same_in_order(self, gold: tuple, answer: tuple) -> bool:
        return len(gold) == len(answer) and all(map(self.same, gold, answer))

    # Relations

    def same_relation(self, gold: Scalar, answer: Scalar) -> bool | None:
        """2x - y + 3 = 0 for y = 2x + 3: the difference of the sides is the same polynomial times a number.

        None if one of the relations is none between polynomials.
        """
        ours, theirs = self.difference(gold), self.difference(answer)
        if ours is None or theirs is None:
            return None
        (relation, left), (other, right) = ours, theirs
        factor = left.ratio_to(right)
        if relation != other or factor is None:
            return False
        if left.degree() == 1 and len(variables_of(left)) == 1:  # x = 5 is a value: only x = 5 and 5 = x state it
            return _is_solved(answer) if _is_solved(gold) else factor in (1, -1)
        return factor > 0 or relation in ("=", r"\ne")

    def difference(self, scalar: Scalar) -> tuple[str, Polynomial] | None:
        """(relation, left - right) of a relation with several variables or powers, with > turned round."""
        sides = ["", "=", scalar.text] if scalar.name else RELATION.split(scalar.text)
        sides[0] = sides[0] or scalar.name
        if len(sides) != 3 or scalar.unit:
            return None
        left, right = (expand(side, imaginary=self.imaginary) for side in (sides[0], sides[2]))
        if left is None or right is None:
            return None
        difference = left - right
        if not isinstance(difference, Polynomial):
            return None
        relation = {">": "<", r"\ge": r"\le"}.get(sides[1], sides[1])
        return relation, difference if relation == sides[1] else -difference

    def stated_values(self, text: str) -> list[str]:
        """The sides that an equation states as its value; none if it names nothing and its sides do not agree."""
        sides = [side.strip() for side in RELATION.split(text)]
        relations = sides[1::2]
        if not set(relations) <= {"=", r"\approx"}:
            return []
        sides = sides[::2]
        named = is_name(sides[0])
        computed, rest = (sides[1:], relations[1:]) if named else (sides, relations)
        for pair, relation in zip(pairwise(computed), rest, strict=True):
            if not self.sides_agree(pair, relation, unless_unknown=named):
                return []
        if r"\approx" not in relations:
            return sides[-1:]
        exact = sides[relations.index(r"\approx")]
        return [sides[-1]] if exact == sides[0] and named else [exact, sides[-1]]

    def sides_agree(self, sides: tuple[str, str], relation: str, *, unless_unknown: bool = False) -> bool:
        """True if two sides of an equation have the same value; `unless_unknown`: or if one of them has variables."""
        left, right = map(_computed, sides)
        ours, theirs = (expand(side, imaginary=self.imaginary) for side in (left, right))
        if relation == "=":
            if ours is not None and theirs is not None:
                has_variables = any(not {r"\pi", r"\i", "e"} >= variables_of(side) for side in (ours, theirs))
                return ours == theirs or (unless_unknown and has_variables)
            return unless_unknown or self.judge(left, right, imaginary=self.imaginary)
        ours, theirs = approximate(left), approximate(right)
        if ours is None or theirs is None:
            return unless_unknown
        decimals = len(right.partition(".")[2])
        return abs(ours - theirs) <= 1.01 * 10.0**-decimals

    # One value

    def same_scalar(self, gold: Scalar, answer: Scalar) -> bool:
        if gold.value is None and (chosen := _CHOICE.fullmatch(without_marks(gold.text))):
            return _chosen(without_marks(answer.text)) == chosen[1]
        gold_is_relation, answer_is_relation = (bool(RELATION.search(side.text)) for side in (gold, answer))
        if answer_is_relation and not gold_is_relation:
            return any(self.same(gold, read(value)) for value in self.stated_values(answer.text))
        if gold_is_relation and not answer_is_relation:
            return any(self.same(read(value), answer) for value in self.stated_values(gold.text))
        if not _units_agree(gold.unit, answer.unit):
            return False
        if gold.is_prose or answer.is_prose:
            prose = canonical_prose(gold.text)
            return bool(prose) and prose == canonical_prose(answer.text) and gold.is_prose and answer.is_prose
        if _FREE_SPACE.sub("", gold.text) == _FREE_SPACE.sub("", answer.text):
            return True
        return self.same_expression(gold, answer)

    def same_expression(self, gold: Scalar, answer: Scalar) -> bool:
        ours = gold.value if gold.value is not None else expand(gold.text, imaginary=self.imaginary)
        theirs = answer.value if answer.value is not None else expand(answer.text, imaginary=self.imaginary)
        if ours is not None and theirs is not None:
            if ours == theirs:
                return True
            if not {"e"} & (variables_of(ours) | variables_of(theirs)):
                return False
        return self.judge(_latex(gold), _latex(answer), imaginary=self.imaginary)


def _is_relation(scalar: Scalar) -> bool:
    return bool(scalar.name) or bool(RELATION.search(scalar.text))


def _is_solved(scalar: Scalar) -> bool:
    """True for x = 5 and 5 = x: a variable on one side, a number on the other."""
    if scalar.name:
        return scalar.value is not None
    sides = [side.strip() for side in RELATION.split(scalar.text)[::2]]
    return any(len(side) == 1 and side.isalpha() for side in sides) and any(
        evaluate(side) is not None for side in sides
    )


def _names_agree(gold: Answer, answer: Answer) -> bool:
    return not (gold.name and answer.name and gold.name != answer.name)


def _units_agree(gold: str, answer: str) -> bool:
    if not gold and answer.startswith("base "):  # 42_8 is another number than 42
        return answer == "base 10"
    return not (gold and answer and gold != answer)


def _all_named(sequence: Sequence) -> bool:
    return all(item.name for item in sequence.items)


def _in_usual_order(sequence: Sequence) -> tuple:
    """The items; those of y = 2, x = 3 and the like by their names: as a pair that is (3, 2)."""
    names = [item.name for item in sequence.items]
    if all(names) and len(set(names)) == len(names) and any(set(names) <= set(letters) for letters in _COORDINATES):
        return tuple(sorted(sequence.items, key=lambda item: item.name))
    return sequence.items


def _computed(side: str) -> str:
    """A side of an equation without units in words: 3 ‹dollars› + 2 apples as 3 + 2."""
    return _UNIT_WORDS.sub(" ", side).strip()


def _chosen(text: str) -> str | None:
    """The letter of "(C)", "C. because", "option C"; None if the text names a second one."""
    letter = _CHOSEN.match(text)
    if not letter or _OTHER_CHOICE.match(text, letter.end()):
        return None
    return letter[1].upper()


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
