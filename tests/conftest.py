"""For every test: which device to run on, and a census of what was skipped (skip_census.py)."""

import pytest
import torch
from skip_census import pytest_configure

__all__ = ["device", "pytest_configure"]


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request) -> torch.device:
    """Each device there is: a test that takes this fixture runs on all of them, unchanged."""
    return torch.device(request.param)
