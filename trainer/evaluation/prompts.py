"""Question and method in (trainer/catalogue/methods.py), the prompt as the model reads it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from trainer.catalogue.methods import Method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, question: str, method: Method) -> str:
    """The prompt, up to where the response begins.

    With a chat template: a system and a user turn (one user turn where the template knows no system role). Without one:
    the system prompt, an empty line, "Question: ..." and "Answer:".
    """
    system = [{"role": "system", "content": method.system_prompt}] if method.system_prompt else []
    if not tokenizer.chat_template:
        return "".join(f"{turn['content']}\n\n" for turn in system) + f"Question: {question}\nAnswer:"

    def apply(messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=method.enable_thinking
        )

    try:
        return apply([*system, {"role": "user", "content": question}])
    except TemplateError:  # Gemma's template, for one, refuses a system turn
        if not system:
            raise
        return apply([{"role": "user", "content": f"{method.system_prompt}\n\n{question}"}])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Token ids of a rendered prompt; a chat template has written its special tokens, plain text gets them here."""
    ids = tuple(tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"])
    if not ids:
        raise ValueError("the prompt has no tokens; a response needs at least one token to follow")
    return ids
