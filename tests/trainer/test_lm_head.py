"""The fused head against each model's own logits, in value and in gradient, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import transformers
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, VeraConfig, get_peft_model
from tiny_models import FAMILIES, VOCABULARY, make_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer.lm_head import active_head, add_fused_lm_head, head_operands, head_parts, logit_transform

TEMPERATURE = 0.7
BOTH = ("log_probs", "entropy")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sequences, left-padded prompt, right-padded completion: ids, attention mask, labels (B, L)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(6, VOCABULARY, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    mask[1, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return ids, mask, labels


def from_own_logits(model, temperature: float = TEMPERATURE):
    """log-probability and entropy (B, L-1) of the labels in float64 from the logits of the model's own forward."""
    ids, mask, labels = batch()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double() / temperature  # (B, L-1, V)
    log_p = logits.log_softmax(-1)
    target = labels[:, 1:]
    scored = target != -100
    log_probs = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0] * scored
    entropy = -(log_p.exp() * log_p).sum(-1) * scored
    return log_probs, entropy


def from_fused_head(model):
    ids, mask, labels = batch()
    result = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return result.log_probs, result.entropy


def gradients(model, log_probs, entropy) -> dict[str, torch.Tensor]:
    """Of a scalar that weighs every log-probability and every entropy differently."""
    weights = torch.linspace(-1, 1, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(
        (weights * log_probs).sum() + (weights.flip(1) * entropy).sum(), list(parameters.values()), allow_unused=True
    )
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def assert_serves(plain: nn.Module, fused: nn.Module, tolerance: float = 2e-5) -> None:
    """`fused` carries the head, `plain` is the same model without it."""
    expected, got = from_own_logits(plain), from_fused_head(fused)
    for name, e, g in zip(BOTH, expected, got, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    expected_gradients, got_gradients = gradients(plain, *expected), gradients(fused, *got)
    assert expected_gradients.keys() == got_gradients.keys()
    scale = max(g.abs().max() for g in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            got_gradients[name],
            gradient,
            rtol=10 * tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"gradient of {n}: {m}",
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_match_the_models_own_logits(family):
    plain, fused = make_model(family), make_model(family)
    add_fused_lm_head(fused, temperature=TEMPERATURE, outputs=BOTH)
    assert_serves(plain, fused)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3", (1.0, None)),
        ("gemma2", (1.0, 3.0)),
        ("cohere", (0.25, None)),
        ("granite", (1 / 3.0, None)),
    ],
)
def test_scale_and_softcap_are_read_from_the_config(family, expected):
    assert logit_transform(make_model(family).config) == expected


def test_hyperclovax_multiplies_by_logits_scaling_where_granite_divides():
    config = make_model("granite").config
    config.model_type = "hyperclovax"
    assert logit_transform(config) == (3.0, None)


def test_head_alone_scores_nothing_but_the_labels_and_leaves_generation_unchanged():
    plain, fused = make_model("llama"), make_model("llama")
    add_fused_lm_head(fused, temperature=TEMPERATURE)
    ids, mask, labels = batch()
    result = fused(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    assert result.entropy is None
    assert torch.equal(result.label_mask, labels[:, 1:] != -100)
    assert bool((result.log_probs[~result.label_mask] == 0).all())
    arguments = {"input_ids": ids[:1], "attention_mask": mask[:1], "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(plain.generate(**arguments), fused.generate(**arguments))
    torch.testing.assert_close(
        plain(input_ids=ids, labels=labels).loss, fused(input_ids=ids, labels=labels).loss, rtol=0, atol=0
    )


def test_shift_labels_are_scored_without_shifting():
    model = make_model("llama")
    add_fused_lm_head(model, outputs=BOTH)
    ids, mask, labels = batch()
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        a = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        b = model(input_ids=ids, attention_mask=mask, shift_labels=shifted, fused_lm_head=True)
    assert torch.equal(a.log_probs, b.log_probs[:, :-1])
    assert torch.equal(a.entropy, b.entropy[:, :-1])


def test_a_batch_without_labels_gives_differentiable_zeros():
    model = make_model("qwen3")
    add_fused_lm_head(model, outputs=BOTH)
    ids, mask, labels = batch()
    result = model(input_ids=ids, attention_mask=mask, labels=torch.full_like(labels, -100), fused_lm_head=True)
    (result.log_probs.sum() + result.entropy.sum()).backward()
    assert bool((result.log_probs == 0).all())
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def lora_pair(family: str, add_head_first: bool = False, **options) -> tuple[nn.Module, nn.Module]:
    """Two equal PEFT models with adapters away from their zero start; the second one carries the fused head."""
    pair = []
    for fuse in (False, True):
        base = make_model(family)
        if fuse and add_head_first:
            add_fused_lm_head(base, temperature=TEMPERATURE, outputs=BOTH)
        torch.manual_seed(5)
        model = get_peft_model(base, LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "trainable_tokens_delta" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        if fuse and not add_head_first:
            add_fused_lm_head(model.get_base_model(), temperature=TEMPERATURE, outputs=BOTH)
        pair.append(model)
    return pair[0], pair[1]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi"])  # tied, softcap, bias
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["lm_head"], "lora_bias": True, "use_rslora": True},
    ],
    ids=["body", "head", "head with lora_bias"],
)
def test_lora_on_the_body_and_on_the_head(family, options):
    assert_serves(*lora_pair(family, **options))


def test_modules_to_save_head_trains_its_own_copy():
    plain, fused = lora_pair("llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert_serves(plain, fused)
    assert any("modules_to_save" in name for name in gradients(fused, *from_fused_head(fused)))


def test_trainable_tokens_on_the_head():
    assert_serves(*lora_pair("llama", target_modules=["q_proj"], trainable_token_indices={"lm_head": [3, 7, 12]}))


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_disabled_adapter_leaves_the_base_head(options):
    _, fused = lora_pair("llama", **{"target_modules": ["q_proj"], **options})
    with torch.no_grad():
        for name, parameter in fused.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1.0)
        with fused.disable_adapter():
            got = from_fused_head(fused)
        expected = from_own_logits(make_model("llama"))
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-5, atol=2e-5)


def test_the_active_adapter_of_two_is_the_one_that_counts():
    plain, fused = lora_pair("llama", target_modules=["lm_head"])
    for model in (plain, fused):
        torch.manual_seed(6)
        model.add_adapter("other", LoraConfig(r=2, lora_alpha=7, target_modules=["lm_head"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B.other" in name:
                    parameter.normal_()
        model.set_adapter("other")
    assert_serves(plain, fused)


def test_lora_dropout_is_applied_to_the_same_entries_as_by_the_adapter_itself():
    _, fused = lora_pair("llama", target_modules=["lm_head"], lora_dropout=0.4)
    head = active_head(fused.get_base_model().get_output_embeddings()).train()
    hidden = torch.randn(11, 16)
    torch.manual_seed(1)
    expected = head(hidden)
    torch.manual_seed(1)
    states, weight, bias, low = head_parts(head, hidden)
    assert bias is None
    assert low is not None
    torch.testing.assert_close(states @ weight.T + low[0] @ low[1].T, expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(1)
    wide, weight, _ = head_operands(head, hidden)
    torch.testing.assert_close(wide @ weight.T, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, head.eval()(hidden))


def test_bfloat16_model_with_float32_adapters_on_the_head():
    plain, fused = lora_pair("llama", target_modules=["lm_head"])
    for model in (plain, fused):
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
    expected, got = from_own_logits(plain), from_fused_head(fused)
    for e, g in zip(expected, got, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), e, rtol=0.03, atol=0.03)
    assert all(torch.isfinite(g).all() for g in gradients(fused, *got).values())


def test_cast_lm_head_to_fp32_projects_bfloat16_states_in_float32():
    model = make_model("llama").bfloat16()
    model.lm_head.float()
    reference = copy.deepcopy(model)
    add_cast = nn.Linear.forward
    reference.lm_head.forward = lambda hidden: add_cast(reference.lm_head, hidden.float())
    own_forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: own_forward(hidden.float())
    add_fused_lm_head(model, temperature=TEMPERATURE, cast_lm_head_to_fp32=True, outputs=BOTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = from_fused_head(model)
    expected = from_own_logits(reference)
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-5, atol=2e-5)


def test_autocast_multiplies_in_its_own_dtype():
    model = make_model("llama")
    plain = copy.deepcopy(model)
    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=BOTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = from_fused_head(model), from_own_logits(plain)
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g.double(), e.double(), rtol=0.03, atol=0.05)
    found = gradients(model, *got)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found.values())


_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "initializer_range": 0.4,
    "num_experts_per_tok": 2,
}
_LOCAL = {"num_local_experts": 4}
_SHARED = {**_LOCAL, "shared_intermediate_size": 16}
_ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2, "layer_types": ["attention", "attention"]}
WITH_AUXILIARY_LOSS = {
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "GraniteMoe": _LOCAL,
    "GraniteMoeShared": _SHARED,
    "GraniteMoeHybrid": {**_SHARED, **_MAMBA},
    "Phimoe": _LOCAL,
    "JetMoe": {**_LOCAL, "kv_channels": 8, "num_attention_heads": 4},
    "Doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4},
}
WITHOUT_AUXILIARY_LOSS = {
    "DeepseekV3": {**_ROUTED, **_LATENT},
    "Glm4Moe": _ROUTED,
    "Dots1": _ROUTED,
    "Zaya": {"num_experts": 4, "num_experts_per_tok": 1},
    "Afmoe": {"num_experts": 4, "moe_intermediate_size": 16, "num_dense_layers": 1},
    "HunYuanMoEV1": {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 16},
    "Llama4": {**_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 32},
    "Doge": {"is_moe": False},
}


def tiny(name: str, **options) -> nn.Module:
    config_class = getattr(transformers, {"Llama4": "Llama4TextConfig"}.get(name, f"{name}Config"))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config_class(**{**_TINY, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some initialisations leave memory as it was
            parameter.normal_(std=0.3)
    return model


def assert_auxiliary_loss_is_the_models_own(model: nn.Module) -> torch.Tensor | None:
    ids, mask, labels = batch()
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
        log_p = own.logits[:, :-1].log_softmax(-1)
        add_fused_lm_head(model)
        model.config.output_router_logits = True
        arguments = {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}
        for asked in ({}, {"output_router_logits": True}):
            got = model(**arguments, **asked)
            expected = log_p.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * got.label_mask
            torch.testing.assert_close(got.log_probs, expected, rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(got.aux_loss, getattr(own, "aux_loss", None), rtol=1e-6, atol=0)
    return got.aux_loss


@pytest.mark.parametrize("name", WITH_AUXILIARY_LOSS)
def test_router_loss_of_a_mixture_of_experts_is_the_models_own(name):
    assert assert_auxiliary_loss_is_the_models_own(tiny(name, **WITH_AUXILIARY_LOSS[name])) > 0


@pytest.mark.parametrize("name", WITHOUT_AUXILIARY_LOSS)
def test_a_model_whose_forward_has_no_router_loss_gets_none(name):
    assert assert_auxiliary_loss_is_the_models_own(tiny(name, **WITHOUT_AUXILIARY_LOSS[name])) is None


def test_a_subclass_has_the_router_loss_of_the_class_whose_forward_it_wraps():
    class Wrapped(transformers.MixtralForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    config = transformers.MixtralConfig(**_TINY, **_LOCAL)
    torch.manual_seed(0)
    assert assert_auxiliary_loss_is_the_models_own(Wrapped(config).eval()) > 0


@pytest.mark.parametrize("scale", ["inv_sqrt_d_model", 0.5])
def test_a_logit_scale_that_mpts_forward_does_not_use_is_not_used(scale):
    config = transformers.MptConfig(
        d_model=16, n_heads=2, n_layers=2, vocab_size=VOCABULARY, max_seq_len=64, logit_scale=scale
    )
    torch.manual_seed(0)
    model = transformers.MptForCausalLM(config).eval()
    plain = copy.deepcopy(model)
    add_fused_lm_head(model, temperature=TEMPERATURE, outputs=BOTH)
    assert_serves(plain, model)


@DTYPES
def test_a_forward_that_calls_a_part_of_its_backbone_is_served(dtype):
    model = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    add_fused_lm_head(model.to(dtype).eval())


def test_a_head_of_another_width_than_its_backbone_is_refused_by_name():
    model = tiny("RemBert", input_embedding_size=16, output_embedding_size=24, is_decoder=True)
    with pytest.raises(ValueError, match=r"RemBertForCausalLM cannot be trained .* width 16, .* head 24"):
        add_fused_lm_head(model)


@pytest.fixture
def one_process_mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("own_group", [False, True], ids=["head in the root's group", "head in a group of its own"])
def test_a_head_sharded_by_fsdp2_is_gathered(one_process_mesh, own_group):
    plain, fused = make_model("phi"), make_model("phi")
    add_fused_lm_head(fused, temperature=TEMPERATURE, outputs=BOTH)
    for module in [*fused.model.layers, *([fused.lm_head] if own_group else []), fused]:
        fully_shard(module, mesh=one_process_mesh)
    assert isinstance(fused.lm_head.weight, DTensor)
    expected, got = from_own_logits(plain), from_fused_head(fused)
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-5, atol=2e-5)
    (expected[0].sum() + expected[1].sum()).backward()
    (got[0].sum() + got[1].sum()).backward()
    for name, parameter in fused.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        torch.testing.assert_close(
            parameter.grad.full_tensor(), plain.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name
        )


class _LlamaWithChangedLogits(type(make_model("llama"))):
    """`change` is what its forward does to the logits (B, L, V) at its end."""

    change = staticmethod(lambda logits: logits)

    def forward(self, *args, **kwargs):
        result = super().forward(*args, **kwargs)
        result.logits = self.change(result.logits)
        return result


def changed_llama(change, dtype: torch.dtype, **options) -> nn.Module:
    torch.manual_seed(0)
    model = _LlamaWithChangedLogits(make_model("llama", **options).config).to(dtype).eval()
    model.change = change
    return model


def mask_token_five(logits: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(torch.arange(logits.shape[-1]) == 5, -1e4)


@DTYPES
@pytest.mark.parametrize("spread", [0.02, 0.4])  # of the weights: logits near 0, and a far from uniform distribution
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: 1.05 * logits,
        lambda logits: 1.01 * logits,
        lambda logits: 30 * (logits / 30).tanh(),
        lambda logits: logits + 0.1 * logits.std() * torch.linspace(-1, 1, logits.shape[-1]),
        mask_token_five,
        lambda logits: logits[..., :-1],
    ],
    ids=["factor 1.05", "factor 1.01", "softcap", "bias", "masked token", "fewer tokens"],
)
def test_logits_changed_in_an_unknown_way_are_refused_at_construction(change, spread, dtype):
    model = changed_llama(change, dtype, initializer_range=spread)
    with pytest.raises(ValueError, match=r"_LlamaWithChangedLogits .* its own logits"):
        add_fused_lm_head(model)


@DTYPES
def test_xlstm_which_caps_its_logits_by_another_name_is_refused(dtype):
    config = transformers.xLSTMConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_heads=2,
        num_hidden_layers=1,
        output_logit_soft_cap=30.0,
        chunkwise_kernel="chunkwise--native_autograd",
        sequence_kernel="native_sequence__native",
        step_kernel="native",
    )
    torch.manual_seed(0)
    model = transformers.xLSTMForCausalLM(config).to(dtype).eval()
    with pytest.raises(ValueError, match=r"xLSTMForCausalLM .* its own logits"):
        add_fused_lm_head(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_models_stay_close_to_their_own_logits_in_bfloat16(family):
    model = make_model(family).bfloat16()
    plain = copy.deepcopy(model)
    add_fused_lm_head(model, temperature=1.0, outputs=BOTH)
    with torch.no_grad():
        for e, g in zip(from_own_logits(plain, 1.0), from_fused_head(model), strict=True):
            torch.testing.assert_close(g.double(), e, rtol=0, atol=5e-2)


class _LlamaWithScaledStates(type(make_model("llama"))):
    def forward(self, input_ids, **kwargs):
        hidden = self.model(input_ids).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden / 3))


@DTYPES
def test_states_rescaled_before_the_head_are_a_factor_that_the_config_may_declare(dtype):
    """Rounded to bfloat16 on the way, which is no reason to refuse the model."""
    config = make_model("llama").config
    config.logit_scale = 1 / 3
    torch.manual_seed(0)
    add_fused_lm_head(_LlamaWithScaledStates(config).to(dtype).eval())


def test_a_bfloat16_adapter_on_the_head_is_no_reason_to_refuse():
    model, _ = lora_pair("llama", target_modules=["lm_head"])
    add_fused_lm_head(model.bfloat16().get_base_model())


def test_models_without_a_servable_head_are_refused_by_name():
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"LlamaModel .* get_output_embeddings"):
        add_fused_lm_head(model.model)
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .* encoder-decoder"):
        add_fused_lm_head(model)
    with pytest.raises(ValueError, match="mean_logits"):
        add_fused_lm_head(make_model("llama"), outputs=("log_probs", "mean_logits"))


def test_a_quantised_head_is_refused():
    model = make_model("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .* torch.int8 weight"):
        add_fused_lm_head(model)


def test_dora_on_the_head_and_a_cast_adapter_are_refused():
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["lm_head"], use_dora=True))
    with pytest.raises(ValueError, match="Dora"):
        add_fused_lm_head(model.get_base_model())
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32"):
        add_fused_lm_head(model.get_base_model(), cast_lm_head_to_fp32=True)


ADAPTERS_THAT_ARE_NOT_SERVED = {
    "DoRA": LoraConfig(target_modules=["lm_head"], use_dora=True),
    "target_parameters": LoraConfig(target_modules=[], target_parameters=["lm_head.weight"]),
    "AdaLoRA": AdaLoraConfig(target_modules=["lm_head"], total_step=10),
    "IA3": IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
    "LoHa": LoHaConfig(target_modules=["lm_head"]),
    "VeRA": VeraConfig(target_modules=["lm_head"]),
}


@pytest.mark.parametrize("kind", ADAPTERS_THAT_ARE_NOT_SERVED)
def test_an_adapter_that_comes_to_the_head_later_is_refused_where_the_head_is_used(kind):
    model = make_model("llama")
    add_fused_lm_head(model, outputs=BOTH)
    model = get_peft_model(model, ADAPTERS_THAT_ARE_NOT_SERVED[kind])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be trained .* its head carries .* plain LoRA"):
        from_fused_head(model)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 7, 12]}},
    ],
    ids=["LoRA", "modules_to_save", "trainable_token_indices"],
)
def test_an_adapter_that_comes_to_the_head_later_is_served(options):
    plain, fused = lora_pair("llama", add_head_first=True, **options)
    assert_serves(plain, fused)


def test_meta_weights_are_not_run():
    with torch.device("meta"):
        model = type(make_model("llama"))(make_model("llama").config)
    add_fused_lm_head(model)
    assert next(model.parameters()).is_meta
