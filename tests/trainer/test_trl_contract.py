"""Everything of TRL that is not documented and that trainer/cer_trainer.py and trainer/lm_head.py rest on.

A new TRL that changes one of these could make TECA wrong without an error, so each is checked here by name. When a
test of this file fails: read the change in TRL, adapt the trainer, then the expectation here, then the pin in
pyproject.toml.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest
import torch
import trl
from tiny_models import count_reward, prompts
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer
from trl.trainer import utils as trl_utils

from trainer import lm_head
from trainer.cer_trainer import CERTrainer

PINNED = "1.16.0"


def source_of(thing) -> str:
    return textwrap.dedent(inspect.getsource(thing))


def changed(what: str, expected, found) -> str:
    return (
        f"TRL {trl.__version__} (trainer written for {PINNED}) changed {what}:\n"
        f"  expected {expected!r}\n  found    {found!r}"
    )


def require(what: str, expected, found) -> None:
    if expected != found:
        pytest.fail(changed(what, expected, found), pytrace=False)


def test_version_is_the_one_the_trainer_was_written_for():
    require("its version", PINNED, trl.__version__)


SIGNATURES = {
    # method of GRPOTrainer: names of its parameters after self. Overridden:
    "_generate": ["prompts"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_generate_and_score_completions": ["inputs"],
    "_compute_loss": ["model", "inputs"],
    # called:
    "get_high_entropy_mask": ["entropies", "mask", "threshold"],
    "_log_completion_extra": ["column", "values"],
    "_log_metric": ["name", "value"],
}


@pytest.mark.parametrize("method", SIGNATURES)
def test_signature_of_method(method):
    found = getattr(GRPOTrainer, method, None)
    require(f"GRPOTrainer.{method}", True, callable(found))
    require(
        f"the parameters of GRPOTrainer.{method}", SIGNATURES[method], list(inspect.signature(found).parameters)[1:]
    )


FUNCTIONS = {
    "add_fused_lm_head": ["model", "temperature", "cast_lm_head_to_fp32", "outputs"],
    "maybe_gather_lm_head_ctx": ["params"],
    "pad": ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"],
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signature_of_function(function):
    found = list(inspect.signature(getattr(trl_utils, function)).parameters)
    require(f"the parameters of trl.trainer.utils.{function}", FUNCTIONS[function], found)


def test_our_head_has_the_signature_of_trls():
    theirs = inspect.signature(trl_utils.add_fused_lm_head)
    ours = inspect.signature(lm_head.add_fused_lm_head)
    for name, parameter in theirs.parameters.items():
        require(f"the default of add_fused_lm_head({name}=)", parameter.default, ours.parameters[name].default)
    shared = list(ours.parameters)[: len(theirs.parameters)]  # what follows has defaults of ours
    require("the parameters of add_fused_lm_head", list(theirs.parameters), shared)


def test_a_loss_asks_its_trainer_for_what_a_stand_in_has():
    """trainer/loss_ahead.py runs `_compute_loss` on a copy of the trainer that must not be seen from outside."""
    loss = ast.parse(source_of(GRPOTrainer._compute_loss))
    attributes = [node for node in ast.walk(loss) if isinstance(node, ast.Attribute)]
    asked = {node.attr for node in attributes if ast.unparse(node.value) == "self.accelerator"}
    require(
        "what _compute_loss asks of its accelerator",
        {"gather", "gather_for_metrics", "num_processes", "reduce", "sync_gradients"},
        asked,
    )
    set_by_it = {
        ast.unparse(target)
        for node in ast.walk(loss)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if ast.unparse(target).startswith("self.")
    }
    require(
        "what _compute_loss sets",
        {"self.entropy_coef", "self._entropy_window_stats", "self._last_world_entropy"},
        set_by_it,
    )
    called = {
        ast.unparse(node.func)
        for node in ast.walk(loss)
        if isinstance(node, ast.Call) and "self." in ast.unparse(node.func)
    }
    own = {name for name in called if re.fullmatch(r"self\.\w+", name)}
    require(
        "the methods that _compute_loss calls",
        {
            "self._get_per_token_logps_and_entropies",
            "self.get_high_entropy_mask",
            "self.get_off_policy_mask",
            "self.get_gamma_weights",
        },
        own,
    )


def test_fields_of_the_heads_output():
    found = set(trl_utils.FusedCausalLMOutput.__dataclass_fields__)
    require("FusedCausalLMOutput", set(), {"log_probs", "entropy", "label_mask", "aux_loss"} - found)


def test_trainer_calls_the_head_by_the_name_we_replace():
    """`CERTrainer` puts names into trl.trainer.grpo_trainer while it constructs; nothing else may hang on them."""
    source = source_of(grpo_trainer.GRPOTrainer)
    calls = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "add_fused_lm_head"
    ]
    require(
        "how GRPOTrainer adds the fused heads of policy and reference",
        [
            "add_fused_lm_head(self.model.get_base_model() if is_peft_model(self.model) else self.model, "
            "temperature=self.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32, "
            "outputs=('log_probs', 'entropy'))",
            "add_fused_lm_head(self.ref_model, temperature=self.temperature, "
            "cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)",
        ],
        calls,
    )
    uses = [line.strip() for line in source.splitlines() if "BaseTunerLayer" in line]
    require(
        "where GRPOTrainer looks for PEFT's adapter class",
        [
            "if is_peft_model(model) and isinstance(model.get_output_embeddings(), BaseTunerLayer):",
            "if is_peft_available() and isinstance(target_model.lm_head, BaseTunerLayer):",
        ],
        uses,
    )
    require(
        "where GRPOTrainer shards models for FSDP",
        ["self.ref_model = prepare_fsdp(self.ref_model, self.accelerator)"],
        [line.strip() for line in source.splitlines() if "prepare_fsdp(" in line],
    )
    require(
        "the parameters of prepare_fsdp",
        ["model", "accelerator"],
        list(inspect.signature(trl.models.prepare_fsdp).parameters),
    )


def test_call_of_the_head():
    """Which arguments the head is called with, and which of its answers are read."""
    source = source_of(inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies))
    require(
        "the call of the fused head",
        ["model(**model_inputs, labels=labels, fused_lm_head=True)"],
        re.findall(r"outputs = (model\(.*\))", source),
    )
    require(
        "what is read of its answer",
        ["log_probs[:, -logits_to_keep:]", "entropy[:, -logits_to_keep:]", "aux_loss"],
        re.findall(r"append\(outputs\.(.*)\)", source),
    )
    require(
        "which tokens are scored",
        True,
        "labels = input_ids_batch.masked_fill(attention_mask_batch == 0, -100)" in source
        and "labels[:, :-logits_to_keep] = -100" in source,
    )
    require("what the pass returns", ["logps, entropies, aux_loss"], re.findall(r"return (.*)", source))


def test_what_generate_returns():
    tree = ast.parse(source_of(GRPOTrainer._generate))
    require(
        "what _generate returns",
        ["(prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images)"],
        [ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return)],
    )


def test_what_the_recorded_rollouts_rest_on():
    """Where generate and vLLM are called, which mask hides tokens from the loss; extra tensors stay in step."""
    source = source_of(GRPOTrainer._generate_single_turn)
    require(
        "how it generates with transformers",
        True,
        "unwrapped_model.generate(" in source and "generation_config=self.generation_config" in source,
    )
    require("how it generates with vLLM", True, "self.vllm_generation.generate(" in source)
    loss = source_of(GRPOTrainer._compute_loss)
    require(
        "the mask of the loss",
        True,
        'completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]' in loss
        and "compute_entropy=True" in loss,
    )
    both = {"a": torch.arange(6), "rollout_entropies": torch.arange(6)[:, None].float()}
    for part in trl_utils.split_tensor_dict(trl_utils.shuffle_sequence_dict(both), 3):
        require("how batches are split", part["a"].tolist(), part["rollout_entropies"][:, 0].long().tolist())


def test_where_vllm_is_started():
    """CERTrainer puts its own class in the place of this name, and that class its options in the place of LLM's."""
    source = source_of(grpo_trainer.GRPOTrainer)
    calls = [line.strip() for line in source.splitlines() if "VLLMGeneration(" in line]
    require("how GRPOTrainer starts vLLM", ["self.vllm_generation = VLLMGeneration("], calls)
    start = source_of(vllm_generation.VLLMGeneration._init_vllm)
    require("how many engines it starts", 1, start.count("self.llm = LLM("))
    for method in ("sync_weights", "generate", "_iter_named_params"):
        require(f"VLLMGeneration.{method}", True, callable(getattr(vllm_generation.VLLMGeneration, method, None)))
    generate = source_of(vllm_generation.VLLMGeneration.generate)
    require(
        "how it asks the engine",
        True,
        "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in generate,
    )


def passes_in_order(source: str) -> list[tuple[str, str]]:
    """(method, first argument) of the calls that decide where TECA comes from, in the order of the source."""
    wanted = {"_generate", "_get_per_token_logps_and_entropies", "_calculate_rewards"}
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in wanted
    ]
    calls.sort(key=lambda node: node.lineno)
    return [(node.func.attr, ast.unparse(node.args[0])) for node in calls]


ORDER = [
    ("_generate", "prompts"),
    ("_get_per_token_logps_and_entropies", "self.model"),  # old_per_token_logps: the policy
    ("_get_per_token_logps_and_entropies", "self.ref_model"),  # reference, full fine-tuning
    ("_get_per_token_logps_and_entropies", "self.model"),  # reference, PEFT: adapter off or "ref"
    ("_calculate_rewards", "inputs"),
]


def test_policy_is_scored_before_the_reference_and_both_before_the_rewards():
    source = source_of(GRPOTrainer._generate_and_score_completions)
    require("the order of passes in _generate_and_score_completions", ORDER, passes_in_order(source))


def condition_of_the_old_pass(source: str) -> list[str]:
    """The conditions under which old_per_token_logps is made."""
    return [
        ast.unparse(node.test)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If)
        and any("old_per_token_logps, _, _" in ast.unparse(statement) for statement in node.body[:1])
    ]


CONDITION = (
    "self.args.gradient_accumulation_steps % generate_every != 0 or "
    "(self.use_vllm and self.vllm_importance_sampling_correction)"
)


def test_condition_of_the_old_pass_is_the_one_the_trainer_repeats():
    source = source_of(GRPOTrainer._generate_and_score_completions)
    require("when it makes the pass for old_per_token_logps", [CONDITION], condition_of_the_old_pass(source))
    require(
        "how often it generates",
        True,
        "generate_every = self.args.steps_per_generation * self.num_iterations" in source,
    )
    # CERTrainer raises num_iterations there to be given a pass with images: nothing else may hang on it.
    require("where else num_iterations is used while it generates", 1, source.count("num_iterations"))
    require(
        "what it keeps of the old pass",
        True,
        'if old_per_token_logps is not None:\n        output["old_per_token_logps"] = old_per_token_logps' in source,
    )
    ours = ast.parse(source_of(CERTrainer._scored_by_trl.fget))
    returned = next(node for node in ast.walk(ours) if isinstance(node, ast.Return))
    require("(here: trainer/cer_trainer.py) the condition of the old pass", CONDITION, ast.unparse(returned.value))


def test_truncation_hides_a_completion_as_the_trainer_believes():
    source = source_of(GRPOTrainer._generate_and_score_completions)
    require(
        "what mask_truncated_completions masks",
        True,
        "eos_and_pad = [*self.eos_token_ids, self._tokenizer.pad_token_id]" in source
        and "completion_mask = completion_mask * (~is_truncated).unsqueeze(1).int()" in source
        and "attention_mask = torch.cat([prompt_mask, completion_mask], dim=1)" in source,
    )


def test_keywords_of_the_rewards_come_from_the_rows():
    source = source_of(GRPOTrainer._calculate_rewards)
    require(
        "where reward functions get their keywords from",
        True,
        'keys = [key for key in inputs[0] if key not in ["prompt", "completion", "completion_ids"]]' in source
        and "reward_kwargs = {key: [example[key] for example in inputs] for key in keys}" in source,
    )


ATTRIBUTES = [
    "model",
    "ref_model",
    "args",
    "accelerator",
    "train_dataset",
    "eval_dataset",
    "eos_token_ids",
    "_tokenizer",
    "_is_vlm",
    "rollout_func",
    "tools",
    "temperature",
    "use_vllm",
    "vllm_mode",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_clip_max",
    "use_transformers_continuous_batching",
    "model_wrapped",
    "_metrics",
    "num_iterations",
    "pad_to_multiple_of",
    "mask_truncated_completions",
]


def test_attributes_of_the_trainer(load_model, tokenizer, config):
    trainer = GRPOTrainer(
        load_model(), count_reward, args=config(), train_dataset=prompts(), processing_class=tokenizer
    )
    missing = [name for name in ATTRIBUTES if not hasattr(trainer, name)]
    require("attributes of GRPOTrainer", [], missing)
    arguments = ("steps_per_generation", "gradient_accumulation_steps", "per_device_train_batch_size")
    missing = [name for name in (*arguments, "per_device_eval_batch_size") if not hasattr(trainer.args, name)]
    require("arguments of GRPOConfig", [], missing)


def test_the_checks_of_this_file_notice_a_change():
    source = source_of(GRPOTrainer._generate_and_score_completions)
    swapped = source.replace("self.ref_model,", "self.model,", 1)
    assert passes_in_order(swapped) != ORDER
    loosened = source.replace("% generate_every != 0 or", "% generate_every == 0 or", 1)
    assert condition_of_the_old_pass(loosened) != [CONDITION]
    with pytest.raises(pytest.fail.Exception, match=r"changed the order .*\n.*expected .*\n.*found"):
        require("the order of passes", ORDER, passes_in_order(swapped))
