"""The console scripts: `cer-grpo ...` is `python -m trainer.grpo ...`, and so for the other commands.

In: the words of the command line. Out: what the command does, and its exit code. Before that they ask whether the
`trainer` that Python would import is this project's (trainer/name_clash.py): under `python -m` another package of that
name would answer first, with an error about something else.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import NoReturn


def _run(module: str) -> NoReturn:
    """Run `python -m MODULE` in this process, with the words of this command line."""
    _require_own_trainer()
    from trainer.console.interrupt import end_at_once

    end_at_once()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _require_own_trainer() -> None:
    """Exit with one line where `trainer` is another project's package, or is mixed with it."""
    spec = importlib.util.find_spec("trainer")  # finds the package, and runs nothing of it
    directories = list(spec.submodule_search_locations or []) if spec else []
    check = next((path for directory in directories if (path := Path(directory) / "name_clash.py").is_file()), None)
    if check is None:
        found = directories[0] if directories else spec.origin if spec else "nothing"
        sys.exit(
            f"Python finds another package `trainer` before that of cer_ext: {found}. "
            f"Uninstall it (pip uninstall trainer), or give cer_ext an environment of its own."
        )
    try:
        runpy.run_path(str(check))["require_own_package"]()
    except ImportError as error:
        sys.exit(str(error))


def grpo() -> NoReturn:
    """cer-grpo: train a policy (trainer/grpo.py)."""
    _run("trainer.grpo")


def evaluate() -> NoReturn:
    """cer-evaluate: a model on benchmarks, or the entropies of given responses (trainer/evaluate.py)."""
    _run("trainer.evaluate")


def report() -> NoReturn:
    """cer-report: the tables of evaluations (trainer/report.py)."""
    _run("trainer.report")


def plots() -> NoReturn:
    """cer-plots: the figures of evaluations and training runs (trainer/plots.py)."""
    _run("trainer.plots")


def merge_lora() -> NoReturn:
    """cer-merge-lora: models with their LoRA adapters folded in (trainer/merge_lora.py)."""
    _run("trainer.merge_lora")


def experiment() -> NoReturn:
    """cer-experiment: a policy before and after training, by several rewards (trainer/experiment)."""
    _run("trainer.experiment")
