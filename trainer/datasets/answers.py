r"""The reference answer alone, out of what a record's answer column holds.

In: text (an answer, or a solution that ends in one), a number, or a list of such. Out: text.

A list holds answers of which any one is right; it becomes a JSON list of texts, ["7", "seven"], which
trainer.grading.grade reads as such. A list of one is that one.
"""

import json
import math
from decimal import Decimal

from trainer.datasets.files import DataError
from trainer.grading.boxes import has_box
from trainer.grading.extract import after_hashes, reference_answer

_NO_ANSWERS = frozenset({"nan", "null", "<na>", "n/a"})  # what exports of tables write for nothing


def ground_truth(answer, where: str) -> str:
    r"""Returns the reference answer alone: what follows "####", what is in the last \boxed{} (\fbox, \framebox) or
    <answer>, what a solution of several lines says "the answer is", or the text itself.

    answer: text, a number (its digits are kept), or a list of them (any one is right). where: for errors.
    Raises DataError for what is no answer: nothing, true and false, NaN, infinity, a solution that states none.
    """
    if isinstance(answer, list | tuple):
        if not answer or any(isinstance(one, list | tuple) for one in answer):
            raise DataError(f"{where}: expected answers of which one is right in the list, got {answer!r}")
        alternatives = [ground_truth(one, where) for one in answer]
        return alternatives[0] if len(alternatives) == 1 else json.dumps(alternatives, ensure_ascii=False)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | Decimal):
        raise DataError(f"{where}: expected an answer as text or number, got {answer!r}")
    if isinstance(answer, float | Decimal) and not math.isfinite(answer):
        raise DataError(f"{where}: {answer} is no answer")
    text = f"{answer:f}" if isinstance(answer, Decimal) else str(answer).strip()
    if text.casefold() in _NO_ANSWERS:
        raise DataError(f"{where}: {text!r} is no answer")
    text = encodable(text, where)
    alone = (after_hashes(text) if "####" in text else None) or reference_answer(text)
    if alone is None and not ("####" in text or has_box(text) or "\n" in text):  # a solution that marks no answer
        alone = text
    if not alone:
        shown = text if len(text) <= 200 else "..." + text[-200:]
        raise DataError(f"{where}: no answer in {shown!r}: expected the answer alone, '#### N' or \\boxed{{}}")
    return alone


def encodable(text: str, where: str) -> str:
    """`text`, if it can be written as UTF-8. Raises DataError for half a surrogate pair, as in "\\ud83d" alone."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is half of a surrogate pair (\\u{ord(text[error.start]):04x}), "
            "which is no text"
        ) from None
    return text
