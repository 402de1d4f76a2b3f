"""What was built, and what will be used where.

In: nothing. Out: a dictionary that prints as a page. Only the driver's version and its devices are queried.
"""

from __future__ import annotations

from typing import Any

import torch

import cer_ext
from cer_ext import cuda_driver, ops


class BuildInfo(dict):
    """A dictionary whose str() is one line per entry."""

    def __str__(self) -> str:
        width = max(len(key) for key in self)
        return "\n".join(f"{key:<{width}}  {_text(value)}" for key, value in self.items())


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def build_info() -> BuildInfo:
    """What cer_ext was built with and which kernels it will use on each device, and why.

    Returns:
        dict with `version`, `torch`, what the native part says of itself (`compiler`, `cpu_isas` compiled, `cpu_isa`
        chosen, `cuda`, ...), `cuda_driver` and `cuda_capabilities` of the devices here, `cupy` (name and version, or
        None), `cpu_backend` and `cuda_backend` (text: which kernels serve tensors there, and why),
        `cpu_bfloat16_logits` (text: what multiplies a bfloat16 head there). print() shows it as a page.

    Examples:
        >>> import cer_ext
        >>> "cpu_isa" in cer_ext.build_info()
        True
    """
    native = ops.native_build()
    backend, reason = ops.cuda_backend()
    if not torch.cuda.is_available():
        cuda = f"not used: torch {torch.__version__} sees no CUDA device ({reason})"
    else:
        names = {"native": "native kernels", "nvrtc": "kernels compiled at first use", None: "none"}
        cuda = f"{names[backend]}: {reason}"
    cupy = cuda_driver.cupy_distribution()
    driver = cuda_driver.driver()
    return BuildInfo(
        version=cer_ext.__version__,
        torch=torch.__version__,
        **native,
        cuda_driver=None if driver is None else "for CUDA {}.{}".format(*driver.version),
        cuda_capabilities=[] if driver is None else ["{}.{}".format(*pair) for pair in driver.capabilities],
        cupy=None if cupy is None else " ".join(cupy),
        cpu_backend=f"native kernels for {native['cpu_isa']}, up to {torch.get_num_threads()} threads (as torch)",
        cpu_bfloat16_logits=(
            "products of bfloat16 summed in float32, by the kernel head_tile (weights with contiguous rows)"
            if ops.has_head_tile()
            else f"torch's float32 GEMM on float32 copies: {native['cpu_isa']} has no product of bfloat16"
        ),
        cuda_backend=cuda,
    )
