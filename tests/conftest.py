"""Fixtures for every test: which device to run on."""

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request) -> torch.device:
    """Each device there is: a test that takes this fixture runs on all of them, unchanged."""
    return torch.device(request.param)
