"""Prose answers: which differences count.

In: normalised text with prose in it. Out: a key; two prose answers are equal if their keys are. Case, spaces between
words, quotes, commas and full stops between words do not count. Numbers count with their value (1.50 is 1.5, 1.5 is not
15, "1 2" is not 12), and so do brackets, signs, percent, and factorial marks and primes behind a number or a letter.
"""

import re
from fractions import Fraction

from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN

_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:,[0-9]{3})*(?![0-9])(?:\.[0-9]+)?|\.[0-9]+|[0-9]+)|(?P<word>[^\W\d_]+)"
    r"|(?P<mark>(?<=[0-9)])!|(?<![a-z][a-z])(?<=[a-z])'(?![a-z])|(?<=[0-9]),(?=[0-9])|[-+*/=<>^:\\()\[\]{}|%_])"
)


def canonical_prose(text: str) -> str:
    """Returns the key of `text`; empty if nothing in it counts."""
    text = text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip().casefold()
    key: list[str] = []
    before = ""
    for token in _TOKEN.finditer(text):
        kind, written = token.lastgroup, token[0]
        if kind == "number":
            written = ("#" if before == "number" else "") + str(Fraction(written.replace(",", "")))
        key.append(written)
        before = kind
    return "".join(key)
