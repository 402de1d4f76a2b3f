"""Random values in random clothes: the same value is right in all of them, another in the same clothes is wrong."""

from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.grading import grade
from trainer.grading.number_words import spell_in_digits

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()  # noqa: SIM905
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def in_words(number: int) -> str:
    """English, written here again so that the reader is not tested against itself."""
    if number < 0:
        return f"minus {in_words(-number)}"
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            join = " and " if 0 < rest < 100 else " " if rest else ""
            return f"{in_words(number // size)} {name}{join}{in_words(rest) if rest else ''}"
    raise ValueError(number)


def grouped(separator: str):
    return lambda number: f"{number:,}".replace(",", separator)


def digits_of(zero: str):
    return lambda number: "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in str(number))


ROUND_ABOUT = [  # what may stand around any answer
    "{}", "${}$", r"\,{}\,", r"{}\ ", r"\;{}\quad ", "~{}~", r"{}\hspace{{1em}}", r"\displaystyle {}", r"{}\\",
    r"\textcolor{{red}}{{{}}}", r"\color{{blue}}{}", r"\mathbf{{{}}}", r"\boxed{{{}}}", r"{}\tag{{7}}", r"\Large {}",
    r"\left.{}\right.", r"\underline{{{}}}", "**{}**", "The answer is {}", r"\text{{The answer is }}{}", r"({})",
    "x = {}",
    r"\text{{Total}} = {}", "Answer: {}", r"\phantom{{9}}{}", r"\fcolorbox{{red}}{{white}}{{{}}}", "{}.",
    r"\ensuremath{{{}}}",
]  # fmt: skip
INTEGERS = {
    "plain": str, "comma": grouped(","), "braced comma": grouped("{,}"), "comma and thin": grouped(r",\!"),
    "thin space": grouped(r"\,"), "tie": grouped("~"), "thick space": grouped(r"\;"),
    "no-break space": grouped("\u202f"),
    "decimal": "{}.0".format, "dollars before": lambda n: f"\\${n}" if n >= 0 else f"-\\${-n}",
    "dollars behind": r"{}\$".format, "euro behind": "{} €".format, "words behind": "{} apples per day".format,
    "unit": r"{}\text{{ cm}}".format, "fullwidth": digits_of("０"), "Arabic-Indic": digits_of("٠"),
    "Devanagari": digits_of("०"), "bold digits": digits_of("𝟎"), "minus sign": lambda n: str(n).replace("-", "−"),
    "words": in_words, "words and a unit": lambda n: f"{in_words(n)} apples", "approximately": r"\approx {}".format,
    "a sum": lambda n: f"{n - 3}+3", "a sum and its value": lambda n: f"{n - 3}+3={n}",
    "a difference": lambda n: f"{n}-0",
    "its double halved": lambda n: rf"\frac{{{2 * n}}}{{2}}",
    "percent": r"{}\%".format, "root": lambda n: rf"\sqrt[3]({n**3})",
}  # fmt: skip
FRACTIONS = {
    "frac": lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}",
    "slash": lambda f: f"{f.numerator}/{f.denominator}",
    "over": lambda f: rf"{{{f.numerator} \over {f.denominator}}}",
    "dfrac, spaced": lambda f: rf"\dfrac {{\,{f.numerator}\,}} {{ {f.denominator} }}",
    "sign outside": lambda f: ("-" if f < 0 else "") + rf"\tfrac{{{abs(f.numerator)}}}{{{f.denominator}}}",
    "not in lowest terms": lambda f: rf"\frac{{{6 * f.numerator}}}{{{6 * f.denominator}}}",
    "division sign": lambda f: f"{f.numerator} ÷ {f.denominator}",
    "mixed": lambda f: (
        ("-" if f < 0 else "")
        + rf"{abs(f.numerator) // f.denominator}\frac{{{abs(f.numerator) % f.denominator}}}{{{f.denominator}}}"
    ),
    "a power": lambda f: rf"{f.numerator} \cdot {f.denominator}^{{-1}}",
    "superscript": lambda f: f"{f.numerator}×{f.denominator}⁻¹",
}

nearby = st.sampled_from(
    [
        lambda v: v + 1,
        lambda v: v - 1,
        lambda v: -v,
        lambda v: 10 * v,
        lambda v: v / 10,
        lambda v: 2 * v,
        lambda v: v + Fraction(1, 10),
    ]
)


def plain(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def boxed(answer: str) -> str:
    return f"Thus \\boxed{{{answer}}}, as was asked."


@settings(deadline=None, max_examples=600)
@given(
    st.integers(-(10**9), 10**9) | st.integers(-30, 3000),
    st.sampled_from(sorted(INTEGERS)),
    nearby,
    st.sampled_from(ROUND_ABOUT),
)
def test_an_integer_is_right_in_any_clothes_and_its_neighbour_in_none(number, clothes, change, around):
    other = change(Fraction(number))
    assume(other != number)
    assume(clothes != "percent" or other not in (Fraction(number, 100), 100 * number))
    assume(clothes != "comma" or around != "({})")  # (1,000) is a pair
    answer = around.format(INTEGERS[clothes](number))
    assert grade(boxed(answer), str(number))
    assert not grade(boxed(answer), plain(other))


@settings(deadline=None, max_examples=400)
@given(
    st.fractions(-1000, 1000, max_denominator=1000),
    st.sampled_from(sorted(FRACTIONS)),
    nearby,
    st.sampled_from(ROUND_ABOUT),
)
def test_a_fraction_is_right_in_any_clothes_and_its_neighbour_in_none(value, clothes, change, around):
    other = change(value)
    assume(other != value)
    answer = around.format(FRACTIONS[clothes](value))
    assert grade(boxed(answer), plain(value))
    assert not grade(boxed(answer), plain(other))


PAIRS = [
    "({}, {})", "({},{})", r"\left({},\;{}\right)", r"(x,y)=({}, {})", r"(x, y) = \left({}, {}\right)", "x={}, y={}",
    r"x = {} \text{{ and }} y = {}", r"\langle {}, {} \rangle", r"\left<{},{}\right>", "( {} ; {} )",
    r"(\,{}\,,\,{}\,)",
    r"\mathbf{{({}, {})}}", r"\text{{The answer is }}({},{})", "（{}，{}）",
]  # fmt: skip
numbers = st.fractions(-50, 50, max_denominator=12)
parts = st.sampled_from([lambda f: FRACTIONS["frac"](f) if f.denominator > 1 else str(f.numerator), plain])


@settings(deadline=None, max_examples=400)
@given(numbers, numbers, nearby, st.sampled_from(PAIRS), parts)
def test_a_pair_is_right_in_any_clothes_and_neither_turned_round_nor_changed(first, second, change, clothes, part):
    gold = f"({plain(first)}, {plain(second)})"
    answer = boxed(clothes.format(part(first), part(second)))
    assert grade(answer, gold)
    assert first == second or not grade(answer, f"({plain(second)}, {plain(first)})")
    assert change(first) == first or not grade(answer, f"({plain(change(first))}, {plain(second)})")
    assert change(second) == second or not grade(answer, f"({plain(first)}, {plain(change(second))})")
    assert not grade(answer, f"[{plain(first)}, {plain(second)}]")
    assert not grade(answer, plain(first))


COMPLEX = [
    "{a} + {b}i",
    "{a}+({b})i",
    "{b}i+{a}",
    "{b} i + {a}",
    r"{a} + {b}\,i",
    r"{a}+{b}\mathrm{{i}}",
    "z = {a}+{b}i",
    "{a}+i({b})",
]
parts_of_i = st.integers(-9, 9).filter(bool)


@settings(deadline=None, max_examples=200)
@given(parts_of_i, parts_of_i, st.sampled_from(COMPLEX))
def test_a_complex_number_is_right_in_any_order_and_its_conjugate_is_not(a, b, clothes):
    gold = f"{a} {'+' if b > 0 else '-'} {abs(b)}i"
    conjugate = f"{a} {'-' if b > 0 else '+'} {abs(b)}i"
    answer = boxed(clothes.format(a=a, b=b))
    assert grade(answer, gold)
    assert not grade(answer, conjugate)
    assert a == b or not grade(answer, f"{b}+({a})i")
    assert not grade(answer, f"{a}+({b})x")


LINES = [
    "y={m}x+({c})",
    "y = {c} + ({m})x",
    "{m}x - y + ({c}) = 0",
    "y-({m})x={c}",
    "({m})x+({c})=y",
    "2y = {m2}x + ({c2})",
    "0={m}x-y+({c})",
]


@settings(deadline=None, max_examples=200)
@given(parts_of_i, parts_of_i, st.sampled_from(LINES))
def test_a_line_is_right_in_any_form_and_a_parallel_or_mirrored_one_is_not(m, c, form):
    answer = boxed(form.format(m=m, c=c, m2=2 * m, c2=2 * c))
    assert grade(answer, f"y={m}x+({c})")
    assert grade(answer, f"{m}x-y+({c})=0")
    for other in (f"y={m}x+({c + 1})", f"y={-m}x+({c})", f"y={m}x+({-c})", f"x={m}y+({c})", f"{m}x-y+({c})=1"):
        if m == -1 and other.startswith("x"):  # y = -x + c is its own mirror image
            continue
        assert not grade(answer, other), other


INTERVALS = {
    "()": ["{a}<x<{b}", "{b}>x>{a}", "{a} < x < {b}", r"x \in ({a},{b})", r"x>{a} \text{{ and }} x<{b}",
    r"\{{x | {a}<x<{b}\}}"],
    "[)": [r"{a}\le x<{b}", r"{b}>x\ge {a}", r"{a} ≤ x < {b}", r"x\geq {a} \text{{ and }} x<{b}",
    r"\left[{a}, {b}\right)"],
    "(]": [r"{a}<x\leqslant {b}", "{b}>=x>{a}", r"x\in\left({a},{b}\right]"],
    "[]": [r"{a}\leq x\leq {b}", "{a}<=x<={b}", r"\{{x\in\mathbb{{R}} : {a}\le x\le {b}\}}"],
}  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.integers(-20, 20), st.integers(1, 20), st.sampled_from(sorted(INTERVALS)), st.data())
def test_an_interval_is_right_as_inequalities_and_no_end_may_be_open_that_is_closed(low, width, brackets, data):
    form = data.draw(st.sampled_from(INTERVALS[brackets]))
    answer = boxed(form.format(a=low, b=low + width))
    for others in INTERVALS:
        assert grade(answer, f"{others[0]}{low},{low + width}{others[1]}") is (others == brackets)
    assert not grade(answer, f"{brackets[0]}{low},{low + width + 1}{brackets[1]}")
    assert not grade(answer, f"{brackets[0]}{low - 1},{low + width}{brackets[1]}")


@given(st.integers(0, 10**12 - 1))
def test_number_words_are_read_as_they_are_said(number):
    assert spell_in_digits(in_words(number).replace(" and ", " ")) == str(number)
    assert grade(boxed(in_words(number)), str(number))
    assert not grade(boxed(in_words(number)), str(number + 1))
