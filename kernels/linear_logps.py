"""LM head to log-probs of target tokens, piece by piece, without keeping the logits.

`mipo.loss.token_statistics` is its definition. README.md in this folder has the modes, their costs and limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .projection import Gradients, Projection, scaled_rows
from .row_state import Transform, logps_of, statistics_of
from .rows import aligned


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
    """Log-probs [T]; entropy [T] and other statistics [3, T], or [0]; state [T, …]; two tensors for the backward.

    The last two are G weight [T, D] and G up [T, r] in M1, G [T, V] and [0] in M3, and [0] otherwise. F FLOPs, in M1
    2F; F = 2TDV.
    """
    transform = Transform(scale, softcap, temperature)
    p = Projection.of(hidden, weight, targets, bias, down, up, transform, logits_dtype, chunk_bytes)
    state = p.state(statistics)
    saved, saved_low = {"M0": _logps_only, "M1": _multiply_g, "M3": _keep_g, "M4": _by_word_slices}[mode](p, state)
    entropy, others = statistics_of(state, len(weight)) if statistics else (state.new_empty(0), state.new_empty(0))
    return logps_of(state), entropy, others, state, saved, saved_low


def _logps_only(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    logits = p.buffer(min(len(p.hidden), p.capacity(False)), len(p.weight), p.logits_dtype)
    for tokens in p.chunks(with_gradient=False):
        p.fold(tokens, p.words, logits, state)
    return p.hidden.new_empty(0), p.hidden.new_empty(0)


def _multiply_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    logits, g = p.buffers(min(len(p.hidden), p.capacity(True)), len(p.weight))
    saved, saved_low = torch.empty_like(p.hidden), p.hidden.new_empty(0) if p.down is None else torch.empty_like(p.down)
    for tokens in p.chunks(with_gradient=True):
        p.fold(tokens, p.words, logits, state, g)
        rows = g[: tokens.stop - tokens.start, p.words]
        torch.mm(rows, p.weight, out=saved[tokens])
        if p.up is not None:
            torch.mm(rows, p.up, out=saved_low[tokens])
    return saved, saved_low


def _keep_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    g = p.buffer(len(p.hidden), len(p.weight), p.hidden.dtype)
    if p.separate:
        logits = p.buffer(min(len(g), p.capacity(True)), len(p.weight), p.logits_dtype)
        for tokens in p.chunks(with_gradient=True):
            p.fold(tokens, p.words, logits, state, g[tokens])
    elif len(g):
        p.fold(p.tokens, p.words, g, state, g)
    return g, p.hidden.new_empty(0)


def _by_word_slices(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
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
    g: Tensor,  # [T, at least V] saved by M3, or [0]
    upstream: Tensor,  # [T] dL/dlogps
    upstream_entropy: Tensor | None,  # [T] dL/dentropy; needs a state with statistics, and no g
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight, bias, down and up, [0] where not wanted; F FLOPs for each of the first two.

    Without `g` it projects the logits again, for F FLOPs more, in slices of words over all tokens at once.
    """
    transform = Transform(scale, softcap, temperature)
    p = Projection.of(hidden, weight, targets, bias, down, up, transform, logits_dtype, chunk_bytes)
    gradients = Gradients(p, wanted, chunks=1 if len(hidden) else 0)
    weights = None
    if upstream_entropy is not None:
        # G is then the gradient of the weighted sum: nothing is left to scale.
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


class Operator:
    """An operator of this name: one node for torch.compile, which a call refuses to differentiate in forward mode."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        # torch.library.custom_op without its wrapper, which imports torch._dynamo at the first call: 3.8 s on two
        # cores, 2026-11-24.
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        self.op = getattr(torch.ops.mipo, name.removeprefix("mipo::"))

    def __call__(self, *arguments: Any) -> Any:
        """Calls the operator; raises RuntimeError where an argument carries a tangent."""
        refuse_tangents(*arguments)
        return self.op(*arguments)


def refuse_second_order(*_: Any) -> None:
    """Raises RuntimeError: the gradient of a gradient."""
    raise RuntimeError(
        "expected one differentiation, got a second one (create_graph=True): mipo's fused ops have first derivatives "
        "only; use mipo.loss, which has derivatives of any order"
    )


def refuse_tangents(*arguments: Any) -> None:
    """Raises RuntimeError where a tensor has a tangent, which a registered operator would lose without a sign."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments):
        raise RuntimeError(
            "expected tensors without tangents, got forward-mode differentiation (torch.func.jvp, jacfwd, "
            "forward_ad): mipo's fused ops have backward derivatives only; use mipo.loss, which has both"
        )


_forward = Operator("mipo::linear_logps", forward)
_backward = Operator("mipo::linear_logps_backward", backward)
scaled_rows_op = Operator("mipo::scaled_rows", scaled_rows)


@torch.library.register_fake("mipo::linear_logps")
def _forward_fake(hidden, weight, targets, bias, down, up, *options):  # type: ignore[no-untyped-def]
    logits_dtype, _, mode, statistics = options[-4:]
    # Not len(): it turns a symbolic size of torch.compile into a number.
    (tokens, width), words = hidden.shape, weight.shape[0]
    state = hidden.new_empty(tokens, 7 if statistics else 3, dtype=torch.promote_types(logits_dtype, torch.float32))
    saved = {"M1": (tokens, width), "M3": (tokens, aligned(words))}.get(mode, (0,))
    return (
        state.new_empty(tokens),
        state.new_empty(tokens if statistics else 0),
        state.new_empty((3, tokens) if statistics else (0,)),
        state,
        hidden.new_empty(saved),
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
    """Empty tensors of the shapes of `Gradients.finished`."""
    inputs = (hidden, weight, bias, down, up)
    return tuple(
        torch.empty_like(x) if want and x is not None else hidden.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.softcap, ctx.temperature, ctx.logits_dtype, ctx.chunk_bytes, ctx.mode, statistics = inputs
    *_, state, saved, saved_low = output
    # M1 saves [T, D] alone, unless the entropy may need its gradient.
    alone = ctx.mode == "M1" and not statistics
    ctx.save_for_backward(state, saved, saved_low, *([] if alone else tensors))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *upstreams: Tensor | None) -> tuple[Tensor | None, ...]:
    upstream, upstream_entropy, *others = upstreams
    if any(x is not None for x in others):
        refuse_second_order()
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5)]
    state, saved, saved_low, *tensors = ctx.saved_tensors
    if upstream is None and upstream_entropy is None:
        return (None,) * 13
    if ctx.mode == "M1" and upstream_entropy is None:
        assert not any(wanted[i] for i in (1, 2, 4)), "M1 is for a frozen head"
        down = scaled_rows_op(saved_low, upstream) if wanted[3] else saved_low
        gradients = (scaled_rows_op(saved, upstream), saved, saved, down, saved)
    else:
        if upstream is None:
            upstream = torch.zeros_like(state[:, 0])
        g = saved if ctx.mode == "M3" and upstream_entropy is None else saved.new_empty(0)
        options = ctx.scale, ctx.softcap, ctx.temperature, ctx.logits_dtype, ctx.chunk_bytes
        gradients = _backward(*tensors, *options, state, g, upstream, upstream_entropy, wanted)
    dh, dw, db, dd, du = (x if want else None for x, want in zip(gradients, wanted, strict=True))
    return dh, dw, None, db, dd, du, *[None] * 7


torch.library.register_autograd("mipo::linear_logps", _differentiate, setup_context=_save)
for _name in ("mipo::linear_logps_backward", "mipo::scaled_rows"):
    torch.library.register_autograd(_name, refuse_second_order)


@register_flop_formula(_forward.op)
def _forward_flops(hidden, weight, targets, bias, down, up, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    return int(head_flops(hidden, weight, up) * (1 + (options[-2] == "M1")))


@register_flop_formula(_backward.op)
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
    """Log-probs [T] of targets [T]; with `statistics` also entropy [T] and other statistics [3, T].

    All but the last are differentiable once. It checks no arguments: `mipo.fused.linear_logps` does.
    """
    down, up = lora or (None, None)
    logps, entropy, others, *_ = _forward(
        hidden, weight, targets, bias, down, up, *transform, logits_dtype, chunk_bytes, mode, statistics
    )
    return logps, entropy, others.detach()
