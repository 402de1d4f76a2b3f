"""python -m trainer.grpo [--config RECIPE] [options]: recipe -> data -> trainer.

Without arguments: the embedded experiment of trainer/tiny, on any machine. `--help` explains every option of ours;
every option of trl.GRPOConfig and trl.ModelConfig is accepted as well. A wrong command line is refused before any model
is loaded. Exit codes: 0 done, 1 failed, 2 wrong command line, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and
SIGTERM.
"""

import contextlib
import errno
import sys
from pathlib import Path

from trainer.catalogue.data_sets import DATA_SETS
from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import ending_at_once, unwind_again
from trainer.sampling import vllm_support
from trainer.training import arguments
from trainer.training.launch import check_launch, sharding_asked_for

STOPPED = "\nStopped."


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(arguments.help_text())
        return 0
    if "--help-trl" in argv:
        arguments.make_parser().print_help()
        return 0
    try:
        with ending_at_once(STOPPED), vllm_support.trl_version_warnings_quiet():
            run, config, model = arguments.parse(argv)
        check_launch(config)
        if config.use_vllm:
            vllm_support.prepare_environment(cpu=config.device.type == "cpu")
        _quiet(config)
        command = arguments.command_without_resume(argv)
        with _this_process_alone(config, command):
            if run.dataset == arguments.TINY:
                with ending_at_once(STOPPED):
                    from trainer.experiment.run import run_experiment

                return run_experiment(run, config, command)
            return train(run, config, model, command)
    except arguments.ConfigError as error:
        return arguments.fail(error)
    except OSError as error:  # training handles its own
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"Stopped: the disk is full ({error}). Free some space; what was saved stays.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # training handles its own
        print(STOPPED, file=sys.stderr)
        return 130


def _this_process_alone(config, command: str):
    """The output directory's lock; the first process of a run holds it. Raises ConfigError."""
    from trainer.training.run_directory import DirectoryInUse, locked

    @contextlib.contextmanager
    def held():
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(config.output_dir, command))
            except DirectoryInUse as error:
                raise arguments.ConfigError(str(error)) from error
            yield

    return held() if config.process_index == 0 else contextlib.nullcontext()


def _quiet(config) -> None:
    """Turns off transformers' progress bars and notes, so that the console shows our table alone."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    if config.log_level == "passive":
        transformers.utils.logging.set_verbosity_error()


def _prompt_is_asked_for(run: arguments.RunArguments) -> bool:
    return any(part is not None for part in (run.prompt, run.system_prompt, run.instruction))


def _prompt_that_asked(run: arguments.RunArguments, prompt, problems):
    """The prompt that the problems were made with; an empty one where the data already holds messages."""
    from trainer.prompts.prompt import Prompt

    first = problems[0]
    if _prompt_is_asked_for(run) or first["prompt"] == prompt.messages(first["question"]):
        return prompt
    return Prompt()


def _problems(run: arguments.RunArguments, config, tokenizer, prompt) -> tuple:
    """The problems for training and for evaluation (None: no evaluation), without prompts that are too long.

    Raises ConfigError.
    """
    from trainer.datasets import DataError, load_problems

    if run.enable_thinking is not None:
        config.chat_template_kwargs = {**(config.chat_template_kwargs or {}), "enable_thinking": run.enable_thinking}
    evaluation = None
    bad_rows = [] if run.skip_bad_rows else None
    common = {
        "data_dir": run.data_dir,
        "prompt": prompt,
        "prompt_of_messages": prompt if _prompt_is_asked_for(run) else None,
        "bad_rows": bad_rows,
    }
    try:
        problems = load_problems(
            run.dataset,
            split=run.dataset_split,
            config=run.dataset_config,
            question_column=run.question_column,
            answer_column=run.answer_column,
            max_samples=run.max_samples,
            **common,
        )
        if run.eval_dataset is not None:
            evaluation = load_problems(
                run.eval_dataset,
                split="test" if run.eval_dataset in DATA_SETS else None,
                max_samples=run.eval_samples,
                **common,
            )
        if bad_rows and config.process_index == 0:
            print(f"skip_bad_rows: {len(bad_rows)} rows left out; the first: {bad_rows[0]}")
        problems = _short_enough(problems, run, config, tokenizer)
        if evaluation is not None:
            evaluation = _short_enough(evaluation, run, config, tokenizer)
        elif run.eval_samples is not None:
            problems, evaluation = _hold_out(problems, run.eval_samples)
    except DataError as error:
        raise arguments.ConfigError(f"dataset: {error}") from error
    return problems, evaluation


def _short_enough(problems, run: arguments.RunArguments, config, tokenizer):
    from trainer.datasets import filter_by_length

    if run.max_prompt_length is None:
        return problems
    problems, report = filter_by_length(
        problems, tokenizer, run.max_prompt_length, chat_template_kwargs=config.chat_template_kwargs
    )
    if config.process_index == 0:
        print(report)
    return problems


def _hold_out(problems, count: int) -> tuple:
    """The last `count` problems are evaluated and never trained on."""
    if count >= len(problems):
        raise arguments.ConfigError(f"eval_samples is {count}, but there are only {len(problems)} problems: give fewer")
    first = len(problems) - count
    return problems.select(range(first)), problems.select(range(first, len(problems)))


def train(run: arguments.RunArguments, config, model_config, command: str) -> int:
    """Trains one policy on one data set. Returns the exit code."""
    with ending_at_once(STOPPED):
        from trl import get_peft_config, get_quantization_config

        from trainer.rewards import reward_function
        from trainer.sampling.rollout import rollout
        from trainer.training import resume_settings, start
        from trainer.training.policy import find_weights, load_policy, load_policy_tokenizer
        from trainer.training.run import build, carry_out, keep_prompt
        from trainer.training.run_prompt import prompt_of_run

    resume = start.resume_point(config)
    find_weights(model_config, config, run.cache_dir)
    tokenizer = load_policy_tokenizer(model_config, config)
    prompt = prompt_of_run(run)
    problems, evaluation = _problems(run, config, tokenizer, prompt)
    prompt = _prompt_that_asked(run, prompt, problems)
    start.check_enough(len(problems), config)
    settings = resume_settings.settings(
        run,
        config,
        model_config,
        processes=config.world_size,
        sharding=sharding_asked_for(config),
        training_data=resume_settings.data_digest(problems),
    )
    start.check_resume(config, resume, settings)
    if config.process_index == 0:
        start.prepare_directory(config.output_dir, resume, set_aside=run.set_aside_older_run)
    keep_prompt(config, prompt)
    embedded = arguments.samples_itself(run, config, model_config.model_name_or_path)
    trainer = build(
        run,
        config,
        model=load_policy(model_config, config, tokenizer),
        processing_class=tokenizer,
        reward_funcs=[
            reward_function(name, weight=run.cer_weight, seed=config.seed, max_length=config.max_completion_length)
            for name in run.reward
        ],
        train_dataset=problems,
        eval_dataset=evaluation,
        description=Path(config.output_dir).name,
        settings=settings,
        peft_config=get_peft_config(model_config),
        quantization_config=get_quantization_config(model_config),
        **({"rollout_func": rollout} if embedded else {}),
    )
    return carry_out(trainer, resume_from_checkpoint=resume, command=command)


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    sys.exit(main())
