"""One spelling for answers that differ in dress only: LaTeX layout, fonts, thousands separators, Unicode, plain text.

In: the text of an answer (a ground truth or what extract.py found). Out: a string over plain ASCII LaTeX in which prose
from \\text{...} and the like stands between the marks ‹ and ›, so that a unit can be told from a product of variables.
"""

import re
from functools import lru_cache

from trainer.grading.layout import strip_layout
from trainer.grading.unicode_spelling import spell_in_ascii

TEXT_OPEN, TEXT_CLOSE = "‹", "›"

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textsf|textup|textnormal|textsc|textmd|mbox|hbox|mathrm|operatorname\*?)"
    r"\s*\{([^{}]*)\}"
)
_FONTS = (
    "mathbf|mathit|mathsf|mathtt|mathnormal|mathcal|mathscr|mathfrak|boldsymbol|bm|pmb|emph"
    "|boxed|fbox|framebox|underline"
)
_FONT_COMMAND = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_LEFT_OPEN = re.compile(rf"\\(?:{_FONTS}|text|textbf|textit|textrm|mbox|mathrm)\s*(?=\{{)")  # with groups inside
_MATHS_WORD = re.compile(r"(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|lg|exp|gcd|lcm|max|min|det)\b")
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "flatfrac"), r"\frac"),
    **dict.fromkeys(("cdot", "times", "ast", "bullet"), "*"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le "),
    **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge "),
    **dict.fromkeys(("approxeq", "simeq", "thickapprox"), r"\approx "),
    **dict.fromkeys(("varnothing", "O"), r"\emptyset "),
    **dict.fromkeys(("langle", "lparen"), "("),
    **dict.fromkeys(("rangle", "rparen"), ")"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("land", "wedge"), f"{TEXT_OPEN}and{TEXT_CLOSE}"),
    **dict.fromkeys(("lor", "vee"), f"{TEXT_OPEN}or{TEXT_CLOSE}"),
    **dict.fromkeys(("textdollar", "dollar"), r"\$"),
    **dict.fromkeys(("pounds", "textsterling"), "£"),
    **dict.fromkeys(("euro", "texteuro"), "€"),
    **dict.fromkeys(("R", "reals", "Reals"), r"\reals "),
    "backslash": r"\setminus ", "colon": ":", "div": "/", "gt": ">", "lbrace": r"\{", "lbrack": "[", "lt": "<",
    "neq": r"\ne ", "prime": "'", "rbrace": r"\}", "rbrack": "]", "slash": "/",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LATEX_SYNONYMS = [
    (re.compile(r"\\not\s*="), r"\\ne "),
    (re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))"), r"\\reals "),
    (re.compile(r"\\mathbb\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\root\s*\{?([0-9A-Za-z]+)\}?\s*\\of(?![A-Za-z])"), r"\\sqrt[\1]"),
    (re.compile(r"\\frac\s*([0-9A-Za-z]|\\pi)(?![A-Za-z])"), r"\\frac{\1}"),  # TeX: one token is an argument
    (re.compile(r"(\\frac\s*\{(?:[^{}]|\{[^{}]*\})*\})\s*([0-9A-Za-z]|\\pi)"), r"\1{\2}"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), f"{TEXT_OPEN}degree{TEXT_CLOSE}"),
    (re.compile(r"\\begin\s*\{(?:[pbvBV]|small)?matrix\}|\\begin\s*\{array\}\s*(?:\{[^{}]*\})?"), r"\\begin{matrix}"),
    (re.compile(r"\\end\s*\{(?:(?:[pbvBV]|small)?matrix|array)\}"), r"\\end{matrix}"),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9A-Za-z])"), r"\\sqrt\1{\2}"),
]
_GROUPED = r"((?:[^{}]|\{[^{}]*\})*)"
_INFIX = [  # {1 \over 2}
    (re.compile(opening + _GROUPED + rf"\\{infix}(?![A-Za-z])" + _GROUPED + closing), rf"\\{prefix}{{\1}}{{\2}}")
    for infix, prefix in (("over", "frac"), ("choose", "binom"))
    for opening, closing in ((r"\{", r"\}"), (r"\A", r"\Z"))
]
_PLAIN_SYNONYMS = [
    (re.compile(r"&lt;"), "<"),
    (re.compile(r"&gt;"), ">"),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"(?<=\s)!=|=/="), r"\\ne "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![A-Za-z\\])sqrt(?=\s*[({0-9])"), r"\\sqrt"),
    (re.compile(r"(?<![A-Za-z\\])cbrt(?=\s*[({0-9])"), r"\\sqrt[3]"),
    (re.compile(r"(?<![A-Za-z\\])(?:pi)(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|log|ln)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\A(?:negative|minus)\s+(?=[0-9$\\])", re.IGNORECASE), "-"),
    (re.compile(r"_([0-9])\s"), r"_{\1}"),
    (re.compile(r"\s+"), " "),
]
_ROOT_AND_BRACKET = re.compile(r"\\sqrt\s*(?:\[[^\[\]]*\])?\s*\(")
# 1 000 and 1'000. A space parts numbers as well, so it counts only in the one number of an answer: "10 20" and
# "12 345 6" stay as they are, and so does what has digits elsewhere, but for powers of a unit (cm^2).
_SPACED_NUMBER = re.compile(
    r"(?P<before>(?:[^0-9\\]|\\[A-Za-z]+ ?\{|\\[$,;:! ])*)(?<![.,/'^_])(?P<number>[1-9][0-9]{0,2}(?: [0-9]{3})+)"
    r"(?P<after>(?:[.][0-9]+)?(?! ?[0-9^!_'])(?:[^0-9]|(?<=\^)[0-9]|(?<=\^\{)[0-9])*)"
)
_APOSTROPHES = re.compile(r"(?<![0-9A-Za-z.'])(?<![0-9],)[1-9][0-9]{0,2}(?:'[0-9]{3})+(?![0-9'])")
_PLAIN = re.compile(r"[-+]?[0-9][0-9,./]*[0-9]|[0-9]")
_WRAPPERS = [
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("**", "**"),
    ("__", "__"),
    ('"', '"'),
    ("`", "`"),
]


@lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    """Returns `text` in the one spelling that the rest of the grader reads."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return text
    text = text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "")
    if not text.isascii():
        text = spell_in_ascii(text)
    if "\\" in text or "~" in text or "{,}" in text:
        text = strip_layout(text)
    text = _join_thousands(text)
    text = _unwrap(text)
    text = _drop_maths_delimiters(text)
    for pattern, replacement in _PLAIN_SYNONYMS:
        text = pattern.sub(replacement, text)
    if "\\" in text:
        text = _open_groups(text)
        text = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), text)
        if r"\over" in text or r"\choose" in text:
            for pattern, replacement in _INFIX:
                text = pattern.sub(replacement, text)
        for pattern, replacement in _LATEX_SYNONYMS:
            text = pattern.sub(replacement, text)
        text = _root_of_brackets(text)
    return _without_stop(text).lstrip("=: ").strip()


def _join_thousands(text: str) -> str:
    """Spaces and apostrophes between groups of three digits taken out; see above."""
    if found := _SPACED_NUMBER.fullmatch(text):
        text = found["before"] + found["number"].replace(" ", "") + found["after"]
    return _APOSTROPHES.sub(lambda number: number[0].replace("'", ""), text)


def _without_stop(text: str) -> str:
    """Without the punctuation that ends a sentence; dots that stand for what is left out stay."""
    text = text.strip()
    return text if text.endswith("..") else text.rstrip(".,;: ")


def _root_of_brackets(text: str) -> str:
    """\\sqrt(2) means \\sqrt{2}, whatever stands between the brackets."""
    while found := _ROOT_AND_BRACKET.search(text):
        depth, end = 0, found.end() - 1
        while end < len(text):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                break
            end += 1
        else:
            return text
        text = f"{text[: found.end() - 1]}{{{text[found.end() : end]}}}{text[end + 1 :]}"
    return text


def _unwrap(text: str) -> str:
    """Strips pairs that enclose the whole text, and a full stop outside them."""
    for _ in range(8):
        text = _without_stop(text)
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner
                break
        else:
            return text
    return text


def _drop_maths_delimiters(text: str) -> str:
    """`the $x$-axis` loses its dollars; a lone dollar, or an escaped one, is money and becomes `\\$`."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    bare = [match.start() for match in re.finditer(r"(?<!\\)\$", text)]
    if len(bare) % 2 == 0:
        return re.sub(r"(?<!\\)\$", " ", text)
    return re.sub(r"(?<!\\)\$", r"\\$", text)


def _open_groups(text: str) -> str:
    """Marks prose and drops fonts, innermost first; a function's name set upright is that function."""
    for _ in range(4):
        before = text
        text = _FONT_COMMAND.sub(r" \1 ", text)
        text = _TEXT_COMMAND.sub(_mark_prose, text)
        if text == before:
            break
    return _LEFT_OPEN.sub("", text)


def _mark_prose(match: re.Match) -> str:
    prose = match[1].replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
    if not prose:
        return " "
    if _MATHS_WORD.fullmatch(prose):
        return f"\\{prose} "
    if not re.search(r"[A-Za-z%]", prose) or (len(prose) == 1 and prose in "ie"):
        return f" {prose} "
    return f"{TEXT_OPEN}{prose}{TEXT_CLOSE}"
