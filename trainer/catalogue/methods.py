"""Ways to ask a question in an evaluation, in the order in which tables and figures have them.

    thinking      reason in the model's thinking mode; the instruction of the method's paper's code
    no_thinking   the same with the thinking mode off (chat templates such as Qwen3's know `enable_thinking`)
    cod           Chain of Draft: Xu, Xie, Zhao, He 2025, arXiv 2502.18600, section 3; its instruction word for word
    ccot          Concise Chain of Thought: Renze, Guven 2024, arXiv 2401.05618; the system prompt of its published code
                  (matthewrenze/jhu-concise-cot, source/agents/concise_agent.py): a chain-of-thought prompt that ends in
                  "Be concise."

Both baselines are instructions alone, without the authors' worked examples, as is usual with reasoning models. CCoT was
published for multiple choice; its three lines about naming a choice are replaced by one that asks for a box.
Both leave the thinking mode on, as the evaluation of Cumulative Entropy Regulation does (arXiv 2510.02249).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trainer.prompts.prompt import Prompt

STEP_BY_STEP = Prompt("Let's think step by step. Put your final answer in $\\boxed{}$")

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
    """A way to ask: what stands around the question, and whether the model's thinking mode is on."""

    title: str
    prompt: Prompt
    enable_thinking: bool = True
    own_prompt: bool = False  # the prompt is what the method is: neither --prompt nor the policy's own replaces it


METHODS = {
    "thinking": Method("w/ thinking", STEP_BY_STEP),
    "no_thinking": Method("w/o thinking", STEP_BY_STEP, enable_thinking=False),
    "cod": Method("CoD", Prompt(CHAIN_OF_DRAFT), own_prompt=True),
    "ccot": Method("CCoT", Prompt(CONCISE_CHAIN_OF_THOUGHT), own_prompt=True),
}
PUBLISHED_TITLES = {"cer": "CER"}  # a row of the published tables: a trained model, not a way to ask


def methods(names: list[str], prompt: Prompt | None = None) -> dict[str, Method]:
    """The methods of these names; `prompt` replaces that of thinking and no_thinking.

    Raises ValueError for a name that is none.
    """
    chosen = {}
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}: expected some of {', '.join(METHODS)}")
        method = METHODS[name]
        if prompt is not None and not method.own_prompt:
            method = dataclasses.replace(method, prompt=prompt)
        chosen[name] = method
    return chosen
