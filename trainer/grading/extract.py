r"""The final answer's text out of a model's response.

In: the whole response. Out: the text of its last answer, or None. Where thinking has ended (</think> and its like) and
something after it states an answer, only that text counts; otherwise the whole response does. In it, in this order, the
last one of a kind wins:

1. a balanced box (boxes.py) that is no placeholder, or <answer>...</answer>: the later of the two;
2. "#### ..." (GSM8K), to the end of the line, unless that line is a heading or a later sentence states an answer;
3. "the final answer is ...", "Answer: ...", to the end of the sentence.

Only the last MAX_RESPONSE_CHARS characters are looked at; every step is linear in them.
"""

import re

from trainer.grading.boxes import MAX_ANSWER_CHARS, has_box, is_placeholder, last_box, last_boxed

MAX_RESPONSE_CHARS = 200_000

_ENDS_OF_THINKING = {  # by what is looked for first
    "</": tuple(f"</{prefix}{w}>" for prefix in ("", "seed:") for w in ("think", "thinking", "thought", "reasoning")),
    "<|": ("<|end_of_thought|>", "<|channel|>final<|message|>"),
    "[/THINK]": ("[/THINK]",),
    "◁/think▷": ("◁/think▷",),
}
_ANSWER_TAG = re.compile(r"<answer>", re.IGNORECASE)
_ANSWER_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]+)")
_NUMBER = re.compile(r"-?\$?[0-9][0-9,.]*")
_HEADING = re.compile(
    r"\(?[0-9]{1,3}(?:\.?\)|\.)[ \t]+(?=\S)|[0-9]{1,3}:[ \t]+(?=[A-Za-z*])|[0-9]{1,3}[ \t]+[-–—][ \t]+(?=[A-Za-z]{3})"
    r"|[IVX]{1,5}\.[ \t]+(?=\S)|(?:step|part|case|section|method|approach|example)\b"
    r"|(?:solution|conclusion|(?:the[ \t]+)?(?:final[ \t]+)?answer|explanation|given|note|verification|check|summary"
    r"|result|reasoning|calculations?)[ \t]*:?[ \t]*$",
    re.IGNORECASE,
)
_VALUE_ON_A_LINE = re.compile(
    r"(?:[^A-Za-z\\]|\\[^A-Za-z]|\\[A-Za-z]+)*(?:[a-z][^.!?]*[.!]?|[A-Z]{2,4})?|[A-J]"
    r"|[A-Za-z](?:\([A-Za-z]\))?[ \t]*[=<>].*"
)
_FINAL_ANSWER = re.compile(
    r"(?:\bfinal\s{1,3}answer|\b(?:the|my|our|correct)\s{1,3}answer|(?:^|[\n*])[ \t#]{0,8}answer)"
    r"(?:\s{1,3}to\s{1,3}(?:the|this)\s{1,3}(?:question|problem))?"
    r"[*_ \t]{0,6}(?:(?:is|was|=|:|：)[*_ \t]{0,6}){1,3}\n{0,2}(?:[ \t]{0,4}(?:\$\$|\\\[)[ \t]{0,4}\n)?"
    r"|(?:^|\n)#{1,6}[ \t]{1,4}[*_]{0,3}(?:the[ \t])?(?:final[ \t])?answer[*_]{0,3}[ \t]{0,4}\n{1,2}"
    r"(?:[ \t]{0,4}(?:\$\$|\\\[)[ \t]{0,4}\n)?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^\n]{1,2000}")
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=\s|[*\"')]|$)")


def stated_answer(response: str) -> str | None:
    """Returns the text of the answer that `response` states last, or None."""
    response = response[-MAX_RESPONSE_CHARS:]
    # Nearly no text has any of these; that one character is missing is seen ten times as fast as that two are.
    tag = response.rfind("</") if "<" in response else -1
    if tag >= 0 or ("|" in response and "<|" in response) or "[/THINK]" in response or "◁" in response:
        end = _end_of_thinking(response, tag)
        if end and (stated := _stated_in(response[end:], has_tags=tag >= end)):
            return stated
    return _stated_in(response, has_tags=tag >= 0)


def reference_answer(text: str) -> str | None:
    """Returns the answer that a ground truth marks: a box, "#### N", <answer>, or, in several lines, "the answer is N".

    None where nothing in it is marked.
    """
    marked = last_boxed(text) or after_hashes(text) or (_marked(text, has_tags=True) if "</" in text else None)
    return marked or (after_final_answer(text) if "\n" in text else None)


def _end_of_thinking(text: str, tag: int) -> int:
    """Where the text behind the thinking starts; 0 where no thinking ends. tag: where the last "</" is, or -1.

    Looks from the end, which is near.
    """
    end = 0
    for head, marks in _ENDS_OF_THINKING.items():
        start = tag if head == "</" else text.rfind(head, end) if head[-1] in text else -1
        while start >= 0:
            if text.startswith(marks, start):
                end = start + next(len(mark) for mark in marks if text.startswith(mark, start))
                break
            start = text.rfind(head, end, start)
    return end


def _stated_in(text: str, has_tags: bool) -> str | None:
    return _marked(text, has_tags) or after_hashes(text) or after_final_answer(text)


def _marked(text: str, has_tags: bool) -> str | None:
    """The last box or the last <answer>, whichever starts later; a box inside the tag is the tag's answer."""
    box = last_box(text)
    tag = _last_match(_ANSWER_TAG, text, box[0] if box else 0) if has_tags else None
    if tag and (end := _ANSWER_TAG_END.search(text, tag.end())):
        content = text[tag.end() : end.start()].strip()
        if not is_placeholder(content):
            return after_final_answer(content) or content
    return box[1] if box else None


def _last_match(pattern: re.Pattern, text: str, start: int = 0) -> re.Match | None:
    match = None
    for match in pattern.finditer(text, start):  # noqa: B007
        pass
    return match


def after_hashes(text: str) -> str | None:
    """Returns what follows the last "####" that is GSM8K's separator on its line, or None."""
    start = text.rfind("####")
    if start < 0:
        return None
    last = text[start + 4 :].strip()
    if _NUMBER.fullmatch(last) and not text.endswith("#", 0, start):  # GSM8K, nearly always
        return last
    end = len(text.rstrip())
    for line in reversed(list(_HASHES.finditer(text))):
        stated = line[1].strip()
        if stated.strip("*_# \t") and not _is_heading(stated.strip("*_ \t"), is_last=line.end() >= end):
            later = after_final_answer(text[line.end() :]) if line.end() < end else None
            return later or after_final_answer(stated) or stated
    return None


def _is_heading(line: str, *, is_last: bool) -> bool:
    """True for a Markdown heading: numbered, a heading's word, or words with text below them."""
    return bool(_HEADING.match(line)) or not (is_last or _VALUE_ON_A_LINE.fullmatch(line))


def after_final_answer(text: str) -> str | None:
    """Returns what the last "the answer is" form states, or None."""
    tail = text[-4 * MAX_ANSWER_CHARS :]
    last = _last_match(_FINAL_ANSWER, tail) if "answer" in tail.lower() else None
    if last is None:
        return None
    sentence = _SENTENCE.match(last.string, last.end())
    if not sentence or has_box(sentence[0]):  # a box that was cut off is no answer
        return None
    stated = sentence[0].strip().strip("*_ ")
    end = _SENTENCE_END.search(stated)
    return (stated[: end.start()] if end else stated).strip().strip("*_ ") or None
