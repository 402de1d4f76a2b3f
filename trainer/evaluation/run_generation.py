"""Generation of every response that a directory lacks: options in, records out.

Work is one list of (problem, sample) over all benchmarks and methods; as many as the batch holds are decoded at once,
and a response that ends gives its place to the next of the list. It is written when it ends, so a kill loses what was
under way and nothing else, and no batch waits for its longest response. A response is drawn with its own seed; the
others in the batch change the rounding of matrix products and, rarely, a token.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator
from contextlib import ExitStack
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
            prompts = [render(tokenizer, problem.question, method, problem.turns) for problem in problems]
            yield Work(benchmark, name, problems, prompts, [encode_prompt(tokenizer, prompt) for prompt in prompts])


def warn_about_template(tokenizer: PreTrainedTokenizerBase, chosen: dict[str, Method]) -> None:
    if not tokenizer.chat_template:
        log.warning("the model has no chat template: prompts are 'system prompt, Question: ..., Answer:' in plain text")
    elif "no_thinking" in chosen and "enable_thinking" not in str(tokenizer.chat_template):
        log.warning(
            "the chat template has no enable_thinking switch: no_thinking asks as thinking does%s",
            ", and is left out beside it" if "thinking" in chosen else "",
        )


def without_twins(work: list[Work]) -> list[Work]:
    """Keeps the first of the works of a benchmark whose prompts are the same: two names do not make two methods."""
    kept: dict[tuple, Work] = {}
    for item in work:
        kept.setdefault((item.benchmark, tuple(item.prompt_ids)), item)
    return list(kept.values())


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
    bad_rows = [] if arguments.skip_bad_rows else None
    benchmarks = {
        name: load_benchmark(name, paths.pop(name, None), arguments.data_dir, arguments.limit, bad_rows)
        for name in names(arguments.benchmarks, "--benchmarks")
    }
    if bad_rows:
        log.warning("skip_bad_rows: %d rows left out; the first: %s", len(bad_rows), bad_rows[0])
    if paths:
        raise ValueError(f"--data names {', '.join(paths)}, which --benchmarks does not")
    for benchmark in benchmarks:
        record_path(arguments.output, benchmark, "thinking")  # a name that cannot be a file's

    config = loading.load_config(model, arguments.revision)
    tokenizer = loading.load_tokenizer(model, arguments.revision)
    warn_about_template(tokenizer, chosen)
    early_exit = early_exit_rule(arguments, tokenizer)
    work = without_twins(list(prepare_work(tokenizer, benchmarks, chosen)))
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

    with ExitStack() as stack:
        writers = [stack.enter_context(RecordWriter(arguments.output, item.benchmark, item.method)) for item in work]
        for item, writer in zip(work, writers, strict=True):
            check_same_problems(writer, item)
        todo = list(missing(work, writers, arguments.samples))
        if not todo:
            return
        slots = arguments.batch_size or loading.default_batch_size(arguments.engine)
        engine = loading.load_engine(
            arguments.engine,
            source,
            sampling,
            tokenizer,
            longest_prompt=longest,
            batch_size=slots,
            gpu_memory_utilization=arguments.gpu_memory_utilization,
            seed=arguments.seed,
            early_exit=early_exit,
        )
        total = sum(len(item.problems) for item in work) * arguments.samples
        description = f"{work[0].benchmark} {work[0].method}" if len(work) == 1 else f"{len(work)} files"
        progress = stack.enter_context(Progress(description, total, writers))
        write_responses(engine, tokenizer, work, writers, todo, arguments.seed, slots, progress)


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


@dataclass(frozen=True)
class Missing:
    """A response that no file holds yet: which work, which of its problems, which sample."""

    work: int
    problem: int
    sample: int


def missing(work: list[Work], writers: list[RecordWriter], samples: int) -> Iterator[Missing]:
    """In the order of the files, their problems, their samples."""
    for index, (item, writer) in enumerate(zip(work, writers, strict=True)):
        for number, problem in enumerate(item.problems):
            for sample in range(samples):
                if (problem.id, sample) not in writer.written:
                    yield Missing(index, number, sample)


def write_responses(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    work: list[Work],
    writers: list[RecordWriter],
    todo: list[Missing],
    seed: int,
    slots: int,
    progress: Progress,
) -> None:
    """Generate what is missing; each response is written to the disk as soon as it ends."""
    requests = []
    for one in todo:
        item = work[one.work]
        own_seed = request_seed(seed, item.benchmark, item.method, item.problems[one.problem].id, one.sample)
        requests.append(Request(item.prompt_ids[one.problem], own_seed))
    for number, response in engine.stream(requests, slots=slots, on_step=progress.step):
        one = todo[number]
        item = work[one.work]
        problem = item.problems[one.problem]
        record = make_record(
            tokenizer,
            response,
            identity=problem.id,
            benchmark=item.benchmark,
            method=item.method,
            sample=one.sample,
            question=problem.question,
            ground_truth=problem.ground_truth,
            prompt=item.prompts[one.problem],
        )
        writers[one.work].append([record])
        progress.add([record], last_tokens_only=engine.tells_steps)
