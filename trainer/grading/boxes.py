r"""Boxes in a response: \boxed{...}, \fbox{...} and \framebox{...}.

In: text. Out: what the last box holds that is balanced and holds an answer: it is not cut off, and no placeholder (as
in "put it into \boxed{...}"). Without a brace only what looks like mathematics counts: \boxed5, \boxed\frac12, but not
"in \boxed as asked". Linear in the text.
"""

import re

MAX_ANSWER_CHARS = 2_000  # a longer group is no answer

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_BOX_OR_BRACE = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z])[ \t\r\n]{0,8}(?:\[[^\[\]{}\n]{0,20}\])?[ \t\r\n]{0,8}\{?|\\.|[{}]",
    re.DOTALL,
)
_OPENING = re.compile(r"[ \t\r\n]{0,8}(?:\[[^\[\]{}\n]{0,20}\])?[ \t\r\n]{0,8}\{")
_ESCAPE_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[ \t]*([-+]?[0-9.][^\s{}$]{0,200}|[-+]?\\[A-Za-z]+[^\s$]{0,200}|[A-Za-z](?=\s*(?:\$|\n|\Z)))")
_DIGIT = re.compile(r"[0-9]")
_PLACEHOLDER = re.compile(
    r"[\s.…?_*\\]*|(?:\\[lc]?dots[cbmio]?|\\(?:square|cdot|placeholder|bigcirc)|\s)+"
    r"|(?:(?:your|the|my|a|final|correct|numerical|numeric|exact|simplified)[\s_-]+)*(?:answer|ans|result|solution|value|number"
    r"|expression)(?:[\s_-]+(?:here|goes here|only|in simplest form))?",
    re.IGNORECASE,
)
_PLACEHOLDER_DRESS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|emph)\s*\{([^{}]*)\}|[\[\]<>{}$\"'`]")


def has_box(text: str) -> bool:
    """True where a box opens, also if it is cut off or holds no answer."""
    return "\\" in text and bool(_BOX.search(text))


def last_boxed(text: str) -> str | None:
    """Returns the content of the last box that holds an answer, or None."""
    found = last_box(text)
    return found[1] if found else None


def last_box(text: str) -> tuple[int, str] | None:
    """Returns (where it starts, its content) of the box that opens last among those that hold an answer, or None."""
    if "\\" not in text:
        return None
    last = text.rfind(r"\boxed")
    behind = last + 1
    others = text.find(r"\fbox", behind) >= 0 or text.find(r"\framebox", behind) >= 0
    if last < 0 and not others:
        return None
    end = last + len(r"\boxed")
    if not others and text.startswith("{", end) and (content := _braced(text, end)) and not is_placeholder(content):
        return end, content  # nearly always
    best: tuple[int, str] | None = None
    open_groups: list[int | None] = []  # where a box's content starts; None for a plain group
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0] == "}":
            start = open_groups.pop() if open_groups else None
            if start is not None and (best is None or start > best[0]) and token.start() - start <= MAX_ANSWER_CHARS:
                content = text[start : token.start()].strip()
                if not is_placeholder(content):
                    best = (start, content)
        elif token[0] == "{":
            open_groups.append(None)
        elif _BOX.match(token[0]):
            if token[0].endswith("{"):
                open_groups.append(token.end())
            elif bare := _unbraced(text, _BOX.match(text, token.start()).end()):
                best = (token.end(), bare)
    return best


def _braced(text: str, start: int) -> str | None:
    """The balanced group that opens at `start`."""
    if text.startswith("{", start):
        first = start + 1
    elif opening := _OPENING.match(text, start):
        first = opening.end()
    else:
        return None
    end = text.find("}", first, first + MAX_ANSWER_CHARS)
    if end < 0:
        return None
    inside = text[first:end]
    if not ("{" in inside or "\\" in inside):
        return inside.strip()
    depth = 1
    for token in _ESCAPE_OR_BRACE.finditer(text, first, first + MAX_ANSWER_CHARS):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[first : token.start()].strip()
    return None


def _unbraced(text: str, start: int) -> str | None:
    bare = _UNBRACED.match(text, start)
    return (bare[1].rstrip(".,;:)]") or None) if bare else None


def is_placeholder(content: str) -> bool:
    """True for what stands where an answer should: nothing, dots, "your answer here"."""
    if _DIGIT.search(content):
        return False
    return bool(_PLACEHOLDER.fullmatch(content) or _PLACEHOLDER.fullmatch(_undressed(content)))


def _undressed(content: str) -> str:
    return _PLACEHOLDER_DRESS.sub(lambda dress: dress[1] or "", content).strip()
