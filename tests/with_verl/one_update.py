"""One update of verl's worker by verl's PPO loss, on fixed responses; as a program, on one of several ranks.

one_update.py FOLDER OVERRIDES...        RANK and WORLD_SIZE of torch.distributed; writes FOLDER/parameters.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl_on_cpu import WORDS, compose_config, make_worker

PROMPT = 3
RESPONSES = (4, 6, 3, 5)
ADVANTAGES = (1.0, -1.0, 0.5, -0.5)
TEMPERATURE = 0.9


def nested(rows) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def responses(rows: slice, **options: object) -> TensorDict:
    """The rows of a batch of four that belong to a rank, as verl's workers get them."""
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randint(6, len(WORDS), (PROMPT + length,), generator=random) for length in RESPONSES][rows]
    mask = [torch.ones(len(row) - PROMPT, dtype=torch.long) for row in tokens]
    return tu.get_tensordict(
        {
            "input_ids": nested(tokens),
            "position_ids": nested(torch.arange(len(row)) for row in tokens),
            "prompts": nested(row[:PROMPT] for row in tokens),
            "responses": nested(row[PROMPT:] for row in tokens),
            "response_mask": nested(mask),
            "loss_mask": nested(mask),
        },
        non_tensor_dict={
            "temperature": TEMPERATURE,
            "calculate_entropy": True,
            "global_batch_size": len(RESPONSES),
            **options,
        },
    )


def update(worker: ActorRolloutRefWorker, rows: slice = slice(None)) -> tuple[TensorDict, dict]:
    """(log-probabilities and entropies before, metrics of the update)."""
    scored = worker.actor.infer_batch(responses(rows, compute_loss=False))
    batch = responses(rows, mini_batch_size=len(RESPONSES), epochs=1)
    # Another policy sampled: ratios other than 1, some of them clipped.
    old = [row[PROMPT - 1 : -1] + 0.15 * (-1) ** i for i, row in enumerate(scored["log_probs"].float().unbind())]
    batch["old_log_probs"] = nested(old)
    batch["advantages"] = nested(
        torch.full((len(row),), advantage) for row, advantage in zip(old, ADVANTAGES[rows], strict=True)
    )
    metrics = tu.get(worker.actor.train_mini_batch(batch), "metrics")
    return scored, {name: metrics[name][0] for name in ("loss", "grad_norm")}


def full_parameters(worker: ActorRolloutRefWorker) -> dict[str, torch.Tensor]:
    """Copies of the policy's whole parameters, as verl sends them to its generation servers."""
    return {name: parameter.clone() for name, parameter in worker.actor.engine.get_per_tensor_param()[0]}


def main() -> None:
    folder, overrides = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    worker = make_worker(compose_config(*overrides))
    assert worker.actor.engine.module.lm_head.weight.to_local().shape[0] < len(WORDS), "the head is not sharded"
    share = len(RESPONSES) // ranks
    update(worker, slice(rank * share, (rank + 1) * share))
    parameters = full_parameters(worker)
    if rank == 0:
        torch.save(parameters, folder / "parameters.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
