"""Leaving out problems whose prompt is too long.

In: problems, the model's tokenizer, a limit in tokens. Out: the problems that fit, and a report of those that do not.
Prompts are counted as TRL renders them: chat template with a generation prompt, thinking on or off.
"""

from dataclasses import dataclass

import datasets

from trainer.datasets.files import DataError


@dataclass(frozen=True)
class LengthReport:
    """How many problems were kept and dropped, and the longest prompts, in tokens."""

    max_prompt_length: int
    kept: int
    dropped: int
    longest: int
    longest_kept: int

    def __str__(self) -> str:
        return (
            f"{self.dropped} of {self.kept + self.dropped} problems left out: prompts longer than "
            f"{self.max_prompt_length} tokens (the longest has {self.longest}, the longest kept {self.longest_kept})"
        )


def filter_by_length(
    problems: datasets.Dataset, tokenizer, max_prompt_length: int, *, chat_template_kwargs: dict | None = None
) -> tuple[datasets.Dataset, LengthReport]:
    """Returns (the problems whose prompt has at most `max_prompt_length` tokens, the report).

    chat_template_kwargs: as in TRL's GRPOConfig, such as {"enable_thinking": False}.

    Raises:
        DataError: no problem fits, or the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError("the tokenizer has no chat template, so its prompts can't be rendered or counted")
    lengths = [
        len(
            tokenizer.apply_chat_template(
                prompt, tokenize=True, add_generation_prompt=True, return_dict=True, **(chat_template_kwargs or {})
            )["input_ids"]
        )
        for prompt in problems["prompt"]
    ]
    fitting = [row for row, length in enumerate(lengths) if length <= max_prompt_length]
    if not fitting:
        raise DataError(f"every prompt has more than {max_prompt_length} tokens; the shortest has {min(lengths)}")
    report = LengthReport(
        max_prompt_length=max_prompt_length,
        kept=len(fitting),
        dropped=len(lengths) - len(fitting),
        longest=max(lengths),
        longest_kept=max(lengths[row] for row in fitting),
    )
    return problems.select(fitting), report
