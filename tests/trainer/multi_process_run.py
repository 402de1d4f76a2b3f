"""One process of several: short runs of CERTrainer and of stock TRL, kept in files for test_multi_process.py.

    torchrun --nproc_per_node 2 multi_process_run.py FOLDER {ddp,fsdp2,zero3}

In: FOLDER/<family>, the tiny models on disk.  Out: FOLDER/<sharding>.<case>.<trainer>.<rank>.pt for every case: what
this process logged, sampled and was told as TECA, beside TECA from plain logits, and the whole weights at the end.

Both trainers get two rewards. One counts tokens; the other is TECA itself: what the trainer hands over in CERTrainer,
what plain torch makes of the weights of that moment in stock TRL. So a TECA that reached the wrong row or process would
part the runs.

Stock TRL runs under DDP alone, where each process holds the whole model: the runs that shard it are held to that one.
"""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from peft import LoraConfig, get_peft_model
from same_run import token_statistics_in_float64
from tiny_models import count_reward, make_tokenizer, prompts
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOConfig, GRPOTrainer

from trainer.cer_trainer import CERTrainer
from trainer.training.launch import wrapper_of

TEMPERATURE = 0.9
# Nothing stays gathered for being small: what a large model's head goes through, the tiny one goes through too.
ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


class Case(NamedTuple):
    """A run: which model, which arguments beside the common ones, which LoRA; where, and whether stock TRL makes it."""

    family: str
    arguments: dict
    lora: dict | None = None
    shardings: tuple[str, ...] = ("ddp", "fsdp2", "zero3")
    stock: bool = True
    head_mode: str = "one_pass"


ALIGNED = {"gradient_accumulation_steps": 2, "steps_per_generation": 2}  # CERTrainer makes a pass of its own
MISALIGNED = {"gradient_accumulation_steps": 1, "steps_per_generation": 2}  # it reads TRL's pass
BODY = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
CASES = {
    "full, tied, KL": Case("qwen3", {"beta": 0.1, **ALIGNED}),
    "full, untied": Case("llama", {"beta": 0.0, **MISALIGNED, "gradient_checkpointing": True}, head_mode="two_pass"),
    "LoRA, tied, KL": Case("qwen3", {"beta": 0.1, **MISALIGNED}, BODY, head_mode="two_pass"),
    "LoRA, untied": Case("llama", {"beta": 0.0, **ALIGNED, "gradient_checkpointing": True}, BODY),
    "LoRA on the head": Case(  # stock TRL refuses it
        "llama", {"beta": 0.1, **ALIGNED}, {**BODY, "target_modules": ["q_proj", "lm_head"]}, stock=False
    ),
    "full, tied, KL, bfloat16": Case(
        "qwen3", {"beta": 0.1, **ALIGNED, "bf16": True}, shardings=("fsdp2",), stock=False
    ),
}


def ours_of(case: Case) -> dict:
    """What only CERTrainer takes. In bfloat16 a shared prompt rounds otherwise than one run alone."""
    return {"head_mode": case.head_mode, "share_prompts": not case.arguments.get("bf16")}


TRAINERS = {"ours": CERTrainer, "stock": GRPOTrainer}


def whole_parameters(model) -> dict[str, torch.Tensor]:
    """Copies of all parameters, gathered from all processes."""
    partitioned = [p for p in model.parameters() if hasattr(p, "ds_id")]
    gathered = nullcontext()
    if partitioned:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(partitioned)
    with gathered:
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in model.named_parameters()
        }


def allow_fsdp_on_cpu() -> None:
    """accelerate turns FSDP on for accelerators alone; torch's fully_shard runs on CPU all the same."""
    construct = AcceleratorState.__init__

    def __init__(self, *args, fsdp_plugin=None, **kwargs):
        construct(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = __init__


class Rewards:
    """The two rewards of a run, and what they saw."""

    def __init__(self, twin, tokenizer) -> None:
        self.twin, self.tokenizer, self.trainer = twin, tokenizer, None
        self.samples, self.teca, self.plain_teca = [], [], []
        self.start: dict[str, torch.Tensor] | None = None

    def count(self, completion_ids, **kwargs):
        self.samples.extend(completion_ids)
        return count_reward(completion_ids=completion_ids, **kwargs)

    def entropy(self, prompts, completion_ids, teca=None, **kwargs):
        weights = whole_parameters(self.trainer.model)
        self.start = self.start or weights
        for name, parameter in weights.items():
            self.twin.get_parameter(name).data.copy_(parameter)
        prompt_ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        _, entropies = token_statistics_in_float64(self.twin, prompt_ids, completion_ids, TEMPERATURE)
        plain = [h.mean().item() for h in entropies]
        self.plain_teca.extend(plain)
        self.teca.extend(teca or plain)
        return teca or plain


def run(sharding: str, case: Case, trainer_class: type, folder: Path) -> dict:
    for forget in (AcceleratorState._reset_state, GradientState._reset_state, unset_hf_deepspeed_config):
        forget()
    tokenizer = make_tokenizer()
    lora = None if case.lora is None else LoraConfig(**case.lora)
    # Before the arguments: from then on ZeRO-3 would partition it.
    twin = AutoModelForCausalLM.from_pretrained(folder / case.family, dtype=torch.float32)
    rewards = Rewards(twin if lora is None else get_peft_model(twin, lora), tokenizer)
    arguments = GRPOConfig(
        output_dir=str(folder / "runs"),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        max_steps=3,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        temperature=TEMPERATURE,
        seed=11,
        deepspeed=ZERO3 if sharding == "zero3" else None,
        **{"bf16": False, "gradient_checkpointing": False, **case.arguments},
    )
    trainer = trainer_class(
        str(folder / case.family),
        [rewards.count, rewards.entropy],
        args=arguments,
        train_dataset=prompts(),
        processing_class=tokenizer,
        peft_config=lora,
        **({} if trainer_class is GRPOTrainer else ours_of(case)),
    )
    rewards.trainer = trainer
    dtypes = set()
    score = trainer._get_per_token_logps_and_entropies

    def recorded(*args, **kwargs):
        result = score(*args, **kwargs)
        dtypes.update(str(part.dtype) for part in result if part is not None)
        return result

    trainer._get_per_token_logps_and_entropies = recorded
    trainer.train()
    return {
        "log": trainer.state.log_history,
        "samples": rewards.samples,
        "teca": rewards.teca,
        "plain_teca": rewards.plain_teca,
        "dtypes": dtypes,
        "start": rewards.start,
        "weights": whole_parameters(trainer.model),
        "wrapped": wrapper_of(trainer.model_wrapped),
    }


def main(folder: Path, sharding: str) -> None:
    if sharding == "fsdp2":
        allow_fsdp_on_cpu()
    for name, case in CASES.items():
        for trainer_name, trainer_class in TRAINERS.items():
            wanted = sharding in case.shardings if trainer_name == "ours" else case.stock and sharding == "ddp"
            if wanted:
                result = run(sharding, case, trainer_class, folder)
                torch.save(result, folder / f"{sharding}.{name}.{trainer_name}.{torch.distributed.get_rank()}.pt")
                gc.collect()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
