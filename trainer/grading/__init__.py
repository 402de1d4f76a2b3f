r"""Is a response's final answer equal to the ground truth?

In: the text of a response and the ground truth, both free text that may hold LaTeX. Out: a bool; nothing raises, and no
text is ever evaluated as code.

    extract.py    response -> its final answer: the last balanced \boxed{}, then "#### N", then "the answer is ..."
    normalize.py  one spelling for LaTeX layout, fonts, thousands separators, Unicode
    units.py      units, money, percent, number words
    exact.py      arithmetic in fractions.Fraction: this decides most comparisons, in microseconds
    answer.py     tuples, sets, intervals, matrices, prose; the rules of equality are listed there
    symbolic.py   what is left goes through a strict filter to math-verify, in a process killed when its time is up

>>> grade(r"... so she earns $\boxed{\$1{,}000}$.", "1000")
True
>>> grade("Half of it is left.\n#### 0.5", r"\frac{1}{2}")
True
"""

from trainer.grading.answer import equivalent
from trainer.grading.boxes import MAX_ANSWER_CHARS, last_boxed
from trainer.grading.extract import after_hashes, stated_answer
from trainer.grading.normalize import normalize
from trainer.grading.symbolic import symbolically_equal

__all__ = ["extract_answer", "grade"]


def extract_answer(response: str) -> str | None:
    r"""Returns the text of the last answer in `response`, or None: \boxed{} first, then "####", then "the answer is".

    Raises: nothing; anything but a string has no answer.
    """
    if not isinstance(response, str):
        return None
    return stated_answer(response)


def grade(response: str, ground_truth: str | int | float) -> bool:
    """Returns True if the final answer of `response` equals `ground_truth`; see answer.py for the rules of equality.

    response: the model's text. ground_truth: the answer alone, or a solution text that ends in one (a box or "####").
    Raises: nothing that depends on the texts; RuntimeError if math-verify is not installed and is needed.
    """
    answer = extract_answer(response)
    gold = ground_truth if isinstance(ground_truth, str) else str(ground_truth)
    gold = last_boxed(gold) or after_hashes(gold) or gold
    if answer is None or len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        return False
    return equivalent(normalize(gold), normalize(answer), symbolically_equal)
