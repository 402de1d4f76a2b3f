"""A run of verl in one process on a CPU, with everything real but the generation server.

In: overrides of verl's hydra configuration. Out: a trainer ready for `fit`, and the agent loops it samples from.

Real: verl's configuration, trainer, replay buffer, TransferQueue, dataset, agent loop, reward loop, loggers,
checkpoints, and ActorRolloutRefWorker with its FSDP engine and losses. By hand: `Policy.generate`, a plain loop over a
transformers model, where verl's client asks a vLLM server on a GPU; that model takes its weights from verl's engine
when verl says so. And the calls between verl's processes are plain calls here. So nothing is said about those parts.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import verl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, get_trainer_cls
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.rollout.replica import TokenOutput

_OWN_FORWARD = transformers.LlamaForCausalLM.forward
SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
WORDS = SPECIAL + [f"w{i}" for i in range(12)] + [rf"\boxed{{{i}}}" for i in range(5)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per word; five of the words are boxed answers."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """A model of two layers with random weights, wide enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def compose_config(*overrides: str) -> DictConfig:
    """verl's real configuration with overrides, as on its command line."""
    folder = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", overrides=["actor_rollout_ref.rollout.name=vllm", *overrides])


def small(model: Path, **overrides: object) -> list[str]:
    """Overrides for a small model in float32 on a CPU; `overrides` are further keys with __ for the dots."""
    given = {
        "algorithm.adv_estimator": "grpo",
        "trainer.v1.trainer_mode": "cer_sync",
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.use_fused_kernels": True,
        "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.dtype": "float32",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": "{param_dtype:fp32,reduce_dtype:fp32}",
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.temperature": 0.9,
        "reward.custom_reward_function.path": "pkg://cer_verl.grading",
        "data.seed": 1,
        "data.train_batch_size": 4,
        "data.max_prompt_length": 8,
        "data.max_response_length": 6,
        "data.dataloader_num_workers": 0,
        "trainer.logger": "[]",
        "trainer.n_gpus_per_node": 1,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
    }
    given.update({key.replace("__", "."): value for key, value in overrides.items()})
    return [f"{key}={value}" for key, value in given.items()]


def make_worker(config: DictConfig) -> ActorRolloutRefWorker:
    """verl's worker with the actor in it, in this process, where the trainer calls a group of them over Ray."""
    transformers.LlamaForCausalLM.forward = _OWN_FORWARD  # verl's fused kernels replace it for the whole process
    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    worker._dispatch_info = {"actor": [0]}
    return worker


class Policy:
    """What verl's agent loops ask for tokens."""

    def __init__(self, model: str, response_length: int, seed: int = 0) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model)
        self.response_length = response_length
        self.random = torch.Generator().manual_seed(seed)
        self.version = 0  # of the weights: a step of the trainer

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs) -> TokenOutput:
        tokens, logprobs = list(prompt_ids), []
        with torch.no_grad():
            while len(logprobs) < self.response_length and tokens[-1] != 1:
                # verl replaces the forward of the class, so the two halves are called one by one.
                logits = self.model.lm_head(self.model.model(torch.tensor([tokens])).last_hidden_state[0, -1])
                distribution = (logits / (sampling_params["temperature"] or 1e-4)).log_softmax(-1)
                token = int(distribution.exp().multinomial(1, generator=self.random))
                tokens.append(token)
                logprobs.append(distribution[token].item())
        steps = {"min_global_steps": self.version, "max_global_steps": self.version}
        return TokenOutput(token_ids=tokens[len(prompt_ids) :], log_probs=logprobs, extra_fields=steps)


class AgentLoops:
    """verl's agent loop worker and reward loop worker, on an event loop of their own, as their Ray actors have."""

    def __init__(self, config: DictConfig, policy: Policy) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        worker_class = AgentLoopWorkerTQ.__ray_metadata__.modified_class

        async def make():
            reward = RewardLoopWorker(config)
            handle = SimpleNamespace(compute_score=SimpleNamespace(remote=reward.compute_score))
            return worker_class(config, policy, reward_loop_worker_handles=[handle])

        self.worker = self._call(make())

    def generate_sequences(self, prompts) -> None:
        self._call(self.worker.generate_sequences(prompts))

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=120)


class Replicas:
    """Where verl tells its generation servers to sleep and sends them weights: what was asked is done and noted."""

    def __init__(self, policy: Policy, worker: ActorRolloutRefWorker) -> None:
        self.policy, self.worker, self.calls = policy, worker, []

    def sleep_replicas(self) -> None:
        self.calls.append("sleep")

    def update_weights(self, global_steps: int | None = None) -> None:
        self.calls.append("wake")
        parameters, _ = self.worker.actor.engine.get_per_tensor_param()
        self.policy.model.load_state_dict(dict(parameters), strict=False)  # a tied head is not listed
        self.policy.version = global_steps


def make_run(config: DictConfig) -> tuple[object, AgentLoops]:
    """(trainer, agent loops) for `trainer.fit(agent_loops)`: what PPOTrainer._setup does, without Ray's processes."""
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer.replay_buffer.poll_interval = 0.01  # s; verl's 2 s are for real rollouts
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer._init_dump_executor()
    trainer._init_resource_pool_mgr()
    trainer.ref_in_actor = False
    trainer.actor_rollout_wg = make_worker(config)
    policy = Policy(config.actor_rollout_ref.model.path, config.data.max_response_length)
    agent_loops = AgentLoops(config, policy)
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.teacher_model_manager = trainer.distillation_config = None
    trainer.checkpoint_manager = Replicas(policy, trainer.actor_rollout_wg)
    trainer._load_checkpoint()
    trainer.on_init_end()
    return trainer, agent_loops
