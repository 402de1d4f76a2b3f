r"""Exact value of a plain arithmetic expression, without any evaluator of Python's or SymPy's.

In: a normalised answer such as `-\frac{35}{9}`, `3*10^5`, `2\frac{1}{2}`, `.0000672`, `0.1\overline{6}`.
Out: `evaluate`: its value as a `fractions.Fraction`, or None when it is no such expression (a variable, an irrational
root, prose); `expand`: the same for expressions with variables and the imaginary unit, as a polynomial;
`approximate`: a float, also for irrational roots, \pi and e.

    sum     = product (('+' | '-') product)*
    product = signed (('*' | '/' | nothing) signed)*            "nothing" only before a bracket, a variable or a command
    signed  = ('+' | '-')* power
    power   = atom ('^' exponent)?                              -2^2 = -4
    atom    = number | bracketed sum | |sum| | variable | \frac a b | \sqrt[n]{a} | integer \frac a b (mixed number)

A recursive descent over at most MAX_CHARS characters and MAX_DEPTH brackets; no number grows beyond MAX_BITS,
which is checked *before* a power is taken, so that 10^10^10 costs nothing.
"""

import math
import re
from fractions import Fraction

from trainer.grading.polynomial import IMAGINARY, MAX_BITS, NotExact, Polynomial, complex_parts, variable

MAX_CHARS = 1000
MAX_DEPTH = 32

_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4}(?![0-9]))?")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_SPACED_MIXED = re.compile(r"(-?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_VARIABLE = re.compile(r"[A-Za-z](?:_(?:\{[A-Za-z0-9]{1,3}\}|[A-Za-z0-9]))?(?!')")
_GREEK = re.compile(r"\\(?:pi|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|omega|sigma|rho|tau)(?![A-Za-z])")
_APPLIED = re.compile(r"[fghFGHP]\s*\(")  # f(x) is no product
_CLOSING = {"(": ")", "[": "]", "{": "}"}

Value = Fraction | Polynomial | float


def evaluate(text: str) -> Fraction | None:
    """Returns the exact rational value of `text`, or None if it has none that can be read off safely."""
    if len(text) > MAX_CHARS:
        return None
    if _PLAIN_NUMBER.fullmatch(text):  # nearly always
        return Fraction(text)
    try:
        return _mixed(text) or _Reader(text).read()
    except (NotExact, ZeroDivisionError):
        return None


def expand(text: str, *, imaginary: bool = False) -> Fraction | Polynomial | None:
    r"""Returns `text` as a polynomial in its variables, a Fraction if it has none, None if it is no polynomial.

    imaginary: whether i is the imaginary unit (then \sqrt{-4} is 2i and |3 + 4i| is 5) or a variable.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        return _mixed(text) or _PolynomialReader(text, imaginary).read()
    except (NotExact, ZeroDivisionError):
        return None


def approximate(text: str) -> float | None:
    """Returns the value of a real number as a float, for comparison with a rounded decimal; None if it is none."""
    if len(text) > MAX_CHARS:
        return None
    try:
        return float(_FloatReader(text).read())
    except (NotExact, ZeroDivisionError, OverflowError):
        return None


def _mixed(text: str) -> Fraction | None:
    """2 1/2, which the grammar has no place for."""
    if not (mixed := _SPACED_MIXED.fullmatch(text.strip())):
        return None
    sign, whole, numerator, denominator = mixed.groups()
    value = _bounded(Fraction(int(whole)) + Fraction(int(numerator), int(denominator)))
    return -value if sign else value


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise NotExact("number too large")
    return value


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

    def read(self) -> Value:
        value = self.sum()
        if self.peek():
            raise NotExact(f"unexpected {self.peek()!r}")
        return value

    def peek(self) -> str:
        text, position = self.text, self.position
        while (head := text[position : position + 1]) == " ":
            position += 1
        self.position = position
        return head

    def take(self, literal: str) -> bool:
        if self.peek() == literal[0] and self.text.startswith(literal, self.position):
            self.position += len(literal)
            return True
        return False

    def sum(self) -> Value:
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

    def product(self) -> Value:
        value = self.signed()
        divided = False
        while operator := self.peek():
            if operator == "*":
                self.position += 1
                value = _bounded(value * self.signed())
            elif operator == "/":
                self.position += 1
                divided = self.peek() not in _CLOSING
                value = _bounded(value / self.signed())
            elif operator in "({":
                value = _bounded(value * self.power())
            elif self.starts_a_factor(operator):
                if divided:
                    raise NotExact("1/2x may be meant as 1/(2x)")
                value = _bounded(value * self.power())
            else:
                break
        return value

    def starts_a_factor(self, head: str) -> bool:
        """True if a factor without a sign between may begin here, beside a bracket."""
        return head == "\\" and self.text.startswith(("\\frac", "\\sqrt"), self.position)

    def signed(self) -> Value:
        negative = False
        while (sign := self.peek()) in ("+", "-") and sign:
            negative ^= sign == "-"
            self.position += 1
        value = self.power()
        return -value if negative else value

    def power(self) -> Value:
        base = self.atom()
        if not self.take("^"):
            return base
        exponent = self.argument() if self.peek() == "{" else self.signed_digit_run()
        if self.peek() == "^":
            raise NotExact("a tower of powers")
        return self.raised(base, exponent)

    def raised(self, base: Value, exponent: Value) -> Value:
        if not isinstance(exponent, Fraction):
            raise NotExact("an exponent that is no number")
        if exponent.denominator != 1:
            return self.raised(self.root(base, exponent.denominator), Fraction(exponent.numerator))
        if isinstance(base, Fraction):
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            if bits * abs(exponent.numerator) > MAX_BITS:
                raise NotExact("power too large")
        if base == 0 and exponent <= 0:
            raise NotExact("0 to a power that is not positive")
        return base**exponent.numerator

    def root(self, value: Value, degree: int) -> Value:
        if not isinstance(value, Fraction) or value < 0 or not 1 <= degree <= 64:
            raise NotExact("no rational root")
        return Fraction(_integer_root(value.numerator, degree), _integer_root(value.denominator, degree))

    def absolute(self, value: Value) -> Value:
        """|a + bi| = sqrt(a^2 + b^2)"""
        real, imaginary = complex_parts(value)
        return self.root(real**2 + imaginary**2, 2)

    def signed_digit_run(self) -> Value:
        negative = self.take("-")
        value = self.bracketed() if self.peek() == "(" else self.number()
        return -value if negative else value

    def atom(self) -> Value:
        head = self.peek()
        if head in _CLOSING and head:
            return self.bracketed()
        if head == "|":
            return self.between_bars()
        if head == "\\":
            return self.command()
        value, is_integer = self.number(), self.text[self.position - 1 : self.position].isdigit()
        if is_integer and value.denominator == 1 and self.text.startswith("\\frac", self.position + self.spaces()):
            fraction = self.command()
            if not isinstance(fraction, Fraction) or not 0 <= fraction < 1:
                raise NotExact("no mixed number")  # 2\frac{3}{2} may be meant as a product: the symbolic judge decides
            return value + fraction
        return value

    def spaces(self) -> int:
        start = self.position
        self.peek()
        count, self.position = self.position - start, start
        return count

    def bracketed(self) -> Value:
        closing = _CLOSING[self.text[self.position]]
        self.position += 1
        value = self.sum()
        if not self.take(closing):
            raise NotExact(f"expected {closing!r}")
        return value

    def between_bars(self) -> Value:
        self.position += 1
        value = self.sum()
        if not self.take("|"):
            raise NotExact("expected '|'")
        return self.absolute(value)

    def argument(self) -> Value:
        """A TeX argument: a group, or one digit."""
        head = self.peek()
        if head == "{":
            return self.bracketed()
        if "0" <= head <= "9":
            self.position += 1
            return Fraction(int(head))
        raise NotExact("expected an argument")

    def command(self) -> Value:
        if self.take("\\frac"):
            numerator, denominator = self.argument(), self.argument()
            return _bounded(numerator / denominator)
        if self.take("\\sqrt"):
            degree = self.bracketed() if self.peek() == "[" else Fraction(2)
            if not isinstance(degree, Fraction) or degree.denominator != 1:
                raise NotExact("no integer degree")
            radicand = self.argument()
            if degree.numerator % 2 and isinstance(radicand, Fraction) and radicand < 0:  # the real root: -2 of -8
                return -self.root(-radicand, degree.numerator)
            return self.root(radicand, degree.numerator)
        return self.number()

    def number(self) -> Value:
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


class _PolynomialReader(_Reader):
    """The same grammar with variables: single letters, with or without an index, and Greek ones."""

    def __init__(self, text: str, imaginary: bool):
        super().__init__(text)
        self.imaginary = imaginary

    def starts_a_factor(self, head: str) -> bool:
        return head.isalpha() or head == "\\"

    def atom(self) -> Value:
        return self.symbol() or super().atom()

    def argument(self) -> Value:
        return self.symbol() or super().argument()

    def symbol(self) -> Polynomial | None:
        """The variable, or the imaginary unit, that stands here."""
        self.peek()
        found = _VARIABLE.match(self.text, self.position) or _GREEK.match(self.text, self.position)
        if not found or _APPLIED.match(self.text, self.position):
            return None
        self.position = found.end()
        name = found[0].replace("{", "").replace("}", "")
        return variable(IMAGINARY if self.imaginary and name == "i" else name)

    def root(self, value: Value, degree: int) -> Value:
        if self.imaginary and degree == 2 and isinstance(value, Fraction) and value < 0:
            return super().root(-value, 2) * variable(IMAGINARY)
        return super().root(value, degree)


class _FloatReader(_Reader):
    """The same grammar over floats where a root is irrational; no variables."""

    def starts_a_factor(self, head: str) -> bool:
        return head in ("\\", "e")

    def atom(self) -> Value:
        if self.take("\\pi"):
            return math.pi
        if self.take("e"):
            return math.e
        return super().atom()

    def raised(self, base: Value, exponent: Value) -> Value:
        try:
            return super().raised(base, exponent)
        except NotExact:
            if not isinstance(exponent, float) and abs(exponent) > MAX_CHARS:
                raise
            power = float(base) ** float(exponent)
            if isinstance(power, complex):
                raise NotExact("no real power") from None
            return power

    def root(self, value: Value, degree: int) -> Value:
        try:
            return super().root(value, degree)
        except NotExact:
            if value < 0 or not 1 <= degree <= 64:
                raise
            return float(value) ** (1 / degree)

    def absolute(self, value: Value) -> Value:
        return abs(value)
