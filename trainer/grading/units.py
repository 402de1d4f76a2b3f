"""The unit of a quantity: read off the end (or, for money, the front) of a normalised answer.

In: `12 ‹cm›^2`, `\\$32348`, `50\\%`, `5 apples per day`, `2.5 million`. Out: what is left, the unit in one spelling,
and the factor that words such as "million" multiply by. Text without a number in front of the words has no unit.
"""

import re
from fractions import Fraction

from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN

MAX_WORDS = 6

_CURRENCIES = [
    ("dollar", r"(?:US\s?)?\\\$|USD"), ("euro", "€|EUR"), ("lb", "£|GBP"), ("yen", "¥|JPY"), ("rupee", "₹|INR"),
]  # fmt: skip
_SIGN_OF_MONEY = "|".join(sign for _, sign in _CURRENCIES)
_MONEY = re.compile(rf"(-?)\s*({_SIGN_OF_MONEY})\s*(?=[0-9.\-\\])(.+)")
_MONEY_AFTER = re.compile(rf"(.*[0-9.)}}])\s*{TEXT_OPEN}?\s*({_SIGN_OF_MONEY})\s*{TEXT_CLOSE}?")
_PERCENT = re.compile(rf"(.*[0-9)}}])\s*{TEXT_OPEN}?\s*\\?(?:%|percent\b|per cent\b)\s*{TEXT_CLOSE}?")
_WORD = re.compile(r"[A-Za-z][A-Za-z.\-]*(?:/[A-Za-z]+)?(?:\^\{?-?[123]\}?)?|/|\^\{?-?[123]\}?")
_ATTACHED = re.compile(r"(.*[0-9.}])([A-Za-z]{2,}(?:\^\{?[23]\}?)?)")
_SYMBOLS = frozenset("m s g h l km cm mm kg mg ml ft in yd mi hr min sec mph kph".split())  # noqa: SIM905
_FACTORS = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
# Words that make a sentence of what follows the number, that negate it or scale it: what is no quantity with its unit.
_SENTENCE_WORDS = frozenset(
    """or and not than less more fewer to times minus plus over half quarter third if is are was but then by divided
    through mod modulo no wrong incorrect because since so maybe squared cubed root never without except neither nor
    none unless cannot false below under beneath underground negative opposite inverse reciprocal loss deficit debt
    least most approximately about roughly factorial fold double twice triple thrice halves thirds fourths fifths sixths
    sevenths eighths ninths tenths hundredths thousandths millionths tenth hundredth thousandth grand basis
    permille""".split()  # noqa: SIM905
)
_SPELLINGS = {
    "deg": "degree", "usd": "dollar", "buck": "dollar", "eur": "euro", "gbp": "lb", "pct": "percent",
    "centimeter": "cm",
    "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilometer": "km", "kilometre": "km", "meter": "m",
    "metre": "m", "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "hour": "h",
    "hr": "h", "minute": "min", "second": "s", "sec": "s", "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l",
    "pound": "lb", "lbs": "lb", "ounce": "oz", "sq": "square",
}  # fmt: skip


def read_unit(text: str) -> tuple[str, str, Fraction]:
    """Returns (the answer without its unit, the unit or "", the factor of number words)."""
    if money := _MONEY.fullmatch(text):
        core, _, factor = read_unit(money[3])  # "$5 million", "$18 per day"
        return money[1] + core, _currency(money[2]), factor
    if money := _MONEY_AFTER.fullmatch(text):
        return money[1].strip(), _currency(money[2]), Fraction(1)
    if percent := _PERCENT.fullmatch(text):
        return percent[1].strip(), "percent", Fraction(1)
    core, words = _split_words(text)
    words = words[1:] if len(words) > 1 and words[0].casefold() in ("us", "u.s.") else words  # 5 US dollars
    if not words or not re.search(r"[0-9]|\\pi", core):
        return text, "", Fraction(1)
    factor = Fraction(1)
    while words and words[0].casefold() in _FACTORS:
        factor *= _FACTORS[words.pop(0).casefold()]
    return core, _spelling(words), factor


def _currency(sign: str) -> str:
    return next(name for name, signs in _CURRENCIES if re.fullmatch(signs, sign))


def _split_words(text: str) -> tuple[str, list[str]]:
    """Takes words off the end of the text until something else comes."""
    tokens = text.replace(TEXT_OPEN, f" {TEXT_OPEN} ").replace(TEXT_CLOSE, f" {TEXT_CLOSE} ").split()
    words: list[str] = []
    in_prose = False
    while tokens:
        token = tokens[-1]
        if token in (TEXT_OPEN, TEXT_CLOSE):
            in_prose = token == TEXT_CLOSE
        elif not _WORD.fullmatch(token) or token.casefold().strip(".") in _SENTENCE_WORDS:
            break
        elif not in_prose and len(token) == 1 and token not in _SYMBOLS and token != "/" and not _is_scale(tokens):
            break  # 5 x is a product
        else:
            words.append(token)
        tokens.pop()
    if not words and tokens and (attached := _ATTACHED.fullmatch(tokens[-1])) and attached[2].split("^")[0] in _SYMBOLS:
        tokens[-1], words = attached[1], [attached[2]]  # 12cm
    if len(words) > MAX_WORDS or TEXT_OPEN in tokens or TEXT_CLOSE in tokens:
        return text, []
    return " ".join(tokens), words[::-1]


def _is_scale(tokens: list[str]) -> bool:
    """True for the C of 20 ‹degree› C."""
    return tokens[-1] in ("C", "F", "K") and tokens[-3:-1] == ["degree", TEXT_CLOSE]


def _spelling(words: list[str]) -> str:
    spelled: list[str] = []
    for word in words:
        word = word.casefold().replace("{", "").replace("}", "").replace(".", "")
        stem, caret, power = word.partition("^")
        stem = _SPELLINGS.get(
            stem, stem[:-1] if len(stem) > 3 and stem.endswith("s") and not stem.endswith("ss") else stem
        )
        spelled.append(_SPELLINGS.get(stem, stem) + caret + power)
    for name, power in (("square", "^2"), ("cubic", "^3")):
        if name in spelled[:-1]:
            spelled.remove(name)
            spelled[0] += power
    return re.sub(r" ?\^", "^", " ".join(spelled)).replace(" per ", "/").replace(" / ", "/").removeprefix("unit")
