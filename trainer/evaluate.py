"""A model or adapter on benchmarks, or the entropies of responses that exist already.

    benchmarks, methods, model  ->  DIR/settings.json, DIR/records-{benchmark}-{method}.jsonl
    --score FILE, model         ->  the same, for the responses in FILE, teacher-forced

The records hold text, grade, length and, for every response token, entropy and TECA (trainer/records/record_files.py).
The same command continues a run, however it ended: finished responses are kept, unfinished ones are repeated.

    python -m trainer.evaluate --model Qwen/Qwen3-4B --benchmarks gsm8k,aime24 --methods thinking,cod --output base
    python -m trainer.evaluate --model Qwen/Qwen3-4B --adapter run/checkpoint-100 --benchmarks gsm8k --output cer
    python -m trainer.evaluate --model M --score base/records-gsm8k-thinking.jsonl --output base-under-M
"""

from __future__ import annotations

import argparse
import logging
import sys

from trainer.catalogue.data_sets import DATA_SETS, EMBEDDED
from trainer.catalogue.methods import METHODS
from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import ending_at_once, unwind_again
from trainer.console.output_directory import output_directory
from trainer.evaluation.requests import DTYPES, ENGINES, Sampling
from trainer.sampling.early_exit import DEFAULT_TEXT


def parser() -> argparse.ArgumentParser:
    default = Sampling()
    made = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=(__doc__ or "").split("\n\n", 1)[0],
        epilog="A run that ended in any way is continued by the same command.",
    )
    model = made.add_argument_group("model")
    model.add_argument(
        "--model",
        "--model_name_or_path",
        required=True,
        help="directory or hub name of a causal language model, a .gguf file, or smollm2 (a real one that pip brings)",
    )
    model.add_argument("--revision", help="revision of a hub name")
    model.add_argument("--adapter", help="PEFT adapter (directory or hub name) on top of it")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as the checkpoint was saved (default)")
    model.add_argument("--device", default="auto", help="torch device; auto: the GPU if there is one (default)")

    model.add_argument("--engine", choices=ENGINES, default="transformers", help="default: transformers")

    what = made.add_argument_group("what to evaluate")
    what.add_argument(
        "--benchmarks",
        help=f"comma-separated: {', '.join([*DATA_SETS, EMBEDDED])}, or any name that --data gives a file",
    )
    what.add_argument(
        "--methods", default="thinking", help=f"comma-separated: {', '.join(METHODS)} (default: thinking)"
    )
    what.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="BENCHMARK=PATH",
        help="json, jsonl or parquet file, or a directory with a test split, of one benchmark; may come several times",
    )
    what.add_argument(
        "--data_dir", help="directory that holds known benchmarks as BENCHMARK/test.jsonl, instead of the hub"
    )
    what.add_argument(
        "--skip_bad_rows", action="store_true", help="leave out rows without a question or an answer, and say how many"
    )
    what.add_argument("--limit", type=int, help="only the first LIMIT problems of each benchmark")
    what.add_argument("--samples", type=int, default=1, help="responses per problem (default: 1)")
    what.add_argument(
        "--prompt",
        help="how thinking and no_thinking ask: a YAML or JSON file with system_prompt, instruction and worked "
        "examples, the name of a packaged one, or a run's directory (default: what the policy was trained on, where "
        "that is known)",
    )
    what.add_argument("--system_prompt", help="in its place; an empty one leaves the system turn out")
    what.add_argument("--instruction", help="appended to every question; an empty one leaves it out")
    what.add_argument(
        "--score", metavar="FILE", help="score the responses in this jsonl file instead of generating any"
    )
    what.add_argument(
        "--output",
        required=True,
        type=output_directory,
        metavar="DIR",
        help="directory of the records, new or to be continued",
    )

    sampling = made.add_argument_group("sampling (defaults: those of the published evaluation code)")
    for name, kind, text in (
        ("temperature", float, "0 takes the likeliest token. Entropies are at this temperature (at 1 for 0)"),
        ("top_p", float, "1: off"),
        ("top_k", int, "0: off"),
        ("min_p", float, "0: off; acts after top_k and top_p"),
        ("repetition_penalty", float, "1: off; counts prompt and response"),
        ("max_new_tokens", int, "longest response"),
    ):
        sampling.add_argument(
            f"--{name}", type=kind, default=getattr(default, name), help=f"{text} (default: {getattr(default, name)})"
        )
    sampling.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")

    exits = made.add_argument_group("early exit: end the thinking once the model has decided")
    exits.add_argument(
        "--early_exit", type=float, metavar="NATS", help="leave once the running TECA is below this (default: never)"
    )
    exits.add_argument("--early_exit_min_tokens", type=int, default=32, help="not before so many tokens (default: 32)")
    exits.add_argument(
        "--early_exit_window", type=int, default=0, help="the mean of the last so many entropies; 0: of all, TECA"
    )
    exits.add_argument(
        "--early_exit_text",
        default=DEFAULT_TEXT,
        help="what is written then: the token that ends the thinking, or, for a model without one, a text that begins "
        f"the answer (default: {DEFAULT_TEXT})",
    )

    execution = made.add_argument_group("execution (may change between a run and its continuation)")
    execution.add_argument("--batch_size", type=int, help="responses at once (default: 32, vllm 256, --score 8)")
    execution.add_argument(
        "--chunk_tokens",
        type=int,
        default=2048,
        help="--score: tokens that go through the model at once, over the whole batch (default: 2048)",
    )
    execution.add_argument(
        "--gpu_memory_utilization", type=float, default=0.9, help="vllm: share of the GPU (default: 0.9)"
    )
    return made


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that are wrong whatever the model is."""
    for name in ("samples", "limit", "batch_size", "chunk_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: expected at least 1")
    if arguments.score is None and not arguments.benchmarks:
        raise ValueError("nothing to do: give --benchmarks, or --score FILE")
    if arguments.score is not None and arguments.benchmarks:
        raise ValueError("--score takes its responses from the file: --benchmarks does not go with it")
    if arguments.score is not None and arguments.early_exit is not None:
        raise ValueError("--score generates nothing: --early_exit does not go with it")


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = parser().parse_args(argv)
    interrupted = f"\ninterrupted; the same command continues {arguments.output}"
    try:
        check_options(arguments)
        if arguments.score:
            with ending_at_once(interrupted):
                from trainer.evaluation.run_scoring import score  # here: --help and wrong options need no torch

            score(arguments)
        else:
            with ending_at_once(interrupted):
                from trainer.evaluation.run_generation import generate

            generate(arguments)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, and torch may not have been imported
            raise
        print(
            f"error: out of memory; the same command with a smaller --batch_size continues ({error})", file=sys.stderr
        )
        return 2
    return 0


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    sys.exit(main())
