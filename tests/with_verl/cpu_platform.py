"""A CPU as a platform of verl, registered from outside, as verl lets vendors do. For the tests alone.

In: VERL_PLATFORM=cpu and VERL_USE_EXTERNAL_MODULES=cpu_platform,...; VERL_ENGINE_DEVICE=cuda selects the FSDP engines,
which then run on what the platform says. Out: verl's training workers, engines and losses on CPU tensors over gloo.
verl's own rollout engines need a GPU all the same.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _nothing(*args, **kwargs) -> int:
    return 0


# What verl asks of torch.cuda and the like.
_DEVICE_MODULE = SimpleNamespace(
    **dict.fromkeys(
        (
            "current_device",
            "max_memory_allocated",
            "max_memory_reserved",
            "memory_allocated",
            "memory_reserved",
            "reset_peak_memory_stats",
        ),
        _nothing,
    ),
    is_available=lambda: True,
    synchronize=_nothing,
    empty_cache=_nothing,
    set_device=_nothing,
    device_count=lambda: 1,
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    manual_seed=torch.manual_seed,
    mem_get_info=lambda *args: (2**33, 2**34),
    get_device_properties=lambda *args: SimpleNamespace(total_memory=2**34),
    get_device_name=lambda *args: "cpu",
)


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, message: str):
        return contextlib.nullcontext()

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None: ...

    def rollout_env_vars(self) -> dict[str, str]:
        return {}


missing = CPUPlatform.__abstractmethods__
if missing:
    raise TypeError(f"verl's platforms have methods that this one lacks: {', '.join(sorted(missing))}")
