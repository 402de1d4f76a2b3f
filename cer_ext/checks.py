"""Checks of the arguments that a caller passes, made once, where they come in.

In: an argument as the caller gave it, and its name. Out: the argument in the one form that the rest of the package
uses, or a TypeError / ValueError that names it, says what was expected and what came.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cer_ext.ops import SCALAR_TYPE
from cer_ext.transform import SMALLEST_TEMPERATURE, Scalars

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOGIT_DTYPES = ", ".join(str(dtype) for dtype in SCALAR_TYPE)


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor as it is; an array of any library that speaks DLPack (CuPy, NumPy, JAX) as a tensor on its memory."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"{name}: expected a torch.Tensor or an array with __dlpack__, got {type(value).__name__}")
    try:
        return torch.from_dlpack(value)
    except (BufferError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"{name}: this {type(value).__name__} cannot be shared through DLPack ({error}); pass a writable copy or a "
            "torch.Tensor"
        ) from error


def check_floating(name: str, tensor: Tensor) -> None:
    """A strided tensor of a dtype and on a device for which there are kernels."""
    if tensor.dtype not in SCALAR_TYPE:
        raise TypeError(f"{name}: expected one of {_LOGIT_DTYPES}, got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name}: expected a tensor on cpu or cuda, got one on {tensor.device}")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected on {other.device} like {other_name}, got on {tensor.device}")


def check_target(
    target: Any, shape: torch.Size, source_name: str, source: Tensor, several_targets: bool = False
) -> Tensor:
    """Token indices as int64, of the shape that is left of `source` without its last dimension; with `several_targets`
    also that shape and one dimension more, (..., K)."""
    target = as_tensor("target", target)
    if target.dtype != torch.int64:
        if target.dtype != torch.int32:
            raise TypeError(f"target: expected torch.int64 (or torch.int32), got {target.dtype}")
        target = target.long()
    several = several_targets and target.dim() == len(shape) + 1 and target.shape[-1] > 0
    if (target.shape[:-1] if several else target.shape) != shape:
        more = f" (or {(*shape, 'K')}, several a row, K >= 1)" if several_targets else ""
        raise ValueError(
            f"target: expected shape {tuple(shape)}{more}, that of {source_name} {tuple(source.shape)} without its "
            f"last dimension, got {tuple(target.shape)}"
        )
    check_same_device("target", target, source_name, source)
    return target


def check_temperature(
    temperature: Any, shape: torch.Size, source_name: str, source: Tensor
) -> tuple[Tensor | None, float]:
    """(None, T) for one temperature, (tensor, 1.0) for one per row. A tensor's values are checked by the op."""
    if type(temperature) is float and SMALLEST_TEMPERATURE <= temperature < math.inf:
        return None, temperature
    # Numbers by name: torch.compile's stand-ins for those that change between calls have no attributes to ask for.
    is_number = isinstance(temperature, int | float)
    if is_number or not (isinstance(temperature, Tensor) or hasattr(temperature, "__dlpack__")):
        value = check_number("temperature", temperature, "a positive finite number or a tensor with one per row")
        if not SMALLEST_TEMPERATURE <= value < math.inf:
            raise ValueError(f"temperature: expected a positive finite number (2^-126 at least), got {temperature}")
        return None, value
    temperature = as_tensor("temperature", temperature)
    if not temperature.dtype.is_floating_point:
        raise TypeError(f"temperature: expected a floating point tensor, got {temperature.dtype}")
    if temperature.shape != shape:
        raise ValueError(
            f"temperature: expected shape {tuple(shape)} (one per row, like target), got {tuple(temperature.shape)}"
        )
    check_same_device("temperature", temperature, source_name, source)
    if temperature.requires_grad:
        raise ValueError("temperature: has no gradient here, but requires_grad is set; pass temperature.detach()")
    return temperature, 1.0


def check_number(name: str, value: Any, expected: str = "a number") -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return float(value)


def check_logit_scale(logit_scale: Any) -> float:
    value = check_number("logit_scale", logit_scale)
    if not -math.inf < value < math.inf:
        raise ValueError(f"logit_scale: expected a finite number, got {logit_scale}")
    return value


def check_softcap(softcap: Any) -> float:
    """The cap as the kernels want it: 0.0 for none."""
    if softcap is None:
        return 0.0
    value = check_number("softcap", softcap, "None or a positive finite number")
    if not 0.0 < value < math.inf:
        raise ValueError(f"softcap: expected None or a positive finite number, got {softcap}")
    return value


def check_flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_validate(validate: Any, device: torch.device) -> bool:
    """None means: check on a CPU, where it is free, and not on CUDA, where it would stall the stream."""
    return device.type == "cpu" if validate is None else check_flag("validate", validate)


def check_integer(name: str, value: Any) -> int:
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    try:
        index = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        index = None
    if index is None:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{name}: expected a 64-bit integer, got {value}")
    return index


class Head(NamedTuple):
    """A checked call on hidden states and a head's weight."""

    hidden: Tensor  # (..., D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (...), int64
    temperature: Tensor | None  # (...), or that of scalars for all rows
    scalars: Scalars
    ignore_index: int
    workspace_bytes: int  # 0: the device's default
    validate: bool
    group: ProcessGroup | None = None  # whose ranks hold a shard of weight and bias each
    vocabulary: int = 0  # of all shards; 0: not stated
    split_tokens: bool = False  # hidden, target and temperature are of this rank's tokens


def as_autocast_would(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """What torch.nn.functional.linear makes of an operand under autocast: cast, except float64."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def check_group(group: Any) -> ProcessGroup | None:
    """A process group; that of a one-dimensional device mesh."""
    if group is None:
        return None
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, ProcessGroup):
        return group
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group: expected a mesh of one dimension, got {group.ndim}: pass mesh['the dimension']")
        return group.get_group()
    raise TypeError(f"group: expected None, a ProcessGroup or a DeviceMesh, got {type(group).__name__}")


def local_shard(name: str, tensor: Any, group: ProcessGroup | None) -> tuple[Any, int]:
    """This rank's rows of a DTensor that is cut along its first dimension over `group`, with a gradient, and the number
    of all rows; any other tensor as it is, and 0."""
    placements = getattr(tensor, "placements", None)
    if not isinstance(tensor, Tensor) or placements is None:
        return tensor, 0
    if group is None:
        raise TypeError(
            f"{name}: got a DTensor {placements}; pass group= to use each rank's shard where it lies, or "
            f"{name}.full_tensor()"
        )
    import torch.distributed as dist

    cut = [dimension for dimension, placement in enumerate(placements) if not placement.is_replicate()]
    # By its name: a _StridedShard is a Shard too, but not one of consecutive rows.
    if len(cut) != 1 or type(placements[cut[0]]).__name__ != "Shard" or placements[cut[0]].dim != 0:
        raise ValueError(f"{name}: expected a DTensor that is cut along dimension 0 once, Shard(0), got {placements}")
    mesh: Any = getattr(tensor, "device_mesh")  # noqa: B009, known to DTensor alone
    ranks, expected = (dist.get_process_group_ranks(g) for g in (mesh.get_group(cut[0]), group))
    if ranks != expected:
        raise ValueError(f"{name}: expected a DTensor cut over the ranks {expected} of group, got {ranks}")
    return getattr(tensor, "to_local")(), tensor.shape[0]  # noqa: B009


def check_head(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any,
    *,
    temperature: Any,
    logit_scale: Any,
    softcap: Any,
    ignore_index: Any,
    workspace_bytes: Any,
    validate: Any,
    group: ProcessGroup | None = None,
    vocabulary: Any = None,
    split_tokens: Any = False,
    several_targets: bool = False,
) -> Head:
    """The arguments that every function of a linear head shares, cast as autocast would."""
    hidden = as_tensor("hidden", hidden)
    if getattr(hidden, "placements", None) is not None:
        raise TypeError("hidden: expected a plain tensor of this rank's tokens, got a DTensor: pass hidden.to_local()")
    weight, all_rows = local_shard("weight", as_tensor("weight", weight), group)
    bias = None if bias is None else local_shard("bias", as_tensor("bias", bias), group)[0]
    check_floating("hidden", hidden)
    check_floating("weight", weight)
    if bias is not None:
        check_floating("bias", bias)
    device = hidden.device
    if torch.is_autocast_enabled(device.type):
        hidden, weight, bias = (as_autocast_would(x, device.type) for x in (hidden, weight, bias))
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight: expected {hidden.dtype} like hidden, got {weight.dtype}")
    check_same_device("weight", weight, "hidden", hidden)
    full_shape = hidden.shape
    if not full_shape:
        raise ValueError("hidden: expected shape (..., D), got ()")
    fewest = 1 if group is None else 0
    if weight.dim() != 2 or weight.shape[1] != full_shape[-1] or weight.shape[0] < fewest:
        raise ValueError(
            f"weight: expected shape (V, D) with V >= {fewest} and D = {full_shape[-1]} of hidden {tuple(full_shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        if bias.dtype != hidden.dtype:
            raise TypeError(f"bias: expected {hidden.dtype} like hidden, got {bias.dtype}")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected shape (V,) = {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
        check_same_device("bias", bias, "hidden", hidden)
    shape = full_shape[:-1]
    target = check_target(target, shape, "hidden", hidden, several_targets)
    per_row, temperature_all = check_temperature(temperature, shape, "hidden", hidden)
    workspace = 0  # the device's default
    if workspace_bytes is not None:
        workspace = check_integer("workspace_bytes", workspace_bytes)
        if workspace <= 0:
            raise ValueError(f"workspace_bytes: expected None or a positive number of bytes, got {workspace_bytes}")
    stated = all_rows
    if vocabulary is not None:
        stated = check_integer("vocabulary", vocabulary)
        if group is None:
            raise ValueError("vocabulary: belongs to a head that is spread over the ranks of a group, got group=None")
        if stated <= 0 or all_rows not in (0, stated):
            expected = f"{all_rows}, the rows of the DTensor weight" if all_rows else "a positive number"
            raise ValueError(f"vocabulary: expected {expected}, got {vocabulary}")
    if check_flag("split_tokens", split_tokens) and group is None:
        raise ValueError("split_tokens: expected a group over whose ranks the tokens are split, got group=None")
    return Head(
        hidden=hidden,
        weight=weight,
        bias=bias,
        target=target,
        temperature=per_row,
        scalars=Scalars(temperature_all, check_logit_scale(logit_scale), check_softcap(softcap)),
        ignore_index=check_integer("ignore_index", ignore_index),
        workspace_bytes=workspace,
        validate=check_validate(validate, device),
        group=group,
        vocabulary=stated,
        split_tokens=split_tokens,
    )
