"""The final answer's text out of a model's response.

In: the whole response. Out: the text of its last answer, or None. In this order, the last one of a kind wins:
1. a balanced \\boxed{...} or \\fbox{...} that is not empty (\\boxed 5 counts, one cut off does not);
2. "#### ..." (GSM8K), to the end of the line;
3. "the final answer is ...", "Answer: ...", to the end of the sentence.

Only the last MAX_RESPONSE_CHARS characters are looked at; every step is linear in them.
"""

import re

MAX_RESPONSE_CHARS = 200_000
MAX_ANSWER_CHARS = 2_000  # a longer group is no answer

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*\{?|\\.|[{}]", re.DOTALL)
_ESCAPE_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[ \t]*([^\s{}$][^\s$]{0,200})")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_FINAL_ANSWER = re.compile(
    r"(?:\bfinal\s{1,3}answer|\b(?:the|my|our|correct)\s{1,3}answer|(?:^|[\n*])[ \t#]{0,8}answer)"
    r"(?:\s{1,3}to\s{1,3}(?:the|this)\s{1,3}(?:question|problem))?"
    r"[*_ \t]{0,6}(?:(?:is|was|=|:)[*_ \t]{0,6}){1,3}\n{0,2}(?:[ \t]{0,4}(?:\$\$|\\\[)[ \t]{0,4}\n)?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^\n]{1,2000}")
_SENTENCE_END = re.compile(r"[.!?](?=\s|[*\"')]|$)")


def _last_match(pattern: re.Pattern, text: str) -> re.Match | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def last_boxed(text: str) -> str | None:
    """Returns the content of the last balanced, non-empty box, or None."""
    last = _last_match(_BOX, text)
    if last is None:
        return None
    content = _box_content(text, last.end())
    return content if content is not None else _last_closed_box(text)


def _box_content(text: str, start: int) -> str | None:
    """The group that opens at `start`, or the bare token there."""
    opening = re.compile(r"[ \t]*\{").match(text, start)
    if not opening:
        bare = _UNBRACED.match(text, start)
        return (bare[1].rstrip(".,;:)]") or None) if bare else None
    depth = 1
    for token in _ESCAPE_OR_BRACE.finditer(text, opening.end(), opening.end() + MAX_ANSWER_CHARS):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[opening.end() : token.start()].strip() or None
    return None


def _last_closed_box(text: str) -> str | None:
    """One pass with a stack of open groups: the box that opens last among those that close."""
    best: tuple[int, str] | None = None
    open_groups: list[int | None] = []  # where a box's content starts; None for a plain group
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0] == "}":
            start = open_groups.pop() if open_groups else None
            if start is not None and token.start() - start <= MAX_ANSWER_CHARS:
                content = text[start : token.start()].strip()
                if content and (best is None or start > best[0]):
                    best = (start, content)
        elif token[0] == "{":
            open_groups.append(None)
        elif _BOX.match(token[0]):
            if token[0].endswith("{"):
                open_groups.append(token.end())
            elif bare := _box_content(text, token.end()):
                best = (token.end(), bare)
    return best[1] if best else None


def after_hashes(text: str) -> str | None:
    """Returns what follows the last "####" on its line, or None."""
    last = _last_match(_HASHES, text)
    return last[1].strip() or None if last else None


def after_final_answer(text: str) -> str | None:
    """Returns what the last "the answer is" form states, or None."""
    tail = text[-4 * MAX_ANSWER_CHARS :]
    last = _last_match(_FINAL_ANSWER, tail) if "answer" in tail.lower() else None
    if last is None:
        return None
    sentence = _SENTENCE.match(last.string, last.end())
    if not sentence or _BOX.search(sentence[0]):  # a box that was cut off is no answer
        return None
    stated = sentence[0].strip().strip("*_ ")
    end = _SENTENCE_END.search(stated)
    return (stated[: end.start()] if end else stated).strip().strip("*_ ") or None
