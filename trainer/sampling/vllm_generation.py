"""TRL's vLLM rollouts with entropies from decoding and early exits, in this process also without a GPU.

In: what trl.generation.vllm_generation.VLLMGeneration takes. Out: what it gives, and per completion what decoding knew
of it (`take_decoded`).

What differs from TRL's:
- colocate: the engine is started with our logits processor, and each prompt carries a key for its entropies;
- colocate on a CPU: eager mode, the policy's own dtype (vLLM's "auto" makes bfloat16 of float32), and weights handed
  over all at once. TRL's one by one fails there: vLLM packs the weights of linear layers for the CPU after loading, and
  a packed layer has no place to load into (cpu_weights.py). With LoRA the adapter is merged
  for the time of the hand-over, as TRL does it. Cached prefixes of the old weights are dropped;
- the process: an engine in it reseeds torch, numpy and random as it starts; here random numbers go on;
- server: prints how long it waits for one, and how to start one if there is none.

Imports vLLM; trainer/sampling/vllm_support.py prepares for that.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import requests
import torch
from trl.generation import vllm_generation
from vllm.platforms import current_platform

from trainer.sampling import vllm_support
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.teca_processor import take_entropies
from trainer.sampling.teca_requests import Decoded, decoded, request_arguments
from trainer.sampling.vllm_processors import engine_options

SERVE = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config \'{{"backend": "nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)


class RecordingVLLMGeneration(vllm_generation.VLLMGeneration):
    """TRL's, with two more arguments.

    Args:
        records: whether to record entropies and heed the rule (colocate only).
        rule: when to end a response's thinking, or None.

    Raises:
        ConnectionError: no server answered in time; says how to start one.
        ValueError: sleep mode on a CPU, which vLLM does not have there.
    """

    def __init__(self, *args, records: bool, rule: EarlyExit | None, **kwargs) -> None:
        self.records, self.rule = records, rule
        self._keys = itertools.count()
        self._decoded: list[Decoded] | None = None
        super().__init__(*args, **kwargs)

    def _init_vllm(self) -> None:
        if self.accelerator.is_main_process:
            print(vllm_support.note(vllm_support.require_vllm("use_vllm")), flush=True)
        if self.mode == "server":
            self._wait_for_server()
            return
        on_cpu = current_platform.is_cpu()
        options = engine_options(records=self.records)
        if on_cpu:
            if self.enable_sleep_mode:
                raise ValueError("vllm_enable_sleep_mode: vLLM has no sleep mode on a CPU; leave it out")
            options |= {"enforce_eager": True, "dtype": str(self.model.dtype).removeprefix("torch.")}
        with _with_engine_options(options), _process_kept():
            super()._init_vllm()

    def _wait_for_server(self) -> None:
        url = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
        if self.accelerator.is_main_process:
            print(f"waiting for the vLLM server at {url}, up to {self.server_timeout:g} s", flush=True)
        try:
            super()._init_vllm()
        except requests.exceptions.ConnectionError as error:
            raise ConnectionError(
                f"no vLLM server at {url} after {self.server_timeout:g} s; start one on GPUs of its own with "
                + SERVE.format(model=self.model.name_or_path)
            ) from error

    def sync_weights(self) -> None:
        if self.mode != "colocate" or not current_platform.is_cpu():
            super().sync_weights()
            return
        self.llm.collective_rpc("load_weights_on_cpu", kwargs={"weights_iterator": self._iter_named_params()})
        self.llm.reset_prefix_cache()

    def generate(self, *args, **kwargs) -> tuple:
        self._decoded = None
        if not self.records:
            return super().generate(*args, **kwargs)
        own = self.llm.generate
        self.llm.generate = lambda prompts, sampling_params, **rest: self._keyed(own, prompts, sampling_params, rest)
        try:
            return super().generate(*args, **kwargs)
        finally:
            del self.llm.generate  # the class's own shows again

    def _keyed(self, generate, prompts: list, sampling_params, rest: dict) -> list:
        """vLLM's generate with a key per prompt; keeps what decoding knew of this process's completions."""
        keys = [next(self._keys) for _ in prompts]
        each = []
        for key in keys:
            params = sampling_params.clone()
            params.extra_args = {**(params.extra_args or {}), **request_arguments(key=key, rule=self.rule)}
            each.append(params)
        outputs = generate(prompts, sampling_params=each, **rest)
        made = [
            decoded(records, completion.token_ids, key)
            for key, records, output in zip(keys, take_entropies(self.llm, keys), outputs, strict=True)
            for completion in output.outputs
        ]
        if self.tensor_parallel_size > 1:  # every rank of a group has generated for all of them
            share = len(made) // self.tensor_parallel_size
            rank = torch.distributed.get_rank(group=self.tp_group)
            made = made[rank * share : (rank + 1) * share]
        self._decoded = made
        return outputs

    def take_decoded(self) -> list[Decoded]:
        """Of the completions of the last `generate`, in their order; once."""
        made, self._decoded = self._decoded, None
        if made is None:
            raise RuntimeError("no rollouts, or their entropies were taken already")
        return made


@contextmanager
def _with_engine_options(options: dict) -> Iterator[None]:
    """TRL names the engine's options itself; meanwhile the engine's class takes these as well."""
    engine = vllm_generation.LLM
    vllm_generation.LLM = lambda **given: engine(**{**given, **options})
    try:
        yield
    finally:
        vllm_generation.LLM = engine


@contextmanager
def _process_kept() -> Iterator[None]:
    """An engine in this process reseeds everything and, on a CPU, takes torch.set_num_threads away; both come back."""
    set_num_threads = torch.set_num_threads
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
