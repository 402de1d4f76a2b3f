"""python -m trainer.experiment: a policy before and after training, by CER and by the rewards it must be compared with.

In: a recipe of trainer.grpo whose data set has a held-out split.  Out, in --output:

    runs/REWARD-seedS/         the training runs
    evaluation/POLICY/         every held-out response with its entropies
    results.json, table.md     settings, commands, and numbers per policy; the same as a table
    figures/                   TECA over the response, lengths, training curves
    responses.md               three responses before and after, to be read

    python -m trainer.experiment                               # smollm2_sums: four rewards, one seed, some CPU hours
    python -m trainer.experiment --seeds 0 1 --samples 4       # adds to what is there
    python -m trainer.experiment --quick                       # the same path in minutes; its numbers mean nothing
    python -m trainer.experiment --list                        # the commands, and which of them ended

Every stage is a command of the project's own (stages.py) and goes on where it was interrupted; so does this one. The
table is written anew after every stage, from what is there.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import unwind_again
from trainer.experiment.stages import BEFORE, Plan, Stage, figures, stages

_QUICK = ("--max_steps", "1", "--completions_per_update", "4", "--num_generations", "2")
_QUICK += ("--per_device_train_batch_size", "4", "--max_completion_length", "8", "--save_strategy", "no")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.experiment",
        description="A policy before and after training, by CER and by the rewards it must be compared with.",
        epilog="Options after -- go to trainer.grpo. The same command goes on where it was interrupted.",
    )
    made.add_argument("--config", default="smollm2_sums", help="recipe of trainer.grpo; default: smollm2_sums")
    made.add_argument(
        "--rewards",
        nargs="+",
        default=["cer", "total_entropy", "accuracy", "length_penalty"],
        help="one run each; default: cer total_entropy accuracy length_penalty",
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    made.add_argument("--problems", type=int, default=256, help="held-out problems; default: 256")
    made.add_argument("--samples", type=int, default=1, help="responses to each; default: 1")
    made.add_argument("--output", type=Path, help="default: runs/experiment-RECIPE")
    made.add_argument("--quick", action="store_true", help="one tiny step and four problems: proves the path")
    made.add_argument("--list", action="store_true", help="print the commands and which of them ended")
    made.add_argument("options", nargs="*", metavar="OPTION", help="after --: options of trainer.grpo")
    return made


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The plan of a command line. Raises ValueError for what can't be compared."""
    from trainer.prompts.prompt import write_prompt
    from trainer.training.arguments import TINY, parse
    from trainer.training.run_prompt import prompt_of_run

    output = arguments.output or Path("runs") / f"experiment-{Path(arguments.config).stem}"
    options = (*(_QUICK if arguments.quick else ()), *arguments.options)
    run, config, model = parse(["--config", arguments.config, "--output_dir", str(output), *options])
    if run.dataset == TINY:
        raise ValueError("the embedded experiment is python -m trainer.grpo, which compares by itself")
    write_prompt(output, prompt_of_run(run))
    return Plan(
        output=output,
        recipe=arguments.config,
        model=model.model_name_or_path,
        dtype=model.dtype or "auto",
        dataset=run.dataset,
        temperature=config.temperature,
        max_new_tokens=config.max_completion_length,
        rewards=tuple(arguments.rewards[:2] if arguments.quick else arguments.rewards),
        seeds=tuple(arguments.seeds),
        problems=4 if arguments.quick else arguments.problems,
        samples=arguments.samples,
        options=options,
    )


def as_a_process(stage: Stage) -> int:
    """Run a stage as a person would; its exit code."""
    return subprocess.run(stage.words(), check=False).returncode


def main(arguments: argparse.Namespace, run: Callable[[Stage], int] = as_a_process) -> int:
    """Every stage that has not ended, in order; then the figures. The exit code of the first that failed, or 0."""
    plan = make_plan(arguments)
    number = len(stages(plan))
    if arguments.list:
        for stage in stages(plan):
            print(f"{'ended' if stage.ended else 'open ':6} {stage.shown()}")
        return 0
    for index in range(number):
        stage = stages(plan)[index]  # again, because a stage's output decides how the next one is called
        if stage.ended:
            continue
        print(f"[{index + 1}/{number}] {stage.name}: {stage.shown()}", flush=True)
        if code := run(stage):
            print(f"stopped: {stage.name} ended with {code}; the same command goes on there", file=sys.stderr)
            return code
        report(plan)
    report(plan)
    draw = figures(plan)
    print(draw.shown(), flush=True)
    if code := run(draw):
        return code
    print((plan.output / "table.md").read_text(encoding="utf-8"))
    return 0


def report(plan: Plan) -> None:
    """Write results.json, table.md and responses.md from what is there."""
    from trainer.experiment.policies_compared import compare, table
    from trainer.experiment.reading_page import reading_page
    from trainer.records.settings import provenance
    from trainer.storage.atomic import write_json, write_text

    found = compare(plan)
    if not found:
        return
    write_json(
        plan.output / "results.json",
        {
            "settings": {
                name: getattr(plan, name) for name in ("recipe", "model", "dtype", "dataset", "problems", "samples")
            }
            | {"temperature": plan.temperature, "max_new_tokens": plan.max_new_tokens, "options": list(plan.options)},
            "commands": [stage.shown() for stage in stages(plan)],
            "policies": found,
            "provenance": {
                **provenance("cpu"),
                "command": shlex.join(["python", "-m", "trainer.experiment", *sys.argv[1:]]),
            },
        },
    )
    write_text(plan.output / "table.md", table(found, plan))
    if len(found) > 1:
        after = next(policy for policy in found if policy != BEFORE)
        write_text(plan.output / "responses.md", reading_page(plan, after))


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    try:
        sys.exit(main(parser().parse_args()))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on here", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
