"""How a run puts its questions. In: its options.  Out: a Prompt, from --prompt, --system_prompt and --instruction."""

from trainer.datasets.problems import BOXED_INSTRUCTION
from trainer.prompts.prompt import Prompt, read_prompt
from trainer.training.arguments import RunArguments
from trainer.training.config_error import ConfigError


def prompt_of_run(run: RunArguments) -> Prompt:
    """The prompt of a run. Raises ConfigError for one that is not there or can't be read."""
    try:
        prompt = Prompt(instruction=BOXED_INSTRUCTION) if run.prompt is None else read_prompt(run.prompt)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return prompt.with_parts(system_prompt=run.system_prompt, instruction=run.instruction)
