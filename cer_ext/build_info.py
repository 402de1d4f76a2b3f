"""What was built, and what will be used where.

In: nothing. Out: a dictionary that prints as a page. Asks the drivers no more than torch.cuda.is_available() does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch

import cer_ext
from cer_ext import ops


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


def _cupy_version() -> str | None:
    """The version of an installed CuPy, whatever CUDA it is built for; it is not imported."""
    if importlib.util.find_spec("cupy") is None:
        return None
    for name in importlib.metadata.packages_distributions().get("cupy", ()):
        return importlib.metadata.version(name)
    return "unknown"


def build_info() -> BuildInfo:
    """What cer_ext was built with and which kernels it will use on each device, and why.

    Returns:
        dict with `version`, `torch`, what the native part says of itself (`compiler`, `cpu_isas` compiled, `cpu_isa`
        chosen, `cuda`, ...), `cupy` (version or None), `cpu_backend` and `cuda_backend` (text: which kernels serve
        tensors there, and why), `cpu_bfloat16_logits` (text: what multiplies a bfloat16 head there). print() shows it
        as a page.

    Example:
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
    cupy = _cupy_version()
    return BuildInfo(
        version=cer_ext.__version__,
        torch=torch.__version__,
        **native,
        cupy=cupy,
        cpu_backend=f"native kernels for {native['cpu_isa']}, up to {torch.get_num_threads()} threads (as torch)",
        cpu_bfloat16_logits=(
            "products of bfloat16 summed in float32, by the kernel head_tile (weights with contiguous rows)"
            if ops.has_head_tile()
            else f"torch's float32 GEMM on float32 copies: {native['cpu_isa']} has no product of bfloat16"
        ),
        cuda_backend=cuda,
    )
