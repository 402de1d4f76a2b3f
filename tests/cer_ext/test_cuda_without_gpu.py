"""A build with CUDA kernels on a machine without a GPU: it imports, and a launch says what is missing."""

from __future__ import annotations

import pytest
import torch

from cer_ext import _C

pytestmark = [
    pytest.mark.skipif(not hasattr(_C, "cuda_fold_tile"), reason="cer_ext was built without CUDA here"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
]


def test_a_launch_without_a_device_raises_the_name_of_the_cuda_error() -> None:
    entropy, teca, last = torch.ones(1, 4), torch.empty(1, 4), torch.empty(1)
    with pytest.raises(RuntimeError, match="teca_forward: cudaError"):
        _C.cuda_teca_forward(False, 1, 4, 0, 0, entropy.data_ptr(), teca.data_ptr(), last.data_ptr(), 0)


def test_no_rows_are_no_launch_and_no_error() -> None:
    _C.cuda_teca_forward(False, 0, 0, 0, 0, 0, 0, 0, 0)
    _C.cuda_finish_rows(0, 0, 0, 0, 0, -100, 10, 0, 1.0, False, 0, 0, 0, 0, 0, 0)


def test_a_split_row_without_memory_for_its_parts_is_refused() -> None:
    with pytest.raises(RuntimeError, match="splits is 2, and more than one needs `partial`"):
        _C.cuda_fold_tile(0, 0, 1, 10, 10, 0, 0, 1.0, 0.0, 0, 1.0, 0, 0, 0, 0, True, 0, 2, 0)
