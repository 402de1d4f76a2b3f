"""Stopping, failing and going on: the same numbers after a resume, whole checkpoints, clear ends."""

import errno
import inspect
import json
import os
import random
import resource
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trainer.sampling.rollout import rollout
from trainer.tiny.model import build_model
from trainer.tiny.problems import draw_problems
from trainer.tiny.tokenizer import load_tokenizer, word_tokenizer
from trainer.training import checkpoints, survival
from trainer.training.arguments import RunArguments
from trainer.training.run import build
from trainer.training.run_log import LOG_FILE, read_log


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A directory with an untrained embedded model."""
    path = tmp_path_factory.mktemp("start")
    tokenizer = word_tokenizer()
    build_model(tokenizer, seed=3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def digits_reward(completions, **kwargs):
    """Varies between completions, so every step has a gradient."""
    return [sum(word.isdigit() for word in turn[0]["content"].split()) / 10 for turn in completions]


def make_trainer(start: Path, output_dir: Path, *, reward=digits_reward, problems: int = 8, **config):
    from transformers import Qwen3ForCausalLM

    settings = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "beta": 0.01,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    data = [
        {"prompt": [{"role": "user", "content": p.question}]} for p in draw_problems(problems, seed=0, held_out=False)
    ]
    return build(
        RunArguments(samples_per_log=1),
        GRPOConfig(**{**settings, **config}),
        model=Qwen3ForCausalLM.from_pretrained(str(start), dtype=torch.float32),
        processing_class=load_tokenizer(start),
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(data),
        rollout_func=rollout,
    )


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def logged(output_dir: Path, name: str = "loss") -> dict[int, float]:
    return {record["step"]: record[name] for record in read_log(output_dir / LOG_FILE) if name in record}


class StopAfter:
    """A callback-shaped stand-in for a person: sends this process a signal during step `step`."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number

    def __call__(self, completions, trainer_state, **kwargs):
        if trainer_state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)
        return digits_reward(completions)

    __name__ = "digits_reward"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="one update per generation"),
        # 4 updates per generation: the checkpoint of step 3 falls between two uses of the same rollouts
        pytest.param({"steps_per_generation": 4, "logging_steps": 2}, id="in the middle of a generation and of a log"),
        pytest.param({"num_iterations": 2, "gradient_accumulation_steps": 2}, id="rollouts used twice"),
        # 4 problems, 2 per generation: epochs of 2 steps, so step 3 is in the second
        pytest.param({"problems": 4}, id="in a later epoch"),
        pytest.param({"sync_ref_model": True, "ref_model_sync_steps": 2, "beta": 0.5}, id="reference that moves"),
    ],
)
def test_interrupted_run_continues_to_the_numbers_of_an_uninterrupted_one(start, tmp_path, config):
    whole = make_trainer(start, tmp_path / "whole", **config)
    assert survival.train(whole) == 0
    cut = make_trainer(start, tmp_path / "cut", reward=StopAfter(3, signal.SIGINT), **config)
    # A reward is asked for only when rollouts are made: with several updates per generation, ask at the step's start.
    if whole.args.steps_per_generation * whole.num_iterations > whole.args.gradient_accumulation_steps:
        cut.reward_funcs[0] = digits_reward
        cut.add_callback(_signal_in_step(3, signal.SIGINT))
    assert survival.train(cut) == 130
    assert cut.state.global_step == 3
    resumed = make_trainer(start, tmp_path / "cut", **config)
    checkpoint = checkpoints.resolve_resume("last", tmp_path / "cut")
    assert checkpoint.name == "checkpoint-3"
    random.seed(99), torch.manual_seed(99)  # whatever the new process drew before must not matter
    assert survival.train(resumed, resume_from_checkpoint=checkpoint) == 0
    for name in ("loss", "reward", "kl", "teca", "entropy", "grad_norm"):
        assert logged(tmp_path / "cut", name) == pytest.approx(logged(tmp_path / "whole", name), rel=1e-6, abs=1e-9), (
            name
        )
    expected, actual = parameters(whole), parameters(resumed)
    for name in expected:
        difference = (actual[name] - expected[name]).abs().max().item()
        assert difference <= 1e-7, name


def _signal_in_step(step: int, number: int):
    from transformers import TrainerCallback

    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), number)

    return Send()


def test_later_epoch_of_the_sampler_is_that_of_stock_trl():
    arguments = {"data_source": range(10), "mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2}
    arguments |= {"shuffle": True, "seed": 7}
    stock = RepeatSampler(**arguments)
    epochs = [list(stock) for _ in range(3)]
    assert epochs[0] != epochs[1]
    for epoch in (2, 0, 1):
        ours = checkpoints.EpochRepeatSampler(lambda epoch=epoch: epoch, **arguments)
        assert list(ours) == epochs[epoch] == list(ours)
        assert len(ours) == len(stock)


def test_sigterm_saves_says_how_to_resume_and_exits_with_143(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, reward=StopAfter(2, signal.SIGTERM), save_strategy="no")
    assert survival.train(trainer, command="python -m trainer.grpo --seed 1") == 143
    told = capsys.readouterr().err
    assert f"python -m trainer.grpo --seed 1 --resume_from_checkpoint {tmp_path / 'checkpoint-2'}" in told
    assert checkpoints.is_complete(tmp_path / "checkpoint-2")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # given back


def test_second_signal_stops_at_once_and_keeps_the_last_checkpoint(start, tmp_path):
    class Impatient(StopAfter):
        def __call__(self, completions, trainer_state, **kwargs):
            super().__call__(completions, trainer_state)
            return super().__call__(completions, trainer_state)

    trainer = make_trainer(start, tmp_path, reward=Impatient(3, signal.SIGINT))
    assert survival.train(trainer) == 130
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


class FailAt:
    __name__ = "failing_reward"

    def __init__(self, step: int, result):
        self.step, self.result = step, result

    def __call__(self, completions, trainer_state, **kwargs):
        if trainer_state.global_step != self.step - 1:
            return digits_reward(completions)
        if isinstance(self.result, Exception):
            raise self.result
        if callable(self.result):
            self.result()
        return [self.result] * len(completions)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (KeyError("gold"), "a reward function raised (of: failing_reward): KeyError: 'gold'"),
        (None, "no reward function gave a number for any of 8 completions"),
        (float("nan"), "no reward function gave a number for any of 8 completions"),
        (float("inf"), "the reward function failing_reward gave an infinite reward"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory (CUDA out of memory."),
        (lambda: torch.empty(1 << 50), "out of memory ("),  # torch's own error, for 4 PiB
        (lambda: Path("/dev/full").write_text("x"), "the disk is full ([Errno 28] No space left on device"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_failure_in_a_step_keeps_the_state_before_it_and_goes_on_to_the_same_numbers(
    start, tmp_path, capsys, result, told
):
    """Nothing was to be saved before the failure: the state of the step before it is."""
    config = {"save_strategy": "no", "max_steps": 4}
    trainer = make_trainer(start, tmp_path / "cut", reward=FailAt(3, result), **config)
    assert survival.train(trainer) == 1
    message = capsys.readouterr().err
    assert told in message
    assert "checkpoint-2" in message
    assert "--resume_from_checkpoint" in message
    if result is None:  # once is enough
        resumed = make_trainer(start, tmp_path / "cut", **config)
        assert survival.train(resumed, resume_from_checkpoint=tmp_path / "cut" / "checkpoint-2") == 0
        whole = make_trainer(start, tmp_path / "whole", **config)
        assert survival.train(whole) == 0
        assert logged(tmp_path / "cut") == pytest.approx(logged(tmp_path / "whole"), rel=1e-6, abs=1e-9)
        torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=1e-7)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_loss_or_gradient_stops_before_the_weights_change(start, tmp_path, capsys, what):
    trainer = make_trainer(start, tmp_path, max_steps=4)
    weights = {}
    head = trainer.model.model.layers[0].mlp.down_proj.weight

    def poison(gradient):
        return gradient * float("nan") if trainer.state.global_step == 2 else gradient

    inner = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = inner(*args, **kwargs)
        if trainer.state.global_step == 2:
            weights.update(parameters(trainer))
            return loss * float("nan") if what == "loss" else loss
        return loss

    trainer.compute_loss = compute_loss
    if what == "gradient":
        head.register_hook(poison)
    assert survival.train(trainer) == 1
    assert f"the {'loss is' if what == 'loss' else chr(103) + 'radient'}" in capsys.readouterr().err
    torch.testing.assert_close(parameters(trainer), weights, rtol=0, atol=0)
    assert checkpoints.complete_checkpoints(tmp_path)[-1].name == "checkpoint-2"


def test_write_error_while_saving_leaves_no_half_checkpoint_and_the_last_good_one(start, tmp_path, capsys):
    """A real write error: the file size limit of this process lies between a small file and the model's."""
    trainer = make_trainer(start, tmp_path, max_steps=3)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer._save_checkpoint

    def save_with_less_room(model, trial):
        if trainer.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        save(model, trial)

    trainer._save_checkpoint = save_with_less_room
    try:
        code = survival.train(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 1
    told = capsys.readouterr().err
    assert "the disk is full" in told
    assert str(tmp_path / "checkpoint-1") in told
    left = {path.name for path in tmp_path.iterdir() if "checkpoint" in path.name}
    assert left == {"checkpoint-1"}


def test_error_of_a_full_disk_is_recognised_by_its_real_exceptions(tmp_path):
    with pytest.raises(OSError) as full:
        Path("/dev/full").write_text("x")
    assert survival.is_disk_full(full.value)
    with pytest.raises(Exception) as saving:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert survival.is_disk_full(saving.value)
    assert not survival.is_disk_full(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not survival.is_disk_full(RuntimeError("shape mismatch"))


def test_unknown_error_passes_through_with_its_last_good_state(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, max_steps=3)
    inner = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        if trainer.state.global_step == 2:
            raise RuntimeError("a bug")
        return inner(*args, **kwargs)

    trainer.compute_loss = compute_loss
    with pytest.raises(RuntimeError, match="a bug"):
        survival.train(trainer)
    assert "checkpoint-2" in capsys.readouterr().err


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')  # torn
    (tmp_path / f"{checkpoints.STAGING_PREFIX}checkpoint-20" / "checkpoint-20").mkdir(parents=True)
    assert checkpoints.resolve_resume("last", tmp_path) == tmp_path / "checkpoint-5"
    assert checkpoints.resolve_resume(None, tmp_path) is None
    with pytest.raises(ValueError, match=r"not a complete checkpoint .*checkpoint-5"):
        checkpoints.resolve_resume(str(tmp_path / "checkpoint-10"), tmp_path)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoints.resolve_resume("last", tmp_path / "checkpoint-5")


def test_leftovers_of_a_crash_are_removed_and_a_replaced_checkpoint_comes_back(tmp_path):
    prefix = checkpoints.STAGING_PREFIX
    (tmp_path / f"{prefix}checkpoint-2" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / f"{prefix}replaced-checkpoint-1").mkdir()  # the crash came between the two renames
    (tmp_path / f"{prefix}replaced-checkpoint-1" / "trainer_state.json").write_text("{}")
    checkpoints.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_older_checkpoints_go_only_after_the_new_one_is_there(start, tmp_path):
    trainer = make_trainer(start, tmp_path, max_steps=4, save_total_limit=2)
    assert survival.train(trainer) == 0
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_privates_that_checkpoints_survival_and_measurements_rest_on_are_there(start, tmp_path):
    """Named here so that a new version of TRL or transformers fails in this test, not in a run of days."""
    trainer = make_trainer(start, tmp_path, save_strategy="no", max_steps=1)
    stock = GRPOTrainer
    for method in (
        "_get_train_sampler",
        "_get_output_dir",
        "_save_checkpoint",
        "_load_optimizer_and_scheduler",
        "_get_grad_norm",
        "_calculate_rewards",
        "_generate_single_turn",
        "_generate_and_score_completions",
    ):
        assert callable(getattr(stock, method, None)), f"{stock.__name__}.{method} is gone"
    assert list(inspect.signature(stock._save_checkpoint).parameters) == ["self", "model", "trial"]
    assert list(inspect.signature(stock._get_grad_norm).parameters) == ["self", "model", "grad_norm"]
    assert list(inspect.signature(stock._calculate_rewards).parameters)[1:] == [
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ]
    assert survival.train(trainer) == 0
    for attribute in ("_step", "_buffered_inputs", "_metrics", "_pending_extra_logs", "_tr_loss", "ref_model"):
        assert hasattr(trainer, attribute), f"a trained {stock.__name__} has no {attribute}"
    assert trainer._step == 1
    assert trainer._globalstep_last_logged == 1
    assert isinstance(trainer._buffered_inputs, list)
    assert set(RepeatSampler(range(4), 2).__dict__) >= {
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
        "num_samples",
        "generator",
    }
