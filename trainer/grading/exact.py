"""Exact value of a plain arithmetic expression, without any evaluator of Python's or SymPy's.

In: a normalised answer such as `-\\frac{35}{9}`, `3*10^5`, `2\\frac{1}{2}`, `.0000672`, `0.1\\overline{6}`.
Out: its value as a `fractions.Fraction`, or None when it is no such expression (a variable, an irrational root, prose).

    sum     = product (('+' | '-') product)*
    product = signed (('*' | '/' | nothing) signed)*            "nothing" only before a bracket: 2(3+4)
    signed  = ('+' | '-')* power
    power   = atom ('^' exponent)?                              -2^2 = -4
    atom    = number | bracketed sum | \\frac a b | \\sqrt[n]{a} with an exact root | integer \\frac a b (mixed number)

A recursive descent over at most MAX_CHARS characters and MAX_DEPTH brackets; no number grows beyond MAX_BITS,
which is checked *before* a power is taken, so that 10^10^10 costs nothing.
"""

import re
from fractions import Fraction

MAX_CHARS = 1000
MAX_DEPTH = 32
MAX_BITS = 20_000

_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4}(?![0-9]))?")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_SPACED_MIXED = re.compile(r"(-?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class NotExact(ValueError):
    """The text is no exact arithmetic expression, or is too large to be anyone's answer."""


def evaluate(text: str) -> Fraction | None:
    """Returns the exact rational value of `text`, or None if it has none that can be read off safely."""
    if len(text) > MAX_CHARS:
        return None
    try:
        if mixed := _SPACED_MIXED.fullmatch(text.strip()):
            sign, whole, numerator, denominator = mixed.groups()
            value = _bounded(Fraction(int(whole)) + Fraction(int(numerator), int(denominator)))
            return -value if sign else value
        return _Reader(text).read()
    except (NotExact, ZeroDivisionError):
        return None


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise NotExact("number too large")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        root = _root(base, exponent.denominator)
        return _power(root, Fraction(exponent.numerator))
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if bits * abs(exponent.numerator) > MAX_BITS:
        raise NotExact("power too large")
    if base == 0 and exponent <= 0:
        raise NotExact("0 to a power that is not positive")
    return base**exponent.numerator


def _root(value: Fraction, degree: int) -> Fraction:
    if value < 0 or not 1 <= degree <= 64:
        raise NotExact("no real root")
    return Fraction(_integer_root(value.numerator, degree), _integer_root(value.denominator, degree))


def _integer_root(value: int, degree: int) -> int:
    """The exact root of `value` by bisection on integers; NotExact if it is irrational."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    if low**degree != value:
        raise NotExact("irrational root")
    return low


class _Reader:
    """One pass over the text; `position` only moves forward."""

    def __init__(self, text: str):
        self.text = text
        self.position = 0
        self.depth = 0

    def read(self) -> Fraction:
        value = self.sum()
        if self.peek():
            raise NotExact(f"unexpected {self.peek()!r}")
        return value

    def peek(self) -> str:
        while self.position < len(self.text) and self.text[self.position] == " ":
            self.position += 1
        return self.text[self.position : self.position + 1]

    def take(self, literal: str) -> bool:
        self.peek()
        if self.text.startswith(literal, self.position):
            self.position += len(literal)
            return True
        return False

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotExact("nested too deeply")
        value = self.product()
        while (operator := self.peek()) in ("+", "-") and operator:
            self.position += 1
            other = self.product()
            value = _bounded(value + other if operator == "+" else value - other)
        self.depth -= 1
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while operator := self.peek():
            if operator == "*":
                self.position += 1
                value = _bounded(value * self.signed())
            elif operator == "/":
                self.position += 1
                value = _bounded(value / self.signed())
            elif operator in "({" and operator:
                value = _bounded(value * self.power())
            else:
                break
        return value

    def signed(self) -> Fraction:
        negative = False
        while (sign := self.peek()) in ("+", "-") and sign:
            negative ^= sign == "-"
            self.position += 1
        value = self.power()
        return -value if negative else value

    def power(self) -> Fraction:
        base = self.atom()
        if not self.take("^"):
            return base
        exponent = self.argument() if self.peek() == "{" else self.signed_digit_run()
        if self.peek() == "^":
            raise NotExact("a tower of powers")
        return _power(base, exponent)

    def signed_digit_run(self) -> Fraction:
        negative = self.take("-")
        value = self.bracketed() if self.peek() == "(" else self.number()
        return -value if negative else value

    def atom(self) -> Fraction:
        head = self.peek()
        if head in _CLOSING and head:
            return self.bracketed()
        if head == "\\":
            return self.command()
        value, is_integer = self.number(), self.text[self.position - 1 : self.position].isdigit()
        if is_integer and value.denominator == 1 and self.text.startswith("\\frac", self.position + self.spaces()):
            fraction = self.command()
            if fraction < 0 or fraction >= 1:
                raise NotExact("no mixed number")  # 2\frac{3}{2} may be meant as a product: the symbolic judge decides
            return value + fraction
        return value

    def spaces(self) -> int:
        start = self.position
        self.peek()
        count, self.position = self.position - start, start
        return count

    def bracketed(self) -> Fraction:
        closing = _CLOSING[self.text[self.position]]
        self.position += 1
        value = self.sum()
        if not self.take(closing):
            raise NotExact(f"expected {closing!r}")
        return value

    def argument(self) -> Fraction:
        """A TeX argument: a group, or one digit."""
        head = self.peek()
        if head == "{":
            return self.bracketed()
        if "0" <= head <= "9":
            self.position += 1
            return Fraction(int(head))
        raise NotExact("expected an argument")

    def command(self) -> Fraction:
        if self.take("\\frac"):
            numerator, denominator = self.argument(), self.argument()
            return _bounded(numerator / denominator)
        if self.take("\\sqrt"):
            degree = self.bracketed() if self.peek() == "[" else Fraction(2)
            if degree.denominator != 1:
                raise NotExact("no integer degree")
            return _root(self.argument(), degree.numerator)
        return self.number()

    def number(self) -> Fraction:
        self.peek()
        if repeating := _REPEATING.match(self.text, self.position):
            self.position = repeating.end()
            whole, fixed, period = repeating.groups()
            scale = 10 ** len(fixed)
            fixed_part = Fraction(int((whole + fixed) or "0"), scale)
            return _bounded(fixed_part + Fraction(int(period), (10 ** len(period) - 1) * scale))
        match = _NUMBER.match(self.text, self.position)
        if not match:
            raise NotExact("expected a number")
        self.position = match.end()
        return _bounded(Fraction(match[0]))
