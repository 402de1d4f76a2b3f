"""Ctrl-C while a command imports what takes seconds: one line, exit code 130, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Python runs a sitecustomize before anything else: this one presses Ctrl-C when the module AT is about to be imported.
PRESSES_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's `pytest &` ignores it

class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, AtImport())
"""


def interrupted(tmp_path: Path, at: str, *words: str) -> tuple[int, str]:
    """Exit code and all that a Python with these words says when it is interrupted at the import of `at`."""
    (tmp_path / "sitecustomize.py").write_text(PRESSES_CTRL_C)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "AT": at},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("at", "command"),
    [
        ("trainer.evaluation.requests", "evaluate"),
        ("numpy", "report"),
        ("matplotlib", "plots"),
        ("torch", "merge_lora"),
        ("trainer.training.arguments", "grpo"),
        ("trainer.experiment.stages", "experiment"),
    ],
)
def test_ctrl_c_in_a_commands_imports_ends_it_in_one_line(tmp_path, at, command):
    assert interrupted(tmp_path, at, "-m", f"trainer.{command}", "--help") == (130, "interrupted\n")


def test_ctrl_c_in_the_imports_of_a_console_script_does_so_too(tmp_path):
    script = "import cer_commands; cer_commands.report()"
    assert interrupted(tmp_path, "numpy", "-c", script, "--published") == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evaluate --model m --benchmarks gsm8k --output out", "interrupted; the same command continues out"),
        ("evaluate --model m --score lines.jsonl --output out", "interrupted; the same command continues out"),
        ("grpo --config smoke_gsm8k", "Stopped."),
    ],
)
def test_ctrl_c_in_the_imports_of_the_work_itself(tmp_path, words, told):
    code, said = interrupted(tmp_path, "torch", "-m", *f"trainer.{words}".split())
    assert (code, said.strip()) == (130, told)


def test_a_package_that_swallows_the_interrupt_does_not_turn_it_into_an_error(tmp_path):
    """As transformers does: whatever its import raises becomes a ModuleNotFoundError."""
    (tmp_path / "matplotlib.py").write_text(
        "try:\n    import pressed\nexcept BaseException as error:\n    raise ModuleNotFoundError('gone') from error\n"
    )
    assert interrupted(tmp_path, "pressed", "-m", "trainer.plots", "--help") == (130, "interrupted\n")


DURING_THE_WORK = """
import runpy, signal, sys
sys.argv[:] = ["-m"]  # as `python -m` has it while it looks for the module
import trainer
seen = [type(signal.getsignal(signal.SIGINT)).__name__]
sys.argv[:] = [sys.argv[0], "--help"]
try:
    runpy.run_module("trainer.{}", run_name="__main__")
except SystemExit:
    pass
seen.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(seen, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["evaluate", "report", "merge_lora", "grpo"])
def test_from_the_first_line_of_the_program_on_an_interrupt_unwinds(tmp_path, command):
    """Half a merge and half a checkpoint are cleaned up by those who made them."""
    code, said = interrupted(tmp_path, "never", "-c", DURING_THE_WORK.format(command))
    assert (code, said.splitlines()[-1]) == (0, "['_Ending', True]")


def test_every_command_says_where_its_work_begins():
    commands = [path for path in (ROOT / "trainer").rglob("*.py") if "\n    outlive_readers()" in path.read_text()]
    assert {path.stem for path in commands} >= {"evaluate", "report", "plots", "merge_lora", "grpo", "__main__"}
    for path in commands:
        assert "    outlive_readers()\n    unwind_again()\n" in path.read_text(), path


def test_who_imports_the_package_and_who_ignores_the_signal_is_left_alone(tmp_path):
    kept = "import signal, trainer; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert interrupted(tmp_path, "never", "-c", kept) == (0, "")
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from trainer.console import interrupt as i"
    ignored += "; i.end_at_once(); assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN; signal.raise_signal(2)"
    assert interrupted(tmp_path, "never", "-c", ignored) == (0, "")
