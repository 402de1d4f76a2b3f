"""The surroundings of every test here: verl on a CPU, one process group, and Ray with a TransferQueue where asked for.

verl and TRL do not fit into one environment, so where verl is not importable all of this is skipped; .ci/verl makes the
environment in which it runs. The variables must be set before verl is imported for the first time.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGINS = "cpu_platform,cer_verl.plugin"

if importlib.util.find_spec("verl") is None:
    collect_ignore_glob = ["test_in_verl_*.py"]
else:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        VERL_PLATFORM="cpu",
        VERL_ENGINE_DEVICE="cuda",
        VERL_USE_EXTERNAL_MODULES=PLUGINS,
        PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        TOKENIZERS_PARALLELISM="false",
        TQ_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
    )
    sys.path[:0] = [str(HERE), str(ROOT)]


@pytest.fixture(scope="session")
def process_group():
    """One gloo process, in which verl's engines run."""
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def transfer_queue():
    """A real TransferQueue: two Ray actors, one storage unit."""
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf
    from verl_on_cpu import compose_config

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    storage = {"enable": True, "backend": {"SimpleStorage": {"num_data_storage_units": 1}}}
    tq.init(OmegaConf.merge(compose_config().transfer_queue, storage))
    yield tq
    tq.close()
    ray.shutdown()
