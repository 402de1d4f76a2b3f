"""How many processes a run has, and what wraps its model: what was asked for is what there is, or it does not start.

In: the command's settings, the environment that a launcher left, later the trainer. Out: a description, for people and
for log.jsonl; or a ConfigError that names the option and what to do.

Launchers fall back without a word, and the run that follows looks right:

    accelerate launch, MULTI_CPU, num_processes N    starts one process (only mpirun starts more)
    accelerate launch, FSDP, on a CPU                wraps the model in DDP: it shards on accelerators alone
    torchrun on a CPU, without --use_cpu true        N processes, each of which may take itself for the only one
    srun -n N python -m trainer.grpo                 the same: nothing tells one of the others
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from trainer.training.config_error import ConfigError

NOTHING, DDP, FSDP1, FSDP2 = "nothing", "DDP", "FSDP", "FSDP2"
_TORCHRUN = "torchrun --nproc_per_node N -m trainer.grpo ..."
# What a process knows others by: torchrun's and MPI's.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def asks_for_fsdp(config, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether --fsdp or accelerate's configuration asks for it."""
    return bool(config.fsdp) or environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def sharding_asked_for(config) -> str | None:
    """What shall shard the model; None: nothing."""
    if asks_for_fsdp(config):
        return "FSDP"
    return f"ZeRO-{config.deepspeed_plugin.zero_stage}" if config.deepspeed_plugin is not None else None


def check_launch(config, environment: Mapping[str, str] = os.environ) -> None:
    """Before anything is loaded: whether the launcher did what it was asked to.

    Args:
        config: with `world_size`, `device` and `fsdp`; trl.GRPOConfig has them.

    Raises:
        ConfigError: it did not.
    """
    counts = {name: int(environment[name]) for name in _COUNTS if environment.get(name, "").isdigit()}
    started = max(counts.values(), default=1)
    if started > config.world_size:
        name = max(counts, key=lambda name: counts[name])
        hint = "give --use_cpu true" if config.device.type == "cpu" else f"launch with {_TORCHRUN}"
        raise ConfigError(
            f"{name} is {started}, but each process takes itself for one of {config.world_size}: every one would train "
            f"a model of its own. On this {config.device.type}, {hint}"
        )
    if config.world_size == 1 and not counts:
        _check_it_should_be_alone(environment)
    if asks_for_fsdp(config, environment) and (config.device.type == "cpu" or not environment.get("LOCAL_RANK")):
        option = "fsdp" if config.fsdp else "distributed_type: FSDP of accelerate's configuration"
        got = f"{config.world_size} processes with DDP" if config.world_size > 1 else "one process that shards nothing"
        instead = (
            f"accelerate shards on GPUs alone: leave FSDP out and launch with {_TORCHRUN} (DDP)"
            if config.device.type == "cpu"
            else "launch with accelerate launch --config_file trainer/recipes/accelerate_fsdp2.yaml -m trainer.grpo ..."
        )
        raise ConfigError(f"{option} is asked for, but on this {config.device.type} it would be {got}: {instead}")


def _check_it_should_be_alone(environment: Mapping[str, str]) -> None:
    # accelerate's launcher of one process sets an address where it was asked for several, and no number of them.
    if "ACCELERATE_DYNAMO_BACKEND" in environment and "MASTER_ADDR" in environment:
        raise ConfigError(
            "num_processes: accelerate launch was asked for several processes and has started one, as it does on a CPU "
            f"without mpirun. Launch with {_TORCHRUN}; or set num_processes to 1 and unset MASTER_ADDR"
        )
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdigit() and int(tasks) > 1:
        raise ConfigError(
            f"srun has started {tasks} tasks that know nothing of each other (SLURM_STEP_NUM_TASKS). Start one task a "
            "node, and in it torchrun --nnodes NODES --nproc_per_node GPUS (docs/multi-node.md)"
        )


class Wrapped(NamedTuple):
    """What there is: processes, where they compute and talk, what wraps the model."""

    processes: int
    machines: int
    device: str
    backend: str | None
    wrapped: str

    def __str__(self) -> str:
        if self.processes == 1 and self.wrapped == NOTHING:
            return f"1 process on {self.device}; nothing wraps the model"
        where = f"{self.machines} machines" if self.machines > 1 else "one machine"
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        share = f"each holds 1/{self.processes} of it" if self.wrapped not in (DDP, NOTHING) else "each holds all of it"
        return f"{count} on {where} ({self.device}, {self.backend}); the model is wrapped by {self.wrapped}: {share}"


def wrapper_of(model) -> str:
    """What a trainer's `model_wrapped` is wrapped by."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        return DDP
    if isinstance(model, FSDPModule):
        return FSDP2
    if isinstance(model, FullyShardedDataParallel):
        return FSDP1
    stage = getattr(model, "zero_optimization_stage", None)  # deepspeed's engine; deepspeed may be absent
    return NOTHING if stage is None else f"ZeRO-{stage()}"


def what_wraps(trainer) -> Wrapped:
    """Of a trainer that has begun to train."""
    import torch

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", trainer.args.world_size))
    return Wrapped(
        processes=trainer.args.world_size,
        machines=-(-trainer.args.world_size // local),
        device=trainer.args.device.type,
        backend=torch.distributed.get_backend() if distributed else None,
        wrapped=wrapper_of(trainer.model_wrapped),
    )


def check_wrapped(found: Wrapped, config) -> None:
    """Whether the model is wrapped as asked for. Raises ConfigError.

    What `check_launch` knows of is found before; this is the net below it, for launchers that fall back some other way.
    """
    wanted = sharding_asked_for(config)
    if wanted is not None and not found.wrapped.startswith(wanted):
        raise ConfigError(f"{wanted} is asked for, and this is what there is: {found}. Nothing was trained")
