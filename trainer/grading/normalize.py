"""One spelling for answers that differ in dress only: LaTeX layout, fonts, thousands separators, Unicode, plain text.

In: the text of an answer (a ground truth or what extract.py found). Out: a string over plain ASCII LaTeX in which prose
from \\text{...} and the like stands between the marks ‹ and ›, so that a unit can be told from a product of variables.
"""

import re
from functools import lru_cache

TEXT_OPEN, TEXT_CLOSE = "‹", "›"

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "⁄": "/",
        "∕": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ", "≤": r"\le ",
        "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "²": "^{2}", "³": "^{3}",
        "⁴": "^{4}", "％": "%", "，": ",", "．": ".", "（": "(", "）": ")", "′": "'", "’": "'", "“": '"', "”": '"',
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "\t": " ", "\n": " ", "\r": " ",
        TEXT_OPEN: "", TEXT_CLOSE: "",
    }
)  # fmt: skip

_UNICODE_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z])|(?=\{))")
_THOUSANDS_GAP = re.compile(r"(?<=[0-9])(?:,\\!\s*|\{,\}|\\,|,\\,|\\ )(?=[0-9]{3}(?![0-9]))")
_LAYOUT = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|bigg?[lrm]?|Bigg?[lrm]?|quad|qquad|hspace"
    r"|phantom|rm|bf|it|boldmath)(?![A-Za-z])|(?<!\\)\\[!,;:> ]|~"
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textsf|mbox|hbox|mathrm|operatorname)\s*\{([^{}]*)\}"
)
_FONT_COMMAND = re.compile(r"\\(?:mathbf|mathit|mathsf|mathbb|mathcal|boldsymbol|bm|emph|boxed|fbox)\s*\{([^{}]*)\}")
_MATHS_WORD = re.compile(r"(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|lg|exp|gcd|lcm|max|min|det)\b")
_LATEX_SYNONYMS = [
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9A-Za-z]|\\pi)(?![A-Za-z])"), r"\\frac{\1}"),  # TeX: one token is an argument
    (re.compile(r"(\\frac\s*\{(?:[^{}]|\{[^{}]*\})*\})\s*([0-9A-Za-z]|\\pi)"), r"\1{\2}"),
    (re.compile(r"\\(?:cdot|times|ast|bullet)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:langle)(?![A-Za-z])"), "("),
    (re.compile(r"\\(?:rangle)(?![A-Za-z])"), ")"),
    (re.compile(r"\\lvert(?![A-Za-z])|\\rvert(?![A-Za-z])|\\vert(?![A-Za-z])"), "|"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), f"{TEXT_OPEN}degree{TEXT_CLOSE}"),
    (re.compile(r"\\begin\s*\{[pbvBV]?matrix\}|\\begin\s*\{array\}\s*(?:\{[^{}]*\})?"), r"\\begin{matrix}"),
    (re.compile(r"\\end\s*\{(?:[pbvBV]?matrix|array)\}"), r"\\end{matrix}"),
    (re.compile(r"\\sqrt\s+([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt([0-9A-Za-z])"), r"\\sqrt{\1}"),
]
_PLAIN_SYNONYMS = [
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![A-Za-z\\])(?:sqrt)\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(?:pi)(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|log|ln)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"_([0-9])\s"), r"_{\1}"),
    (re.compile(r"\s+"), " "),
]
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
    text = _unwrap(text.translate(_UNICODE))
    text = _UNICODE_ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}" if root[1] or root[2] else r"\sqrt", text)
    text = _THOUSANDS_GAP.sub(lambda gap: "," if "," in gap[0] else "", text)
    text = _LAYOUT.sub(" ", text)
    text = _drop_maths_delimiters(text)
    for pattern, replacement in _PLAIN_SYNONYMS:
        text = pattern.sub(replacement, text)
    if "\\" in text:
        text = _open_groups(text)
        for pattern, replacement in _LATEX_SYNONYMS:
            text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;:").lstrip("=: ").strip()


def _unwrap(text: str) -> str:
    """Strips pairs that enclose the whole text, and a full stop outside them."""
    for _ in range(8):
        text = text.strip().rstrip(".,;: ") if not text.endswith("\\ ") else text.strip()
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
    return text


def _mark_prose(match: re.Match) -> str:
    prose = match[1].replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
    if not prose:
        return " "
    if _MATHS_WORD.fullmatch(prose):
        return f"\\{prose} "
    if not re.search(r"[A-Za-z%]", prose) or (len(prose) == 1 and prose in "ie"):
        return f" {prose} "
    return f"{TEXT_OPEN}{prose}{TEXT_CLOSE}"
