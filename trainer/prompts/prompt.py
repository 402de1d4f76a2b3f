r"""A prompt as data: the text around a question, the same in training and evaluation.

    system_prompt   a first message, or none
    examples        worked examples: each question a user turn, each answer an assistant turn
    instruction     appended to every question after a blank line, those of the examples too, or none

In: a YAML or JSON file with these keys (all optional; examples a list of {question, answer}), the name of a packaged
one, or the directory of a run.  Out: the messages of a question.

A run writes its prompt to RUN/prompt.json and beside its final model, a merge keeps it; evaluation reads it there, so
that a policy is asked as it was trained. Under different prompts, before and after could not be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.storage.atomic import write_json

FILE_NAME = "prompt.json"
PACKAGED = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """A worked example."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """See this file's header."""

    system_prompt: str | None = None
    instruction: str | None = None
    examples: tuple[Example, ...] = ()

    def messages(self, question: str, before: Sequence[dict[str, str]] = ()) -> list[dict[str, str]]:
        """The chat messages of a question; the model answers the last.

        before: turns that the data have before the question. This prompt's system turn takes the place of theirs.
        """

        def user(text: str) -> dict[str, str]:
            return {"role": "user", "content": f"{text}\n\n{self.instruction}" if self.instruction else text}

        turns = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        turns = turns or [turn for turn in before if turn["role"] == "system"]
        for example in self.examples:
            turns += [user(example.question), {"role": "assistant", "content": example.answer}]
        return [*turns, *(turn for turn in before if turn["role"] != "system"), user(question)]

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "examples": [asdict(example) for example in self.examples]}

    def with_parts(self, *, system_prompt: str | None = None, instruction: str | None = None) -> Prompt:
        """This prompt with the parts that are given; "" leaves a part out."""
        given = {"system_prompt": system_prompt, "instruction": instruction}
        return replace(self, **{name: text or None for name, text in given.items() if text is not None})


def packaged_names() -> list[str]:
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def read_prompt(wanted: str | Path) -> Prompt:
    """The prompt of a file, of a packaged name, or of a run's directory.

    Raises:
        ValueError: there is none, or it is not as this file's header says (the place is named).
    """
    path = Path(wanted).expanduser()
    if path.is_dir():
        found = prompt_of(path)
        if found is None:
            raise ValueError(f"prompt: {path} holds no {FILE_NAME}, nor does the directory above it")
        return found
    if not path.is_file():
        path = PACKAGED / f"{wanted}.yaml"
        if str(wanted) != Path(wanted).name or not path.is_file():
            raise ValueError(
                f"prompt: no file {wanted}, and no packaged one of that name ({', '.join(packaged_names())})"
            )
    return _read_file(path)


def prompt_of(directory: str | Path) -> Prompt | None:
    """The prompt that the model or adapter in a directory was trained on; None where that is not known.

    A checkpoint or final model lies in the directory of its run.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return None
    for place in (directory, directory.resolve().parent):
        if (place / FILE_NAME).is_file():
            return _read_file(place / FILE_NAME)
    return None


def write_prompt(directory: str | Path, prompt: Prompt) -> None:
    """Keep the prompt in a directory of a run."""
    write_json(Path(directory) / FILE_NAME, prompt.described())


def _read_file(path: Path) -> Prompt:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML or JSON: {error}") from error
    return from_content(content, str(path))


def from_content(content: Any, where: str) -> Prompt:
    """The prompt of a mapping. Raises ValueError for what is not as this file's header says."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a mapping with system_prompt, instruction, examples")
    if unknown := content.keys() - {"system_prompt", "instruction", "examples"}:
        raise ValueError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}")
    for name in ("system_prompt", "instruction"):
        if not isinstance(content.get(name), str | None):
            raise ValueError(f"{where}: {name} is a {type(content[name]).__name__}, expected text")
    examples = []
    for number, example in enumerate(content.get("examples") or [], start=1):
        if not isinstance(example, dict) or example.keys() != {"question", "answer"}:
            raise ValueError(f"{where}, example {number}: expected question and answer, got {example!r}")
        if not all(isinstance(text, str) and text.strip() for text in example.values()):
            raise ValueError(f"{where}, example {number}: question and answer must be text")
        examples.append(Example(**example))
    return Prompt(content.get("system_prompt") or None, content.get("instruction") or None, tuple(examples))
