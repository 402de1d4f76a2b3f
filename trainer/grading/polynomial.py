r"""Polynomials with exact coefficients: the value of an algebraic answer, whatever its order and brackets.

In: variables, sums, products and powers, from exact.py. Out: a Polynomial, or a Fraction where nothing but a number is
left. The imaginary unit is the variable IMAGINARY, reduced by i^2 = -1, so that a + bi is a polynomial like any other.

    p(x, y, ...) = sum_m c_m x^m1 y^m2 ...      two are equal if all their c_m are

\pi is a variable as well: it is transcendental, so an equation between rational polynomials in it holds only if both
sides are the same polynomial.
"""

from __future__ import annotations

from fractions import Fraction

MAX_TERMS = 100
MAX_DEGREE = 64
MAX_BITS = 20_000  # of a coefficient

IMAGINARY = r"\i"

Monomial = tuple[tuple[str, int], ...]  # (variable, exponent >= 1), sorted by variable


class NotExact(ValueError):
    """The text is no exact arithmetic expression, or is too large to be anyone's answer."""


class Polynomial:
    """A sum of monomials that is no plain number; made by `variable` and by arithmetic, never changed afterwards."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, Fraction]):
        self.terms = terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __repr__(self) -> str:
        return f"Polynomial({self.terms})"

    def __add__(self, other: Fraction | Polynomial) -> Fraction | Polynomial:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _simplest(terms)

    __radd__ = __add__

    def __neg__(self) -> Polynomial:
        return Polynomial({monomial: -coefficient for monomial, coefficient in self.terms.items()})

    def __sub__(self, other: Fraction | Polynomial) -> Fraction | Polynomial:
        return self + -other

    def __rsub__(self, other: Fraction) -> Fraction | Polynomial:
        return -self + other

    def __mul__(self, other: Fraction | Polynomial) -> Fraction | Polynomial:
        theirs = _terms(other)
        if len(self.terms) * len(theirs) > MAX_TERMS**2 // 4:
            raise NotExact("too many terms")
        terms: dict[Monomial, Fraction] = {}
        for ours, our_coefficient in self.terms.items():
            for their, their_coefficient in theirs.items():
                monomial, sign = _times(ours, their)
                terms[monomial] = terms.get(monomial, 0) + sign * our_coefficient * their_coefficient
        return _simplest(terms)

    __rmul__ = __mul__

    def __truediv__(self, other: Fraction | Polynomial) -> Fraction | Polynomial:
        return self * _inverse(other)

    def __rtruediv__(self, other: Fraction) -> Fraction | Polynomial:
        return _inverse(self) * other

    def __pow__(self, exponent: int) -> Fraction | Polynomial:
        power, result = self if exponent >= 0 else _inverse(self), Fraction(1)
        for bit in reversed(bin(abs(exponent))[2:]):  # squares: their terms, degree and digits are bounded above
            if bit == "1":
                result = power * result
            power = power * power
        return result

    def degree(self) -> int:
        return max(sum(exponent for _, exponent in monomial) for monomial in self.terms)

    def ratio_to(self, other: Polynomial) -> Fraction | None:
        """The number c with self = c other, or None."""
        if self.terms.keys() != other.terms.keys():
            return None
        ratios = {self.terms[monomial] / other.terms[monomial] for monomial in self.terms}
        return ratios.pop() if len(ratios) == 1 else None


def variable(name: str) -> Polynomial:
    """The polynomial that is this variable alone."""
    return Polynomial({((name, 1),): Fraction(1)})


def complex_parts(value: Fraction | Polynomial) -> tuple[Fraction, Fraction]:
    """(real part, imaginary part) of a number a + bi; NotExact if other variables occur."""
    if isinstance(value, Fraction):
        return value, Fraction(0)
    unit: Monomial = ((IMAGINARY, 1),)
    if not value.terms.keys() <= {(), unit}:
        raise NotExact("no number")
    return value.terms.get((), Fraction(0)), value.terms.get(unit, Fraction(0))


def variables_of(value: Fraction | Polynomial) -> set[str]:
    return {name for monomial in _terms(value) for name, _ in monomial}


def _terms(value: Fraction | Polynomial) -> dict[Monomial, Fraction]:
    return value.terms if isinstance(value, Polynomial) else {(): value} if value else {}


def _times(ours: Monomial, theirs: Monomial) -> tuple[Monomial, int]:
    """The product of two monomials, and the sign that i^2 = -1 takes out of it."""
    exponents = dict(ours)
    for name, exponent in theirs:
        exponents[name] = exponents.get(name, 0) + exponent
    units = exponents.pop(IMAGINARY, 0) % 4
    if units % 2:
        exponents[IMAGINARY] = 1
    if sum(exponents.values()) > MAX_DEGREE:
        raise NotExact("degree too high")
    return tuple(sorted(exponents.items())), -1 if units >= 2 else 1


def _inverse(value: Fraction | Polynomial) -> Fraction | Polynomial:
    """1 / (a + bi) = (a - bi) / (a^2 + b^2)"""
    real, imaginary = complex_parts(value)
    norm = real**2 + imaginary**2
    return _simplest({(): real / norm, ((IMAGINARY, 1),): -imaginary / norm})


def _simplest(terms: dict[Monomial, Fraction]) -> Fraction | Polynomial:
    terms = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
    if len(terms) > MAX_TERMS:
        raise NotExact("too many terms")
    for coefficient in terms.values():
        if coefficient.numerator.bit_length() + coefficient.denominator.bit_length() > MAX_BITS:
            raise NotExact("number too large")
    if terms.keys() <= {()}:
        return terms.get((), Fraction(0))
    return Polynomial(terms)
