"""python -m trainer.grpo [--config RECIPE] [options]: recipe -> data -> trainer.

Without arguments: the embedded experiment of trainer/tiny, on any machine. `--help` explains every option of ours;
every option of trl.GRPOConfig and trl.ModelConfig is accepted as well. What is wrong with a command line is said before
any model is loaded. Exit codes: 0 done, 1 failed, 2 wrong command line, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import sys
from pathlib import Path

from trainer.sampling import vllm_support
from trainer.training import arguments


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
        with vllm_support.trl_version_warnings_quiet():
            run, config, model = arguments.parse(argv)
        if config.use_vllm:
            vllm_support.prepare_environment(cpu=config.device.type == "cpu")
        _quiet(config)
        command = arguments.command_without_resume(argv)
        if run.dataset == arguments.TINY:
            from trainer.experiment.run import run_experiment

            return run_experiment(run, config, command)
        return train(run, config, model, command)
    except arguments.ConfigError as error:
        return arguments.fail(error)
    except KeyboardInterrupt:  # outside of training, which has its own way to stop
        print("\nStopped.", file=sys.stderr)
        return 130


def _quiet(config) -> None:
    """Keeps the console for our table: transformers' bars over single files and notes are left out."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    if config.log_level == "passive":
        transformers.utils.logging.set_verbosity_error()


def prompt_of_run(run: arguments.RunArguments):
    """How this run puts its questions. Raises ConfigError."""
    from trainer.datasets import BOXED_INSTRUCTION
    from trainer.prompts.prompt import Prompt, read_prompt

    try:
        prompt = Prompt(instruction=BOXED_INSTRUCTION) if run.prompt is None else read_prompt(run.prompt)
    except ValueError as error:
        raise arguments.ConfigError(str(error)) from error
    return prompt.with_parts(system_prompt=run.system_prompt, instruction=run.instruction)


def _problems(run: arguments.RunArguments, config, tokenizer, prompt):
    """The training problems, without those whose prompt is too long. Raises ConfigError."""
    from trainer.datasets import DataError, filter_by_length, load_problems

    if run.enable_thinking is not None:
        config.chat_template_kwargs = {**(config.chat_template_kwargs or {}), "enable_thinking": run.enable_thinking}
    try:
        problems = load_problems(
            run.dataset,
            data_dir=run.data_dir,
            split=run.dataset_split,
            config=run.dataset_config,
            question_column=run.question_column,
            answer_column=run.answer_column,
            prompt=prompt,
            max_samples=run.max_samples,
        )
        if run.max_prompt_length is not None:
            problems, report = filter_by_length(
                problems, tokenizer, run.max_prompt_length, chat_template_kwargs=config.chat_template_kwargs
            )
            if config.process_index == 0:
                print(report)
    except DataError as error:
        raise arguments.ConfigError(f"dataset: {error}") from error
    return problems


def train(run: arguments.RunArguments, config, model_config, command: str) -> int:
    """Trains one policy on one data set. Returns the exit code."""
    from trl import get_peft_config, get_quantization_config

    from trainer.rewards import reward_function
    from trainer.sampling.rollout import rollout
    from trainer.training.checkpoints import resolve_resume
    from trainer.training.policy import find_weights, load_policy, load_policy_tokenizer
    from trainer.training.run import build, carry_out, keep_prompt

    try:
        resume = resolve_resume(config.resume_from_checkpoint, config.output_dir)
    except ValueError as error:
        raise arguments.ConfigError(str(error)) from error
    find_weights(model_config, config, run.cache_dir)
    tokenizer = load_policy_tokenizer(model_config, config)
    prompt = prompt_of_run(run)
    dataset = _problems(run, config, tokenizer, prompt)
    keep_prompt(config, prompt, is_resumed=resume is not None)
    embedded = run.sampler == "embedded" or (
        run.sampler == "auto"
        and model_config.model_name_or_path == arguments.TINY_BYTES
        and not arguments.shards_the_model(config)
    )
    trainer = build(
        run,
        config,
        model=load_policy(model_config, config, tokenizer),
        processing_class=tokenizer,
        reward_funcs=[
            reward_function(name, weight=run.cer_weight, seed=config.seed, max_length=config.max_completion_length)
            for name in run.reward
        ],
        train_dataset=dataset,
        description=Path(config.output_dir).name,
        peft_config=get_peft_config(model_config),
        quantization_config=get_quantization_config(model_config),
        **({"rollout_func": rollout} if embedded and not config.use_vllm else {}),
    )
    return carry_out(trainer, resume_from_checkpoint=resume, command=command)


if __name__ == "__main__":
    sys.exit(main())
