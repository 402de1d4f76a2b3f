"""LoRA folded into the weights, in float32, one layer at a time.

In: a base model in its own dtype and an adapter. Out: the merged model in that dtype, and what happened to each layer.

    W' = round_dtype(float32(W) + s B A)        (DoRA, rsLoRA and the rest: PEFT's own merge, on float32 weights)

PEFT adds B A to W in W's dtype: in bfloat16 that rounds twice. Loading everything in float32 would need twice the
memory of the model, so one layer is widened, merged, checked and rounded before the next. The check: on random inputs
the merged float32 layer answers as the layer with its adapter does, to float32 accuracy.

Tied embeddings. An adapter on the head (or the embedding) of a model that ties the two changes one and not the other:
PEFT's merge would change both, silently. They are untied before the merge; afterwards they are tied again if they are
still equal (an adapter that was trained tied), and otherwise the merged model is saved untied: V x D more numbers, and
exactly the function that was trained.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, Linear, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.console.progress_bar import ProgressBar
from trainer.merging.adapter import AdapterFiles

_PROBES = 4


@dataclass(frozen=True)
class LayerMerge:
    """One layer. `kept` is the share of the update that survived the rounding to the dtype of the weights:
    <W' - W, U> / <U, U> for the update U in float32; 1 is all, 0 is a merge that changed nothing. None: U = 0.
    """

    name: str
    kept: float | None


def attach(base: PreTrainedModel, adapter: AdapterFiles) -> PeftModel:
    """The base model with the adapter on it, every stored tensor in its place.

    Raises:
        ValueError: the adapter does not fit the model, or not all of its tensors were used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tying is taken care of below, missing keys right here
        try:
            model = PeftModel.from_pretrained(base, str(adapter.directory), torch_device=str(base.device))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"adapter {adapter.given} does not fit the model: {error}") from error
        stored = load_peft_weights(str(adapter.directory), device="cpu")
        # An adapter on the head or the embedding brings the weight under it as well.
        loaded = get_peft_model_state_dict(model, save_embedding_layers=True)
    _require_same_tensors(adapter, stored, loaded)
    _require_a_place_for_biases(model, adapter)
    return model.eval()


def require_same_vocabulary(base: PreTrainedModel, adapter: AdapterFiles) -> None:
    """Raise ValueError for an adapter of more tokens than the base has.

    An adapter trained after tokens were added fits no base without them; PEFT would list shapes, or index beyond.
    """
    inputs, outputs = base.get_input_embeddings(), base.get_output_embeddings()
    rows = inputs.weight.shape[0]
    names = [name for name, module in base.named_modules() if module is inputs or module is outputs]
    indices = adapter.config.trainable_token_indices or []
    needed = [index + 1 for one in (indices.values() if isinstance(indices, dict) else [indices]) for index in one]
    for key, tensor in load_peft_weights(str(adapter.directory), device="cpu").items():
        name, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if name.removesuffix(".weight") not in names or tensor.ndim != 2:
            continue
        if kind.startswith("embedding_A"):  # (r, V)
            needed.append(tensor.shape[1])
        elif kind.startswith("B") or not kind:  # (V, r) of the head; the weight itself, (V, D)
            needed.append(tensor.shape[0])
    if max(needed, default=0) > rows:
        raise ValueError(
            f"adapter {adapter.given} knows {max(needed)} tokens, the model {rows}: its vocabulary had grown. Resize "
            f"and save the base first (model.resize_token_embeddings({max(needed)}), model.save_pretrained(DIR)), as "
            "was done before the training, and give it as --model"
        )


def _require_a_place_for_biases(model: PeftModel, adapter: AdapterFiles) -> None:
    if not adapter.config.lora_bias:
        return
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and getattr(module.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"adapter {adapter.given} was trained with lora_bias, and {name} of the model has no bias that could "
                "take it up; serve the adapter unmerged"
            )


def _require_same_tensors(adapter: AdapterFiles, stored: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    unused = sorted(stored.keys() - loaded.keys())
    missing = sorted(key for key in loaded.keys() - stored.keys() if "lora_" in key)
    if unused or missing:
        parts = [
            f"{len(keys)} {what}, first {keys[0]}" for what, keys in (("unused", unused), ("missing", missing)) if keys
        ]
        raise ValueError(f"adapter {adapter.given} does not fit the model: of its tensors {'; '.join(parts)}")
    for key, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {adapter.given}: {key} holds NaN or infinity")
        if not torch.equal(loaded[key].cpu().float(), tensor.to(loaded[key].dtype).float()):
            raise ValueError(f"adapter {adapter.given}: {key} was not loaded as it is stored")


def untie(model: PreTrainedModel) -> bool:
    """Give the head a weight of its own if it shares the embedding's and either carries an adapter."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = [isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in (inputs, outputs)]
    if outputs is None or not any(adapted):
        return False
    inner = [_innermost(module) for module in (inputs, outputs)]
    if inner[0].weight is not inner[1].weight:
        return False
    inner[1].weight = nn.Parameter(inner[0].weight.detach().clone(), requires_grad=False)
    return True


def _innermost(module: nn.Module) -> nn.Module:
    """The module that holds the weight that the base model brought."""
    while isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        module = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.get_base_layer()
    return module


def merge(model: PeftModel, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, list[LayerMerge], str]:
    """Fold the adapter into the weights.

    Args:
        model: what `attach` returned; it is used up.
        dtype: of the merged model; None: every weight keeps the dtype of the base.

    Returns:
        The merged model, one LayerMerge per adapted layer, and "none", "kept" or "untied": the tying of its embeddings.

    Raises:
        ValueError: a merged weight is not finite, or a merged layer does not answer as the adapted one did.
    """
    base = model.get_base_model()
    was_tied = _is_tied(base)
    stored = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter.dtype
        for name, parameter in base.named_parameters()
    }
    fallback = base.dtype
    config = model.peft_config[model.active_adapter]
    untie(base)
    layers = [(name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    merges = [
        LayerMerge(name.replace(".base_layer", ""), _merge_layer(name, module, dtype))
        for name, module in ProgressBar(layers, desc="merge", unit="layer", leave=False)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "already merged" of each layer, and the tying
        merged = model.merge_and_unload(safe_merge=True)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtype or stored.get(name, fallback))
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} holds NaN or infinity after the merge in {parameter.dtype}")
    tying = _settle_tying(merged, was_tied, trained_tied=bool(getattr(config, "ensure_weight_tying", False)))
    return merged, merges, tying


@torch.no_grad()
def _merge_layer(name: str, module: LoraLayer, dtype: torch.dtype | None) -> float | None:
    base = module.get_base_layer()
    dtypes = {key: parameter.dtype for key, parameter in base.named_parameters()}
    before = {key: parameter.detach().clone() for key, parameter in base.named_parameters()}
    base.float()
    probe = _probe(module)
    expected, plain = (module(probe), base(probe)) if probe is not None else (None, None)
    module.merge(safe_merge=True)
    if probe is not None:
        error, update = (base(probe) - expected).norm(), (expected - plain).norm()
        if not error <= 1e-4 * update + 1e-5 * expected.norm():
            raise ValueError(f"{name}: merged and adapted layer differ by {error:.3g} where the update is {update:.3g}")
    kept = total = 0.0
    for key, parameter in base.named_parameters():
        update = parameter.detach() - before[key].float()
        parameter.data = parameter.data.to(dtype or dtypes[key])
        change = parameter.detach().float() - before[key].float()
        kept += float((change.double() * update.double()).sum())
        total += float(update.double().square().sum())
    return kept / total if total > 0 else None


def _probe(module: LoraLayer) -> Tensor | None:
    """Random inputs for a layer that takes vectors or tokens; None for others, which the logits alone check."""
    weight = getattr(module.get_base_layer(), "weight", None)
    if isinstance(module, ParamWrapper) or weight is None:
        return None
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, Embedding):
        return torch.randint(module.in_features, (_PROBES,), generator=generator).to(weight.device)
    if isinstance(module, Linear):
        return torch.randn(_PROBES, module.in_features, generator=generator).to(weight.device)
    return None


def _is_tied(model: PreTrainedModel) -> bool:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return outputs is not None and _innermost(inputs).weight is _innermost(outputs).weight


def _settle_tying(model: PreTrainedModel, was_tied: bool, *, trained_tied: bool) -> str:
    """Tie again what is still equal, declare untied what is not."""
    if not was_tied:
        return "none"
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    # Trained tied, the two were merged by products in another order: equal but for the last bit.
    if trained_tied or torch.equal(inputs.weight, outputs.weight):
        outputs.weight = inputs.weight
        tied = True
    else:
        tied = False
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = tied
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    return "kept" if tied else "untied"
