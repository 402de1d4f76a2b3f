"""Programs whose output nobody reads any more, and progress in a file."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic_records import make_record, write_run

from trainer import evaluate
from trainer.console import progress_bar
from trainer.console.output_directory import output_directory
from trainer.console.progress_bar import ProgressBar
from trainer.training.run_log import ConsoleTable


def run_unread(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a program whose stdout is a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("trainer.report", "--published"), ("trainer.report", "--help"), ("trainer.evaluate", "--help")],
    ids=["report", "report's help", "evaluate's help"],
)
def test_a_table_that_nobody_reads_ends_quietly(arguments):
    assert run_unread(*arguments) == (0, "")


def test_figures_are_drawn_though_nobody_reads_their_names(tmp_path):
    run = write_run(tmp_path / "r", [make_record(f"p{i}", correct=i % 2 == 0) for i in range(4)])
    code, errors = run_unread("trainer.plots", str(run), "--format", "svg", "--output", str(tmp_path / "out"))
    assert (code, "Broken pipe" in errors) == (0, False), errors
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"teca-mean.svg", "teca-last.svg", "lengths.svg", "teca-right-wrong.svg"} <= names


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_in_a_file_is_a_line_per_change_at_most(clock):
    file = io.StringIO()
    with ProgressBar(total=100, desc="train", file=file, mininterval=0) as bar:
        for step in range(100):
            bar.update(1)
            bar.refresh()
            bar.refresh()
            clock[0] += 10.0 if step < 60 else 0.0
    lines = file.getvalue().splitlines()
    counts = [int(line.split("|")[2].split("/")[0]) for line in lines]
    assert counts == [*range(1, 59, 3), 61, 100]  # each 30 s, and the end
    assert "\r" not in file.getvalue()
    assert all(line.startswith("train: ") for line in lines)


def test_a_bar_in_a_file_does_not_repeat_around_rows(clock, monkeypatch, capsys):
    """What a training prints: a row per step, and one bar."""
    import types

    one_process = types.SimpleNamespace(world_size=1, device=torch.device("cpu"))
    table = ConsoleTable("train", types.SimpleNamespace(args=one_process, model_wrapped=torch.nn.Linear(1, 1)))
    state = types.SimpleNamespace(is_world_process_zero=True, max_steps=6, global_step=0)
    args = types.SimpleNamespace(disable_tqdm=False)
    table.on_train_begin(args, state, None)
    for step in range(1, 7):
        state.global_step = step
        table.on_step_end(args, state, None)
        table.on_log(args, state, None, logs={"loss": 0.5, "reward": 1.0})
    table.on_train_end(args, state, None)
    shown = capsys.readouterr()
    first, *rows = shown.out.splitlines()
    assert first == "1 process on cpu; nothing wraps the model"
    assert [row.split()[0] for row in rows] == ["step", "1", "2", "3", "4", "5", "6"]
    assert [line.split("|")[2].split()[0] for line in shown.err.splitlines()] == ["1/6", "6/6"]


def test_a_bar_on_a_terminal_is_redrawn_in_its_line():
    file = Terminal()
    with ProgressBar(total=3, file=file, mininterval=0, miniters=1) as bar:
        for _ in range(3):
            bar.update(1)
    text = file.getvalue()
    assert [f"{n}/3" in text for n in range(4)] == [True] * 4
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [("", "it is empty"), ("  ", "it is empty"), ("file", "file is there and is no directory"),
     ("file/below", "file is there and is no directory"), ("loop", "loop is there and is no directory")],
)  # fmt: skip
def test_an_output_that_can_be_no_directory_is_refused_with_the_option(tmp_path, word, message, capsys):
    from trainer import merge_lora, plots

    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    place = str(tmp_path / word) if word.strip() else word
    for parse, words in (
        (evaluate.parser().parse_args, ["--model", "m", "--benchmarks", "gsm8k", "--output", place]),
        (merge_lora.parser().parse_args, ["--model", "m", "--adapter", "a", "--output", place]),
        (plots.parser().parse_args, ["runs", "--output", place]),
    ):
        with pytest.raises(SystemExit) as ended:
            parse(words)
        assert ended.value.code == 2
        assert re.search(f"argument --output: .*{message}", capsys.readouterr().err)


def test_an_output_that_is_not_writable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(argparse.ArgumentTypeError, match=f"{re.escape(str(tmp_path))} is not writable"):
        output_directory(str(tmp_path / "new" / "deep"))


def test_an_output_that_is_there_or_can_be_made_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for word in (str(tmp_path), str(tmp_path / "link"), str(tmp_path / "ü n" / "deep"), "."):
        assert output_directory(word) == Path(word)
    assert output_directory("~/x") == tmp_path / "x"
    assert not (tmp_path / "x").exists()
