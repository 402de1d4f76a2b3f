"""A trainer's weights into a vLLM that runs on a CPU in the same process.

In: (name, tensor) pairs under the names of the checkpoint. Out: an engine that computes with them.

On a CPU vLLM packs the weights of linear layers for its matrix products after loading them. So weights can't be loaded
into a model in use; `reload_weights` loads into fresh layers and packs those. It leaves one thing stale: a head that is
tied to the embeddings is never loaded by itself, so its packed copy stays that of the old embeddings, silently. It is
tied and packed again here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

_RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
# Layers that vLLM reports as not loaded, as expected: rotary tables are no weights, and the tied head is handled below.
_NOT_LOADED = ("RotaryEmbedding", "ParallelLMHead")


class _Expected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        named = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        return not named.endswith(_NOT_LOADED)


@contextmanager
def _expected_notes_left_out() -> Iterator[None]:
    logger, expected = logging.getLogger(_RELOAD_LOGGER), _Expected()
    logger.addFilter(expected)
    try:
        yield
    finally:
        logger.removeFilter(expected)


def load(worker, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load the weights into the model of a vLLM worker on a CPU."""
    with _expected_notes_left_out():
        worker.reload_weights(weights_iterator=weights)
    model = worker.get_model()
    if not worker.model_config.hf_text_config.tie_word_embeddings:
        return
    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embeddings = [layer for layer in layers if not isinstance(layer, ParallelLMHead)]
    for head in heads:
        (tied,) = (layer for layer in embeddings if layer.weight.shape == head.weight.shape)
        head.weight = tied.weight
        head.quant_method.process_weights_after_loading(head)
