"""One GRPO run: the trainer class that the program uses, built and carried to its end.

In: settings, model, tokenizer, data, reward functions.  Out: an exit code, and the run's files in its output directory.

    CERTrainer        TRL's GRPO with the fused head and TECA for the rewards
    CheckpointMixin   checkpoints that are whole, resumed to the same numbers
    SurvivalMixin     signals and failures
    MeasuredMixin     timings, samples
"""

import warnings
from pathlib import Path

from transformers import TrainerCallback

from trainer.cer_trainer import CERTrainer
from trainer.prompts.prompt import Prompt, prompt_of, write_prompt
from trainer.sampling.early_exit import EarlyExit, make_rule
from trainer.training import survival
from trainer.training.arguments import ConfigError, RunArguments
from trainer.training.checkpoints import CheckpointMixin, remove_leftovers
from trainer.training.launch import check_wrapped, what_wraps
from trainer.training.run_log import MeasuredMixin, report_here


class GRPORun(MeasuredMixin, survival.SurvivalMixin, CheckpointMixin, CERTrainer):
    """CERTrainer with whole checkpoints, survival and measurements."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        # CERTrainer hands TECA to the reward functions; their results are checked before they are used.
        with survival.reward_failures(self.reward_func_names), self.listening_for_nan() as heard:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.check_rewards(rewards, gave_nan=heard.nan)
        self.keep_samples(prompts, completions, completion_ids_list, rewards)
        return rewards


class _WrappedAsAskedFor(TrainerCallback):
    """Stops a run whose model is not sharded as its configuration says, before its first step."""

    def __init__(self, trainer: GRPORun):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        check_wrapped(what_wraps(self.trainer), args)


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

    Raises ConfigError for an early exit that the model cannot make, and where vLLM's server is not there.
    """
    ours = {"teca_source": run.teca_source, "share_prompts": run.share_prompts, "head_mode": run.head_mode}
    ours["early_exit"] = _early_exit(run, config, trl.get("processing_class"))
    with warnings.catch_warnings():  # rollout_func is TRL's own hook; that it may change is said in our contract test
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        try:
            trainer = GRPORun(
                model=model, reward_funcs=reward_funcs, args=config, train_dataset=train_dataset, **ours, **trl
            )
        except ConnectionError as error:
            raise ConfigError(str(error)) from error
    trainer.run_settings = settings
    trainer.add_callback(_WrappedAsAskedFor(trainer))
    report_here(trainer, description=description, samples_per_log=run.samples_per_log)
    return trainer


def _early_exit(run: RunArguments, config, tokenizer) -> EarlyExit | None:
    if run.early_exit is None:
        return None
    try:
        return make_rule(
            tokenizer,
            run.early_exit,
            min_tokens=run.early_exit_min_tokens,
            window=run.early_exit_window,
            text=run.early_exit_text,
            max_new_tokens=config.max_completion_length,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def keep_prompt(config, prompt: Prompt) -> None:
    """Write the run's prompt into its output directory, where evaluation finds it.

    A resumed run has the same one: prompts are part of the training data, and other data are refused before this.
    """
    if config.should_save:
        write_prompt(config.output_dir, prompt)


def carry_out(trainer: GRPORun, *, resume_from_checkpoint: Path | None, command: str) -> int:
    """Trains to the end; saves the model there. The exit code: 0, or what trainer/training/survival.py says."""
    if trainer.args.should_save:
        remove_leftovers(trainer.args.output_dir)
    code = survival.train(trainer, resume_from_checkpoint=resume_from_checkpoint, command=command)
    if code != 0:
        return code
    code = survival.save_final(trainer, command=command)
    prompt = prompt_of(trainer.args.output_dir)
    if code == 0 and prompt is not None and trainer.args.should_save:
        write_prompt(Path(trainer.args.output_dir) / "final", prompt)  # a copy of the policy keeps its prompt
    return code
