"""The keywords that public functions share, for type checkers; the functions state them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class SoftmaxOptions(TypedDict, total=False):
    temperature: float | Tensor
    logit_scale: float
    softcap: float | None
    ignore_index: int
    validate: bool | None


class LogitsOptions(SoftmaxOptions, total=False):
    inplace_backward: bool


class HeadOptions(SoftmaxOptions, total=False):
    workspace_bytes: int | None


class ShardedHeadOptions(HeadOptions, total=False):
    group: ProcessGroup | DeviceMesh | None
    vocabulary: int | None
    split_tokens: bool
