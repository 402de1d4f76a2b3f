"""Every packaged recipe parses into TRL's own configuration, and its arithmetic holds, without a GPU."""

from pathlib import Path

import pytest
import yaml

from trainer.training import arguments

QWEN = ["qwen3_4b_gsm8k", "qwen3_8b_gsm8k"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # recipes name relative output directories


@pytest.fixture(autouse=True)
def _vllm_is_there(monkeypatch):
    """The recipes for GPUs name vLLM; whether it is installed here is not their business."""
    monkeypatch.setattr("trainer.sampling.vllm_support.require_vllm", lambda wanted_by: None)


@pytest.mark.parametrize("name", arguments.recipe_names())
def test_recipe_parses_and_its_batches_divide(name):
    run, config, _model = arguments.parse(["--config", name, "--use_cpu", "true"])
    per_pass = config.per_device_train_batch_size * config.world_size
    per_update = per_pass * config.gradient_accumulation_steps
    assert config.generation_batch_size == per_pass * config.steps_per_generation
    assert config.generation_batch_size % config.num_generations == 0
    assert per_update % config.num_generations == 0  # an update never splits a group's completions unevenly
    assert config.generation_batch_size % per_update == 0
    assert config.temperature > 0
    assert config.report_to == ["tensorboard"]
    assert config.output_dir == f"runs/{name}"
    if run.reward != ["cer"]:
        assert len(config.reward_weights) == len(run.reward)


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("processes", [1, 4, 8])
def test_published_batches_hold_on_any_number_of_gpus(name, processes, monkeypatch):
    from trl import GRPOConfig

    monkeypatch.setattr(GRPOConfig, "world_size", property(lambda self: processes))
    run, config, _ = arguments.parse(["--config", name, "--use_cpu", "true"])
    per_update = config.per_device_train_batch_size * processes * config.gradient_accumulation_steps
    assert per_update == run.completions_per_update == 8 * 8  # mini-batch of 8 prompts, 8 completions each
    assert config.generation_batch_size == 128 * 8
    assert config.per_device_train_batch_size * processes * config.steps_per_generation == 128 * 8
    assert config.generation_batch_size // per_update == 16  # updates per generation


@pytest.mark.parametrize("name", QWEN)
def test_published_hyperparameters(name):
    """FACTS: LoRA r 64, alpha 32, all-linear, lr 3e-6, prompt 512, response 4096, T 1.5, KL 1e-3, 5 epochs, GSM8K."""
    run, config, model = arguments.parse(["--config", name, "--use_cpu", "true"])
    assert (run.dataset, run.dataset_split, run.reward, run.cer_weight) == (
        "gsm8k",
        None,
        ["cer"],
        0.5,
    )  # its usual split: train
    assert (run.max_prompt_length, config.max_completion_length) == (512, 4096)
    assert config.vllm_max_model_length == 512 + 4096
    assert (model.use_peft, model.lora_r, model.lora_alpha) == (True, 64, 32)
    assert model.lora_target_modules in ("all-linear", ["all-linear"])
    assert (config.learning_rate, config.temperature, config.beta, config.entropy_coef) == (3e-6, 1.5, 1e-3, 0.0)
    assert (config.num_train_epochs, config.num_generations) == (5, 8)
    assert (config.use_vllm, config.vllm_mode, config.bf16) == (True, "colocate", True)


# parameters, layers, hidden, feed-forward, query heads, key/value heads, head size: Qwen3's published configurations
SHAPES = {
    "qwen3_4b_gsm8k": (4.02e9, 36, 2560, 9728, 32, 8, 128),
    "qwen3_8b_gsm8k": (8.19e9, 36, 4096, 12288, 32, 8, 128),
}


@pytest.mark.parametrize("name", QWEN)
def test_memory_arithmetic_in_the_comment_is_right_and_fits_80_gb(name):
    parameters, layers, hidden, ffn, heads, kv_heads, size = SHAPES[name]
    run, config, model = arguments.parse(["--config", name, "--use_cpu", "true"])
    tokens = config.per_device_train_batch_size * (run.max_prompt_length + config.max_completion_length)
    linear = [(hidden, heads * size), (hidden, kv_heads * size), (hidden, kv_heads * size), (heads * size, hidden)]
    linear += [(hidden, ffn), (hidden, ffn), (ffn, hidden)]
    lora = layers * model.lora_r * sum(inputs + outputs for inputs, outputs in linear)
    gb = {
        "vLLM": 80 * config.vllm_gpu_memory_utilization,
        "policy": 2 * parameters / 1e9,
        "LoRA": 16 * lora / 1e9,
        "inputs of 36 layers": 2 * tokens * hidden * layers / 1e9,
        "one layer recomputed": 2 * tokens * (3 * ffn + 4 * heads * size + 8 * hidden) / 1e9,
        "head": 0.5,
    }
    stated = {}
    for line in arguments.find_recipe(name).read_text().splitlines():
        words = line.lstrip("# ").split("  ")
        for part in [*gb, "sum"]:
            if line.startswith("#     " + part) and " GB" in line:
                stated[part] = float(line.split(" GB")[0].split()[-1])
        assert words
    assert stated.keys() == {*gb, "sum"}
    for part, value in gb.items():
        assert stated[part] == pytest.approx(value, abs=0.06), part
    assert stated["sum"] == pytest.approx(sum(gb.values()), abs=0.2)
    assert stated["sum"] < 72  # a tenth of the device for fragmentation
    cache_bytes_per_token = layers * 2 * kv_heads * size * 2
    assert cache_bytes_per_token == 147_456
    room = (gb["vLLM"] * 0.9 - gb["policy"]) * 1e9  # vLLM keeps some for its own activations
    assert room > 8 * cache_bytes_per_token * (run.max_prompt_length + config.max_completion_length)


def test_accelerate_configuration_is_fsdp2_for_4_to_8_gpus():
    from accelerate.commands.config.config_args import ClusterConfig

    path = arguments.RECIPES / "accelerate_fsdp2.yaml"
    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.num_processes in range(4, 9)
    assert config.mixed_precision == "bf16"


def test_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "dataset: tiny\nlearning_rate: 3e-5\nmax_steps: 7\nreward: accuracy\nper_device_train_batch_size: 8\n"
        "bf16: false\nuse_cpu: true\nreport_to: none\n"
    )
    run, config, _ = arguments.parse(["--config", str(recipe), "--max_steps", "3", "--reward", "cer", "random"])
    assert config.max_steps == 3
    assert config.learning_rate == 3e-5  # YAML reads 3e-5 as a string
    assert run.reward == ["cer", "random"]
    run, _, _ = arguments.parse([f"--config={recipe}"])
    assert run.reward == ["accuracy"]


def test_recipes_are_found_by_name_and_by_the_path_in_the_repository():
    for wanted in ("tiny", "tiny.yaml", "trainer/recipes/tiny.yaml"):
        assert arguments.find_recipe(wanted) == arguments.RECIPES / "tiny.yaml"
    with pytest.raises(arguments.ConfigError, match=r"no file elsewhere/tiny\.yaml"):
        arguments.find_recipe("elsewhere/tiny.yaml")


def test_recipes_hold_no_key_twice():
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
        return loader.construct_mapping(node)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in Path(arguments.RECIPES).glob("*.yaml"):
        assert yaml.load(path.read_text(), Strict)
