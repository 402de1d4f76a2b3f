"""What a run reports, per logging step, and where to.

Measured here and added to what TRL logs, so that every tracker (TensorBoard, wandb, trackio) gets it:

    time/generate, time/score, time/train   seconds per optimizer step: sampling; everything else until the advantages
                                            are known (TECA, reference, rewards); forward, backward and update
    tokens_per_second                       prompt and completion tokens that went through the step, over its wall time
    peak_memory_gib                         of the device since the last log; of the process on a machine without a GPU
    padding_alarm                           1 while TECA falls and length rises (trainer/training/padding_alarm.py)

Files in the output directory: `log.jsonl`, one object per logging step, and `samples.jsonl`, some completions per
logging step with their rewards and TECA. Both are only ever appended to, a line at a time; a resumed run writes an
event with the step it goes on from, and `read_log` drops what an interrupted run had logged beyond it.
"""

import json
import math
import resource
import sys
import time
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trainer.console.progress_bar import ProgressBar
from trainer.training.launch import what_wraps
from trainer.training.padding_alarm import padding_alarm

LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"


def append_line(path: Path, record: dict) -> None:
    """Appends one JSON object as a line, in one write; a torn last line (a kill while writing) is ended first."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        size = file.seek(0, 2)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def read_log(path: str | Path) -> list[dict]:
    """The logging steps of a run in order of steps, without torn lines and what a resumed run replaced."""
    records: list[dict] = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        event = record.get("event")
        if event == "start":
            records = []
        elif event == "resume":
            records = [kept for kept in records if kept["step"] <= record["step"]]
        elif event is None:
            records.append(record)
    return records


def _finite(value):
    """JSON has no NaN: null stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_gib(device: torch.device) -> float:
    """The highest memory in use: of the CUDA device since the last call, or of this process since its start."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class MeasuredMixin:
    """Put first among the bases of a TRL GRPO trainer class: times its parts, keeps sample completions, logs both.

    `samples_per_log` completions of the latest rollouts go to samples.jsonl with every log.
    """

    samples_per_log = 4

    def __init__(self, *args, **kwargs):
        self._seconds = {"generate": 0.0, "rollout": 0.0, "step": 0.0}
        self._since_log = (0, 0, time.perf_counter())  # step, tokens seen, clock
        self._latest_samples: list[dict] = []
        super().__init__(*args, **kwargs)
        if self.rollout_func is not None:
            self.rollout_func = self._timed("generate", self.rollout_func)

    def _timed(self, part: str, function):
        def timed(*args, **kwargs):
            start, is_step = time.perf_counter(), self.model.training  # an evaluation is no part of a step
            try:
                return function(*args, **kwargs)
            finally:
                self._seconds[part] += time.perf_counter() - start if is_step or part == "step" else 0.0

        return timed

    def _generate_single_turn(self, *args, **kwargs):
        return self._timed("generate", super()._generate_single_turn)(*args, **kwargs)

    def _generate_and_score_completions(self, *args, **kwargs):
        return self._timed("rollout", super()._generate_and_score_completions)(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        return self._timed("step", super().training_step)(*args, **kwargs)

    def keep_samples(self, prompts: list, completions: list, completion_ids: list[list[int]], rewards: Tensor) -> None:
        """Keeps some completions of this process for the next log. rewards: (all processes' completions, functions)."""
        first = self.accelerator.process_index * len(prompts)
        teca = self._pending_extra_logs.get("teca") or [None] * len(prompts)
        self._latest_samples = [
            {
                "step": self.state.global_step + 1,
                "prompt": _text(prompts[i]),
                "completion": _text(completions[i]),
                "tokens": len(completion_ids[i]),
                "teca": _finite(teca[i]),
                **{
                    name: _finite(rewards[first + i, index].item()) for index, name in enumerate(self.reward_func_names)
                },
            }
            for i in range(min(self.samples_per_log, len(prompts)))
        ]

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" in logs and self.model.training:
            logs.update(self._measurements())
            logs.update(self._check_padding())
        super().log(logs, start_time)
        if "loss" in logs and self.is_world_process_zero():
            for sample in self._latest_samples:
                append_line(Path(self.args.output_dir) / SAMPLES_FILE, sample)
            self._latest_samples = []

    def _measurements(self) -> dict[str, float]:
        now = (self.state.global_step, self.state.num_input_tokens_seen, time.perf_counter())
        steps, tokens, seconds = (new - old for new, old in zip(now, self._since_log, strict=True))
        parts, steps = self._seconds, max(steps, 1)
        measured = {
            "time/generate": parts["generate"] / steps,
            "time/score": (parts["rollout"] - parts["generate"]) / steps,
            "time/train": (parts["step"] - parts["rollout"]) / steps,
            "tokens_per_second": tokens / seconds,
            "peak_memory_gib": peak_memory_gib(self.accelerator.device),
        }
        self._since_log = now
        self._seconds = dict.fromkeys(parts, 0.0)
        return measured

    def _check_padding(self) -> dict[str, float]:
        """Checks the alarm over every logging step so far, also those before a resume; prints it when it starts."""
        history = [entry for entry in self.state.log_history if "teca" in entry and "completions/mean_length" in entry]
        now = [self._metrics["train"].get(name) for name in ("teca", "completions/mean_length")]
        if not all(now):
            return {}
        teca = [entry["teca"] for entry in history] + [fmean(now[0])]
        length = [entry["completions/mean_length"] for entry in history] + [fmean(now[1])]
        known = [(t, n) for t, n in zip(teca, length, strict=True) if t is not None and n is not None]
        alarm = padding_alarm([t for t, _ in known], [n for _, n in known])
        sounded = bool(history) and bool(history[-1].get("padding_alarm"))
        if alarm is not None and not sounded and self.is_world_process_zero():
            ProgressBar.write(f"ALARM in step {self.state.global_step}: {alarm}")
        return {"padding_alarm": float(alarm is not None)}

    def restart_clock(self) -> None:
        """What follows is measured from now (the start of training, not of the program)."""
        self._since_log = (self.state.global_step, self.state.num_input_tokens_seen, time.perf_counter())
        self._seconds = dict.fromkeys(self._seconds, 0.0)


def _text(message) -> str:
    """The text of a prompt or completion, plain or conversational."""
    if isinstance(message, str):
        return message
    return "\n".join(f"[{turn['role']}] {turn.get('content') or ''}" for turn in message)


class StartClock(TrainerCallback):
    """Starts the measurements of a MeasuredMixin trainer when training starts."""

    def __init__(self, trainer: MeasuredMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restart_clock()


class JsonLinesLog(TrainerCallback):
    """log.jsonl: one object per logging step; an event, with what wraps the model, where it starts and goes on."""

    def __init__(self, trainer: MeasuredMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            event = "resume" if state.global_step else "start"
            found = what_wraps(self.trainer)._asdict()
            append_line(Path(args.output_dir) / LOG_FILE, {"event": event, "step": state.global_step, **found})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step, **{name: _finite(value) for name, value in logs.items()}}
            if "train_runtime" in logs:  # the summary, with whatever was measured since the last logging step
                record = {"event": "end", **record}
            append_line(Path(args.output_dir) / LOG_FILE, record)


# heading, width, names it may be logged under (the first that is there), format
COLUMNS: tuple[tuple[str, int, tuple[str, ...], str], ...] = (
    ("reward", 6, ("reward",), "{:.3f}"),
    ("acc", 5, ("accuracy",), "{:.3f}"),
    ("no ans", 6, ("no_answer",), "{:.0%}"),
    ("TECA", 6, ("teca",), "{:.3f}"),
    ("length", 7, ("completions/mean_length",), "{:.1f}"),
    ("clipped", 7, ("completions/clipped_ratio",), "{:.1%}"),
    ("entropy", 7, ("entropy",), "{:.3f}"),
    ("KL", 7, ("kl",), "{:.4f}"),
    ("std=0", 5, ("frac_reward_zero_std",), "{:.0%}"),
    ("loss", 8, ("loss",), "{:+.4f}"),
    ("gen s", 6, ("time/generate",), "{:.2f}"),
    ("score s", 7, ("time/score",), "{:.2f}"),
    ("train s", 7, ("time/train",), "{:.2f}"),
    ("tok/s", 7, ("tokens_per_second",), "{:.0f}"),
    ("GiB", 5, ("peak_memory_gib",), "{:.2f}"),
)
_HEADING_EVERY = 20  # rows


def table_heading() -> str:
    return " ".join(["  step", *(heading.rjust(width) for heading, width, _, _ in COLUMNS)])


def table_row(step: int, logs: dict) -> str:
    """One line of the console table; a dash where a value was not logged."""
    cells = [f"{step:6d}"]
    for _, width, names, form in COLUMNS:
        value = next((logs[name] for name in names if logs.get(name) is not None), None)
        cells.append(("-" if value is None else form.format(value)).rjust(width))
    return " ".join(cells)


class ConsoleTable(TrainerCallback):
    """What wraps the model, once; a progress bar, and one row per logging step above it."""

    def __init__(self, description: str, trainer: MeasuredMixin):
        self.description, self.trainer = description, trainer
        self.bar: ProgressBar | None = None
        self._rows = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            ProgressBar.write(str(what_wraps(self.trainer)))
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = ProgressBar(
                total=state.max_steps, initial=state.global_step, desc=self.description, unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        if self._rows % _HEADING_EVERY == 0:
            ProgressBar.write(table_heading())
        self._rows += 1
        ProgressBar.write(table_row(state.global_step, logs))

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def report_here(trainer, *, description: str = "train", samples_per_log: int = 4) -> None:
    """Gives a MeasuredMixin trainer this file's callbacks in place of transformers' printing ones."""
    trainer.samples_per_log = samples_per_log
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    for callback in (StartClock(trainer), JsonLinesLog(trainer), ConsoleTable(description, trainer)):
        trainer.add_callback(callback)
