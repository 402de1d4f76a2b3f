"""The fused language-model head: a causal LM's forward that returns log-probabilities instead of logits.

In: a transformers model (bare, or the base model inside a PEFT wrapper), input ids and labels. Out: for every label
that is not -100 the log-probability and the entropy of its next-token distribution, without the (B, L, V) logits.

    y = softcap * tanh(logit_scale * (h W^T + b) / softcap)      p = softmax(y / T)

`add_fused_lm_head` takes the place of the function of the same name in trl.trainer.utils (same signature, same output
class), so that TRL's trainer calls it where it would have called its own. The model's backbone is called as TRL calls
it; only the product with the head is ours: cer_ext.linear_logprobs_and_entropy, on the scored positions alone.

A low-rank adapter on the head (LoRA) is added to each tile of logits, so that no (B, L, V) tensor, no merged weight and
no copy of the weight is needed for it (cer_ext/low_rank.py):

    h W^T + u B^T,  u = s dropout(h) A^T

The alternative, W + s B A, is a copy a pass and has no dropout. Where W itself is trained as well, the product is that
of [h, u] and [W, B], which is one (V, D + r) copy a pass.

A head that is sharded is gathered for the product, and its gradient is the mean over the processes, as of every other
parameter. Nobody calls the head's own forward, so the frameworks' hooks on it never fire. FSDP2: the model's forward
has gathered it where it shares a group with another module; where it does not, it is gathered and reduced here, or the
tokens are, where that is less (head_over_ranks.py). ZeRO-3:
DeepSpeed is told that the model's forward uses it, gathers it with the model's own parameters, forward and backward,
and reduces the gradient.

If a model does more to its logits than this equation, results would be silently wrong. So the equation is compared
with whole rows of the model's own logits, multiplied in float32, when the head is added, wherever the weights are in
place (sharded or meta weights can't be run there).
"""

# torch gives every attribute of a module as Tensor | Module:
# pyright: reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false
# pyright: reportOptionalSubscript=false
# pyright: reportArgumentType=false
# pyright: reportCallIssue=false
# pyright: reportIndexIssue=false
# pyright: reportOperatorIssue=false
# pyright: reportReturnType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import functools
import inspect
import logging
import math
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import is_peft_available
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from cer_ext import linear_logprobs_and_entropy
from cer_ext.low_rank import low_rank_logprobs_and_entropy
from trainer import shared_prompts
from trainer.head_over_ranks import score_over_ranks
from trainer.one_pass_head import Prediction, logprobs_and_entropy_in_one_pass
from trainer.unsharded import whole_weight

log = logging.getLogger(__name__)

LowRank = tuple[Tensor, Tensor]  # (N, R), (V, R): what LoRA adds to the logits is the one times the other transposed

_LORA_VARIANTS_HINT = "plain LoRA, modules_to_save and trainable_token_indices are served on the head"


def add_fused_lm_head(
    model: PreTrainedModel,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,
    outputs: tuple[str, ...] = ("log_probs",),
    share_prompts: bool = False,
) -> None:
    """Patch `model` so that `model(..., labels=labels, fused_lm_head=True)` returns per-token log-probabilities.

    Without `fused_lm_head=True` the forward stays the model's own, so generation is unchanged. With `loss_ahead=`, what
    is known of the loss to come (trainer/one_pass_head.py), the logits are made once for values and gradients.

    Args:
        model: causal language model; add the head before PEFT wraps it, or to `get_base_model()` afterwards.
        temperature: what the logits are divided by.
        cast_lm_head_to_fp32: project in float32, outside autocast.
        outputs: "log_probs", and "entropy" where it is wanted.
        share_prompts: run a prompt that several rows of a batch begin with once, where that saves work and the model
            allows it (trainer/shared_prompts.py); the log says why where it does not.

    Raises:
        ValueError: the model or its head cannot be served correctly; the message names the class and what is missing.
    """
    unknown = set(outputs) - {"log_probs", "entropy"}
    if unknown:
        raise ValueError(f"outputs may hold 'log_probs' and 'entropy', got {sorted(unknown)} as well")
    _require_servable_head(model)
    if cast_lm_head_to_fp32 and _is_lora_linear(active_head(model.get_output_embeddings())):
        _refuse(model, "cast_lm_head_to_fp32=True replaces the forward of a head that carries a LoRA adapter")
    original_forward = model.forward
    shares = False  # until the two ways are compared, below
    text_config = model.config.get_text_config()
    logit_scale, softcap = logit_transform(text_config)

    # `generate` checks its keyword arguments against the signature of the model's own forward.
    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, labels=None, shift_labels=None, loss_ahead=None, **kwargs):
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels}
            return original_forward(*args, **{k: v for k, v in given.items() if v is not None}, **kwargs)

        # Before the backbone runs, and in every call: an adapter may have come to the head after this function has run.
        _require_servable_head(self)
        kwargs["use_cache"] = False
        if not has_auxiliary_loss(self):
            kwargs.pop("output_router_logits", None)
        elif getattr(text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        # Backbone and head are looked up in every call: PEFT and FSDP replace them after this function has run.
        layout = shared_prompts.layout_of(self, args, kwargs, labels) if shares else None
        if layout is None:
            backbone_outputs = backbone(self)(*args, **kwargs)
        else:
            backbone_outputs = shared_prompts.run(backbone(self), layout, **kwargs)
        hidden = backbone_outputs.last_hidden_state  # (B, L, D), or (G, S, D)
        target = labels[:, 1:] if shift_labels is None else shift_labels  # (B, L-1), or (B, L)
        head = self.get_output_embeddings()
        device = next(head.parameters()).device  # a model split by device_map may end elsewhere than its head
        hidden, target = hidden.to(device), target.to(device)
        scored = target != -100
        # Prompt and padding are left out before the product.
        if layout is None:
            hidden = hidden[:, : scored.shape[1]][scored]  # (N, D)
        else:
            hidden = layout.states_of(hidden, scored)

        log_probs, entropy = _score(
            self,
            head,
            hidden,
            target[scored],
            cast_lm_head_to_fp32,
            loss_ahead,
            return_entropy="entropy" in outputs,
            temperature=temperature,
            logit_scale=logit_scale,
            softcap=softcap,
        )
        # masked_scatter keeps the graph even if nothing is scored
        log_probs = log_probs.new_zeros(scored.shape).masked_scatter(scored, log_probs)
        if entropy is not None:
            entropy = entropy.new_zeros(scored.shape).masked_scatter(scored, entropy)

        aux_loss = None
        if kwargs.get("output_router_logits"):
            aux_loss = _auxiliary_loss(self, backbone_outputs.router_logits, kwargs.get("attention_mask"))
        return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, label_mask=scored, aux_loss=aux_loss)

    model.forward = types.MethodType(forward, model)
    in_place = all(_in_place(parameter) for parameter in model.parameters())
    if in_place:
        _compare_with_own_logits(model, original_forward, temperature, logit_scale, softcap)
    shares = share_prompts and _can_share_prompts(model, in_place)


def _can_share_prompts(model: PreTrainedModel, in_place: bool) -> bool:
    if in_place:
        with evaluation_mode(model):
            reason = shared_prompts.why_never(model, backbone(model))
    else:
        reason = "its weights are not in this process yet, so that the two ways could not be compared"
    if reason is not None:
        log.info("%s runs every row with its own prompt: %s", type(model).__name__, reason)
    return reason is None


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head. Llama4ForCausalLM's base_model_prefix names no module, so base_model is itself."""
    if model.base_model is not model:
        return model.base_model
    bodies = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(bodies) != 1:
        _refuse(model, f"base_model is the model itself, and it holds {len(bodies)} models where one is expected")
    return bodies[0]


def logit_transform(text_config) -> tuple[float, float | None]:
    """(logit_scale, softcap) of `softcap * tanh(logit_scale * logits / softcap)` as the config declares them."""
    scales = {
        name: getattr(text_config, name, None)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    }
    # MPT's configuration has a logit_scale (a number, or 'inv_sqrt_d_model') that its forward does not use.
    if text_config.model_type == "mpt":
        scales["logit_scale"] = None
    # Granite and MiniCPM3 divide by logits_scaling, HyperCLOVA X multiplies by it.
    if scales["logits_scaling"] is not None and text_config.model_type != "hyperclovax":
        scales["logits_scaling"] = 1 / scales["logits_scaling"]
    logit_scale = next((float(scale) for scale in scales.values() if scale is not None), 1.0)
    caps = (getattr(text_config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    return logit_scale, next((float(cap) for cap in caps if cap is not None), None)


def _score(
    model: nn.Module,  # whose forward this is part of
    head: nn.Module,
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    cast_lm_head_to_fp32: bool,
    loss_ahead: Prediction | None,
    return_entropy: bool,
    **transform: Any,  # of the logits
) -> tuple[Tensor, Tensor | None]:
    device_type = hidden.device.type
    if cast_lm_head_to_fp32:
        dtype = torch.float32
    elif torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    else:
        dtype = hidden.dtype
    head = active_head(head)
    with torch.autocast(device_type, enabled=False), _gathered_by_zero3(model, head):
        if loss_ahead is None and not _is_lora_linear(head):
            scored = score_over_ranks(head, hidden.to(dtype), target, return_entropy=return_entropy, **transform)
            if scored is not None:
                return scored
        hidden, weight, bias, low = head_parts(head, hidden.to(dtype))
        _require_equal_width(model, hidden, weight)
        if low is not None and not weight.requires_grad:
            log_probs, entropy = low_rank_logprobs_and_entropy(hidden, weight, target, *low, bias, **transform)
            return log_probs, entropy if return_entropy else None
        hidden, weight = _joined(hidden, weight, low)
        if loss_ahead is not None and return_entropy:
            return logprobs_and_entropy_in_one_pass(hidden, weight, target, bias, loss_ahead, **transform)
        return linear_logprobs_and_entropy(hidden, weight, target, bias, return_entropy=return_entropy, **transform)


def _gathered_by_zero3(model: nn.Module, head: nn.Module):
    """ZeRO-3 leaves the parameters that it has partitioned empty outside this context."""
    partitioned = [parameter for parameter in head.parameters() if hasattr(parameter, "ds_status")]
    if partitioned:
        import deepspeed

        # Gathered with the model's own from its next forward on, and in every backward: the weight is multiplied with
        # again there, and autograd takes no gradient for a parameter that is empty when it arrives.
        for parameter in partitioned:
            deepspeed.zero.register_external_parameter(model, parameter)
    return maybe_gather_lm_head_ctx(*partitioned)


def active_head(head: nn.Module) -> nn.Module:
    """The module that makes the logits now: PEFT's modules_to_save keeps one copy of the head per adapter."""
    if is_peft_available():
        from peft.utils.other import ModulesToSaveWrapper

        if isinstance(head, ModulesToSaveWrapper):
            if head.disable_adapters or not head.active_adapters:
                return head.original_module
            return head.modules_to_save[head.active_adapters[0]]
    return head


def head_operands(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """`head_parts` as one product: hidden (N, D + R), weight (V, D + R), a copy where R > 0, and bias (V,) or None."""
    hidden, weight, bias, low = head_parts(head, hidden)
    return *_joined(hidden, weight, low), bias


def _joined(hidden: Tensor, weight: Tensor, low: LowRank | None) -> tuple[Tensor, Tensor]:
    if low is None:
        return hidden, weight
    return torch.cat([hidden, low[0]], dim=1), torch.cat([weight, low[1]], dim=1)


def head_parts(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None, LowRank | None]:
    """(hidden, weight, bias, low) with `hidden @ weight.T + low[0] @ low[1].T + bias` equal to `head(hidden)`.

    Adapters and their dropout are included.

    Args:
        head: what `active_head` returned.
        hidden: (N, D), in the dtype of the product.

    Returns:
        hidden (N, D), weight (V, D), bias (V,) or None, low None or ((N, R), (V, R)), all in hidden's dtype; R is the
        sum of the ranks of the active LoRA adapters.
    """
    base = head.base_layer if _is_lora_linear(head) else head
    weight, bias = _whole(base.weight, hidden.dtype), _whole(getattr(base, "bias", None), hidden.dtype)
    adapters = _active_lora(head)
    if not adapters:
        return hidden, weight, bias, None

    columns, rows = [], []
    for adapter in adapters:
        lora_a, lora_b, scaling = head.lora_A[adapter], head.lora_B[adapter], head.scaling[adapter]
        down = _whole(lora_a.weight, lora_a.weight.dtype)  # (r, D), often float32 under a bfloat16 model
        dropped = head.lora_dropout[adapter](hidden.to(down.dtype))
        columns.append((scaling * (dropped @ down.T)).to(hidden.dtype))  # (N, r)
        rows.append(_whole(lora_b.weight, hidden.dtype))  # (V, r)
        if lora_b.bias is not None:
            shift = scaling * _whole(lora_b.bias, hidden.dtype)
            bias = shift if bias is None else bias + shift
    if len(adapters) == 1:
        return hidden, weight, bias, (columns[0], rows[0])
    return hidden, weight, bias, (torch.cat(columns, dim=1), torch.cat(rows, dim=1))


def carries_lora(model: PreTrainedModel) -> bool:
    """Whether a LoRA adapter is active on the head of the model (bare, or the base model of a PEFT wrapper)."""
    return bool(_active_lora(active_head(model.get_output_embeddings())))


def _whole(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else whole_weight(parameter, dtype)


def _is_lora_linear(head: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft.tuners.lora.layer import Linear

    return isinstance(head, Linear)


def _active_lora(head: nn.Module) -> list[str]:
    if not _is_lora_linear(head) or head.disable_adapters or head.merged:
        return []
    return [adapter for adapter in head.active_adapters if adapter in head.lora_A]


def _lora_factors(head: nn.Module) -> list[nn.Module]:
    return [factor for adapter in _active_lora(head) for factor in (head.lora_A[adapter], head.lora_B[adapter])]


def _refuse(model: PreTrainedModel, reason: str) -> NoReturn:
    raise ValueError(f"{type(model).__name__} cannot be trained with the fused head: {reason}")


def _require_servable_head(model: PreTrainedModel) -> None:
    """Raise unless `head_operands` knows all that the head holds now. A few lookups, no arithmetic."""
    refuse = functools.partial(_refuse, model)
    if getattr(model.config, "is_encoder_decoder", False):
        refuse("it is an encoder-decoder; the head scores the next token of a decoder-only model")
    head = model.get_output_embeddings()
    if head is None:
        refuse("get_output_embeddings() returns None, so there is no weight to multiply with")
    head = active_head(head)
    if _is_lora_linear(head):
        if head.lora_variant:
            variants = sorted({type(variant).__name__ for variant in head.lora_variant.values()})
            refuse(f"its head carries {', '.join(variants)}; {_LORA_VARIANTS_HINT}")
        if head.fan_in_fan_out:
            refuse("its LoRA head stores the weight transposed (fan_in_fan_out)")
        head = head.base_layer
    elif is_peft_available():
        from peft.tuners.tuners_utils import BaseTunerLayer

        if isinstance(head, BaseTunerLayer):
            refuse(f"its head carries {type(head).__module__}.{type(head).__name__}; {_LORA_VARIANTS_HINT}")
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = f"{weight.dtype} weight" if isinstance(weight, Tensor) else "no weight"
        refuse(f"its head is a {type(head).__name__} with {kind}; a floating-point weight (V, D) is needed")
    if weight.dim() != 2 and not hasattr(weight, "ds_id"):
        refuse(f"the weight of its head has shape {tuple(weight.shape)}; (V, D) is needed")


def _require_equal_width(model: PreTrainedModel, hidden: Tensor, weight: Tensor) -> None:
    if hidden.shape[-1] != weight.shape[-1]:
        _refuse(
            model,
            f"its backbone's states have width {hidden.shape[-1]}, the weight of its head {weight.shape[-1]}: its "
            "forward changes the states before the head",
        )


def _in_place(parameter: Tensor) -> bool:
    return not (parameter.is_meta or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` for a while, every module's own flag restored: no dropout, so no random number is drawn either."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _compare_with_own_logits(
    model: PreTrainedModel, original_forward, temperature: float, logit_scale: float, softcap: float | None
) -> None:
    """Raise unless the head's equation and the model's own forward agree on a few tokens, over the whole vocabulary.

    Rounding must not hide a difference, so the head is multiplied in float32 for the model's own forward as well, and
    its logits are raised once to a size at which a softcap bends them: fresh weights make logits near 0, where it
    does not.
    """
    name = type(model).__name__
    vocabulary = model.config.get_text_config().vocab_size
    device = model.get_input_embeddings().weight.device
    input_ids = (torch.arange(1, 6, device=device) % vocabulary)[None]  # (1, 5)
    with torch.no_grad(), evaluation_mode(model):
        rows, expected, exact = _own_and_expected_logits(model, original_forward, input_ids, logit_scale, softcap)
        _require_equal_rows(name, rows, expected, temperature, exact)
        raised = _PROBED_LOGIT / max(expected.abs().max().item(), 1e-30)
        _require_equal_rows(
            name,
            *_own_and_expected_logits(model, original_forward, input_ids, logit_scale, softcap, raised)[:2],
            temperature * max(1.0, raised),  # the entropy of logits of 50 is all rounding
            exact,
        )
        fused = model(input_ids=input_ids, labels=input_ids, fused_lm_head=True).log_probs[0].double().cpu()  # (4,)
    own = (rows[:-1] / temperature).log_softmax(-1).gather(-1, input_ids[0, 1:, None].cpu())[:, 0]  # (4,)
    coarsest = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    size = (rows / temperature).abs().max().item()
    # The head's operands are rounded to the dtype of the model, the products are not.
    tolerance = 1e-5 + 4 * coarsest * max(1.0, size) if coarsest > 1e-6 else 1e-5 + 32 * coarsest * max(1.0, size)
    error = (own - fused).abs()
    if not bool((error <= tolerance).all()):
        worst = int(error.argmax()) if not error.isnan().any() else int(error.isnan().int().argmax())
        raise ValueError(
            f"{name} cannot be trained with the fused head: at position {worst} of a probe its own logits give "
            f"log-probability {own[worst].item():.6f}, the head {fused[worst].item():.6f} (tolerance {tolerance:.1e})"
        )


# Of the larger of the two probes: softcaps in use are 15 to 50, and a cap of 50 takes a quarter from a logit of 50.
_PROBED_LOGIT = 50.0


def _own_and_expected_logits(
    model: PreTrainedModel,
    original_forward,
    input_ids: Tensor,  # (1, L)
    logit_scale: float,
    softcap: float | None,
    raised: float = 1.0,
) -> tuple[Tensor, Tensor, bool]:
    """Logits (L, V), float64 on the CPU, of the model's own forward and of the equation on its backbone's states.

    The head's output is multiplied by `raised` in both. The flag says whether nothing is rounded more coarsely than
    float32 on the way from the backbone's states to the logits.
    """
    states: list[Tensor] = []
    inputs: list[Tensor] = []
    products: list[Tensor] = []
    head = model.get_output_embeddings()
    inside = False

    def keep_states(module, args, output) -> None:
        states.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    def keep_inputs(module, args) -> None:  # before any other hook changes them
        if not inside:
            inputs.append(args[0])

    def multiply_in_float32(module, args, output):
        nonlocal inside
        if inside:  # called from below
            return None
        inside = True
        try:
            output = torch.func.functional_call(module, _in_float32(module), (_finer(inputs[-1]),))
        except RuntimeError:
            # A head with a forward of its own may insist on its dtype: then its own rounding limits the comparison.
            pass
        finally:
            inside = False
        products.append(output)
        return raised * output

    hooks = [
        backbone(model).register_forward_hook(keep_states),
        head.register_forward_pre_hook(keep_inputs, prepend=True),
        head.register_forward_hook(multiply_in_float32),
    ]
    try:
        own = original_forward(input_ids=input_ids, use_cache=False).logits[0]  # (L, V)
    finally:
        for hook in hooks:
            hook.remove()
    if not products:
        _refuse(model, "its own forward does not call the head that get_output_embeddings() returns")
    if not states:  # OPT calls a part of its backbone that does all the work
        states.append(backbone(model)(input_ids=input_ids, use_cache=False).last_hidden_state)
    hidden = _finer(states[0][0]).to(products[0].device)  # (L, D)
    hidden, weight, bias = head_operands(active_head(head), hidden)
    _require_equal_width(model, hidden, weight)
    logits = nn.functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float()).double().cpu()
    logits = logits * (raised * logit_scale)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    # A model may rescale the states before its head, and an adapter multiplies in its own dtype.
    rounding = [own, products[0], *(factor.weight for factor in _lora_factors(active_head(head)))]
    exact = torch.equal(inputs[0].to(states[0].device), states[0]) and all(
        torch.finfo(tensor.dtype).bits >= 32 for tensor in rounding
    )
    return own.double().cpu(), logits, exact


def _finer(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _in_float32(module: nn.Module) -> dict[str, Tensor]:
    return {name: _finer(p) for name, p in module.named_parameters() if p.is_floating_point()}


def _require_equal_rows(name: str, own: Tensor, expected: Tensor, temperature: float, exact: bool) -> None:
    """Raise unless rows of logits (L, V) make the same distributions, up to the rounding of float32 or of bfloat16.

    Compared without each row's mean, which changes no distribution: the difference's norm (a bend, a mask, a bias),
    the slope of one row over the other (a factor, which rounding hides in single logits but not in a fit over V of
    them), and the entropy.
    """
    because = (
        "Its forward changes the logits in a way that is none of bias, logit_scale, output_multiplier, "
        "lm_head_multiplier, logits_scaling, final_logit_softcapping, logits_soft_cap"
    )
    if own.shape != expected.shape:
        raise ValueError(
            f"{name} cannot be trained with the fused head: its own logits of a probe have shape {tuple(own.shape)}, "
            f"the head's {tuple(expected.shape)}. {because}"
        )
    if torch.equal(own, expected):  # all zero where another process has the weights: no row to fit
        return
    a, b = own - own.mean(-1, keepdim=True), expected - expected.mean(-1, keepdim=True)
    norm = b.norm(dim=-1).clamp(min=1e-30)
    off = (a - b).norm(dim=-1) / norm
    slope = ((a * b).sum(-1) / norm.square() - 1).abs()
    p, q = (own / temperature).log_softmax(-1), (expected / temperature).log_softmax(-1)
    entropy, entropy_expected = (torch.special.entr(x.exp()).sum(-1) for x in (p, q))
    # 1e-4 of the row: many times the rounding of a float32 sum over D. bfloat16 rounds each logit by 2^-9 to 2^-8.
    agree = (off <= (1e-4 if exact else 1e-2)) & (slope <= (1e-4 if exact else 3e-3))
    agree &= (entropy - entropy_expected).abs() <= (0.01 * entropy).clamp(min=1e-3)
    if not bool(agree.all()):
        worst = int((~agree).int().argmax())
        token = int((p - q)[worst].abs().nan_to_num(nan=torch.inf).argmax())
        raise ValueError(
            f"{name} cannot be trained with the fused head: at position {worst} of a probe its own logits give "
            f"log-probability {p[worst, token].item():.6f} to token {token} and entropy {entropy[worst].item():.6f}, "
            f"the head {q[worst, token].item():.6f} and {entropy_expected[worst].item():.6f}; the logits differ by "
            f"{off[worst].item():.1e} of their norm. {because}"
        )


def has_auxiliary_loss(model: PreTrainedModel) -> bool:
    """Whether the model's own forward adds a load-balancing loss of its experts, as its code and configuration say."""
    return _own_auxiliary_loss(type(model)) is not None and getattr(model.config.get_text_config(), "is_moe", True)


@functools.cache
def _own_auxiliary_loss(model_class: type) -> Callable | None:
    """The load_balancing_loss_func that the class's forward calls: transformers has several, of different signatures.

    Models whose routers balance themselves (DeepSeek-V3 and its relatives) return router logits, or not even those,
    but add no loss.
    """
    for ancestor in model_class.__mro__:  # a subclass may wrap the forward of a class of transformers
        forward = ancestor.__dict__.get("forward")
        own = inspect.unwrap(forward) if forward is not None else None
        if hasattr(own, "__code__") and "load_balancing_loss_func" in own.__code__.co_names:
            return own.__globals__["load_balancing_loss_func"]
    return None


def _auxiliary_loss(model: PreTrainedModel, router_logits: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    loss_of = _own_auxiliary_loss(type(model))
    assert loss_of is not None  # has_auxiliary_loss was asked first
    text_config = model.config.get_text_config()
    # The attributes that the forwards read; the models that also see have them in their text configuration only.
    experts, chosen = (
        getattr(model, name, None) or getattr(text_config, name) for name in ("num_experts", "num_experts_per_tok")
    )
    arguments = {"num_experts": experts, "top_k": chosen, "attention_mask": attention_mask}
    if "num_keys" in inspect.signature(loss_of).parameters:
        arguments["num_keys"] = math.isqrt(experts)  # Doge's experts are products of two keys
    return loss_of(router_logits, **arguments)
