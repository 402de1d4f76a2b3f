r"""LaTeX commands that place or paint an answer, and say nothing about it, taken out.

In: text in ASCII LaTeX. Out: the same without spacing (\, \; \quad \hspace{1em} ~), sizes (\large, \displaystyle),
colours (\textcolor{red}{5}), sizes of delimiters (\left \bigl) and labels of equations (\tag{1}). Row breaks of
matrices (\\) stay. Thin spaces between groups of three digits are thousands separators.
"""

import re

_GAP = r"(?:\{?,\}?\s*\\!|\{,\}|\\text\s*\{,\}|\\[,;:> ]|\{\\,\}|\\thinspace(?![A-Za-z])\s?|~)\s*"
_THOUSANDS = re.compile(rf"(?<![0-9])[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}}(?![0-9]))+")
_THOUSANDS_GAP = re.compile(_GAP)
_COMMA_AND_SPACE = re.compile(r",\\,(?=[0-9])")  # of a list or of thousands: to be read like a comma

_LENGTH = r"-?\s*[0-9.]+\s*(?:pt|em|ex|mu|cm|mm|in|pc|bp|sp)(?![A-Za-z])"
_LAYOUT = re.compile(
    r"""
      (?P<row_break> \\\\ (?:\[[^\]]*\])? )
    | (?P<left_angle> \\left\s*< ) | (?P<right_angle> \\right\s*> )
    | \\(?:left|right|middle|[bB]igg?[lrm]?) \s* (?: \. | (?![A-Za-z]) )
    | \\[hv]space \*? \s* \{[^{}]*\}
    | \\(?:phantom|hphantom|vphantom|tag|label|color|textcolor|colorbox) \*? \s* \{[^{}]*\}
    | \\fcolorbox \s* \{[^{}]*\} \s* \{[^{}]*\}
    | \\bbox \s* (?:\[[^\]]*\])?
    | \\(?:hskip|kern|mskip|mkern) \s* """
    + _LENGTH
    + r"""
    | \\(?:displaystyle|textstyle|scriptstyle|scriptscriptstyle|limits|nolimits|quad|qquad|enspace|enskip|thinspace
        |medspace|thickspace|negthinspace|negmedspace|negthickspace|nobreakspace|space|hfill|hfil|vfill|null|strut
        |mathstrut|allowbreak|nobreak|newline|linebreak|noindent|centering|smallskip|medskip|bigskip|nonumber|notag
        |qedhere|rm|bf|it|sf|tt|sl|em|bfseries|itshape|rmfamily|boldmath|unboldmath|tiny|scriptsize|footnotesize|small
        |normalsize|large|Large|LARGE|huge|Huge|mathop|mathord|mathbin|mathrel|mathopen|mathclose|mathinner|ensuremath
        |protect|relax) (?![A-Za-z])
    | \\[!,;:> ] | \\(?=\n) | ~
    """,
    re.VERBOSE,
)
_KEPT = {"row_break": None, "left_angle": "(", "right_angle": ")"}
_EDGES = re.compile(r"\A(?:\s|\\\\(?=\s))+|[\s\\]+\Z")


def strip_layout(text: str) -> str:
    """Returns `text` without layout commands; see above."""
    text = _THOUSANDS.sub(lambda number: _THOUSANDS_GAP.sub("", number[0]), text)
    text = _COMMA_AND_SPACE.sub(",", text)
    text = _LAYOUT.sub(_meaning, text)
    return _EDGES.sub("", text)


def _meaning(command: re.Match) -> str:
    kept = command.lastgroup
    return " " if kept is None else _KEPT[kept] or command[0]
