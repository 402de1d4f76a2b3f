"""What a run does when it is stopped, or when something fails.

    Ctrl-C, SIGTERM,       the step under way is finished, a checkpoint saved, the command to go on with printed (a
    SIGHUP                 second signal stops at once). SIGHUP, a dropped connection, is left alone where it is ignored
                           (nohup); what would go to the lost terminal goes to after-hangup.log
    loss or gradient NaN   raised before the optimizer touches the weights
    dead reward function   one that raises, gives inf or NaN for all, a spread that overflows, or None for every
                           completion of many batches in a row: a single such batch changes nothing, and the run goes on
    out of memory          the options that lower it are named
    a process lost         killed, or failed by itself: the others name it and end (lost_process.py)
    disk full              the half-written checkpoint is removed, the last complete one stays; the final model is
                           written where temporary files go, if there is room

In a failure the state after the last complete step is still in memory. In a single process it is saved as a checkpoint
(where the disk allows), so that a run goes on from the very step that failed; with several processes, where one may
have failed alone, the last checkpoint on disk is named instead. `train` returns the process's exit code: 0, 130 or 143
for a signal, 1 for a failure. Unknown errors pass through unchanged, after the last checkpoint is
named.
"""

import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import is_async_callable

from trainer.training.config_error import ConfigError
from trainer.training.lost_process import Processes, connection_broke
from trainer.training.step_state import RandomState, StepState


class TrainingFailure(RuntimeError):
    """Training can't go on; the message says what happened and what to do."""


class RewardFailure(TrainingFailure):
    """A reward function is of no use."""


class NonFiniteLoss(TrainingFailure):
    """The loss or the gradient is NaN or infinite."""


MOST_BATCHES_WITHOUT_OPINION = 16


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"\n{text}", file=sys.stderr, flush=True)


AFTER_HANGUP = "after-hangup.log"


class StopSignals:
    """While active, SIGINT, SIGTERM and SIGHUP ask for a stop after the step under way; the second one stops at once.

    Args:
        directory: where the file for what a lost terminal can't show is made.
    """

    def __init__(self, directory: str | Path | None = None):
        self.received: int | None = None
        self.directory = directory
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame) -> None:
        if number == signal.SIGHUP and self.directory is not None:
            _leave_the_terminal(Path(self.directory) / AFTER_HANGUP)
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        _say(f"{signal.Signals(number).name}: finishing this step, then saving. Once more to stop at once.")


def _leave_the_terminal(file: Path) -> None:
    """Standard output and error go to the file where they go to a terminal: writing to a lost one is an error."""
    for stream in (1, 2):
        try:
            terminal = os.isatty(stream) or os.ttyname(stream) is not None
        except OSError as error:
            terminal = error.errno == errno.EIO  # hung up already
        if terminal:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, stream)
            os.close(descriptor)


class _Watch(TrainerCallback):
    """Tells the trainer where in a step it is, and stops it after the step in which a signal came."""

    def __init__(self, trainer: "SurvivalMixin"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.processes.introduce()

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._remember_step_start()
        self.trainer._phase = "computing"

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._phase = "updating"

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._phase = "complete"
        stop = self.trainer.stop_signals.received is not None
        if torch.distributed.is_initialized():  # the processes get their signals at different times
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            stop = bool(flag.item())
        if stop:
            self.trainer.stopped_by_signal = True
            control.should_save = True
            control.should_training_stop = True
        return control


class NaNWatch:
    """Tells NaN, an error, from None ("no reward"), which TRL also turns into NaN."""

    def __init__(self):
        self.nan = False

    def over(self, function):
        """The reward function, with its results watched for NaN."""
        if isinstance(function, torch.nn.Module):
            return function
        if is_async_callable(function):

            async def listened(*args, **kwargs):
                return self._hear(await function(*args, **kwargs))
        else:

            def listened(*args, **kwargs):
                return self._hear(function(*args, **kwargs))

        return listened

    def _hear(self, rewards):
        rewards = list(rewards)
        self.nan = self.nan or any(reward is not None and math.isnan(reward) for reward in rewards)
        return rewards


class SurvivalMixin:
    """Put before CheckpointMixin among the bases of a class. See this file's header."""

    def __init__(self, *args, **kwargs):
        self.stopped_by_signal = False
        self.processes = Processes()
        self._batches_without_opinion = 0
        self._phase = "starting"
        self._step_start: tuple[StepState, RandomState, int] | None = None
        super().__init__(*args, **kwargs)
        self.stop_signals = StopSignals(self.args.output_dir)
        self.add_callback(_Watch(self))

    # --- failures, found before they do harm

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise NonFiniteLoss(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}. Lower --learning_rate or "
                "--temperature, or train in float32 (--bf16 false) to see whether it is the precision."
            )
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None  # fp16: the scaler skips such steps itself
        if norm is not None and not scaled and not math.isfinite(float(norm)):
            raise NonFiniteLoss(
                f"the gradient's norm is {float(norm)} in step {self.state.global_step + 1}, at a finite loss. Lower "
                "--learning_rate, or train in float32 (--bf16 false) to see whether it is the precision."
            )
        return norm

    @contextmanager
    def listening_for_nan(self) -> Iterator[NaNWatch]:
        """In the block the results of the reward functions are watched for NaN."""
        functions, heard = self.reward_funcs, NaNWatch()
        self.reward_funcs = [heard.over(function) for function in functions]
        try:
            yield heard
        finally:
            self.reward_funcs = functions

    def check_rewards(self, rewards: Tensor, *, gave_nan: bool) -> None:
        """Raise RewardFailure for rewards (completions, functions) that are of no use; see this file's header."""
        for index, name in enumerate(self.reward_func_names):
            if torch.isinf(rewards[:, index]).any():
                raise RewardFailure(f"the reward function {name} gave an infinite reward")
        self._check_opinions(rewards, gave_nan)
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        if not torch.isfinite((total - total.mean()).square().sum()):  # as TRL computes it, in float32
            raise RewardFailure(
                f"the spread of the rewards is infinite in float32 (they go from {total.min().item():.3g} to "
                f"{total.max().item():.3g}), so every advantage would be 0: scale them down"
            )

    def _check_opinions(self, rewards: Tensor, gave_nan: bool) -> None:
        """A batch whose rewards are all None changes nothing. NaN is an error, as are many such batches in a row."""
        if not torch.isnan(rewards).all():
            self._batches_without_opinion = 0
            return
        names = ", ".join(self.reward_func_names)
        flag = self.accelerator.gather(torch.tensor([gave_nan], device=rewards.device))
        if flag.any():
            raise RewardFailure(f"no reward function gave a number for any of {len(rewards)} completions: {names}")
        self._batches_without_opinion += 1
        if self._batches_without_opinion == 1 and self.is_world_process_zero():
            _say(
                f"Step {self.state.global_step + 1}: no reward function has an opinion (None) on any of {len(rewards)} "
                "completions. They move nothing."
            )
        if self._batches_without_opinion >= MOST_BATCHES_WITHOUT_OPINION:
            raise RewardFailure(
                f"no reward function had an opinion (all None) on any completion of the last "
                f"{self._batches_without_opinion} batches: {names}. Do the rows have a ground truth?"
            )

    # --- the last good state

    def _remember_step_start(self) -> None:
        self._step_start = (StepState.of(self), RandomState.now(), self.state.num_input_tokens_seen)

    def _return_to_step_start(self) -> None:
        step, random_state, self.state.num_input_tokens_seen = self._step_start
        step.restore(self)
        random_state.restore()

    def save_final_model_elsewhere(self) -> Path:
        """The model where temporary files go, often another disk. One process alone can decide that."""
        if self.args.world_size > 1:
            raise RuntimeError("several processes can't agree on another place")
        place = Path(tempfile.mkdtemp(prefix=f"final-{self.run_id}-"))
        try:
            self.save_model(str(place))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place

    def save_last_good_state(self) -> Path | None:
        """A checkpoint of the state after the last complete step, or None where there is none to be had."""
        if self.args.world_size > 1 or self._phase not in ("computing", "complete"):
            return None
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.state.global_step == 0 or checkpoint in self.own_checkpoints():
            return None
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            return None
        if self._phase == "computing":
            self._return_to_step_start()
        self.model.zero_grad(set_to_none=True)
        self._save_checkpoint(self.model, trial=None)
        return checkpoint


@contextmanager
def reward_failures(names: list[str]) -> Iterator[None]:
    """What a reward function raises in the block becomes a RewardFailure that names the functions."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or is_disk_full(error) or connection_broke(error):
            raise
        told = f"{type(error).__name__}: {error}"
        raise RewardFailure(f"a reward function raised (of: {', '.join(names)}): {told}") from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = (
    "no space left",
    "os error 28",
    "os error 27",
    "file too large",
    "quota",
    "streamwriter failed",
    "unexpected pos",
)
_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one it came from, says that a file could not be written for want of space."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if not isinstance(error, OSError) and any(text in str(error).lower() for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS)


def explain(error: BaseException) -> str | None:
    """What happened and what to do about it; None for an error that is not one of this file's header."""
    if isinstance(error, RewardFailure):
        cause = error.__cause__
        shown = "".join(traceback.format_exception(cause)) if cause is not None else ""
        return f"{shown}Training stopped: {error}"
    if isinstance(error, TrainingFailure):
        return f"Training stopped: {error}"
    if is_disk_full(error):
        return f"Training stopped: the disk is full ({error}). Free some space, or set --save_total_limit."
    if is_out_of_memory(error):
        return (
            f"Training stopped: out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much), "
            "--max_completion_length or --vllm_gpu_memory_utilization; or set --gradient_checkpointing true."
        )
    return None


def _how_to_resume(trainer, command: str) -> str:
    found = trainer.own_checkpoints()
    if not found:
        return "No checkpoint was saved."
    how = "Go on with"
    if trainer.args.world_size > 1:
        how, command = "Go on, launched as before, with", command.removeprefix("python ")
    return f"Saved: {found[-1]}\n{how}: {command} --resume_from_checkpoint {found[-1]}"


def train(trainer, *, resume_from_checkpoint: Path | None = None, command: str = "python -m trainer.grpo") -> int:
    """trainer.train() with the endings of this file's header. Returns the exit code for the process."""
    try:
        with trainer.stop_signals:
            try:
                trainer.train(resume_from_checkpoint=str(resume_from_checkpoint) if resume_from_checkpoint else None)
            except Exception as error:  # said in here: outside, the launcher's SIGTERM would end this process first
                lost = trainer.processes.explain(error)
                if lost is None:
                    raise
                _say(f"{lost}\n{_how_to_resume(trainer, command)}")
                return 1
    except KeyboardInterrupt:
        _say(f"Stopped at once.\n{_how_to_resume(trainer, command)}")
        return 130
    except ConfigError:  # found when the model was wrapped, before the first step
        raise
    except Exception as error:
        explanation = explain(error)
        try:
            trainer.save_last_good_state()
        except Exception as second:  # the disk may be what failed
            _say(f"The last good state could not be saved either: {second}")
        _say(f"{explanation or 'Training failed.'}\n{_how_to_resume(trainer, command)}")
        if explanation is None:
            raise
        return 1
    if trainer.stopped_by_signal:
        if trainer.is_world_process_zero():
            _say(f"Stopped after step {trainer.state.global_step}.\n{_how_to_resume(trainer, command)}")
        return 128 + (trainer.stop_signals.received or signal.SIGTERM)
    return 0


def save_final(trainer, *, command: str) -> int:
    """The trained model as final/, with the endings of this file's header. Returns the exit code for the process."""
    try:
        trainer.save_final_model()
    except Exception as error:
        lost = trainer.processes.explain(error)
        if lost is not None:
            _say(f"The model is trained, but not saved as final. {lost}\n{_how_to_resume(trainer, command)}")
            return 1
        explanation = explain(error)
        said = f"The model is trained, but could not be saved as final: {error}"
        try:
            said += f"\nIt is saved in {trainer.save_final_model_elsewhere()} instead."
        except Exception as second:  # nor is there room where temporary files go
            said += f"\nNor elsewhere: {second}"
        if trainer.is_world_process_zero():
            _say(f"{said}\n{_how_to_resume(trainer, command)}")
        if explanation is None:
            raise
        return 1
    return 0
