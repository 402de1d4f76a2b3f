"""Checkpoints that are never half written, and from which a run resumes to the same numbers.

In: any TRL GRPO trainer class, through `CheckpointMixin`.  Out: the same trainer, whose checkpoints

  - appear under their name by one rename, after everything in them has reached the disk; a crash leaves a
    directory `.saving-checkpoint-N`, which is no checkpoint and which the next run removes
  - also hold, per process, what TRL and transformers leave out and the next step depends on: the state of the step
    (step_state.py), and the reference policy where sync_ref_model moves it

  - say which run made them, and with which settings (run.json; trainer/training/run_directory.py)

  - are resumed without another step where training had ended: stock TRL takes one more step each time

  - can be resumed by another number of processes, where the steps stay the same (step_split.py)

  - are resumed with the right order of prompts: stock TRL's sampler draws one permutation per epoch from a generator
    that starts anew on resuming, so that a run resumed in its second epoch walks the first epoch's order again

Resuming draws the random states from the checkpoint (transformers does that), so samples are the same too, with as many
processes as before.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch.utils.data import Sampler
from transformers import TrainerCallback, set_seed
from trl.trainer.utils import RepeatSampler

from trainer.storage.atomic import publish
from trainer.training.config_error import ConfigError
from trainer.training.run_directory import (
    belongs_to,
    new_run_id,
    newest_run,
    run_of,
    settings_of,
    write_run,
)
from trainer.training.step_split import StepSplit
from trainer.training.step_state import StepState

STAGING_PREFIX = ".saving-"
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*", "adapter_model*.bin", "global_step*")


def is_complete(checkpoint: Path) -> bool:
    """Whether a directory holds a checkpoint that can be resumed: weights, and a readable state (written last)."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return any(next(checkpoint.glob(pattern), None) is not None for pattern in _WEIGHTS)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest step first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdigit() and is_complete(path):
            found.append((int(step), path))
    return [path for _, path in sorted(found)]


def own_checkpoints(output_dir: str | Path, run: str, went_on_from: Path | None = None) -> list[Path]:
    """The complete checkpoints in a directory that a run made, or resumed from; oldest step first."""
    return [path for path in complete_checkpoints(output_dir) if belongs_to(path, run, went_on_from)]


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of the run that last wrote in a directory, or None.

    Raises:
        ValueError: that run is not known.
    """
    found = complete_checkpoints(output_dir)
    run, went_on_from = newest_run(output_dir)
    own = [path for path in found if run is not None and belongs_to(path, run, went_on_from)]
    if own or not found:
        return own[-1] if own else None
    if len({run_of(path) for path in found}) > 1:
        raise ValueError(f"{output_dir} holds checkpoints of several runs: name one of {', '.join(map(str, found))}")
    return found[-1]


def resolve_resume(wanted: str | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that --resume_from_checkpoint means; None where it asks for none.

    A path must be a complete checkpoint. True, "true" and "last" mean the newest complete one, in `output_dir`, of the
    run that last wrote there; incomplete ones are passed over.

    Raises:
        ValueError: where there is no such checkpoint.
    """
    if wanted is None or wanted is False or str(wanted).lower() in ("", "false", "none"):
        return None
    if wanted is True or str(wanted).lower() in ("true", "last"):
        try:
            found = newest_checkpoint(output_dir)
        except ValueError as error:
            raise ValueError(f"resume_from_checkpoint={wanted}: {error}") from error
        if found is None:
            raise ValueError(f"resume_from_checkpoint={wanted}: no complete checkpoint in {output_dir}")
        return found
    path = Path(wanted).expanduser()
    if not is_complete(path):
        known = ", ".join(str(p) for p in complete_checkpoints(path.parent)) or "none"
        raise ValueError(f"resume_from_checkpoint={path}: not a complete checkpoint (complete ones beside it: {known})")
    return path


class EpochRepeatSampler(Sampler):
    """TRL's RepeatSampler whose permutation depends on the seed and the epoch, not on how often it was iterated.

    The first epoch's order, and every later one's, are those of an uninterrupted run of stock TRL.
    """

    def __init__(self, epoch: Callable[[], int], **repeat_sampler):
        self._epoch = epoch
        self._arguments = repeat_sampler

    def __iter__(self) -> Iterator[int]:
        sampler = RepeatSampler(**self._arguments)
        if sampler.shuffle:
            for _ in range(self._epoch()):  # one permutation per epoch gone by
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return iter(sampler)

    def __len__(self) -> int:
        return len(RepeatSampler(**self._arguments))


class _RestoreLossSum(TrainerCallback):
    """transformers sets the running loss to zero right before this event."""

    def __init__(self, trainer: "CheckpointMixin"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        restored, self.trainer._restored_state = self.trainer._restored_state, None
        if restored is not None:
            restored.restore_loss(self.trainer)


class CheckpointMixin:
    """Put before a TRL GRPO trainer among the bases of a class. See this file's header."""

    def __init__(self, *args, **kwargs):
        self._staging: Path | None = None
        self._restored_state: StepState | None = None
        self.run_id = new_run_id()
        self.went_on_from: Path | None = None
        self.run_settings: dict | None = None  # what every checkpoint says that it was made with
        super().__init__(*args, **kwargs)
        self.add_callback(_RestoreLossSum(self))

    def train(self, resume_from_checkpoint=None, **kwargs):
        if resume_from_checkpoint:
            self.went_on_from = Path(resume_from_checkpoint)
            self.run_id = run_of(self.went_on_from) or self.run_id
        self.run_id = broadcast_object_list([self.run_id])[0]  # the others name its checkpoints where the first is lost
        if self.args.should_save:
            origin = str(self.went_on_from.resolve()) if self.went_on_from else None
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            write_run(self.args.output_dir, self.run_id, went_on_from=origin)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def own_checkpoints(self) -> list[Path]:
        """The complete checkpoints of this run, oldest step first; also the one it resumed from, wherever that is."""
        own = own_checkpoints(self.args.output_dir, self.run_id, self.went_on_from)
        return own or ([self.went_on_from] if self.went_on_from is not None else [])

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # transformers looks only after a step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # --- order of prompts

    def _get_train_sampler(self, dataset=None):
        stock = super()._get_train_sampler(dataset)
        if not isinstance(stock, RepeatSampler):
            raise RuntimeError(f"expected TRL's RepeatSampler, got {type(stock).__name__}: order on resume is unknown")
        return EpochRepeatSampler(
            lambda: int(self.state.epoch or 0),
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )

    # --- saving

    def _get_output_dir(self, trial):
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        if self.args.push_to_hub:  # transformers uploads the directory in the background: it must keep its place
            super()._save_checkpoint(model, trial)
            checkpoint = Path(super()._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            self._save_grpo_state(checkpoint)
            if self.args.should_save:
                write_run(checkpoint, self.run_id, settings=self.run_settings)
            return
        run_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staging = run_dir / f"{STAGING_PREFIX}{name}"
        if self.args.should_save:
            remove_leftovers(run_dir)
            (staging / name).mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self._staging = staging
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model:
                self._save_grpo_state(staging / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_run(staging / name, self.run_id, settings=self.run_settings)
                if self.state.best_global_step:
                    best = run_dir / f"checkpoint-{self.state.best_global_step}"
                    if best.is_dir() or best.name == name:
                        self.state.best_model_checkpoint = str(best)
                        self.state.save_to_json(str(staging / name / "trainer_state.json"))
                publish(staging / name, run_dir / name, replaced=run_dir / f"{STAGING_PREFIX}replaced-{name}")
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._rotate_own()

    def _rotate_own(self) -> None:
        """save_total_limit: the oldest of this run's own checkpoints go, never the best one."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        if not limit:
            return
        made = [path for path in complete_checkpoints(self.args.output_dir) if run_of(path) == self.run_id]
        kept = {path for path in made if best is not None and path.resolve() == Path(best).resolve()}
        kept |= {*made[-1:]}  # what the run resumed from
        for path in reversed(made):
            if len(kept) < limit:
                kept.add(path)
        for path in made:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def save_final_model(self) -> Path:
        """The policy as output_dir/final, whole or not at all; the one that was there stays until then."""
        final, staging = (Path(self.args.output_dir) / name for name in ("final", f"{STAGING_PREFIX}final"))
        self._save_model_to(final, staging, final.with_name(f"{STAGING_PREFIX}replaced-final"))
        return final

    def _save_model_to(self, final: Path, staging: Path, replaced: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.save_model(str(staging))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(staging, final, replaced=replaced)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()

    def grpo_state(self) -> dict:
        """What the next step depends on and neither transformers nor TRL saves."""
        state = vars(StepState.of(self))
        if self.args.sync_ref_model and self.ref_model is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("sync_ref_model with FSDP or DeepSpeed: the moved reference can't be checkpointed")
            state["ref_model"] = self.accelerator.unwrap_model(self.ref_model).state_dict()
        return state

    def _grpo_state_file(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / f"grpo_state_{self.args.process_index}.pt"

    def _save_grpo_state(self, checkpoint: Path) -> None:
        torch.save(self.grpo_state(), self._grpo_state_file(checkpoint))

    # --- resuming

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._take_learning_rate((settings_of(checkpoint) or {}).get("learning_rate"))
        files = sorted(Path(checkpoint).glob("grpo_state_*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))
        if not files:  # made by stock TRL
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            return
        state = self._load_grpo_state(Path(checkpoint), files)
        reference = state.pop("ref_model", None)
        if reference is not None:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(reference)
        self._restored_state = StepState(**state)
        self._restored_state.restore(self)

    def _load_grpo_state(self, checkpoint: Path, files: list[Path]) -> dict:
        """This process's own; made of every process's where the step was split another way."""
        before = StepSplit.of(settings_of(checkpoint) or {})
        own = self._grpo_state_file(checkpoint)
        same_split = before is None or before.gradient_accumulation_steps == self.args.gradient_accumulation_steps
        if len(files) == self.args.world_size and same_split:
            return self._load(own)
        parts = [self._load(path) for path in files]
        passes = parts[0]["step"] * self.args.gradient_accumulation_steps
        per_step = before.gradient_accumulation_steps if before is not None else self.args.gradient_accumulation_steps
        if passes % per_step or any(part["buffered_inputs"] is not None for part in parts):
            raise ConfigError(
                f"resume_from_checkpoint={checkpoint}: rollouts are in use there, which each of the {len(files)} "
                "processes held for itself. Go on with as many, and the same batch sizes"
            )
        return {**parts[0], **vars(StepState.of_all(parts, passes // per_step))}

    def _load(self, path: Path) -> dict:
        # Not the device itself: with several processes on CPU it is called cpu:0, which torch.load does not know.
        return send_to_device(torch.load(path, map_location="cpu", weights_only=True), self.args.device)

    def _load_rng_state(self, checkpoint):
        if checkpoint is not None:
            before = max(1, len([*Path(checkpoint).glob("rng_state_*.pth")]))
            if before != self.args.world_size:
                # The generators of other processes do not fit these; and as they are they would draw a second time
                # what this run's first steps have drawn.
                drawn = f"{self.args.seed} {self.state.global_step} {self.args.world_size} {self.args.process_index}"
                set_seed(zlib.crc32(drawn.encode()))
                return
        super()._load_rng_state(checkpoint)

    def _take_learning_rate(self, before: float | None) -> None:
        """The rate asked for now in place of the checkpoint's, which optimizer and schedule have just loaded."""
        now = self.args.learning_rate
        if before is None or before == now:
            return
        for group in self.optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] *= now / before
        self.lr_scheduler.base_lrs = [rate * now / before for rate in self.lr_scheduler.base_lrs]
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def remove_leftovers(output_dir: str | Path) -> None:
    """Removes what an interrupted save left behind."""
    for path in [
        path for name in ("checkpoint-*", "final") for path in Path(output_dir).glob(f"{STAGING_PREFIX}*{name}")
    ]:
        replaced = path.name.removeprefix(f"{STAGING_PREFIX}replaced-")
        if replaced != path.name and not (path.parent / replaced).exists():
            path.rename(path.parent / replaced)  # the crash came between the two renames: the old one is the good one
        else:
            shutil.rmtree(path, ignore_errors=True)
