"""python -m trainer.report DIR... : the tables of one or several evaluations.

In: directories that trainer.evaluate wrote. Out, on standard output: accuracy, length and dLEN per benchmark and
averaged, pass@k, clipped share, TECA of right and wrong answers, each with a 95% interval, as markdown, CSV or LaTeX.
Runs that are incomplete or do not match are named below the table, and never averaged.

    python -m trainer.report runs/eval                                  one run, all its methods
    python -m trainer.report base=runs/eval-base cer=runs/eval-cer      two runs; dLEN against the first one's thinking
    python -m trainer.report --compare runs/eval-base runs/eval-cer     paired differences
    python -m trainer.report --published                                the published tables, checked
"""

from __future__ import annotations

import argparse
import sys

from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import unwind_again
from trainer.records.directories import labelled_directories
from trainer.reporting import report_tables, tidy
from trainer.reporting.comparison import compare
from trainer.reporting.results import Row, summarise
from trainer.reporting.runs import Run, load_run
from trainer.reporting.table import Table, to_latex, to_markdown


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description="Tables of evaluations: accuracy, length, dLEN, pass@k, clipped share, TECA; with 95% intervals.",
    )
    made.add_argument("directories", nargs="*", metavar="DIR", help="what trainer.evaluate wrote; LABEL=DIR names it")
    made.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown", help="default: markdown")
    made.add_argument(
        "--baseline",
        metavar="LABEL:METHOD",
        help="what dLEN refers to: LABEL:METHOD, a LABEL (its thinking) or a METHOD; default: the first DIR's thinking",
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="B against A on the problems both have; each LABEL or DIR of above, or another DIR, with :METHOD where "
        "the two have different methods",
    )
    made.add_argument("--pass_at", metavar="K,K", help="the k of pass@k; default: 1, 2, 4, ... up to the samples")
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap; default: 0")
    made.add_argument("--no_intervals", action="store_true", help="leave the intervals out of markdown and LaTeX")
    made.add_argument("--published", action="store_true", help="the published results, and which don't follow")
    return made


def main(args: argparse.Namespace) -> int:
    if not (args.directories or args.compare or args.published):
        raise ValueError("nothing to report: give directories, --compare or --published")
    runs = [load_run(label, path) for label, path in labelled_directories(args.directories)]
    made: list[Table] = []
    rows: list[tuple] = []
    if runs:
        pass_at = [_positive(k) for k in args.pass_at.split(",")] if args.pass_at else None
        results = summarise(runs, baseline=args.baseline, pass_at=pass_at, seed=args.seed)
        made += report_tables.result_tables(results, seed=args.seed, intervals=not args.no_intervals)
        rows += tidy.results_csv(results)
    if args.compare:
        for a, b in _pairs(args.compare, runs):
            found = compare(a, b, seed=args.seed)
            made.append(report_tables.comparison_table(a, b, found, seed=args.seed))
            rows += tidy.comparison_csv(a, b, found)
    if args.published:
        made += report_tables.published_tables()
        rows += tidy.published_csv()
    if args.format == "csv":
        print(tidy.to_csv(rows))
    else:
        write = to_markdown if args.format == "markdown" else to_latex
        print("\n\n".join(write(table) for table in made))
    return 0


def _positive(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--pass_at: expected positive integers, got {text!r}")
    return int(text)


def _pairs(asked: list[str], runs: list[Run]) -> list[tuple[Row, Row]]:
    """The rows that --compare names: one pair per method that both have, or the one pair named by :METHOD."""
    known = {run.label: run for run in runs} | {str(run.directory): run for run in runs}
    sides: list[tuple[Run, str | None]] = []
    for text in asked:
        name, method = text, None
        if text not in known and ":" in text:
            name, _, method = text.rpartition(":")
        if name not in known:
            ((label, path),) = labelled_directories([name])
            known[name] = load_run(label, path)
        sides.append((known[name], method))
    (a, method_a), (b, method_b) = sides
    if a.label == b.label and a.directory != b.directory:
        a.label, b.label = str(a.directory), str(b.directory)
    if method_a is None and method_b is None:
        shared = [method for method in a.methods() if method in b.methods()]
        if not shared:
            raise ValueError(
                f"{a.label} has {', '.join(a.methods())} and {b.label} has {', '.join(b.methods())}: no method in "
                "common; name one each as DIR:METHOD"
            )
        return [(Row(a, method), Row(b, method)) for method in shared]
    pair = [Row(a, method_a or method_b or ""), Row(b, method_b or method_a or "")]
    for row in pair:
        if row.method not in row.run.methods():
            raise ValueError(f"{row.run.label} has no method {row.method!r}; it has {', '.join(row.run.methods())}")
    return [(pair[0], pair[1])]


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    try:
        sys.exit(main(parser().parse_args()))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"trainer.report: {error}")
    except KeyboardInterrupt:
        print("trainer.report: interrupted", file=sys.stderr)
        sys.exit(130)
