"""Question and method in, the prompt as the model reads it out.

    thinking      reason in the model's thinking mode; the instruction of the method's paper's code
    no_thinking   the same with the thinking mode off (chat templates such as Qwen3's know `enable_thinking`)
    cod           Chain of Draft: Xu, Xie, Zhao, He 2025, arXiv 2502.18600, section 3; its instruction word for word
    ccot          Concise Chain of Thought: Renze, Guven 2024, arXiv 2401.05618; the system prompt of its published code
                  (matthewrenze/jhu-concise-cot, source/agents/concise_agent.py): a chain-of-thought prompt that ends in
                  "Be concise."

Both baselines are given as instructions alone, without the authors' worked examples: a reasoning model is asked, not
shown. CCoT was published for multiple choice; its three lines about naming a choice are replaced by one that asks for a
box. Both leave the thinking mode on, as the evaluation of Cumulative Entropy Regulation does (arXiv 2510.02249).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STEP_BY_STEP = "Let's think step by step. Put your final answer in $\\boxed{}$"

CHAIN_OF_DRAFT = (
    "Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. "
    "Return the answer at the end of the response after a separator ####."
)
CONCISE_CHAIN_OF_THOUGHT = (
    "You are an intelligent assistant.\n"
    "Your task is to answer the following question.\n"
    "Think step-by-step through the problem to ensure you have the correct answer.\n"
    "Then, put your final answer in $\\boxed{}$.\n"
    "Be concise."
)


@dataclass(frozen=True)
class Method:
    """A way to ask: a system prompt, and whether the model's thinking mode is on."""

    system_prompt: str
    enable_thinking: bool


METHODS = {
    "thinking": Method(_STEP_BY_STEP, enable_thinking=True),
    "no_thinking": Method(_STEP_BY_STEP, enable_thinking=False),
    "cod": Method(CHAIN_OF_DRAFT, enable_thinking=True),
    "ccot": Method(CONCISE_CHAIN_OF_THOUGHT, enable_thinking=True),
}


def methods(names: list[str], system_prompt: str | None = None) -> dict[str, Method]:
    """The methods of these names; `system_prompt` replaces that of thinking and no_thinking ("" leaves it out).

    Raises ValueError for a name that is none.
    """
    chosen = {}
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}: expected some of {', '.join(METHODS)}")
        chosen[name] = METHODS[name]
        if system_prompt is not None and name in ("thinking", "no_thinking"):
            chosen[name] = Method(system_prompt, METHODS[name].enable_thinking)
    return chosen


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
