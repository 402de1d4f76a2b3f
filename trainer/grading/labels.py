r"""What stands before an answer and names it: "The answer is", "Total cost:", x =, \text{Area} =, f(2) =, \angle ABC =.

In: normalised text. Out: the answer without the label; or whether the left side of an equation is a name. A name is no
expression: 2x, x^2 and x + y are none, so "2x = 5" does not state the value 5. Words that negate or scale what follows
("the answer is not", "half of it is") make no label.
"""

import re
from itertools import pairwise

from trainer.grading.normalize import TEXT_CLOSE, TEXT_OPEN

_TURNED = re.compile(
    r"(?:\b(?:not|no|none|never|neither|nor|cannot|without|except|unless|if|than|false|wrong|incorrect|negative|minus"
    r"|opposite|half|twice|thrice|double|triple|third|quarter|times|inverse|reciprocal)|n't)\b",
    re.IGNORECASE,
)
_MARKED = re.compile(rf"{TEXT_OPEN}([^{TEXT_CLOSE}]*)(?:=|:|\b(?:is|are|equals))\s*{TEXT_CLOSE}\s*:?\s*(?=\S)")
_ANSWER_IS = re.compile(
    rf"([A-Za-z,'{TEXT_OPEN}{TEXT_CLOSE}\s]{{0,60}}?\b(?:answer|result|solution|value|option|choice)\b"
    rf"[A-Za-z'{TEXT_OPEN}{TEXT_CLOSE}\s]{{0,60}}?)\s*(?:\b(?:is|are|was|equals)\b|:|=)\s*{TEXT_CLOSE}?\s*:?\s*(?=\S)",
    re.IGNORECASE,
)
_WORDS_AND_COLON = re.compile(r"([A-Za-z][A-Za-z' ]{2,60})\s*:\s*(?=\S)")

_INDEX = r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?"
_VECTOR = r"(?:\\(?:vec|hat|bar|overline|overrightarrow|widehat)\s*(?:\{\s*[A-Za-z]{1,3}\s*\}|[A-Za-z]))"
_NAME = re.compile(
    rf"""
      (?:[A-Za-z]|\\(?!frac|sqrt|pi(?![A-Za-z])|lim|sum|prod|int|log|ln|sin|cos|tan)[A-Za-z]+|{_VECTOR}) {_INDEX} '*
    | [fghFGHPEVCNTS] {_INDEX} (?: \^\{{?\s*-?1\s*\}}? | '+ )? \s* \( [^=<>]* \)          # f(2), f^{{-1}}(x), P(A | B)
    | [A-Za-z] {_INDEX} '* \s* \( \s* (?: -?[0-9]+ | [A-Z] ) \s* \)                        # a(5), n(A), but not x(x+1)
    | m? \s* \\(?:angle|triangle|arc|measuredangle|square) \s* \{{? [A-Za-z]{{1,4}} \}}?   # m\angle ABC
    | [A-Z]{{2,4}} | \| \s* (?: [A-Z]{{1,3}} | {_VECTOR} ) \s* \| | \[ \s* [A-Z]{{2,8}} \s* \]  # AB, |AB|, [ABC]
    | \\frac\{{[A-Z]{{2,3}}\}}\{{[A-Z]{{2,3}}\}}
    | \\frac\s*\{{\s*d[^{{}}]*\}}\s*\{{\s*d[^{{}}]*\}} .*                                   # dy/dx
    | \\(?:lim|sum|prod|int|max|min|sup|inf|gcd|lcm|det|deg|dim|ker|arg|Re|Im)(?![A-Za-z]) .*
    """,
    re.VERBOSE,
)
_WORDS = re.compile(rf"[{TEXT_OPEN}A-Za-z][{TEXT_OPEN}{TEXT_CLOSE}A-Za-z0-9_{{}}.' -]*")


def without_label(text: str) -> str:
    """Returns `text` without the words in front that say that an answer follows."""
    for pattern in (_MARKED, _ANSWER_IS, _WORDS_AND_COLON):
        if (label := pattern.match(text)) and not _TURNED.search(label[1]):
            rest = text[label.end() :]
            if rest.count(TEXT_CLOSE) > rest.count(TEXT_OPEN):  # the label was the start of a longer text
                rest = TEXT_OPEN + rest
            return rest
    return text


def is_name(side: str) -> bool:
    """True if the left side of an equation names a quantity, and does not compute it."""
    side = side.strip()
    if not side or _NAME.fullmatch(side):
        return True
    return bool(_WORDS.fullmatch(side)) and _is_of_words(side)


def _is_of_words(side: str) -> bool:
    """Words, and not a product of letters such as abc or xyz."""
    if _TURNED.search(side):
        return False
    words = re.findall(r"[A-Za-z]+", side)
    return any(len(word) >= 3 and not _is_run_of_the_alphabet(word) for word in words)


def _is_run_of_the_alphabet(word: str) -> bool:
    letters = [ord(letter) for letter in word.casefold()]
    return len(letters) <= 4 and all(0 <= after - before <= 2 for before, after in pairwise(letters))
