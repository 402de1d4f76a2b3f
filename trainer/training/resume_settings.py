"""Which settings a resumed run may change, and which not.

In: the settings that a checkpoint was made with, and those of the run that resumes from it. Out: the changes, named; or
an error with both values.

    free          how long, what is saved, logged and evaluated, and where: they do not enter a step
    the rate      learning_rate: takes effect from the next step on, in place of the one in the optimizer's state
    the split     of a step over processes and passes, as long as it is the same step (step_split.py)
    the rest      is part of what the checkpoint holds (model, adapter, optimizer, rollouts in use, order of prompts) or
                  of what the reward curve means: another value is another run

The training problems are compared by a hash over prompts and answers, not by where they come from.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path

from trainer.training.config_error import ConfigError
from trainer.training.run_directory import settings_of
from trainer.training.secrets import is_secret, shown
from trainer.training.step_split import may_differ

_FREE_PREFIXES = (
    "save_",
    "logging_",
    "log_",
    "eval_",
    "hub_",
    "report_",
    "trackio_",
    "dataloader_",
    "ddp_",
    "vllm_server_",
    "vllm_group_",
    "skip_",
)
_FREE = frozenset(
    [
        "max_steps",
        "num_train_epochs",
        "run_name",
        "project",
        "disable_tqdm",
        "push_to_hub",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "per_device_eval_batch_size",
        "num_generations_eval",
        "bf16_full_eval",
        "fp16_full_eval",
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "include_num_input_tokens_seen",
        "do_train",
        "do_eval",
        "do_predict",
        "debug",
        "local_rank",
        "num_completions_to_print",
        "enable_jit_checkpoint",
        "restore_callback_states_from_checkpoint",
        "torch_empty_cache_steps",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "share_prompts",
        "vllm_gpu_memory_utilization",
        "vllm_enable_sleep_mode",
        "vllm_tensor_parallel_size",
        "trust_remote_code",
        "use_cpu",
        "samples_per_log",
        "controls",
        "held_out_problems",
        "cache_dir",
        "set_aside_older_run",
    ]
)
# Compared by content (`data_digest`) or by what they make of other settings.
_SOURCES = frozenset(
    [
        "dataset",
        "data_dir",
        "dataset_split",
        "dataset_config",
        "question_column",
        "answer_column",
        "max_samples",
        "max_prompt_length",
        "completions_per_update",
    ]
)
_PLACES = frozenset({"resume_from_checkpoint", "output_dir"})  # not worth a word
LEARNING_RATE = "learning_rate"


def settings(*parts, **more) -> dict:
    """The settings of a run as JSON values: the fields of its dataclasses, without secrets.

    Args:
        parts: RunArguments, GRPOConfig, ModelConfig.
        more: what else a step depends on (the digest of the data, the number of processes).
    """
    found = {}
    for part in parts:
        for field in dataclasses.fields(part):
            if not is_secret(field.name):
                found[field.name] = _as_json(shown(field.name, getattr(part, field.name, None)))
    model = found.get("model_name_or_path")
    if isinstance(model, str) and Path(model).expanduser().is_dir():
        found["model_name_or_path"] = str(Path(model).expanduser().resolve())
    return {**found, **more}


def _as_json(value):
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0 and 1 are told alike
    plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else repr(value)


def data_digest(problems: Iterable[Mapping]) -> str:
    """How many problems, and 16 digits of a hash over their prompts and answers, in order."""
    digest, count = hashlib.sha256(), 0
    for problem in problems:
        digest.update(json.dumps([problem["prompt"], problem["ground_truth"]], sort_keys=True).encode())
        count += 1
    return f"{count} problems, {digest.hexdigest()[:16]}"


def check_checkpoint(checkpoint: Path, now: Mapping, *, new_rate: bool = True) -> list[str]:
    """Compare a checkpoint's settings with those of the run that is to resume from it.

    Args:
        now: what `settings` returns.
        new_rate: whether another learning rate can take effect (not under DeepSpeed, which owns the optimizer).

    Returns:
        The changes that are allowed, as lines "name: before -> now".

    Raises:
        ConfigError: the checkpoint can't be resumed from, or a setting differs that may not.
    """
    checkpoint = Path(checkpoint)
    if not _has_optimizer(checkpoint):
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint}: it holds a model and no optimizer (save_only_model), so a run can't "
            f"go on from it. Start a new run from that model: --model_name_or_path {checkpoint}"
        )
    before = settings_of(checkpoint)
    if before is None:
        _check_adapter(checkpoint, now)
        return []
    same_step = may_differ(checkpoint, before, now)
    allowed, refused = [], []
    for name in sorted(set(before) & set(now)):  # an option of a newer version has no earlier value
        if name in _SOURCES or name in _PLACES or before[name] == now[name]:
            continue
        line = f"{name}: {before[name]} -> {now[name]}"
        free = (
            name in _FREE
            or name in same_step
            or name.startswith(_FREE_PREFIXES)
            or (name == LEARNING_RATE and new_rate)
        )
        (allowed if free else refused).append(line)
    if refused:
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint}: the run was made with other settings, which can't change on the "
            f"way (before -> now): {'; '.join(refused)}. Give the old values; or start a new run from its model"
        )
    return allowed


def _has_optimizer(checkpoint: Path) -> bool:
    """One file, sharded files of FSDP, or the partitions of ZeRO."""
    return any(next(checkpoint.glob(name), None) is not None for name in ("optimizer*", "global_step*"))


def _check_adapter(checkpoint: Path, now: Mapping) -> None:
    """A checkpoint of stock TRL holds no settings: those in its adapter's configuration are compared."""
    file = checkpoint / "adapter_config.json"
    if file.is_file() != bool(now.get("use_peft")):
        kind = "an adapter" if file.is_file() else "a whole model"
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint} holds {kind}, but use_peft is {now.get('use_peft')}: they must agree"
        )
    if not file.is_file():
        return
    adapter = json.loads(file.read_text(encoding="utf-8"))
    wanted = {"r": "lora_r", "lora_alpha": "lora_alpha", "use_dora": "use_dora", "use_rslora": "use_rslora"}
    for name, option in wanted.items():
        if name in adapter and adapter[name] != now.get(option):
            raise ConfigError(f"resume_from_checkpoint={checkpoint}: {option}: {adapter[name]} -> {now.get(option)}")
    targets, asked = _names(adapter.get("target_modules")), _names(now.get("lora_target_modules"))
    if targets and asked and "all-linear" not in asked and targets != asked:
        raise ConfigError(
            f"resume_from_checkpoint={checkpoint}: lora_target_modules: {sorted(targets)} -> {sorted(asked)}"
        )


def _names(modules: str | list | None) -> set[str]:
    return {modules} if isinstance(modules, str) else set(modules or ())
