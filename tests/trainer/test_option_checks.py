"""Options out of range or out of place, and recipes that YAML reads differently: exit code 2, naming the option."""

import importlib.util
import math

import pytest
from small_runs import small_options

from trainer import grpo
from trainer.training import arguments


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded first")
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--reward_weights nan 1", "reward_weights is nan: expected a finite number"),
        ("--reward_weights 1e30 1", "reward_weights (1e+30 1.0) and cer_weight (0.5) allow rewards of 1.5e+30"),
        ("--cer_weight inf", "cer_weight is inf: expected a finite number"),
        ("--cer_weight nan", "cer_weight is nan: expected a number >= 0"),
        ("--temperature inf", "temperature is inf: expected a finite number"),
        ("--temperature nan", "temperature is nan: expected a finite number"),
        ("--temperature -1", "temperature is -1.0: expected a number > 0"),
        ("--learning_rate inf", "learning_rate is inf: expected a finite number"),
        ("--beta nan", "beta is nan: expected a finite number"),
        ("--beta -1", "beta is -1.0: expected at least 0"),
        ("--epsilon nan", "epsilon is nan"),
        ("--weight_decay -1", "weight_decay is -1.0"),
        ("--seed -1", "seed is -1: expected a number in [0, 4294967295]"),
        ("--seed 4294967296", "seed is 4294967296"),
        ("--data_seed -1", "data_seed is -1"),
        ("--max_completion_length 0", "max_completion_length is 0: expected at least 1"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size is 0: expected at least 1"),
        ("--per_device_train_batch_size -8", "per_device_train_batch_size is -8: expected at least 1"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps is 0: expected at least 1"),
        ("--num_generations 0", "num_generations is 0"),
        ("--num_iterations 0", "num_iterations is 0: expected at least 1"),
        ("--steps_per_generation 0", "steps_per_generation is 0"),
        ("--generation_batch_size 0", "generation_batch_size is 0"),
        ("--logging_steps 0", "logging_steps"),
        ("--save_total_limit 0", "save_total_limit is 0: expected at least 1"),
        ("--max_steps 0", "max_steps is 0: nothing would be trained"),
        ("--max_steps -2", "max_steps is -2"),
        ("--max_steps -1 --num_train_epochs 0", "num_train_epochs is 0.0: expected a number > 0"),
        ("--top_p 0 --sampler trl", "top_p is 0.0: expected a number in (0, 1]"),
        ("--top_p 1.5 --sampler trl", "top_p is 1.5"),
        ("--min_p 2 --sampler trl", "min_p is 2.0"),
        ("--adam_beta1 1", "adam_beta1 is 1.0: expected a number in [0, 1)"),
        ("--use_peft true --lora_r 0", "lora_r is 0: expected at least 1"),
        ("--use_peft true --lora_dropout 1", "lora_dropout is 1.0"),
        ("--fp16 true", "fp16 is true, but float16 training needs a GPU"),
        ("--use_liger_kernel true", "use_liger_kernel is true, but Liger's kernels need a GPU"),
        ("--report_to nowhere", "report_to names 'nowhere': expected none, or some of "),
        ("--report_to mlflow", "report_to names mlflow, but mlflow is not installed: pip install mlflow"),
        ("--optim adamw_bnb_8bit", "optim is adamw_bnb_8bit, but bitsandbytes is not installed"),
        ("--optim lion_32bit", "optim is lion_32bit, but bitsandbytes is not installed"),
        ("--optim galore_adamw", "optim is galore_adamw, but galore_torch is not installed"),
        ("--optim schedule_free_adamw", "optim is schedule_free_adamw, but schedulefree is not installed"),
        ("--use_peft true --load_in_4bit true", "load_in_4bit is true, but bitsandbytes is not installed"),
        ("--top_p 0.9", "top_p is 0.9, but the embedded sampler has no top_p: take --sampler trl"),
        ("--top_k 5", "top_k is 5, but the embedded sampler has no top_k"),
        ("--repetition_penalty 1.2", "repetition_penalty is 1.2, but the embedded sampler has no"),
        ("--eval_strategy steps --eval_steps 1", "eval_strategy is steps, but there is nothing to evaluate on: give"),
        ("--eval_on_start true", "eval_on_start is true, but there is nothing to evaluate on: give --eval_dataset"),
        ("--eval_samples 4", "eval_dataset and eval_samples are for --eval_strategy"),
        ("--eval_strategy steps --eval_dataset gone.jsonl", "eval_dataset: no file gone.jsonl"),
        ("--eval_strategy steps --eval_samples 12", "eval_samples is 12, but there are only 12 problems"),
        (
            "--reward cer",
            "reward_weights has 2 values (1.0 1.0, from the recipe) for 1 rewards (cer, from the command line)",
        ),
    ],
)
def test_wrong_option_is_told_with_exit_code_2_before_a_model_is_loaded(options, told, tmp_path, capsys, monkeypatch):
    absent = ("mlflow", "bitsandbytes", "galore_torch", "schedulefree")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else found(name, *a))
    command = small_options(tmp_path)
    if "--report_to" in options:
        at = command.index("--report_to")
        del command[at : at + 2]
    assert grpo.main([*command, *options.split()]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m trainer.grpo: error: ")
    assert told in message
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.bin", "model_name_or_path: {}/model.bin is a file: expected a model's directory, or a .gguf file"),
        ("empty", "model_name_or_path: the directory {}/empty holds no config.json"),
        ("absent", "model_name_or_path: no directory {}/absent"),
    ],
)
def test_what_is_no_model_is_said_before_a_hub_is_asked(name, told, tmp_path, capsys):
    (tmp_path / "model.bin").write_bytes(b"no model")
    (tmp_path / "empty").mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1 + 1", "answer": "2"}\n')
    words = ["--config", "smoke_gsm8k", "--dataset", str(data), "--report_to", "none"]
    words += ["--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tmp_path / name)]
    assert grpo.main(words) == 2
    assert told.format(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("word", ["", " "])
def test_an_empty_output_dir_is_refused(word, tmp_path, capsys):
    words = small_options(tmp_path)
    words[words.index("--output_dir") + 1] = word
    assert grpo.main(words) == 2
    assert "output_dir is empty: name a directory, or . for the current one" in capsys.readouterr().err


def test_infinity_that_means_no_limit_is_taken(tmp_path):
    _, config, _ = arguments.parse(small_options(tmp_path, "--max_grad_norm", "inf"))
    assert math.isinf(config.max_grad_norm)


@pytest.mark.parametrize("where", ["command line", "recipe"])
def test_two_options_that_say_the_batch_size_are_an_error_that_names_both(where, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    both = "completions_per_update: 16\nper_device_train_batch_size: 8\nuse_cpu: true\nbf16: false\nreport_to: none\n"
    recipe.write_text(both + ("gradient_accumulation_steps: 4\n" if where == "recipe" else ""))
    words = [] if where == "recipe" else ["--gradient_accumulation_steps", "4"]
    assert grpo.main(["--config", str(recipe), "--output_dir", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert f"completions_per_update is 16 and gradient_accumulation_steps 4 from the {where}: " in told
    assert "gradient_accumulation_steps 4 is completions_per_update 32 here" in told


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("max_steps:", "max_steps in the recipe is empty"),
        ("max_steps: [1, 2]", "max_steps in the recipe is [1, 2]: expected one value, not a list"),
        ("learning_rate: {a: 1}", "learning_rate in the recipe is {'a': 1}: expected a value, not a mapping"),
        ("reward: null", "reward in the recipe is empty"),
        ("reward: [cer, null]", "reward in the recipe has None in its list"),
        ("reward_weights: [[1]]", "reward_weights in the recipe has [1] in its list"),
        ("report_to: null", "report_to in the recipe is empty"),
        ("report_to:", "report_to in the recipe is empty"),
        ("dataset: [a, b]", "dataset in the recipe is ['a', 'b']: expected one value"),
        ("save_strategy: yes", "save_strategy in the recipe is True: expected one of no, steps, epoch, best"),
        ("1: 2", "1 is no option's name: expected text, got int"),
        ("true: 2", "True is no option's name: expected text, got bool"),
    ],
)
def test_recipe_with_a_value_that_an_option_cannot_have_names_it(recipe, told, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe)
    assert grpo.main(["--config", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfem\x00a\x00", "output_dir: r\xe9sultats".encode("latin-1")])
def test_recipe_that_is_not_utf8_is_told(content, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert grpo.main(["--config", str(path)]) == 2
    assert f"{path}: not UTF-8 text" in capsys.readouterr().err


def test_words_that_yaml_reads_as_false_mean_no(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("save_strategy: no\neval_strategy: off\nreport_to: no\nuse_cpu: yes\nbf16: no\n")
    _, config, _ = arguments.parse(["--config", str(path), "--output_dir", str(tmp_path / "run")])
    assert (config.save_strategy.value, config.eval_strategy.value, config.report_to) == ("no", "no", [])
    assert (config.use_cpu, config.bf16) == (True, False)


def test_home_directory_in_a_recipe_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data_dir: ~/data\noutput_dir: ~/run\ncache_dir: ~/cache\nuse_cpu: true\nbf16: false\nreport_to: none\n"
        "dataset: gsm8k\nmodel_name_or_path: tiny-bytes\n"
    )
    run, config, _ = arguments.parse(["--config", str(path)])
    assert (run.data_dir, run.cache_dir) == (str(tmp_path / "data"), str(tmp_path / "cache"))
    assert config.output_dir == str(tmp_path / "run")
