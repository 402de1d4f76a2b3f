"""Prompts that several rows of a batch share, run through the model once.

In: a batch as TRL pads it, prompts on the left and completions on the right, in any order of the rows.
Out: the same tokens as one sequence per distinct prompt, and where each token of the batch went.

    row 1   p p p a a a .           sequence    p p p a a a b b b b
    row 2   p p p b b b b           a sees p and a; b sees p and b; p sees p

GRPO draws several completions of a prompt. In a transformer the states of a prompt do not depend on what follows, so
running it once gives the same values, and the sum of the completions' gradients reaches it through its keys and values.
A group of G completions of c tokens costs p + G c tokens instead of G (p + c): with few-shot prompts a quarter.

Attention goes by a mask over the whole sequence, which costs (p + G c)^2 pairs instead of G (p + c)^2. So a batch is
laid out like this only where it is cheaper by `WORTHWHILE` in multiplications, counted from the model's sizes: long
prompts with short answers, not the other way round.

A position is the column that the token had in the batch, so that every kind of position embedding sees what it would
have seen. What depends on anything else (ALiBi by index, convolutions, recurrent states, attention in chunks) cannot be
laid out like this: `why_never` and `why_not` know of it what configuration and signature show, and the two ways are
compared on a few tokens.

The idea is known as prefix grouping or shared-prompt packing; verl and others have it for their own engines.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

WORTHWHILE = 0.85  # share if it takes at most so much of the multiplications
_SERVED_ATTENTION = ("eager", "sdpa")
_SERVED_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class SharedPrompts:
    """A batch of B rows of L tokens as G sequences of S tokens; all tensors on the device of the batch."""

    input_ids: Tensor  # (G, S)
    position_ids: Tensor  # (G, S)
    owner: Tensor  # (G, S): the row that the token belongs to, -1 for a prompt, B for padding
    place: Tensor  # (B, L): where in the flattened (G S) the token is; 0 for padding, which is nowhere

    def sees(self) -> Tensor:
        """(G, 1, S, S), bool: which query (dimension 2) sees which key: what came earlier, in the prompt or its row."""
        owner, position = self.owner, self.position_ids
        shared = (owner == -1)[:, None, :]
        real = (owner < self.place.shape[0])[:, None, :]
        seen = (shared | (owner[:, None, :] == owner[:, :, None])) & real  # (G, S, S)
        seen &= position[:, :, None] >= position[:, None, :]
        seen |= torch.eye(
            owner.shape[1], dtype=torch.bool, device=owner.device
        )  # padding that sees nothing would be NaN
        return seen[:, None]

    def states_of(self, states: Tensor, wanted: Tensor) -> Tensor:
        """The rows (N, D) of `states` (G, S, D) for the tokens where `wanted` (B, L or fewer) is true, in its order."""
        return states.flatten(0, 1).index_select(0, self.place[:, : wanted.shape[1]][wanted])


def lay_out(input_ids: Tensor, attention_mask: Tensor, prompt_columns: int) -> SharedPrompts:
    """Lay a batch out with every distinct prompt once.

    Args:
        input_ids, attention_mask: (B, L), integers; what is masked is left out and seen by nobody.
        prompt_columns: how many of the L columns belong to the prompt.
    """
    device, (rows, columns) = input_ids.device, input_ids.shape
    ids, real = input_ids.cpu(), attention_mask.cpu().bool()
    prompts = ids.masked_fill(~real, -1)[:, :prompt_columns]
    group = torch.unique(prompts, dim=0, return_inverse=True)[1]  # (B,)
    groups = int(group.max()) + 1
    leader = torch.full((groups,), rows).scatter_reduce(0, group, torch.arange(rows), "amin")  # (G,) its first row

    kept = real.clone()
    follows = torch.ones(rows, dtype=torch.bool).index_fill(0, leader, False)
    kept[follows, :prompt_columns] = False
    row, column = kept.nonzero(as_tuple=True)  # (T,)
    count = torch.bincount(group[row], minlength=groups)  # (G,)
    length = int(count.max())
    order = group[row].argsort(stable=True)
    row, column = row[order], column[order]
    start = (count.cumsum(0) - count)[group[row]]
    place = group[row] * length + torch.arange(row.numel()) - start  # (T,)

    def laid_out(values: Tensor, fill: int) -> Tensor:
        return torch.full((groups * length,), fill).index_put((place,), values).view(groups, length)

    places = torch.zeros(rows, columns, dtype=torch.long)
    places[row, column] = place
    places[:, :prompt_columns] = places[leader[group], :prompt_columns]
    return SharedPrompts(
        input_ids=laid_out(ids[row, column], 0).to(device),
        position_ids=laid_out(column, 0).to(device),
        owner=laid_out(torch.where(column < prompt_columns, -1, row), rows).to(device),
        place=places.to(device),
    )


def layout_of(model: PreTrainedModel, args: tuple, kwargs: dict, labels: Tensor | None) -> SharedPrompts | None:
    """The layout of a call `model(*args, **kwargs, labels=labels)`, or None where its rows are better left as they are.

    What takes part is a batch of tokens, their mask and labels, -100 over all columns of the prompt: no images, no
    cache, no embeddings of an adapter's own.
    """
    given = {name for name, value in kwargs.items() if not (value is None or isinstance(value, bool))}
    if args or labels is None or given != {"input_ids", "attention_mask"}:
        return None
    input_ids, attention_mask = kwargs["input_ids"], kwargs["attention_mask"]
    if kwargs.get("output_router_logits") or input_ids.shape[0] == 1 or why_not(model, input_ids.shape[1]):
        return None
    scored = (labels != -100).any(0).nonzero()  # columns
    prompt_columns = int(scored[0]) if len(scored) else 0
    if prompt_columns == 0:
        return None
    layout = lay_out(input_ids, attention_mask, prompt_columns)
    return layout if worthwhile(model.config.get_text_config(), attention_mask, layout) else None


def worthwhile(config, attention_mask: Tensor, layout: SharedPrompts) -> bool:
    """Whether the layout saves multiplications enough. `config` is the model's text configuration."""
    (rows, columns), (groups, length) = attention_mask.shape, layout.input_ids.shape
    return _products(config, groups, length) <= WORTHWHILE * _products(config, rows, columns)


def _products(config, rows: int, columns: int) -> int:
    """Multiplications of a layer: four matrices (D, D) and three (D, F) per token; scores and values per pair."""
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return rows * columns * width * (4 * width + 3 * inner + 2 * columns)


def why_never(model: PreTrainedModel, backbone: PreTrainedModel) -> str | None:
    """Why this model cannot share prompts, or None. Compares the two ways, so its weights must be in place."""
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(_SERVED_LAYERS))
    if others:
        return f"it has layers of {', '.join(others)}"
    if "position_ids" not in inspect.signature(type(backbone).forward).parameters:
        return "its forward takes no position_ids"
    if why_not(model, columns=1) is None:  # else it may be served once it is set otherwise; then nobody has compared
        coarsest = max(torch.finfo(p.dtype).eps for p in backbone.parameters() if p.is_floating_point())
        off = _difference(backbone)
        if not off <= max(1e-5, 4 * coarsest):
            return f"its states differ by {off:.1e} of their norm where two completions share a prompt"
    return None


def why_not(model: PreTrainedModel, columns: int) -> str | None:
    """Why rows of `columns` tokens cannot share prompts in this model as it is set now, or None."""
    config = model.config.get_text_config()
    if config._attn_implementation not in _SERVED_ATTENTION:
        return f"attention by {config._attn_implementation!r} takes no mask of one's own (eager and sdpa do)"
    window = getattr(config, "sliding_window", None)
    if window and columns > window:
        return f"{columns} tokens are more than the model's sliding window of {window}"
    adapters = getattr(model, "peft_config", None) or {}
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters.values()):
        return "an activated LoRA finds the place where it begins in rows of its own"
    if model.training and _drops(model):
        return "with dropout all completions of a prompt would share what is dropped from it"
    return None


def _drops(model: nn.Module) -> bool:
    config = model.config.get_text_config()
    return bool(getattr(config, "attention_dropout", 0.0)) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    )


def run(backbone: PreTrainedModel, layout: SharedPrompts, **kwargs):
    """What the backbone returns for the layout, called with `kwargs` but for the tokens and their mask."""
    mask = layout.sees()
    if backbone.config.get_text_config()._attn_implementation == "eager":  # adds its mask to the scores
        dtype = backbone.get_input_embeddings().weight.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    laid_out = {"input_ids": layout.input_ids, "attention_mask": mask, "position_ids": layout.position_ids}
    return backbone(**{**kwargs, **laid_out})


def _difference(backbone: PreTrainedModel) -> float:
    """How far the states of two completions of one prompt are from those of plain rows, relative to their norm."""
    device = backbone.get_input_embeddings().weight.device
    vocabulary = backbone.config.get_text_config().vocab_size
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8, 9]], device=device) % vocabulary
    real = torch.tensor([[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]], device=device)
    with torch.no_grad():
        plain = backbone(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state  # (2, 7, D)
        layout = lay_out(ids, real, prompt_columns=4)
        states = run(backbone, layout, use_cache=False).last_hidden_state
    a, b = plain[real.bool()].double(), layout.states_of(states, real.bool()).double()
    return ((a - b).norm() / a.norm().clamp(min=1e-30)).item()
