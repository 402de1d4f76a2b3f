r"""Is a response's final answer equal to the ground truth?

In: the text of a response and the ground truth, both free text that may hold LaTeX. Out: a bool; nothing raises, and no
text is ever evaluated as code. A wrong answer that is paid does more harm than a right one that is missed: what cannot
be shown to be equal is wrong.

    extract.py        response -> its final answer: behind the thinking if one is stated there; the last box (boxes.py)
                      or <answer>, then "#### N", then "the answer is ..."
    normalize.py      one spelling for LaTeX, with layout.py (spacing, colours) and unicode_spelling.py
    labels.py         "The answer is", x =, \text{Area} =: what names an answer
    number_words.py   "twenty-one" -> 21
    units.py          units, money, percent
    structure.py      tuples, sets, ratios, matrices, intervals (inequalities.py)
    exact.py          arithmetic in fractions.Fraction, and with variables and i in polynomial.py: this decides most
                      comparisons, in microseconds
    prose.py          which differences between words count
    answer.py         the rules of equality are listed there
    symbolic.py       a strict filter before math-verify, which runs in a process that is killed when its time is up

>>> grade(r"... so she earns $\boxed{\$1{,}000}$.", "1000")
True
>>> grade("Half of it is left.\n#### 0.5", r"\frac{1}{2}")
True
>>> grade(r"<think>\boxed{5}?</think> No: #### 3", "5")
False
"""

import json

from trainer.grading.answer import equivalent
from trainer.grading.boxes import MAX_ANSWER_CHARS
from trainer.grading.extract import reference_answer, stated_answer
from trainer.grading.normalize import normalize
from trainer.grading.symbolic import symbolically_equal

__all__ = ["extract_answer", "grade"]


def extract_answer(response: str) -> str | None:
    r"""Returns the text of the last answer in `response`, or None: \boxed{} first, then "####", then "the answer is".

    Where `</think>` (or its like) occurs and something after it states an answer, only that text counts. Where nothing
    after it does, or thinking was cut off, the answer may stand in the thinking alone: the published rule, the last
    balanced \boxed{} of the whole response, pays for it, and so does this function.

    Raises: nothing; anything but a string has no answer.
    Source: arXiv 2510.02249 (the last balanced \boxed{}); openai/gsm8k ("####").
    """
    if not isinstance(response, str):
        return None
    return stated_answer(response)


def grade(response: str, ground_truth: str | int | float | list) -> bool:
    r"""Returns True if the final answer of `response` equals `ground_truth`; see answer.py for the rules of equality.

    response: the model's text, thinking included; extract_answer says which answer in it counts: a box in the thinking
    alone is paid, by the published rule. ground_truth: the answer alone, or a solution text that ends in one (a box,
    "####" or <answer>); a list of answers, or the text of a JSON list of texts (["7", "seven"]), of which any one is
    right.
    Raises: nothing that depends on the texts; RuntimeError if math-verify is not installed and is needed.
    """
    if isinstance(ground_truth, list | tuple):
        return any(grade(response, one) for one in ground_truth)
    if isinstance(ground_truth, str) and ground_truth.startswith('["') and (several := _alternatives(ground_truth)):
        return grade(response, several)
    answer = extract_answer(response)
    gold = ground_truth if isinstance(ground_truth, str) else str(ground_truth)
    gold = reference_answer(gold) or gold
    if answer is None or len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        return False
    return equivalent(normalize(gold), normalize(answer), symbolically_equal)


def _alternatives(text: str) -> list[str] | None:
    """The texts of a JSON list of texts; None if `text` is none."""
    try:
        several = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return several if all(isinstance(one, str) and not one.startswith('["') for one in several) else None
