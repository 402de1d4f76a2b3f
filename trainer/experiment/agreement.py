"""Whether a policy sees that two of its calculations agree, and what it would gain by stopping there.

In: held-out responses of a design in which calculations go wrong (trainer/tiny/problems.py), and their problems.
Out: numbers of one row of the table.

    stops_agreed, stops_split    share of responses that calculate no more after two results, of those in which the two
                                 agree and of those in which they differ. Equal shares: the policy stops by count, and
                                 nothing that makes it shorter can spare the checks that are needed.
    accuracy_at_agreement,       of the same responses, had each stopped and answered when two of its results first
    length_at_agreement          agreed (as it is where none did): what a policy that sees it could have for nothing
"""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import mean

from trainer.experiment.held_out import HeldOutResponses
from trainer.tiny.problems import WordProblem

_RESULT = re.compile(r"that gives (\d+) \.")
_ANSWER_TOKENS = len(("</think>", "the", "answer", "is", "\\boxed{", "8", "}", "<|end|>"))


def results_of(response: str) -> list[tuple[int, int]]:
    """The results of a response's calculations, each with the number of tokens up to and with its full stop."""
    thinking = response.partition("</think>")[0].partition("to recap")[0]
    return [(int(found[1]), len(thinking[: found.end()].split())) for found in _RESULT.finditer(thinking)]


def first_agreement(results: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The entry of `results` whose result has come once before, the first such one."""
    seen = Counter()
    for result, tokens in results:
        seen[result] += 1
        if seen[result] == 2:
            return result, tokens
    return None


def agreement(responses: HeldOutResponses, problems: Sequence[WordProblem]) -> dict[str, float]:
    """See this file's header; a share of nothing is left out."""
    ended: dict[bool, list[bool]] = {True: [], False: []}
    correct, tokens = [], []
    for text, right, length, problem in zip(responses.text, responses.correct, responses.tokens, problems, strict=True):
        results = results_of(text)
        if len(results) >= 2:
            ended[results[0][0] == results[1][0]].append(len(results) == 2)
        found = first_agreement(results)
        correct.append(right if found is None else found[0] == problem.answer)
        tokens.append(length if found is None else found[1] + _ANSWER_TOKENS)
    numbers = {"accuracy_at_agreement": mean(correct), "length_at_agreement": mean(tokens)}
    for name, agrees in (("stops_agreed", True), ("stops_split", False)):
        if ended[agrees]:
            numbers[name] = mean(ended[agrees])
            numbers[f"{name}_of"] = len(ended[agrees])
    return numbers
