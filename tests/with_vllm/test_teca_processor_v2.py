"""The second model runner's processor in that runner, on a CPU: see v2_engine.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, for its interpreter")
def test_the_second_model_runner_gives_the_same_entropies_and_exits(model_dir):
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent / "trainer")))
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_USE_V2_MODEL_RUNNER"}
    done = subprocess.run(
        [sys.executable, str(HERE / "v2_engine.py"), str(model_dir)],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULTS"))
    counts = json.loads(line.removeprefix("RESULTS"))
    assert counts["runner"] == "vllm.v1.worker.gpu.model_runner"
    assert counts["responses"] == 14
    assert counts["exits"] >= 1
    assert counts["preemptions"] > 0
    assert counts["kept"] == 0
