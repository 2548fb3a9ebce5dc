"""LM head to log-probs of target tokens, in pieces, without keeping the logits.

Its truth is `token_statistics` in mipo/loss.py; the modes, their costs and limits are in README.md beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .projection import Gradients, Projection, scaled_rows
from .rows import Transform, aligned, logps_of, statistics_of


def forward(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D], of any floating dtype; its gradient has the same
    targets: Tensor,  # [T]
    bias: Tensor | None,  # [V]
    down: Tensor | None,  # [T, r]
    up: Tensor | None,  # [V, r]
    scale: float,
    softcap: float | None,
    temperature: float,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    mode: str,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probs [T]; entropy [T] and other statistics [3, T], or [0]; state [T, …]; and what the mode keeps.

    Kept are G weight [T, D] and G up [T, r] in M1, G [T, V] in M3, and [0] otherwise. F FLOPs, in M1 2F; F = 2TDV.
    """
    transform = Transform(scale, softcap, temperature)
    p = Projection.of(hidden, weight, targets, bias, down, up, transform, logits_dtype, chunk_bytes)
    state = p.state(statistics)
    kept, kept_low = {"M0": _logits_alone, "M1": _gradient_now, "M3": _keep_g, "M4": _slice_by_slice}[mode](p, state)
    entropy, others = statistics_of(state, len(weight)) if statistics else (state.new_empty(0), state.new_empty(0))
    return logps_of(state), entropy, others, state, kept, kept_low


def _logits_alone(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    logits = p.buffer(min(len(p.hidden), p.capacity(False)), len(p.weight), p.logits_dtype)
    for tokens in p.chunks(with_gradient=False):
        p.fold(tokens, p.words, logits, state)
    return p.hidden.new_empty(0), p.hidden.new_empty(0)


def _gradient_now(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    logits, g = p.buffers(min(len(p.hidden), p.capacity(True)), len(p.weight))
    kept, kept_low = torch.empty_like(p.hidden), p.hidden.new_empty(0) if p.down is None else torch.empty_like(p.down)
    for tokens in p.chunks(with_gradient=True):
        p.fold(tokens, p.words, logits, state, g)
        rows = g[: tokens.stop - tokens.start, p.words]
        torch.mm(rows, p.weight, out=kept[tokens])
        if p.up is not None:
            torch.mm(rows, p.up, out=kept_low[tokens])
    return kept, kept_low


def _keep_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    g = p.buffer(len(p.hidden), len(p.weight), p.hidden.dtype)
    if p.separate:
        logits = p.buffer(min(len(g), p.capacity(True)), len(p.weight), p.logits_dtype)
        for tokens in p.chunks(with_gradient=True):
            p.fold(tokens, p.words, logits, state, g[tokens])
    elif len(g):
        p.fold(p.tokens, p.words, g, state, g)
    return g, p.hidden.new_empty(0)


def _slice_by_slice(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    slices = p.word_slices(len(p.hidden), with_gradient=False)
    logits = p.buffer(len(p.hidden), slices[0].stop, p.logits_dtype)
    for words in slices:
        p.fold(p.tokens, words, logits, state)
    return p.hidden.new_empty(0), p.hidden.new_empty(0)


def backward(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D], of any floating dtype; its gradient has the same
    targets: Tensor,  # [T]
    bias: Tensor | None,  # [V]
    down: Tensor | None,  # [T, r]
    up: Tensor | None,  # [V, r]
    scale: float,
    softcap: float | None,
    temperature: float,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    state: Tensor,  # [T, 3 or 7]
    g: Tensor,  # [T, at least V] as M3 keeps it, or [0]
    upstream: Tensor,  # [T] dL/dlogps
    upstream_entropy: Tensor | None,  # [T] dL/dentropy; needs a state with statistics, and no g
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight, bias, down and up, [0] where not wanted; F FLOPs for each of the first two.

    Without `g` the logits are projected again, F FLOPs more, in slices of words over all tokens at once.
    """
    transform = Transform(scale, softcap, temperature)
    p = Projection.of(hidden, weight, targets, bias, down, up, transform, logits_dtype, chunk_bytes)
    gradients = Gradients(p, wanted, chunks=1 if len(hidden) else 0)
    weights = None
    if upstream_entropy is not None:
        # G is that of the weighted sum then, so that nothing remains to be scaled.
        weights, upstream = torch.stack([upstream, upstream_entropy], 1), torch.ones_like(upstream)
    if not len(hidden):
        pass
    elif g.numel():
        gradients.add(p.tokens, [p.words], lambda words: g[:, words], upstream)
    else:
        slices = p.word_slices(len(hidden), with_gradient=True)
        logits, buffer = p.buffers(len(hidden), slices[0].stop)
        gradients.add(
            p.tokens, slices, lambda words: p.gradient(p.tokens, words, logits, state, buffer, weights), upstream
        )
    dh, dw, db, dd, du = gradients.finished()
    return dh, dw, db, dd, du


def register(name: str, function: Callable[..., Any]) -> Any:
    """The operator of this name, for torch.compile to see as one node."""
    # What torch.library.custom_op does, less its wrapper, which imports torch._dynamo at the first call: 3.8 s on two
    # cores, 2026-11-24.
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "CompositeExplicitAutograd", function)
    return getattr(torch.ops.mipo, name.removeprefix("mipo::"))


def refuse_second_order(*_: Any) -> None:
    """Raises RuntimeError: the gradient's own gradient was asked for."""
    raise RuntimeError(
        "mipo's fused ops have first derivatives only, but a second one was asked for (create_graph=True); use "
        "mipo.loss, which autograd differentiates as often as you like"
    )


_forward = register("mipo::linear_logps", forward)
_backward = register("mipo::linear_logps_backward", backward)
scaled_rows_op = register("mipo::scaled_rows", scaled_rows)


@torch.library.register_fake("mipo::linear_logps")
def _forward_fake(hidden, weight, targets, bias, down, up, *options):  # type: ignore[no-untyped-def]
    logits_dtype, _, mode, statistics = options[-4:]
    # Not len(): it makes a number of what torch.compile wants to keep open.
    (tokens, width), words = hidden.shape, weight.shape[0]
    state = hidden.new_empty(tokens, 7 if statistics else 3, dtype=torch.promote_types(logits_dtype, torch.float32))
    kept = {"M1": (tokens, width), "M3": (tokens, aligned(words))}.get(mode, (0,))
    return (
        state.new_empty(tokens),
        state.new_empty(tokens if statistics else 0),
        state.new_empty((3, tokens) if statistics else (0,)),
        state,
        hidden.new_empty(kept),
        hidden.new_empty(0) if down is None or mode != "M1" else torch.empty_like(down),
    )


@torch.library.register_fake("mipo::linear_logps_backward")
def _backward_fake(hidden, weight, targets, bias, down, up, *options):  # type: ignore[no-untyped-def]
    return gradients_like(hidden, weight, bias, down, up, options[-1])


@torch.library.register_fake("mipo::scaled_rows")
def _scaled_rows_fake(rows, upstream):  # type: ignore[no-untyped-def]
    return torch.empty_like(rows)


def gradients_like(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, up: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes that `Gradients.finished` gives."""
    inputs = (hidden, weight, bias, down, up)
    return tuple(
        torch.empty_like(x) if want and x is not None else hidden.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.softcap, ctx.temperature, ctx.logits_dtype, ctx.chunk_bytes, ctx.mode, statistics = inputs
    *_, state, kept, kept_low = output
    # M1 keeps [T, D] and nothing else, unless the gradient of the entropy may be asked for.
    alone = ctx.mode == "M1" and not statistics
    ctx.save_for_backward(state, kept, kept_low, *([] if alone else tensors))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *upstreams: Tensor | None) -> tuple[Tensor | None, ...]:
    upstream, upstream_entropy, *others = upstreams
    if any(x is not None for x in others):
        refuse_second_order()
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5)]
    state, kept, kept_low, *tensors = ctx.saved_tensors
    if upstream is None and upstream_entropy is None:
        return (None,) * 13
    if ctx.mode == "M1" and upstream_entropy is None:
        assert not any(wanted[i] for i in (1, 2, 4)), "M1 is for a frozen head"
        down = scaled_rows_op(kept_low, upstream) if wanted[3] else kept_low
        gradients = (scaled_rows_op(kept, upstream), kept, kept, down, kept)
    else:
        if upstream is None:
            upstream = torch.zeros_like(state[:, 0])
        g = kept if ctx.mode == "M3" and upstream_entropy is None else kept.new_empty(0)
        options = ctx.scale, ctx.softcap, ctx.temperature, ctx.logits_dtype, ctx.chunk_bytes
        gradients = _backward(*tensors, *options, state, g, upstream, upstream_entropy, wanted)
    dh, dw, db, dd, du = (x if want else None for x, want in zip(gradients, wanted, strict=True))
    return dh, dw, None, db, dd, du, *[None] * 7


torch.library.register_autograd("mipo::linear_logps", _differentiate, setup_context=_save)
for _name in ("mipo::linear_logps_backward", "mipo::scaled_rows"):
    torch.library.register_autograd(_name, refuse_second_order)


@register_flop_formula(_forward)
def _forward_flops(hidden, weight, targets, bias, down, up, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    return int(head_flops(hidden, weight, up) * (1 + (options[-2] == "M1")))


@register_flop_formula(_backward)
def _backward_flops(hidden, weight, targets, bias, down, up, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    g, wanted = options[-4], options[-1]
    again = head_flops(hidden, weight, up) * (len(g) == 1)
    return again + gradient_flops(hidden, weight, up, wanted)


def head_flops(hidden: torch.Size, weight: torch.Size, up: torch.Size | None) -> int:
    """FLOPs of one product of hidden [T, D] and down [T, r] with weight [V, D] and up [V, r], from their shapes."""
    return int(2 * hidden[0] * weight[0] * (hidden[1] + (0 if up is None else up[1])))


def gradient_flops(hidden: torch.Size, weight: torch.Size, up: torch.Size | None, wanted: list[bool]) -> int:
    """FLOPs of the wanted gradients, given G."""
    rank = 0 if up is None else up[1]
    return int(2 * hidden[0] * weight[0] * (hidden[1] * (wanted[0] + wanted[1]) + rank * (wanted[3] + wanted[4])))


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor] | None,
    transform: Transform,
    *,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    mode: str,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [T] of targets [T]; with `statistics` also entropy [T] and [3, T], the rest of them.

    Differentiable once, in all but the last. Nothing is checked here: `mipo.fused.linear_logps` is the door.
    """
    down, up = lora or (None, None)
    logps, entropy, others, *_ = _forward(
        hidden, weight, targets, bias, down, up, *transform, logits_dtype, chunk_bytes, mode, statistics
    )
    return logps, entropy, others.detach()
