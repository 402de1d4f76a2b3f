"""The options of `python -m trainer.grpo` that are not TRL's, their help, and how a command line becomes settings.

In: the command line.  Out: RunArguments, trl.GRPOConfig, trl.ModelConfig, checked as far as that goes without a model.

Every flag of trl.GRPOConfig and trl.ModelConfig is accepted under TRL's own name, on the command line and in recipes;
the command line wins. Importing this file imports neither torch nor TRL, so `--help` is quick.
"""

import argparse
import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trainer.catalogue.data_sets import DATA_SETS, EMBEDDED, MADE
from trainer.catalogue.rewards import REWARDS, check_name, find
from trainer.tiny.problems import DESIGNS
from trainer.training import launch, option_checks, secrets
from trainer.training.config_error import ConfigError
from trainer.training.recipe_file import read_recipe, recipe_values

RECIPES = Path(__file__).parents[1] / "recipes"
DEFAULT_RECIPE = "tiny"
TINY = EMBEDDED  # dataset and model: the embedded experiment
TINY_BYTES = "tiny-bytes"  # model: the embedded size with random weights and a byte tokenizer


def about(text: str) -> dict[str, str]:
    """A dataclass field's metadata; argparse shows the help."""
    return {"help": text}


def _listed(helps: dict[str, str]) -> str:
    """The names with what they mean in brackets."""
    return ", ".join(f"{name} ({text})" for name, text in helps.items())


@dataclass
class RunArguments:
    """Options of ours; trainer/recipes/*.yaml may set any of them."""

    dataset: str = field(
        default=TINY,
        metadata=about(
            f"Training data: {TINY} (the embedded word problems), {', '.join((*DATA_SETS, *MADE))}, a json, jsonl or "
            "parquet file, or a hub id. Questions are text, or messages (TRL, verl), which are asked as they are "
            "unless a prompt, a system prompt or an instruction is given."
        ),
    )
    data_dir: str | None = field(
        default=None,
        metadata=about(
            "Directory that holds gsm8k, math500, ... as <name>/<split>.jsonl; without it they come from the hub."
        ),
    )
    dataset_split: str | None = field(
        default=None,
        metadata=about(
            "Split of the training data, or a slice of one such as train[:100] (default: the usual one; gsm8k: train)."
        ),
    )
    dataset_config: str | None = field(default=None, metadata=about("Configuration of a data set of the hub."))
    question_column: str | None = field(
        default=None, metadata=about("Column with the question, where it is not found by itself.")
    )
    answer_column: str | None = field(
        default=None,
        metadata=about(
            "Column with the reference answer, where it is not found by itself; a.b is b inside the column a."
        ),
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata=about(
            "Leave out rows without a question or an answer, and say how many (default: stop at the first)."
        ),
    )
    prompt: str | None = field(
        default=None,
        metadata=about(
            "How questions are put: a YAML or JSON file with system_prompt, instruction and worked examples, the name "
            "of a packaged one, or the directory of a run (default: the instruction to reason and to box the answer)."
        ),
    )
    system_prompt: str | None = field(
        default=None, metadata=about("System turn, in place of the prompt's; an empty one leaves it out.")
    )
    instruction: str | None = field(
        default=None,
        metadata=about("Appended to every question, in place of the prompt's; an empty one leaves it out."),
    )
    max_samples: int | None = field(default=None, metadata=about("Use only the first so many problems."))
    max_prompt_length: int | None = field(
        default=None, metadata=about("Leave out problems whose prompt has more tokens than this.")
    )
    enable_thinking: bool | None = field(
        default=None, metadata=about("Thinking mode of the chat template (Qwen3): true, false, or its default.")
    )
    reward: list[str] = field(
        default_factory=lambda: ["cer"],
        metadata=about(
            f"Reward, one or several of: {_listed({name: reward.help for name, reward in REWARDS.items()})}; or "
            "package.module:function, anyone's in TRL's signature. Several are summed with --reward_weights."
        ),
    )
    cer_weight: float = field(
        default=0.5, metadata=about("Weight of the second term in the rewards that have one (cer, total_entropy, ...).")
    )
    completions_per_update: int | None = field(
        default=None,
        metadata=about(
            "Completions per optimizer step over all processes; sets --gradient_accumulation_steps for the number of "
            "processes there are."
        ),
    )
    samples_per_log: int = field(
        default=4, metadata=about("Completions written to samples.jsonl at every logging step.")
    )
    controls: list[str] = field(
        default_factory=list,
        metadata=about(
            "Embedded experiment: rewards to train with as well, from the same start, for the table (or: none)."
        ),
    )
    tiny_design: str = field(
        default="explore",
        metadata=about(f"Embedded experiment: {_listed({name: design.help for name, design in DESIGNS.items()})}."),
    )
    warm_start_steps: int = field(default=600, metadata=about("Embedded experiment: supervised steps before GRPO."))
    held_out_problems: int = field(
        default=256, metadata=about("Embedded experiment: problems in the table, none of whose sums were trained on.")
    )
    cache_dir: str | None = field(
        default=None,
        metadata=about("Where warm-started models are kept (default: $XDG_CACHE_HOME/cer_ext or ~/.cache/cer_ext)."),
    )
    eval_dataset: str | None = field(
        default=None,
        metadata=about(
            "Problems for --eval_strategy and --eval_on_start: a name, file or hub id as for --dataset. Without it, "
            "--eval_samples problems are taken out of the training data."
        ),
    )
    eval_samples: int | None = field(
        default=None,
        metadata=about(
            "How many problems of --eval_dataset, or held out from training (the last ones), are evaluated."
        ),
    )
    set_aside_older_run: bool = field(
        default=False,
        metadata=about(
            "Where --output_dir holds the checkpoints of another run: move them to older-runs/ in there, and start."
        ),
    )
    sampler: str = field(
        default="auto",
        metadata=about(
            "Sampling without vLLM: embedded (a key/value cache that drops finished rows; plain temperature sampling), "
            "trl (transformers' generate), auto (embedded for the embedded models that are not sharded, else trl)."
        ),
    )

    teca_source: str = field(
        default="auto",
        metadata=about(
            "Where TECA comes from: rollout (decoding sees every distribution, no pass is made), scoring (a pass of "
            "the policy over the rollouts), auto (rollout where it can be had)."
        ),
    )
    share_prompts: bool = field(
        default=True,
        metadata=about(
            "Run a prompt once for all its completions in a micro-batch, where that is less work and the model allows "
            "it; false: every row with its own."
        ),
    )
    head_mode: str = field(
        default="two_pass",
        metadata=about(
            "How often the head makes its logits in training: two_pass (for the values, and again in the backward), "
            "one_pass (once, with the gradient of the loss asked for token by token; the same loss and gradients, one "
            "product fewer, and the logits of some rows in memory; where the loss cannot be known so, a line says why "
            "and two passes are made)."
        ),
    )
    early_exit: float | None = field(
        default=None,
        metadata=about(
            "End a response's thinking once its running TECA is below so many nats; forced tokens are masked from the "
            "loss."
        ),
    )
    early_exit_min_tokens: int = field(default=32, metadata=about("No early exit before so many tokens."))
    early_exit_window: int = field(
        default=0, metadata=about("Early exit on the mean of the last so many entropies (0: of all, TECA).")
    )
    early_exit_text: str = field(
        default="</think>",
        metadata=about(
            "What an early exit writes: the token that ends the thinking, or, for models without one, a text that "
            "begins the answer."
        ),
    )

    def __post_init__(self):
        for name in (
            "dataset",
            "data_dir",
            "eval_dataset",
            "cache_dir",
        ):  # a recipe and --name=~/x: no shell expands them
            value = getattr(self, name)
            if value is not None and value.startswith("~"):
                setattr(self, name, os.path.expanduser(value))
        _check_choice("tiny_design", self.tiny_design, tuple(DESIGNS))
        _check_choice("sampler", self.sampler, ("auto", "embedded", "trl"))
        _check_choice("teca_source", self.teca_source, ("auto", "rollout", "scoring"))
        _check_choice("head_mode", self.head_mode, ("two_pass", "one_pass"))
        self.controls = [name for name in self.controls if name != "none"]
        for option_name in ("reward", "controls"):
            for name in getattr(self, option_name):
                try:
                    check_name(name)
                except ValueError as error:
                    raise ValueError(f"{option_name} is {error}") from error
        if not self.reward:
            raise ValueError("reward is empty: name at least one")
        minima = {"max_samples": 1, "max_prompt_length": 1, "completions_per_update": 1}
        minima |= {"samples_per_log": 0, "warm_start_steps": 1, "held_out_problems": 2, "eval_samples": 1}
        for name, least in minima.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: expected at least {least}")
        if not self.cer_weight >= 0:
            raise ValueError(f"cer_weight is {self.cer_weight}: expected a number >= 0")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}")


def recipe_names() -> list[str]:
    """The recipes that come with the package (an accelerate configuration is not one)."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("accelerate"))


def help_text() -> str:
    """What `--help` prints: every option of ours, and where the others are."""
    return help_parser().format_help()


def help_parser() -> argparse.ArgumentParser:
    """The parser that explains our options: it is read (`--help`, the site's page of commands), and parses nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.grpo",
        description="GRPO training with the CER reward. Without any argument: the embedded experiment (recipe tiny), a "
        "0.1M-parameter policy trained from scratch in a few minutes on a laptop.",
        epilog="Every option of trl.GRPOConfig (--learning_rate, --max_steps, --beta, --use_vllm, ...) and "
        "trl.ModelConfig (--model_name_or_path, --use_peft, --lora_r, ...) is accepted as well, here and in recipes; "
        "--help-trl lists them. --resume_from_checkpoint last goes on from the newest complete checkpoint in "
        "--output_dir. Control-C saves a checkpoint. Several processes: accelerate launch "
        "--config_file trainer/recipes/accelerate_fsdp2.yaml -m "
        "trainer.grpo ...",
        add_help=False,
    )
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help=f"YAML file of options, or the name of one that comes with the package: {', '.join(recipe_names())}. "
        f"Default: {DEFAULT_RECIPE}. The command line wins over it.",
    )
    parser.add_argument("--help", "-h", action="store_true", help="This text.")
    parser.add_argument("--help-trl", action="store_true", help="Every option, TRL's too (takes some seconds).")
    for entry in dataclasses.fields(RunArguments):
        default = entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()
        shown = " ".join(default) if isinstance(default, list) else default
        text = entry.metadata["help"].replace("%", "%%")
        parser.add_argument(
            f"--{entry.name}", metavar="VALUE", help=text if default in (None, []) else f"{text} Default: {shown}."
        )
    return parser


def find_recipe(wanted: str) -> Path:
    """The file that --config means: a path, or the name of a packaged recipe with or without .yaml."""
    if Path(wanted).is_file():
        return Path(wanted)
    packaged = RECIPES / f"{Path(wanted).name.removesuffix('.yaml')}.yaml"
    named = wanted == Path(wanted).name or Path(wanted).parent.as_posix().endswith("recipes")
    if named and packaged.is_file():
        return packaged
    raise ConfigError(f"config: no file {wanted}, and no packaged recipe of that name ({', '.join(recipe_names())})")


def _take_config(argv: list[str]) -> tuple[Path, list[str]]:
    """The recipe, and the command line without --config."""
    rest, wanted, items = [], DEFAULT_RECIPE, iter(argv)
    for item in items:
        if item == "--config":
            wanted = next(items, None)
            if wanted is None:
                raise ConfigError("--config needs a file or the name of a recipe")
        elif item.startswith("--config="):
            wanted = item.removeprefix("--config=")
        else:
            rest.append(item)
    return find_recipe(wanted), rest


def make_parser():
    """TRL's parser over our options and TRL's (imports TRL)."""
    from trl import GRPOConfig, ModelConfig, TrlParser

    return TrlParser((RunArguments, GRPOConfig, ModelConfig), prog="python -m trainer.grpo", allow_abbrev=False)


def _parse_once(recipe: dict, argv: list[str]):
    parser = make_parser()
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(recipe) - known)
    if unknown:
        raise ConfigError(f"unknown option in the recipe: {', '.join(unknown)}{_similar(unknown[0], known)}")
    recipe = recipe_values(recipe, parser._actions)
    parser.set_defaults_with_config(**recipe)
    try:
        *settings, rest = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except ZeroDivisionError as error:  # TRL divides before it checks
        raise ConfigError("num_generations is 0, or a batch size is: expected at least 1") from error
    if rest:
        names = [word.split("=")[0] for word in rest if word.startswith("-")] or rest
        raise ConfigError(f"unknown option: {' '.join(names)}{_similar(names[0].lstrip('-'), known)}")
    return tuple(settings)


def _similar(name: str, known: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def parse(argv: list[str]):
    """(RunArguments, GRPOConfig, ModelConfig) of a command line. Raises ConfigError."""
    path, rest = _take_config(argv)
    recipe = read_recipe(path)
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}

    def origin(name: str) -> str:
        return "from the command line" if name in given else "from the recipe" if name in recipe else "by default"

    run, config, model = _parse_once(recipe, rest)
    for name in run.reward:
        try:
            find(name)
        except ValueError as error:
            raise ConfigError(f"reward {error}") from error
    option_checks.check_values(run, config, model, origin)
    if run.completions_per_update is not None:
        _check_one_batch_size(run, config, origin("gradient_accumulation_steps"))
        per_pass = config.per_device_train_batch_size * config.world_size
        if run.completions_per_update % per_pass:
            raise ConfigError(
                f"completions_per_update is {run.completions_per_update}: expected a multiple of "
                f"per_device_train_batch_size * processes = {config.per_device_train_batch_size} * {config.world_size}"
            )
        accumulation = ["--gradient_accumulation_steps", str(run.completions_per_update // per_pass)]
        run, config, model = _parse_once(recipe, rest + accumulation)
    check(run, config, model)
    secrets.move_to_environment(config)
    return run, config, model


def _check_one_batch_size(run: RunArguments, config, origin: str) -> None:
    """completions_per_update and gradient_accumulation_steps say the same thing: only one can be asked for."""
    if origin != "by default":
        accumulation = config.gradient_accumulation_steps
        per_update = accumulation * config.per_device_train_batch_size * config.world_size
        raise ConfigError(
            f"completions_per_update is {run.completions_per_update} and gradient_accumulation_steps {accumulation} "
            f"{origin}: the first sets the second, so give one (gradient_accumulation_steps {accumulation} is "
            f"completions_per_update {per_update} here)"
        )


def check(run: RunArguments, config, model) -> None:
    """What can be known to be wrong before anything is loaded. Raises ConfigError."""
    option_checks.check_devices_and_packages(config, model)
    _check_evaluation(run, config)
    if config.use_vllm:
        _check_vllm(run, config)
    if run.early_exit is not None:
        _check_early_exit(run, config)
    name = model.model_name_or_path
    if samples_itself(run, config, name):
        option_checks.check_sampler("embedded", config)
    if run.dataset == TINY and name not in (None, TINY):
        raise ConfigError(f"dataset {TINY} goes with its own model: leave out model_name_or_path={name}")
    if run.dataset == TINY and config.world_size > 1:
        raise ConfigError(f"dataset {TINY}: the embedded experiment runs in one process, not in {config.world_size}")
    if run.dataset == TINY and run.eval_dataset is not None:
        raise ConfigError(f"dataset {TINY} is evaluated on its own held-out problems: give --eval_samples alone")
    if run.dataset != TINY:
        if name is None or name == TINY:
            raise ConfigError(
                f"dataset {run.dataset} needs model_name_or_path (a directory, a hub id, a .gguf file, smollm2 or "
                f"{TINY_BYTES})"
            )
        if run.controls:
            raise ConfigError(f"controls are for the embedded experiment (dataset {TINY}), not for {run.dataset}")
        if name != TINY_BYTES and not name.endswith(".gguf"):
            _check_model_directory(Path(name).expanduser())
        if name.startswith((".", "/", "~")) and not name.endswith(".gguf") and not Path(name).expanduser().is_dir():
            raise ConfigError(f"model_name_or_path: no directory {name}")
        if run.data_dir is not None and not Path(run.data_dir).is_dir():
            raise ConfigError(f"data_dir: no directory {run.data_dir}")
        for option, source in {"dataset": run.dataset, "eval_dataset": run.eval_dataset or ""}.items():
            looks_local = source.startswith((".", "/")) or source.endswith((".json", ".jsonl", ".parquet"))
            if looks_local and not Path(source).exists():
                raise ConfigError(f"{option}: no file {source}")
    if run.sampler == "embedded" and shards_the_model(config):
        raise ConfigError("sampler is embedded, which needs whole weights: under FSDP and ZeRO-3 take --sampler trl")
    if _zero3(config):
        zero = config.deepspeed_plugin.deepspeed_config["zero_optimization"]
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ConfigError(
                "deepspeed: set zero_optimization.stage3_gather_16bit_weights_on_model_save to true; without it ZeRO-3 "
                "ends in partitions, not in a model"
            )
    if not str(config.output_dir).strip():  # an empty variable of a shell
        raise ConfigError("output_dir is empty: name a directory, or . for the current one")
    _check_writable(Path(config.output_dir))


def _check_evaluation(run: RunArguments, config) -> None:
    strategy = getattr(config.eval_strategy, "value", config.eval_strategy)
    wanted = strategy != "no" or config.eval_on_start
    given = run.eval_dataset is not None or run.eval_samples is not None
    if wanted and not given:
        option = f"eval_strategy is {strategy}" if strategy != "no" else "eval_on_start is true"
        raise ConfigError(f"{option}, but there is nothing to evaluate on: give --eval_dataset or --eval_samples")
    if given and not wanted:
        raise ConfigError(
            "eval_dataset and eval_samples are for --eval_strategy steps (or epoch) or --eval_on_start true"
        )


def samples_itself(run: RunArguments, config, model: str | None) -> bool:
    """Whether the embedded sampler makes the rollouts."""
    if config.use_vllm or run.sampler == "trl":
        return False
    if run.sampler == "embedded" or run.dataset == TINY:
        return True
    return model == TINY_BYTES and not shards_the_model(config)


def _check_vllm(run: RunArguments, config) -> None:
    import torch

    from trainer.sampling.vllm_support import require_vllm

    try:
        require_vllm("use_vllm")
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if run.dataset == TINY:
        raise ConfigError(
            "use_vllm: the embedded model's attention heads hold 16 numbers, vLLM's hold 32 at least; leave it out, or "
            "train another model with --dataset and --model_name_or_path"
        )
    if config.vllm_mode == "server" and not torch.cuda.is_available():
        raise ConfigError(
            "vllm_mode is server, whose weights travel by NCCL between GPUs, and there is no GPU here: take "
            "--vllm_mode colocate, which runs on a CPU as well"
        )


def _check_early_exit(run: RunArguments, config) -> None:
    from trainer.sampling.early_exit import EarlyExit

    stand_in = (0,)  # its tokens are known only with its tokenizer
    try:
        rule = EarlyExit(run.early_exit, stand_in, stand_in, run.early_exit_min_tokens, run.early_exit_window)
        rule.check_limit(config.max_completion_length)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _zero3(config) -> bool:
    return config.deepspeed_plugin is not None and config.deepspeed_plugin.zero_stage == 3


def shards_the_model(config) -> bool:
    """Whether FSDP or ZeRO-3 leaves each process a part of the weights: then all must make the same forward passes."""
    return launch.asks_for_fsdp(config) or _zero3(config)


def _check_model_directory(path: Path) -> None:
    """What is here under a model's name must be a model: a hub would be asked for it for minutes."""
    if path.is_file():
        raise ConfigError(f"model_name_or_path: {path} is a file: expected a model's directory, or a .gguf file")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model_name_or_path: the directory {path} holds no config.json")


def _check_writable(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir {output_dir}: {error.strerror or error}") from error
    if not os.access(output_dir, os.W_OK):
        raise ConfigError(f"output_dir {output_dir}: not writable")


def command_without_resume(argv: list[str]) -> str:
    """The command line that resumes a run, without --resume_from_checkpoint."""
    words, items = ["python", "-m", "trainer.grpo"], iter(argv)
    for item in items:
        if item == "--resume_from_checkpoint":
            next(items, None)
        elif not item.startswith("--resume_from_checkpoint="):
            words.append(item)
    return shlex.join(secrets.shown_words(words))


def fail(error: ConfigError) -> int:
    """Prints a ConfigError as commands do; the exit code for a wrong command line."""
    sys.stderr.write(f"python -m trainer.grpo: error: {error}\n")  # in one write: several processes print at once
    return 2
