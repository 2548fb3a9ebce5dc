"""Shared attention: makes the attention layers of a transformers model read rows with shared prompts.

Knows transformers' interface of attention functions. Knows layouts (`mipo.trainer.shared_prompts`), and of models what
that interface tells: the layer, its queries, keys and values, and its window.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mipo.errors import UnsupportedError

if TYPE_CHECKING:
    from mipo.trainer.shared_prompts import Layout

LAYOUT = "shared_prompts"  # the name of a layout among a model's arguments
IMPLEMENTATIONS = ("sdpa", "eager")
PREFIX = "shared_prompts_"


def read_layouts(model: Any) -> None:
    """Makes the attention of a model of `IMPLEMENTATIONS` read layouts; without one, nothing changes."""
    original = model.config._attn_implementation
    if original.startswith(PREFIX):
        return
    name = PREFIX + original
    AttentionInterface.register(name, functools.partial(attend, original))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    model.set_attn_implementation(name)


def arguments(layout: Layout) -> dict[str, Any]:
    """Arguments of a model's backbone beside the ids of a row of that layout."""
    # transformers takes a mask of four dimensions for a finished one, and hands it to every layer.
    mask = torch.empty(1, 1, 0, 0, device=layout.positions.device)
    return {LAYOUT: layout, "attention_mask": mask, "position_ids": layout.positions}


def attend(
    original: str, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: `original`, on rows with shared prompts too.

    Query [1, heads, T, d], key and value [1, key heads, T, d]; the result is [1, T, heads, d].
    """
    function: Any = ALL_ATTENTION_FUNCTIONS.get(original)
    if function is None:  # each model has its own eager attention
        function = sys.modules[type(module).__module__].eager_attention_forward
    layout: Layout | None = options.pop(LAYOUT, None)
    if layout is None:
        if attention_mask is not None and not attention_mask.numel():
            raise UnsupportedError(f"{type(module).__name__} gets no arguments of the model's forward")
        return function(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    window = options.get("sliding_window")
    layout.windows.append(window)
    call = functools.partial(function, module, **options)
    padded = [_padded(states, layout) for states in (query, key, value)]
    outputs, start = [], 0
    for number, block in enumerate(layout.blocks):
        end = start + len(block.trees) * block.width
        trees = [states[start:end].view(-1, block.width, *states.shape[1:]).transpose(1, 2) for states in padded]
        dtype = torch.bool if original == "sdpa" else query.dtype
        outputs.append(_attend_block(call, layout, number, trees, window, dtype))
        start = end
    result = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if layout.order is not None:
        result = _Unpadded.apply(result, layout.order)
    return result[None], None


def _attend_block(
    call: Any, layout: Layout, number: int, trees: list[Tensor], window: int | None, dtype: torch.dtype
) -> Tensor:
    """Attention of the queries, keys and values of a block: of its prompts, and of its responses.

    They are [n, heads, P + B R, d] each; the result is [n (P + B R), heads, d].
    """
    block = layout.blocks[number]
    mask = functools.partial(layout.mask, number, window=window, dtype=dtype, device=trees[0].device)
    prompts = [states[:, :, : block.prompt] for states in trees]
    queries, *keys_values = [states[:, :, block.prompt :] for states in trees]
    if block.is_joint:
        keys_values = trees[1:]
    else:
        queries = _apart(queries, block.branches)
        keys_values = [
            torch.cat([of_prompts.repeat_interleave(block.branches, 0), _apart(of_responses, block.branches)], 2)
            for of_prompts, of_responses in zip(prompts[1:], keys_values, strict=True)
        ]
    is_causal = dtype == torch.bool and (window is None or window >= block.prompt)  # SDPA needs no mask then
    outputs = call(*prompts, None if is_causal else mask("prompt"))[0], call(queries, *keys_values, mask("response"))[0]
    return torch.cat([output.reshape(len(trees[0]), -1, *output.shape[2:]) for output in outputs], 1).flatten(0, 1)


def _apart(states: Tensor, branches: int) -> Tensor:
    """[n, heads, B R, d] to [n B, heads, R, d]."""
    n, heads, tokens, size = states.shape
    return states.reshape(n, heads, branches, tokens // branches, size).transpose(1, 2).flatten(0, 1)


def _padded(states: Tensor, layout: Layout) -> Tensor:
    """[1, heads, T, d] to [places, heads, d]."""
    row = states[0].transpose(0, 1)
    if layout.padded is None:
        return row
    padded: Tensor = _Padded.apply(row, layout.padded, layout.order)
    return padded


class _Padded(torch.autograd.Function):
    """Tokens [T, …] to places. Padding has no gradient, so the backward reads, instead of adding up."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, padded: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return row.index_select(0, padded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return gradient.index_select(0, order), None, None


class _Unpadded(torch.autograd.Function):
    """Places to tokens [T, …]."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.size = len(places)
        return places.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, order, gradient), None
