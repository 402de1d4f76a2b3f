"""Generation of every response that a directory lacks: options in, records out.

Work is the ordered list of (problem, sample) of each benchmark and method, cut into batches of a fixed size. A batch of
which a record is missing is generated whole, so an interrupted run makes the same batches as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainer.catalogue.methods import Method, methods
from trainer.evaluation import loading
from trainer.evaluation.answers import make_record
from trainer.evaluation.benchmarks import BenchmarkProblem, load_benchmark
from trainer.evaluation.loading import ModelSource
from trainer.evaluation.progress import Progress
from trainer.evaluation.prompts import encode_prompt, prompt_to_ask, render
from trainer.evaluation.requests import Engine, Request, Sampling, request_seed
from trainer.models.names import resolve
from trainer.records.record_files import RecordWriter, record_path
from trainer.records.settings import claim_directory
from trainer.sampling.early_exit import EarlyExit, make_rule

log = logging.getLogger("trainer.evaluate")


def names(text: str, option: str) -> list[str]:
    """The names of a comma-separated list. Raises ValueError for an empty or doubled one."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise ValueError(f"{option} {text!r}: expected different names with commas between them")
    return found


def data_paths(given: list[str]) -> dict[str, str]:
    """--data BENCHMARK=PATH, as a dict."""
    paths = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--data {item!r}: expected BENCHMARK=PATH")
        paths[name] = path
    return paths


@dataclass(frozen=True)
class Work:
    """One (benchmark, method): its problems and their prompts."""

    benchmark: str
    method: str
    problems: list[BenchmarkProblem]
    prompts: list[str]
    prompt_ids: list[tuple[int, ...]]


def prepare_work(
    tokenizer: PreTrainedTokenizerBase, benchmarks: dict[str, list[BenchmarkProblem]], chosen: dict[str, Method]
) -> Iterator[Work]:
    for benchmark, problems in benchmarks.items():
        for name, method in chosen.items():
            prompts = [render(tokenizer, problem.question, method) for problem in problems]
            yield Work(benchmark, name, problems, prompts, [encode_prompt(tokenizer, prompt) for prompt in prompts])


def warn_about_template(tokenizer: PreTrainedTokenizerBase, chosen: dict[str, Method]) -> None:
    if not tokenizer.chat_template:
        log.warning("the model has no chat template: prompts are 'system prompt, Question: ..., Answer:' in plain text")
    elif "no_thinking" in chosen and "enable_thinking" not in str(tokenizer.chat_template):
        log.warning("the chat template has no enable_thinking switch: no_thinking asks as thinking does")


def generate(arguments: argparse.Namespace) -> None:
    """Generate every response that DIR lacks."""
    sampling = Sampling(
        **{name: getattr(arguments, name) for name in ("temperature", "top_p", "top_k", "min_p")},
        repetition_penalty=arguments.repetition_penalty,
        max_new_tokens=arguments.max_new_tokens,
    )
    asked = prompt_to_ask(arguments)
    chosen = methods(names(arguments.methods, "--methods"), asked)
    if arguments.engine == "vllm":
        loading.require_vllm()
    model = resolve(arguments.model)  # smollm2 and GGUF files become directories
    loading.check_source(model, arguments.adapter)
    paths = data_paths(arguments.data)
    benchmarks = {
        name: load_benchmark(name, paths.pop(name, None), arguments.data_dir, arguments.limit)
        for name in names(arguments.benchmarks, "--benchmarks")
    }
    if paths:
        raise ValueError(f"--data names {', '.join(paths)}, which --benchmarks does not")
    for benchmark in benchmarks:
        record_path(arguments.output, benchmark, "thinking")  # a name that cannot be a file's

    config = loading.load_config(model, arguments.revision)
    tokenizer = loading.load_tokenizer(model, arguments.revision)
    warn_about_template(tokenizer, chosen)
    early_exit = early_exit_rule(arguments, tokenizer)
    work = list(prepare_work(tokenizer, benchmarks, chosen))
    longest, where = max(
        (len(ids), f"{item.benchmark} {item.method}, id {problem.id}")
        for item in work
        for ids, problem in zip(item.prompt_ids, item.problems, strict=True)
    )
    loading.check_positions(longest, where, sampling, config)
    source = ModelSource(
        model,
        arguments.revision,
        arguments.adapter,
        loading.resolve_dtype(arguments.dtype, config),
        loading.resolve_device(arguments.device),
    )
    settings = {
        "mode": "generate",
        **loading.model_settings(arguments, source, config),
        "engine": arguments.engine,
        "temperature": sampling.temperature,
        "entropy_temperature": sampling.entropy_temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": arguments.seed,
        "samples": arguments.samples,
        "limit": arguments.limit,
        "early_exit": early_exit and {**dataclasses.asdict(early_exit), "text": arguments.early_exit_text},
        "prompt": None if asked is None else asked.described(),
    }
    claim_directory(arguments.output, settings, source.device)

    batch_size = arguments.batch_size or loading.default_batch_size(arguments.engine)
    engine = None
    for item in work:
        with RecordWriter(arguments.output, item.benchmark, item.method) as writer:
            check_same_problems(writer, item)
            todo = list(batches(item, arguments.samples, batch_size, writer))
            if todo and engine is None:
                engine = loading.load_engine(
                    arguments.engine,
                    source,
                    sampling,
                    tokenizer,
                    longest_prompt=longest,
                    batch_size=batch_size,
                    gpu_memory_utilization=arguments.gpu_memory_utilization,
                    seed=arguments.seed,
                    early_exit=early_exit,
                )
            with Progress(writer, len(item.problems) * arguments.samples) as progress:
                for batch in todo:
                    generate_batch(engine, tokenizer, item, batch, arguments.seed, writer, progress)


def early_exit_rule(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> EarlyExit | None:
    """The rule of --early_exit. Raises ValueError for one that the model cannot follow or that could never fire."""
    if arguments.early_exit is None:
        return None
    return make_rule(
        tokenizer,
        arguments.early_exit,
        min_tokens=arguments.early_exit_min_tokens,
        window=arguments.early_exit_window,
        text=arguments.early_exit_text,
        max_new_tokens=arguments.max_new_tokens,
    )


def check_same_problems(writer: RecordWriter, item: Work) -> None:
    """Raise ValueError if the file holds records of other problems under the same ids."""
    problems = {problem.id: problem for problem in item.problems}
    for (identity, _), (question, ground_truth, _, _) in writer.written.items():
        problem = problems.get(identity)
        if problem is None or (problem.question, problem.ground_truth) != (question, ground_truth):
            raise ValueError(
                f"{writer.path} holds id {identity!r} with another question or answer than the data of "
                f"{item.benchmark} has now: the data changed. Give the data that it was made with, or another --output"
            )


def batches(item: Work, samples: int, batch_size: int, writer: RecordWriter) -> Iterator[list[tuple[int, int]]]:
    """(problem, sample) pairs, in fixed batches; those that are written already are left out as a whole."""
    everything = [(number, sample) for number in range(len(item.problems)) for sample in range(samples)]
    for start in range(0, len(everything), batch_size):
        batch = everything[start : start + batch_size]
        if any((item.problems[number].id, sample) not in writer.written for number, sample in batch):
            yield batch


def generate_batch(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    item: Work,
    batch: list[tuple[int, int]],
    seed: int,
    writer: RecordWriter,
    progress: Progress,
) -> None:
    """Generate a batch of (problem, sample) pairs and write those that are not written yet."""

    def seed_of(number: int, sample: int) -> int:
        return request_seed(seed, item.benchmark, item.method, item.problems[number].id, sample)

    responses = engine.generate(
        [Request(item.prompt_ids[number], seed_of(number, sample)) for number, sample in batch], progress.step
    )
    records = [
        make_record(
            tokenizer,
            response,
            identity=item.problems[number].id,
            benchmark=item.benchmark,
            method=item.method,
            sample=sample,
            question=item.problems[number].question,
            ground_truth=item.problems[number].ground_truth,
            prompt=item.prompts[number],
        )
        for (number, sample), response in zip(batch, responses, strict=True)
        if (item.problems[number].id, sample) not in writer.written
    ]
    writer.append(records)
    progress.add(records)
