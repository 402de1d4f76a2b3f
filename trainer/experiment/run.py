"""The embedded experiment: warm start, then GRPO once per reward from that start, then the table and the curves.

In: settings.  Out: an exit code, and in the output directory

    <reward>/        the run: checkpoints, log.jsonl, samples.jsonl, TensorBoard files, final/ (the trained policy),
                     result.json (its row of the table), responses.jsonl (every held-out response)
    table.md         the table, with what may be read from it
    results.json     the same numbers with settings and versions
    curves.png       accuracy, length, TECA and total entropy over the steps

With --resume_from_checkpoint, runs that ended are taken from their result.json and the interrupted one goes on.
"""

import copy
import dataclasses
import importlib.util
import json
import platform
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset

from trainer.experiment.held_out import HeldOutResponses, evaluate
from trainer.experiment.result_table import BEFORE, result_table, summarise
from trainer.experiment.warm_start import WarmStartSettings, cache_key, load, warm_start
from trainer.rewards import reward_function
from trainer.sampling.rollout import rollout
from trainer.storage.atomic import write_json, write_text
from trainer.tiny.problems import draw_problems
from trainer.training.arguments import ConfigError, RunArguments
from trainer.training.checkpoints import complete_checkpoints, resolve_resume
from trainer.training.run import build, carry_out
from trainer.training.run_log import LOG_FILE, append_line, read_log

_TRAINING_PROBLEMS = 4096


def training_data(run: RunArguments, seed: int) -> Dataset:
    """Questions as prompts of the chat template, answers as `ground_truth`."""
    count = min(_TRAINING_PROBLEMS, run.max_samples or _TRAINING_PROBLEMS)
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": problem.question}], "ground_truth": str(problem.answer)}
            for problem in draw_problems(count, seed=seed, held_out=False)
        ]
    )


def _label(reward: list[str]) -> str:
    return "+".join(reward).replace(":", ".")  # a directory's name


def _fingerprint(run: RunArguments, config, settings: WarmStartSettings, reward: list[str]) -> dict:
    """What a finished run's numbers depend on: a result with another one is not reused."""
    return {
        "warm_start": cache_key(settings),
        "reward": reward,
        "cer_weight": run.cer_weight,
        "held_out_problems": run.held_out_problems,
        "seed": config.seed,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "beta": config.beta,
        "temperature": config.temperature,
        "num_generations": config.num_generations,
        "generation_batch_size": config.generation_batch_size,
        "max_completion_length": config.max_completion_length,
    }


def _resume_point(resume: Path | None, output_dir: Path) -> Path | None:
    """Where a run goes on: at the checkpoint asked for if it is this run's, else at its newest."""
    if resume is None or resume.parent.resolve() == output_dir.resolve():
        return resume
    found = complete_checkpoints(output_dir)
    return found[-1] if found else None


def _resume_request(wanted, output_dir: Path, labels: list[str]) -> Path | None:
    """The checkpoint asked for; "last" is the newest of any run of the experiment."""
    if str(wanted).lower() in ("true", "last"):
        found = [path for label in labels for path in complete_checkpoints(output_dir / label)[-1:]]
        if not found:
            raise ConfigError(f"resume_from_checkpoint={wanted}: no complete checkpoint in {output_dir}")
        return max(found, key=lambda path: path.stat().st_mtime)
    try:
        return resolve_resume(wanted, output_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _write_responses(path: Path, responses: HeldOutResponses, problems) -> None:
    path.unlink(missing_ok=True)
    columns = dataclasses.asdict(responses)
    for index, problem in enumerate(problems):
        row = {name: values[index] for name, values in columns.items()}
        append_line(path, {"question": problem.question, "ground_truth": str(problem.answer), **row})


def _train_one(reward: list[str], start: Path, run: RunArguments, config, settings, problems, resume, command):
    """(exit code, summary) of one reward's run, from its result.json where it had ended before."""
    output_dir = Path(config.output_dir) / _label(reward)
    result_file, fingerprint = output_dir / "result.json", _fingerprint(run, config, settings, reward)
    if resume is not None and result_file.is_file():
        result = json.loads(result_file.read_text())
        if result["settings"] == fingerprint:
            return 0, result
    result_file.unlink(missing_ok=True)
    config = copy.copy(config)
    config.output_dir = str(output_dir)
    model, tokenizer = load(start)
    if reward != run.reward:
        config.reward_weights = None  # they belong to the rewards asked for, not to a control
    started = time.perf_counter()
    trainer = build(
        run,
        config,
        model=model,
        processing_class=tokenizer,
        reward_funcs=[
            reward_function(name, weight=run.cer_weight, seed=config.seed, max_length=config.max_completion_length)
            for name in reward
        ],
        train_dataset=training_data(run, config.seed),
        description=f"GRPO ({_label(reward)})",
        **({} if run.sampler == "trl" else {"rollout_func": rollout}),
    )
    code = carry_out(trainer, resume_from_checkpoint=_resume_point(resume, output_dir), command=command)
    if code != 0:
        return code, None
    responses = evaluate(
        trainer.model,
        tokenizer,
        problems,
        max_new_tokens=config.max_completion_length,
        seed=config.seed,
        description=f"held-out problems ({_label(reward)})",
    )
    _write_responses(output_dir / "responses.jsonl", responses, problems)
    result = {"settings": fingerprint, "seconds": time.perf_counter() - started, "summary": summarise(responses)}
    write_json(result_file, result)
    received = trainer.stop_signals.received  # in the last step: this run is complete, the next is not wanted
    return (128 + received if received else 0), result


def _draw_curves(output_dir: Path, labels: list[str]) -> Path:
    from trainer.plotting.style import save, style
    from trainer.plotting.training import ACCURACY, LENGTH, TECA, TOTAL_ENTROPY, training

    logs = [(label, read_log(output_dir / label / LOG_FILE)) for label in labels]
    with style():
        drawn, _ = training(logs, panels=(ACCURACY, LENGTH, TECA, TOTAL_ENTROPY))
        (path,) = save(drawn, output_dir, "curves", ("png",))
    return path


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    names = listing.read_text().split("model name\t: ")[1:] if listing.is_file() else []
    return names[0].splitlines()[0] if names else platform.processor() or platform.machine()


def run_experiment(run: RunArguments, config, command: str) -> int:
    """Carries the whole experiment out; prints and writes the table. Returns the exit code."""
    output_dir = Path(config.output_dir)
    rewards = [run.reward, *([name] for name in run.controls if [name] != run.reward)]
    resume = _resume_request(config.resume_from_checkpoint, output_dir, [_label(reward) for reward in rewards])
    settings = WarmStartSettings(design=run.tiny_design, steps=run.warm_start_steps, seed=config.seed)
    began = time.perf_counter()
    start = warm_start(settings, run.cache_dir)
    problems = draw_problems(run.held_out_problems, seed=config.seed, held_out=True)
    model, tokenizer = load(start)
    before = evaluate(
        model,
        tokenizer,
        problems,
        max_new_tokens=config.max_completion_length,
        seed=config.seed,
        description="held-out problems (before)",
    )
    seconds = {BEFORE: time.perf_counter() - began}
    summaries = {BEFORE: summarise(before)}
    for reward in rewards:
        code, result = _train_one(reward, start, run, config, settings, problems, resume, command)
        if code != 0:
            return code
        summaries[_label(reward)] = result["summary"]
        seconds[_label(reward)] = result["seconds"]
    table = result_table(summaries, design=run.tiny_design)
    write_text(output_dir / "table.md", table)
    results = {
        "design": run.tiny_design,
        "seed": config.seed,
        "rows": summaries,
        "seconds": seconds,
        "settings": _fingerprint(run, config, settings, run.reward),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
        "machine": {"cpu": _cpu_name(), "threads": torch.get_num_threads()},
    }
    write_json(output_dir / "results.json", results)
    print(f"\n{table}")
    total = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"{sum(seconds.values()):.0f} s in all ({total}). Files: {output_dir}")
    if importlib.util.find_spec("matplotlib") is None:
        print("No curves: pip install matplotlib")
    else:
        print(f"Curves: {_draw_curves(output_dir, [_label(reward) for reward in rewards])}")
    return 0
