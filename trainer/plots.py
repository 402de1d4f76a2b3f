"""python -m trainer.plots DIR... : the figures of evaluations and of training runs.

In: directories that trainer.evaluate (records) or trainer.grpo (log.jsonl) wrote; several are drawn together. Out, in
--output (default: plots/ in the first DIR), as PNG, SVG and PDF:

    teca-mean          TECA over length-normalised responses: mean and 95% band, a panel per benchmark
    teca-right-wrong   the same, right and wrong answers apart
    lengths, teca-last histograms
    case-...           one response of each run: token entropy beside TECA
    words-...          the same with every token under its bar, where the responses have at most 100 tokens
    tokens-....html    the same response as a page: tokens coloured by entropy, TECA alongside
    dial               where evaluations made early exits: accuracy against length over the thresholds, with baselines
    training           curves of length, clipped share, TECA, accuracy and reward over the steps

    python -m trainer.plots before=runs/eval-base after=runs/eval-cer --output docs/figures --format png
    python -m trainer.plots runs/tiny
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import unwind_again
from trainer.console.output_directory import output_directory
from trainer.plotting import evaluation
from trainer.plotting.case import case
from trainer.plotting.curves import Series, find_case, read_series, typical
from trainer.plotting.dial import dial, dial_points, has_sweep, settings_of
from trainer.plotting.style import FORMATS, save, style
from trainer.plotting.token_page import token_page
from trainer.plotting.training import training
from trainer.plotting.words import fits, words
from trainer.records.directories import labelled_directories
from trainer.records.record_files import Record

LOG_NAME = "log.jsonl"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.plots", description="Figures of evaluations and of training runs."
    )
    made.add_argument("directories", nargs="+", metavar="DIR", help="records or a training log; LABEL=DIR names it")
    made.add_argument("--output", type=output_directory, help="where the figures go; default: plots/ in the first DIR")
    made.add_argument("--format", default=",".join(FORMATS), help="any of png,svg,pdf; default: all three")
    made.add_argument(
        "--case",
        action="append",
        metavar="BENCHMARK/METHOD/ID[/SAMPLE]",
        help="the response shown alone; may be given several times; default: the right answer of median length of the "
        "first benchmark and method",
    )
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap; default: 0")
    return made


def main(args: argparse.Namespace) -> int:
    formats = tuple(dict.fromkeys(part.strip() for part in args.format.split(",") if part.strip()))
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"--format: expected some of {', '.join(FORMATS)}, got {', '.join(sorted(unknown))}")
    directories = labelled_directories(args.directories)
    evaluations = [(label, path) for label, path in directories if any(path.glob("records-*.jsonl"))]
    runs = [(label, path) for label, path in directories if (path / LOG_NAME).is_file()]
    for label, path in directories:
        if (label, path) not in evaluations and (label, path) not in runs:
            reason = "no such directory" if not path.is_dir() else f"neither records-*.jsonl nor {LOG_NAME} in it"
            raise FileNotFoundError(f"{path}: {reason}")
    output = args.output or directories[0][1] / "plots"
    output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with style():
        if evaluations:
            written += _evaluations(evaluations, args.case, output, formats, args.seed)
        if runs:
            written += _training(runs, [label for label, _ in directories], output, formats)
    for path in written:
        print(path)
    return 0


def _evaluations(
    directories: list[tuple[str, Path]], cases: list[str] | None, output: Path, formats: tuple[str, ...], seed: int
) -> list[Path]:
    series = read_series(directories)
    shown = [_case_records(directories, series, asked) for asked in cases or [None]]  # first: it may raise
    written = save(evaluation.mean_teca(series, seed=seed), output, "teca-mean", formats)
    written += save(evaluation.right_against_wrong(series, seed=seed), output, "teca-right-wrong", formats)
    settings = settings_of(directories)
    limits = {run: own["max_new_tokens"] for run, own in settings.items() if own.get("max_new_tokens")}
    written += save(evaluation.histogram(series, "length", limits=limits), output, "lengths", formats)
    written += save(evaluation.histogram(series, "teca"), output, "teca-last", formats)
    if has_sweep(settings):
        written += save(dial(dial_points(series, settings, seed=seed)), output, "dial", formats)
    for records in shown:
        first = records[0][1]
        name = _file_name(f"{first['benchmark']}-{first['method']}-{first['id']}")
        written += save(case(records), output, f"case-{name}", formats)
        if fits(records):
            written += save(words(records), output, f"words-{name}", formats)
        for label, record in records:
            part = f"-{_file_name(label)}" if len(directories) > 1 else ""
            path = output / f"tokens-{name}{part}.html"
            path.write_text(token_page(record), encoding="utf-8")
            written.append(path)
    return written


def _case_records(
    directories: list[tuple[str, Path]], series: list[Series], asked: str | None
) -> list[tuple[str, Record]]:
    """The same problem in every run that has it."""
    if asked is None:
        benchmark, method = series[0].benchmark, series[0].method
        problem, sample = typical(series[0])
    else:
        match = re.fullmatch(r"([^/]+)/([^/]+)/(.+?)(?:/(\d+))?", asked)
        if match is None:
            raise ValueError(f"--case: expected BENCHMARK/METHOD/ID or BENCHMARK/METHOD/ID/SAMPLE, got {asked!r}")
        benchmark, method, problem, number = match.groups()
        sample = int(number or 0)
    found = [(label, find_case(path, benchmark, method, problem, sample)) for label, path in directories]
    records = [(label, record) for label, record in found if record is not None and record["tokens"]]
    if not records:
        raise ValueError(f"no response to {benchmark}/{method}/{problem}/{sample} with a token in any directory")
    return records


def _training(
    directories: list[tuple[str, Path]], order: list[str], output: Path, formats: tuple[str, ...]
) -> list[Path]:
    from trainer.training.run_log import (
        read_log,  # imports torch and transformers, which takes seconds
    )

    logs = [(label, read_log(path / LOG_NAME)) for label, path in directories]
    made, absent = training(logs, order=order)
    if absent:
        print(f"not in the log, not drawn: {', '.join(absent)}", file=sys.stderr)
    return save(made, output, "training", formats)


def _file_name(text: str) -> str:
    """An id as part of a file's name."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("._")[:80] or "response"


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    try:
        sys.exit(main(parser().parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"trainer.plots: {error}")
    except KeyboardInterrupt:
        print("trainer.plots: interrupted", file=sys.stderr)
        sys.exit(130)
