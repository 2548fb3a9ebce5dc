"""LM head to log-probs of target tokens, piece by piece, without keeping the logits.

`mipo.loss.token_statistics` is its definition. README.md in this folder has the modes, their costs and limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .projection import Gradients, Inputs, Projection, even, product, scaled_rows
from .registry import Operator, refuse_second_order
from .row_state import ALONE, PEAK, TOTAL, WITH_STATISTICS, logps_of, statistics_of, target_shares
from .rows import aligned

Scored = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# Which of hidden, weight, bias, down and up are the head's: their gradients are sums over all tokens.
OF_HEAD = (False, True, True, False, True)
HeadGradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(inputs: Inputs, mode: str, statistics: bool) -> Scored:
    """Log-probs [T]; entropy [T] and other statistics [3, T], or [0]; state [T, …]; two tensors for the backward.

    The last two are G weight [T, D] and G up [T, r] in M1, G [T, V] and [0] in M3, G of the first tokens and [0] in M4,
    and [0] otherwise. F FLOPs, in M1 2F; F = 2TDV.
    """
    p = Projection.of(inputs)
    state = p.state(statistics)
    saved, saved_low = {"M0": _logps_only, "M1": _multiply_g, "M3": _keep_g, "M4": _keep_some_g}[mode](p, state)
    # Two tensors: outputs of an operator may not be one.
    nothing = (state.new_empty(0), state.new_empty(0))
    entropy, others = statistics_of(state, len(p.weight)) if statistics else nothing
    return logps_of(state), entropy, others, state, saved, saved_low


def _logps_only(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    chunks, slices = p.tiles(with_gradient=False)
    logits = p.buffer(chunks[0].stop, slices[0].stop, p.logits_dtype)
    for tokens in chunks:
        for words in slices:
            p.fold(tokens, words, logits, state)
    return p.hidden.new_empty(0), p.hidden.new_empty(0)


def _multiply_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    saved, saved_low = torch.empty_like(p.hidden), p.hidden.new_empty(0) if p.down is None else torch.empty_like(p.down)
    factors = [(saved, p.weight), *([] if p.up is None else [(saved_low, p.up)])]
    chunks, slices = p.tiles(with_gradient=True)
    if len(chunks) == len(slices) == 1:
        logits, g = p.buffers(len(p.hidden), len(p.weight))
        p.fold(p.tokens, p.words, logits, state, g)
        for out, factor in factors:
            torch.mm(g[:, p.words], factor, out=out)
    else:
        for tokens in chunks:
            _multiply_shares(p, tokens, slices, state, factors)
    return saved, saved_low


def _multiply_shares(
    p: Projection, tokens: slice, slices: list[slice], state: Tensor, factors: list[tuple[Tensor, Tensor]]
) -> None:
    """Fills the tokens' rows of each `out` [T, n] with G factor, of [V, n], from one tile of logits after another.

    What a target adds comes last, in fp32, so that p - 1 does not drown in the rounding of p.
    """
    sums = [
        (out[tokens] if out.dtype == p.wide else torch.empty_like(out[tokens], dtype=p.wide), factor)
        for out, factor in factors
    ]
    _sum_shares(p, tokens, slices, state, sums)
    known = p.targets[tokens].clamp(0, len(p.weight) - 1)
    at_target = target_shares(state[tokens], p.transform)[:, None]
    for (out, factor), (total, _) in zip(factors, sums, strict=True):
        total.addcmul_(factor[known], at_target)
        torch.mul(total, 1 / state[tokens, TOTAL, None], out=out[tokens])


def _sum_shares(
    p: Projection, tokens: slice, slices: list[slice], state: Tensor, sums: list[tuple[Tensor, Tensor]]
) -> None:
    """Fills each `total` [n, …] with sum_v exp(z_v - m) dz_v/da_v factor_v over all words but the targets.

    As flash attention sums values by their scores: a sum over slices of words, rescaled when the peak m moves.
    """
    logits, e = p.buffers(tokens.stop - tokens.start, slices[0].stop)
    for words in slices:
        before = state[tokens, PEAK].clone()
        p.fold(tokens, words, logits, state, e, shares=True)
        shrink = (before - state[tokens, PEAK]).exp()[:, None]
        for total, factor in sums:
            if words.start:
                total *= shrink
            product(total, e[:, : words.stop - words.start], factor[words], add=words.start > 0)


def _keep_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    g = p.buffer(len(p.hidden), len(p.weight), p.hidden.dtype)
    if p.separate:
        most = p.capacity(True)
        logits = p.buffer(min(len(g), most), len(p.weight), p.logits_dtype)
        for tokens in even(len(g), most):
            p.fold(tokens, p.words, logits, state, g[tokens])
    else:
        p.fold(p.tokens, p.words, g, state, g)
    return g, p.hidden.new_empty(0)


def _keep_some_g(p: Projection, state: Tensor) -> tuple[Tensor, Tensor]:
    kept, working = split_budget(len(p.hidden), p.weight.shape, p.hidden.itemsize, p.chunk_bytes)
    rest = slice(kept, len(p.hidden))
    _fold_slices(p.part(rest, working), p.part(p.tokens, working).word_slices(len(p.hidden), True), state[rest])
    return _keep_g(p.part(slice(0, kept), working), state[:kept])


def _fold_slices(p: Projection, slices: list[slice], state: Tensor) -> None:
    # The products of the backward, so that it gets the same logits to the bit: p - 1 of a likely target needs that.
    logits = p.buffer(len(p.hidden), slices[0].stop, p.logits_dtype)
    for words in slices:
        p.fold(p.tokens, words, logits, state)


def split_budget(tokens: Any, weight: Any, itemsize: int, chunk_bytes: Any) -> tuple[Any, Any]:
    """How many tokens keep their G in M4, and the bytes for the logits of the others; from numbers or symbolic ones.

    A kept token saves its part of a product, but makes slices of words narrower, and sums of dH more. Below an eighth
    of the tokens that is a loss.
    """
    for_g = chunk_bytes // 4 * 3
    kept = torch.sym_min(tokens, for_g // (aligned(weight[0]) * itemsize))
    return (kept, chunk_bytes - for_g) if 8 * kept >= tokens else (0, chunk_bytes)


def backward(
    inputs: Inputs,
    state: Tensor,  # [T, 3 or 7]
    g: Tensor,  # [T, at least V] saved by M3, of fewer tokens by M4, or of none
    upstream: Tensor,  # [T] dL/dlogps
    upstream_entropy: Tensor | None,  # [T] dL/dentropy; needs a state with statistics, and no g
    wanted: list[bool],
) -> HeadGradients:
    """Gradients of hidden, weight, bias, down and up, [0] where not wanted; F FLOPs for each of the first two.

    The logits of tokens that are not in `g` are projected again, for F FLOPs more if it is all of them, in slices of
    words over all tokens at once.
    """
    p, tokens = Projection.of(inputs), len(inputs.hidden)
    gradients = Gradients(p, wanted, chunks=1 if tokens else 0)
    weights = None
    if upstream_entropy is not None:
        # G is then the gradient of the weighted sum: nothing is left to scale.
        weights, upstream = torch.stack([upstream, upstream_entropy], 1), torch.ones_like(upstream)
    if not tokens:
        pass
    elif len(g) == tokens:
        gradients.add(p.tokens, [p.words], lambda words: g[:, words], upstream)
    else:
        if len(g):
            p = p.part(p.tokens, split_budget(tokens, p.weight.shape, g.itemsize, p.chunk_bytes)[1])
        slices = p.word_slices(tokens, with_gradient=True)
        gradients.add(p.tokens, slices, _completed(p, g, slices[0].stop, state, weights), upstream)
    dh, dw, db, dd, du = gradients.finished()
    return dh, dw, db, dd, du


def _completed(p: Projection, g: Tensor, most: int, state: Tensor, weights: Tensor | None) -> Callable[[slice], Tensor]:
    """G [T, n] of a slice of at most `most` words: what is in `g` of the first tokens, and the others projected."""
    buffer = p.buffer(len(p.hidden), most, p.weight.dtype)
    rest = slice(len(g), len(p.hidden))
    others = p.part(rest, p.chunk_bytes)
    logits = p.buffer(len(others.hidden), most, p.logits_dtype) if p.separate else buffer[rest]
    weights = None if weights is None else weights[rest]

    def of(words: slice) -> Tensor:
        n = words.stop - words.start
        if len(g):
            buffer[: len(g), :n] = g[:, words]
        others.gradient(others.tokens, words, logits, state[rest], buffer[rest], weights)
        return buffer[:, :n]

    return of


_forward = Operator("mipo::linear_logps", forward)
_backward = Operator("mipo::linear_logps_backward", backward)
scaled_rows_op = Operator("mipo::scaled_rows", scaled_rows)


@torch.library.register_fake("mipo::linear_logps")  # type: ignore[untyped-decorator]
def _forward_fake(*values: Any) -> Scored:
    inputs, mode, statistics = _forward.records(values)
    hidden, down = inputs.hidden, inputs.down
    # Not len(): it turns a symbolic size of torch.compile into a number.
    tokens, words = hidden.shape[0], inputs.weight.shape[0]
    wide = torch.promote_types(inputs.logits_dtype, torch.float32)
    state = hidden.new_empty(tokens, WITH_STATISTICS if statistics else ALONE, dtype=wide)
    kept = tokens
    if mode == "M4":
        kept, _ = split_budget(tokens, inputs.weight.shape, hidden.itemsize, inputs.chunk_bytes)
    saved = (kept, aligned(words)) if mode in ("M3", "M4") else (0,)
    return (
        state.new_empty(tokens),
        state.new_empty(tokens if statistics else 0),
        state.new_empty((3, tokens) if statistics else (0,)),
        state,
        torch.empty_like(hidden) if mode == "M1" else hidden.new_empty(saved),
        hidden.new_empty(0) if down is None or mode != "M1" else torch.empty_like(down),
    )


@torch.library.register_fake("mipo::linear_logps_backward")  # type: ignore[untyped-decorator]
def _backward_fake(*values: Any) -> HeadGradients:
    inputs, *_, wanted = _backward.records(values)
    return gradients_like(inputs, wanted)


@torch.library.register_fake("mipo::scaled_rows")  # type: ignore[untyped-decorator]
def _scaled_rows_fake(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(rows, dtype=dtype)


def gradients_like(inputs: Inputs, wanted: list[bool], sums: bool = False) -> HeadGradients:
    """Empty tensors of the shapes of `Gradients.finished`, or of `Gradients.sums`."""
    wide = torch.promote_types(inputs.hidden.dtype, torch.float32)
    dh, dw, db, dd, du = (
        torch.empty_like(x, dtype=wide if sums and of_head else x.dtype)
        if want and x is not None
        else inputs.hidden.new_empty(0)
        for x, want, of_head in zip(inputs.differentiable, wanted, OF_HEAD, strict=True)
    )
    return dh, dw, db, dd, du


def as_arguments(count: int, gradients: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of hidden, weight, bias, down and up, each in its place among the arguments of an operator."""
    dh, dw, db, dd, du = gradients
    return dh, dw, None, db, dd, du, *[None] * (count - 6)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    head, ctx.mode, statistics = _forward.records(inputs)
    *_, state, saved, saved_low = output
    # M1 saves [T, D] alone, unless the entropy may need its gradient.
    alone = ctx.mode == "M1" and not statistics
    tensors, ctx.options = ([], None) if alone else (head[:6], head[6:])
    ctx.arguments = len(inputs)
    ctx.save_for_backward(state, saved, saved_low, *tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *upstreams: Tensor | None) -> tuple[Tensor | None, ...]:
    upstream, upstream_entropy, *others = upstreams
    if any(x is not None for x in others):
        refuse_second_order()
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5)]
    state, saved, saved_low, *tensors = ctx.saved_tensors
    if upstream is None and upstream_entropy is None:
        return (None,) * int(ctx.arguments)
    if ctx.mode == "M1" and upstream_entropy is None:
        assert upstream is not None
        assert not any(want and of_head for want, of_head in zip(wanted, OF_HEAD, strict=True)), "a frozen head"
        scaled, scaled_low = (
            scaled_rows_op(x, -upstream, x.dtype) if want else x
            for x, want in ((saved, wanted[0]), (saved_low, wanted[3]))
        )
        gradients = (scaled, saved, saved, scaled_low, saved)
    else:
        if upstream is None:
            upstream = torch.zeros_like(state[:, 0])
        g = saved if ctx.mode in ("M3", "M4") and upstream_entropy is None else saved.new_empty(0)
        gradients = _backward(Inputs(*tensors, *ctx.options), state, g, upstream, upstream_entropy, wanted)
    return as_arguments(ctx.arguments, (x if want else None for x, want in zip(gradients, wanted, strict=True)))


torch.library.register_autograd("mipo::linear_logps", _differentiate, setup_context=_save)
for _name in ("mipo::linear_logps_backward", "mipo::scaled_rows"):
    torch.library.register_autograd(_name, refuse_second_order)


@register_flop_formula(_forward.op)
def _forward_flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    inputs, mode, _statistics = _forward.records(shapes)
    flops: int = head_flops(inputs) * (2 if mode == "M1" else 1)
    return flops


@register_flop_formula(_backward.op)
def _backward_flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    inputs, _state, g, *_upstreams, wanted = _backward.records(shapes)
    again = inputs._replace(hidden=(inputs.hidden[0] - g[0], inputs.hidden[1]))
    return head_flops(again) + gradient_flops(inputs, wanted)


def head_flops(shapes: Inputs) -> int:
    """FLOPs of one product of hidden [T, D] and down [T, r] with weight [V, D] and up [V, r], from their shapes."""
    (tokens, width), words = shapes.hidden, shapes.weight[0]
    return int(2 * tokens * words * (width + (0 if shapes.up is None else shapes.up[1])))


def gradient_flops(shapes: Inputs, wanted: list[bool]) -> int:
    """FLOPs of the wanted gradients, given G."""
    (tokens, width), words = shapes.hidden, shapes.weight[0]
    rank = 0 if shapes.up is None else shapes.up[1]
    return int(2 * tokens * words * (width * (wanted[0] + wanted[1]) + rank * (wanted[3] + wanted[4])))


def linear_logps(inputs: Inputs, *, mode: str, statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [T] of targets [T]; with `statistics` also entropy [T] and other statistics [3, T].

    All but the last are differentiable once. It checks no arguments: `mipo.fused.linear_logps` does.
    """
    logps, entropy, others, *_ = _forward(inputs, mode, statistics)
    return logps, entropy, others.detach()
