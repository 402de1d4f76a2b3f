"""One GRPO run: the trainer class that the program uses, built and carried to its end.

In: settings, model, tokenizer, data, reward functions.  Out: an exit code, and the run's files in its output directory.

    CERTrainer        TRL's GRPO with the fused head and TECA for the rewards
    CheckpointMixin   checkpoints that are whole, resumed to the same numbers
    SurvivalMixin     signals and failures
    MeasuredMixin     timings, samples
"""

import warnings
from pathlib import Path

from trainer.cer_trainer import CERTrainer
from trainer.training import survival
from trainer.training.arguments import RunArguments
from trainer.training.checkpoints import CheckpointMixin, remove_leftovers
from trainer.training.run_log import MeasuredMixin, report_here


class GRPORun(MeasuredMixin, survival.SurvivalMixin, CheckpointMixin, CERTrainer):
    """CERTrainer with whole checkpoints, survival and measurements."""


def build(
    run: RunArguments,
    config,
    *,
    model,
    reward_funcs: list,
    train_dataset,
    description: str = "train",
    settings: dict | None = None,
    **trl,
):
    """A GRPORun with the program's callbacks.

    Args:
        settings: what checkpoints say that they were made with (trainer/training/resume_settings.py).
        description: stands before the progress bar.
        trl: goes to the trainer as it is (processing_class, peft_config, rollout_func, ...).
    """
    with warnings.catch_warnings():  # rollout_func is TRL's own hook; that it may change is said in our contract test
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        trainer = GRPORun(model=model, reward_funcs=reward_funcs, args=config, train_dataset=train_dataset, **trl)
    trainer.run_settings = settings
    report_here(trainer, description=description, samples_per_log=run.samples_per_log)
    return trainer


def carry_out(trainer: GRPORun, *, resume_from_checkpoint: Path | None, command: str) -> int:
    """Trains to the end; saves the model there. The exit code: 0, or what trainer/training/survival.py says."""
    if trainer.args.should_save:
        remove_leftovers(trainer.args.output_dir)
    code = survival.train(trainer, resume_from_checkpoint=resume_from_checkpoint, command=command)
    return survival.save_final(trainer, command=command) if code == 0 else code
