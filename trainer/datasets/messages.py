"""A record's prompt as the turns of a conversation: the form of TRL and verl.

In: [{"role": "system", "content": ...}, {"role": "user", "content": ...}], worked examples as turns between, contents
as text or as parts of text. Out: the question (the last turn, the user's) and the turns before it.
"""

from trainer.datasets.answers import encodable
from trainer.datasets.files import DataError

Turn = dict[str, str]
_ROLES = ("system", "user", "assistant")


def question_and_turns(prompt: list, where: str) -> tuple[str, list[Turn]]:
    """Returns (the question, the turns before it). Raises DataError for what does not await an answer."""
    turns = [_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(prompt, 1)]
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"{where}: expected messages that end in the user's question, got {_shown(prompt)}")
    return turns[-1]["content"].strip(), turns[:-1]


def _turn(turn, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
        raise DataError(f"{where}: expected a role ({', '.join(_ROLES)}) and a content, got {_shown(turn)}")
    content = turn.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError(f"{where}: expected text alone, got {_shown(content)}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or not content.strip():
        raise DataError(f"{where}: expected a content as text, got {_shown(content)}")
    return {"role": turn["role"], "content": encodable(content, where)}


def _shown(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
