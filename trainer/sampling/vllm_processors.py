"""The processor that fits vLLM's model runner.

vLLM has two model runners with two interfaces. Which one an engine will take is decided by VLLM_USE_V2_MODEL_RUNNER;
vllm_support.prepare_environment asks for the first unless the user has set it.
"""

from __future__ import annotations

from typing import Any

import vllm.envs

from trainer.sampling.teca_processor import PROCESSOR, WORKER

PROCESSOR_V2 = "trainer.sampling.teca_processor_v2:TecaProcessorV2"


def engine_options(*, records: bool = True) -> dict[str, Any]:
    """Options of vllm.LLM for our worker extension and, if it records, for entropies and early exits."""
    second = bool(vllm.envs.VLLM_USE_V2_MODEL_RUNNER)
    processors = {"logits_processors": [PROCESSOR_V2 if second else PROCESSOR]} if records else {}
    return {"worker_extension_cls": WORKER, **processors}
