"""Fixtures for every test: which device to run on."""

import pytest
import torch


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ]
)
def device(request) -> torch.device:
    """Each device there is: a test that takes this fixture runs on all of them, unchanged."""
    return torch.device(request.param)
