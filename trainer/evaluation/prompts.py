"""Question and method in (trainer/catalogue/methods.py), the prompt as the model reads it out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from trainer.catalogue.methods import STEP_BY_STEP, Method
from trainer.prompts.prompt import Prompt, prompt_of, read_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("trainer.evaluate")


def prompt_to_ask(arguments: argparse.Namespace) -> Prompt | None:
    """What --prompt, --system_prompt and --instruction ask for; without them, what the policy was trained on.

    None: the methods' own. A warning is given where a policy is asked in another way than it was trained.
    """
    trained = prompt_of(arguments.adapter or arguments.model)
    parts = {"system_prompt": arguments.system_prompt, "instruction": arguments.instruction}
    if arguments.prompt is None and set(parts.values()) == {None}:
        if trained is not None:
            log.info("thinking and no_thinking ask as the policy was trained: %s", trained.described())
        return trained
    asked = read_prompt(arguments.prompt) if arguments.prompt is not None else trained or STEP_BY_STEP
    asked = asked.with_parts(**parts)
    if trained is not None and asked != trained:
        log.warning(
            "the policy was trained on another prompt (%s): before and after then differ in the prompt too",
            trained.described(),
        )
    return asked


def render(
    tokenizer: PreTrainedTokenizerBase, question: str, method: Method, before: Sequence[dict[str, str]] = ()
) -> str:
    """The prompt, up to where the response begins; `before`: turns that the data have before the question.

    With a chat template: the prompt's turns (the system's text in the first user turn where a template knows no system
    role). Without one: the system prompt, then "Question: ..." and "Answer: ..." of the examples and of the question.
    """
    messages = method.prompt.messages(question, before)
    if not tokenizer.chat_template:
        forms = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n"}
        return "".join(forms[turn["role"]].format(turn["content"]) for turn in messages)

    def apply(messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=method.enable_thinking
        )

    try:
        return apply(messages)
    except TemplateError:  # Gemma's template, for one, refuses a system turn
        if messages[0]["role"] != "system":
            raise
        system, first, *others = messages
        return apply([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Token ids of a rendered prompt; a chat template has written its special tokens, plain text gets them here.

    Plain text that begins with the beginning-of-sequence token already gets no second one.
    """
    ids = tuple(tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"])
    if not tokenizer.chat_template and tokenizer.bos_token_id is not None and ids[:2] == (tokenizer.bos_token_id,) * 2:
        ids = ids[1:]
    if not ids:
        raise ValueError("the prompt has no tokens; a response needs at least one token to follow")
    return ids
