"""Drawing completions from a policy.

decode.py              prefill and decoding with a key/value cache that drops finished rows; the caller draws
grouped_attention.py   a CPU's attention, without copies of keys and values
rollout.py             plain temperature sampling for training, as TRL's rollout_func
early_exit.py          the rule that ends a response's thinking when its running TECA says that it has decided
running_teca.py        entropies and the rule of many responses, in tensors on the engine's device
batch_images.py        rows with and without an image in one batch
batch_teca.py          the same for a batch decoded together; generate_processor.py: in generate of transformers
rollout_entropy.py     entropies from decoding as training needs them, and how far they are from the training forward's
importance_correction.py  TRL's correction for the engine that samples, out of the training forward
vllm_support.py        which vLLM there is; what is set before it is imported
vllm_generation.py     TRL's vLLM rollouts with entropies and early exits; cpu_weights.py: its weights on a CPU
teca_processor.py      vLLM's logits processor and worker extension; teca_processor_v2.py for its second model runner
request_records.py     which request has which row, through preemption; teca_requests.py: what requests carry
vllm_processors.py     which of the processors an engine takes
"""

from trainer.name_clash import require_own_package

require_own_package()  # asked in trainer/__init__.py too, which another distribution may have overwritten
