"""Where a run starts, and whether it can: checked before a model is loaded.

In: the command's settings. Out: the checkpoint to resume from, or None; an output directory with nothing of another run
in it; or a ConfigError.
"""

from pathlib import Path

from trainer.training.checkpoints import resolve_resume
from trainer.training.config_error import ConfigError
from trainer.training.resume_settings import check_checkpoint
from trainer.training.run_directory import MADE_BY_A_RUN, DirectoryInUse, make_room, set_later_aside


def resume_point(config) -> Path | None:
    """The checkpoint that --resume_from_checkpoint means. Raises ConfigError."""
    try:
        return resolve_resume(config.resume_from_checkpoint, config.output_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_enough(problems: int, config) -> None:
    """Whether there are problems for one generation: TRL's sampler drops what does not fill one. Raises ConfigError."""
    needed = config.generation_batch_size // config.num_generations
    if problems < needed:
        raise ConfigError(
            f"dataset: {problems} problems, but one generation takes {needed} (generation_batch_size "
            f"{config.generation_batch_size} / num_generations {config.num_generations}): nothing would be trained. "
            "Give more problems, or a smaller batch"
        )


def check_resume(config, resume: Path | None, settings: dict) -> None:
    """Compares the run's settings with its checkpoint's; says what has changed. Raises ConfigError."""
    if resume is None:
        return
    changes = check_checkpoint(resume, settings, new_rate=config.deepspeed_plugin is None)
    if changes and config.process_index == 0:
        print(f"Changed since {resume.name}: {'; '.join(changes)}")


def prepare_directory(
    output_dir: str | Path, resume: Path | None, *, set_aside: bool, runs=(".",), made=MADE_BY_A_RUN
) -> None:
    """Moves files of other runs out of a run's directory; prints what was moved. Raises ConfigError."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    try:
        if resume is not None and resume.parent.resolve() == Path(output_dir).resolve():
            moved = set_later_aside(output_dir, resume)
        else:
            moved = make_room(output_dir, set_aside=set_aside, runs=runs, made=made)
    except DirectoryInUse as error:
        raise ConfigError(str(error)) from error
    if moved:
        print(moved)
