"""Values of options that are out of range, and options that do not go together: found before anything is loaded.

In: RunArguments, GRPOConfig, ModelConfig. Out: nothing, or a ConfigError that names the option, its value and what was
expected. The limits are those beyond which the equation in question has no meaning (a temperature of 0, a probability
of 2) or nothing would be done (batches of 0).
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable

from trainer.training import secrets
from trainer.training.config_error import ConfigError

# The spread of rewards is squared in float32, whose largest number is 3e38.
LARGEST_REWARD = 1e18

_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": 1,
    "steps_per_generation": 1,
    "num_generations": 2,
    "num_generations_eval": 1,
    "num_iterations": 1,
    "max_completion_length": 1,
    "save_total_limit": 1,
    "dataloader_num_workers": 0,
    "top_k": 0,
    "ref_model_sync_steps": 1,
    "vllm_max_model_length": 1,
    "vllm_tensor_parallel_size": 1,
    "lora_r": 1,
    "lora_alpha": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "beta": 0,
    "epsilon": 0,
    "epsilon_high": 0,
}
_ABOVE_ZERO = (
    "temperature",
    "learning_rate",
    "logging_steps",
    "save_steps",
    "eval_steps",
    "repetition_penalty",
    "adam_epsilon",
    "vllm_server_timeout",
)
# name: lowest, is it allowed, highest, is it allowed
_RANGES = {
    "top_p": (0, False, 1, True),
    "min_p": (0, True, 1, True),
    "lora_dropout": (0, True, 1, False),
    "adam_beta1": (0, True, 1, False),
    "adam_beta2": (0, True, 1, False),
    "vllm_gpu_memory_utilization": (0, False, 1, True),
    "top_entropy_quantile": (0, True, 1, True),
    "ref_model_mixup_alpha": (0, True, 1, True),
    "seed": (0, True, 2**32 - 1, True),  # numpy's seeds
    "data_seed": (0, True, 2**32 - 1, True),
}
_INFINITE = ("delta", "max_grad_norm")  # where infinity means: no limit

_TRACKERS = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
# a part of the optimizer's name -> the module it needs
_OPTIMIZERS = {
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "lion": "bitsandbytes",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "apex": "apex",
    "anyprecision": "torchdistx",
    "stable_adamw": "optimi",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    "torch_xla": "torch_xla",
    "torch_npu": "torch_npu",
}


def check_values(run, config, model, origin: Callable[[str], str]) -> None:
    """Every number by itself, and the weights of the rewards.

    Args:
        origin: says of an option's name where its value comes from.

    Raises:
        ConfigError: see this file's header.
    """
    for part in (run, config, model):
        values = {field.name: getattr(part, field.name, None) for field in dataclasses.fields(part)}
        secrets.refuse_where_they_would_be_told(values)
        # what was asked for first: TRL computes steps_per_generation and generation_batch_size from each other
        for name, value in sorted(values.items(), key=lambda item: origin(item[0]) == "by default"):
            _check_number(name, value)
    if config.max_steps < -1:
        raise ConfigError(f"max_steps is {config.max_steps}: expected a number of steps, or -1 for num_train_epochs")
    if config.max_steps == 0 and config.resume_from_checkpoint is None:
        raise ConfigError("max_steps is 0: nothing would be trained (-1 means num_train_epochs)")
    if config.max_steps == -1 and not config.num_train_epochs > 0:
        raise ConfigError(f"num_train_epochs is {config.num_train_epochs}: expected a number > 0")
    _check_rewards(run, config, origin)


def _check_number(name: str, value) -> None:
    if isinstance(value, list | tuple):
        for one in value:
            _check_number(name, one)
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if math.isnan(value) or (math.isinf(value) and name not in _INFINITE):
        raise ConfigError(f"{name} is {value}: expected a finite number")
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        raise ConfigError(f"{name} is {value}: expected at least {_AT_LEAST[name]}")
    if name in _ABOVE_ZERO and not value > 0:
        raise ConfigError(f"{name} is {value}: expected a number > 0")
    if name in _RANGES:
        low, with_low, high, with_high = _RANGES[name]
        if not (low < value < high or (with_low and value == low) or (with_high and value == high)):
            interval = f"{'[' if with_low else '('}{low}, {high}{']' if with_high else ')'}"
            raise ConfigError(f"{name} is {value}: expected a number in {interval}")


def _check_rewards(run, config, origin: Callable[[str], str]) -> None:
    weights = config.reward_weights or [1.0] * len(run.reward)
    if len(weights) != len(run.reward):
        raise ConfigError(
            f"reward_weights has {len(weights)} values ({_words(weights)}, {origin('reward_weights')}) for "
            f"{len(run.reward)} rewards ({_words(run.reward)}, {origin('reward')}): give one weight a reward"
        )
    largest = sum(map(abs, weights)) * (1 + run.cer_weight)
    if largest > LARGEST_REWARD:
        raise ConfigError(
            f"reward_weights ({_words(weights)}) and cer_weight ({run.cer_weight}) allow rewards of {largest:.1e}, "
            f"whose spread is infinite in float32: expected at most {LARGEST_REWARD:.0e}"
        )


def _words(values) -> str:
    return " ".join(str(value) for value in values)


def check_devices_and_packages(config, model) -> None:
    """What this machine does not have. Raises ConfigError."""
    import torch

    on_cpu = config.use_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu and config.fp16:
        raise ConfigError("fp16 is true, but float16 training needs a GPU: leave it out, or take --bf16 true")
    if on_cpu and config.use_liger_kernel:
        raise ConfigError("use_liger_kernel is true, but Liger's kernels need a GPU: leave it out")
    if config.use_liger_kernel:
        _require("use_liger_kernel is true", "liger_kernel", "liger-kernel")
    for tracker in config.report_to:
        if tracker not in _TRACKERS:
            raise ConfigError(f"report_to names {tracker!r}: expected none, or some of {', '.join(_TRACKERS)}")
        _require(f"report_to names {tracker}", _TRACKERS[tracker], tracker)
    optimizer = getattr(config.optim, "value", config.optim)
    module = next((needed for part, needed in reversed(_OPTIMIZERS.items()) if part in optimizer), None)
    if module is not None:
        _require(f"optim is {optimizer}", module, module)
    if model.load_in_4bit or model.load_in_8bit:
        _require(f"load_in_{'4' if model.load_in_4bit else '8'}bit is true", "bitsandbytes", "bitsandbytes")
    if model.use_peft:
        _require("use_peft is set", "peft", "peft")


def _require(why: str, module: str, distribution: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{why}, but {module} is not installed: pip install {distribution}")


def check_sampler(sampler: str, config) -> None:
    """The embedded sampler draws at a temperature and nothing else. Raises ConfigError."""
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
    for name, nothing in neutral.items():
        value = getattr(config, name)
        if value not in (nothing, None):
            raise ConfigError(f"{name} is {value}, but the {sampler} sampler has no {name}: take --sampler trl")
