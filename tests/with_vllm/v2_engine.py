"""Program: requests through vLLM's second model runner on a CPU; prints what happened as JSON.

That runner needs Triton. Its kernels run here in Triton's interpreter, and a stand-in says that a CPU backend is there,
which vLLM asks for. Everything else is vLLM's own: runner, sampler, scheduler, slots. Slow, so few and short requests.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import types

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

import triton.backends


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


triton.backends.backends["cpu"] = types.SimpleNamespace(compiler=None, driver=_Driver)

from trainer.sampling import vllm_support  # noqa: E402  (Triton first)

UNTRUNCATED = {"top_k": 0, "top_p": 1.0}  # Triton 3.9's interpreter cannot run vLLM's kernel for top-k

vllm_support.prepare_environment(cpu=True)


def run(model_dir: str, **options) -> dict[str, int]:
    from checking import check
    from engines import draw_prompts, start
    from transformers import AutoModelForCausalLM

    llm = start(model_dir, max_num_seqs=4, disable_log_stats=False, **options)
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    reference = AutoModelForCausalLM.from_pretrained(model_dir).double().eval()
    counts = check(llm, reference, draw_prompts(10, longest=40, seed=2), longest=24, **UNTRUNCATED)
    more = check(llm, reference, draw_prompts(2, longest=9, seed=3), longest=9, n=2, keys_from=100, **UNTRUNCATED)
    counts = {name: counts[name] + more[name] for name in counts}
    counts["preemptions"] = int(next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"))
    (processor,) = (one for one in runner.sampler.logits_processors if hasattr(one, "take"))
    counts["kept"] = len(processor.records)
    counts["runner"] = f"{type(runner).__mro__[1].__module__}"
    del llm
    gc.collect()
    return counts


if __name__ == "__main__":
    model_dir = sys.argv[1]
    # A cache too small for the batch: some requests are put off, others not.
    print("RESULTS", json.dumps(run(model_dir, num_gpu_blocks_override=4, block_size=32, max_model_len=96)))
