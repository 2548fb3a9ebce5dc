"""LM head to the loss of preference groups, with every gradient made on the way: nothing is projected twice.

A group's loss is known when its last token's logits are, and with it what each token is to be told. So a chunk of
whole groups goes through projection, loss and gradient products before the next. The truth of log-probs and losses is
mipo/loss.py; here the losses stand with their derivatives, since no autograd runs inside an operator. Costs and limits
are in README.md beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import register_flop_formula

from .linear_logps import (
    gradient_flops,
    gradients_like,
    head_flops,
    refuse_second_order,
    register,
    scaled_rows_op,
)
from .projection import Gradients, Projection
from .rows import Transform, logps_of, statistics_of


class Pairs(NamedTuple):
    """What a loss of pairs may look at; all but the numbers are [G]."""

    chosen: Tensor  # log-ratio of policy and reference
    rejected: Tensor
    chosen_length: Tensor  # tokens
    rejected_length: Tensor
    chosen_logps: Tensor
    beta: float
    label_smoothing: float
    discopop_tau: float
    sft_weight: float  # groups / tokens of all chosen responses


# Loss, and its derivatives by the two log-ratios: [G] each.
Differentiated = tuple[Tensor, Tensor, Tensor]


def _of_margin(pairs: Pairs, loss: Tensor, slope: Tensor) -> Differentiated:
    """For a loss of x = beta (chosen - rejected), with its derivative by x."""
    return loss, pairs.beta * slope, -pairs.beta * slope


def _of_rewards(pairs: Pairs, loss: Tensor, chosen: Tensor, rejected: Tensor) -> Differentiated:
    """For a loss of the implicit rewards beta chosen and beta rejected, with its derivatives by them."""
    return loss, pairs.beta * chosen, pairs.beta * rejected


def _margin(pairs: Pairs) -> Tensor:
    return pairs.beta * (pairs.chosen - pairs.rejected)


def _mean_margin(pairs: Pairs) -> Tensor:
    return pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length


def _bell(x: Tensor) -> Tensor:
    """The derivative of the sigmoid."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _hinge(pairs: Pairs) -> Differentiated:
    short = 1 - _margin(pairs)
    return _of_margin(pairs, short.relu(), -(short > 0).to(short.dtype))


def _ipo(pairs: Pairs) -> Differentiated:
    error = _mean_margin(pairs) - 1 / (2 * pairs.beta)
    return error**2, 2 * error / pairs.chosen_length, -2 * error / pairs.rejected_length


def _sigmoid_norm(pairs: Pairs) -> Differentiated:
    x = pairs.beta * _mean_margin(pairs)
    slope = -pairs.beta * torch.sigmoid(-x)
    return -logsigmoid(x), slope / pairs.chosen_length, -slope / pairs.rejected_length


def _exo_pair(pairs: Pairs) -> Differentiated:
    x, e = _margin(pairs), pairs.label_smoothing
    # KL((q, 1 - q), (1 - e, e)) with q = sigmoid(x).
    kept, flipped = logsigmoid(x) - math.log1p(-e), logsigmoid(-x) - math.log(e)
    return _of_margin(pairs, torch.sigmoid(x) * kept + torch.sigmoid(-x) * flipped, _bell(x) * (kept - flipped))


def _nca_pair(pairs: Pairs) -> Differentiated:
    a, b = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    loss = -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)
    return _of_rewards(pairs, loss, 0.5 * torch.sigmoid(a) - torch.sigmoid(-a), 0.5 * torch.sigmoid(b))


def _robust(pairs: Pairs) -> Differentiated:
    x, e = _margin(pairs), pairs.label_smoothing
    loss = (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)
    return _of_margin(pairs, loss, (-(1 - e) * torch.sigmoid(-x) - e * torch.sigmoid(x)) / (1 - 2 * e))


def _bco_pair(pairs: Pairs) -> Differentiated:
    a, b = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return _of_rewards(pairs, -logsigmoid(a) - logsigmoid(-b), -torch.sigmoid(-a), torch.sigmoid(b))


def _sppo_hard(pairs: Pairs) -> Differentiated:
    a, b = pairs.chosen - 0.5 / pairs.beta, pairs.rejected + 0.5 / pairs.beta
    return a**2 + b**2, 2 * a, 2 * b


def _apo_zero(pairs: Pairs) -> Differentiated:
    a, b = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return _of_rewards(pairs, 1 - torch.sigmoid(a) + torch.sigmoid(b), -_bell(a), _bell(b))


def _apo_down(pairs: Pairs) -> Differentiated:
    a, x = pairs.beta * pairs.chosen, _margin(pairs)
    return _of_rewards(pairs, torch.sigmoid(a) + 1 - torch.sigmoid(x), _bell(a) - _bell(x), _bell(x))


def _discopop(pairs: Pairs) -> Differentiated:
    x, tau = _margin(pairs), pairs.discopop_tau
    mix, rest = torch.sigmoid(x / tau), torch.sigmoid(-x / tau)
    # exp(-x) mix as one power: each by itself may overflow where their product is next to nothing.
    steep = torch.exp(logsigmoid(x / tau) - x)
    loss = -logsigmoid(x) * rest + steep
    slope = -torch.sigmoid(-x) * rest - steep + (logsigmoid(x) * mix * rest + steep * rest) / tau
    return _of_margin(pairs, loss, slope)


def _sft(pairs: Pairs) -> Differentiated:
    slope = torch.full_like(pairs.chosen, -pairs.sft_weight)
    return slope * pairs.chosen_logps, slope, torch.zeros_like(slope)


PAIR_LOSSES: dict[str, Callable[[Pairs], Differentiated]] = {
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "sigmoid_norm": _sigmoid_norm,
}


def softmax_loss(ratios: Tensor, mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Loss [G] and its derivative [G, K+1]: -log softmax(beta ratios)_0 among the responses of `mask`; K = 1 is DPO."""
    deficits = (-(beta * (ratios[:, :1] - ratios[:, 1:]))).masked_fill(~mask[:, 1:], -torch.inf)
    peak = deficits.amax(1, keepdim=True)
    shares = (deficits - peak).exp()
    total = shares.sum(1, keepdim=True)
    x = -(peak + total.log())
    wrong = beta * torch.sigmoid(-x)
    return -logsigmoid(x).squeeze(1), torch.cat([-wrong, wrong * shares / total], 1)


def forward(
    hidden: Tensor,  # [T, D], packed: a group's responses one after another, the chosen one first
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
    statistics: bool,
    lengths: Tensor,  # [G, K+1] int64, on the CPU; 0 where there is no such response
    ref_logps: Tensor,  # [G, K+1]
    loss_types: str,  # names, with commas
    loss_weights: list[float],
    beta: float,
    label_smoothing: float,
    discopop_tau: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean loss [], losses [G], log-probs [G, K+1] and [T], entropy [T], other statistics [3, T] (or [0]), gradients.

    The gradients are those of hidden, weight, bias, down and up, [0] where not wanted: F FLOPs for each of the first
    two and F for the logits, F = 2TDV. A group longer than a chunk is projected twice, by slices of words.
    """
    transform = Transform(scale, softcap, temperature)
    p = Projection.of(hidden, weight, targets, bias, down, up, transform, logits_dtype, chunk_bytes)
    chunks = list(chunks_of_groups(lengths, p.capacity(True)))
    sums = _Sums(lengths, ref_logps, loss_types.split(","), loss_weights, beta, label_smoothing, discopop_tau)
    state = p.state(statistics)
    gradients = Gradients(p, wanted, len(chunks))
    fitting = max((t.stop - t.start for _, t in chunks if t.stop - t.start <= p.capacity(True)), default=0)
    for groups, tokens in chunks:
        # Each allocates its own logits, so that the one's are gone before the other's come.
        if tokens.stop - tokens.start <= fitting:
            _at_once(p, groups, tokens, state, sums, gradients, fitting)
        else:
            _by_slices_of_words(p, groups, tokens, state, sums, gradients)
    entropy, others = statistics_of(state, len(weight)) if statistics else (state.new_empty(0), state.new_empty(0))
    dh, dw, db, dd, du = gradients.finished()
    return sums.losses.mean(), sums.losses, sums.logps, logps_of(state), entropy, others, dh, dw, db, dd, du


def _at_once(
    p: Projection, groups: slice, tokens: slice, state: Tensor, sums: _Sums, gradients: Gradients, most: int
) -> None:
    logits, g = p.buffers(most, len(p.weight))
    p.fold(tokens, p.words, logits, state, g)
    upstream = sums.add(groups, logps_of(state[tokens]))
    gradients.add(tokens, [p.words], lambda words: g[: len(upstream), words], upstream)


def _by_slices_of_words(
    p: Projection, groups: slice, tokens: slice, state: Tensor, sums: _Sums, gradients: Gradients
) -> None:
    slices = p.word_slices(tokens.stop - tokens.start, with_gradient=True)
    logits, g = p.buffers(tokens.stop - tokens.start, slices[0].stop)
    for words in slices:
        p.fold(tokens, words, logits, state)
    upstream = sums.add(groups, logps_of(state[tokens]))
    gradients.add(tokens, slices, lambda words: p.gradient(tokens, words, logits, state, g), upstream)


def checked_lengths(lengths: Tensor, tokens: int) -> Tensor:
    """The lengths [G, K+1] of responses, on the CPU; ValueError unless they share out so many tokens and form groups.

    An operator, so that it looks at the numbers also where torch.compile has traced everything around it.
    """
    if int(lengths.sum()) != tokens or int(lengths.min()) < 0:
        raise ValueError(
            f"expected lengths that add up to the {tokens} tokens, got {int(lengths.sum())}, the least "
            f"{int(lengths.min())}; count the response tokens that are in targets"
        )
    impossible = (lengths[:, 0] == 0) | (lengths[:, 1:].sum(1) == 0)
    if bool(impossible.any()):
        raise ValueError(
            "expected a chosen response (column 0) and at least one rejected one in every group, missing in groups "
            f"{impossible.nonzero().flatten().tolist()[:10]}; drop these groups"
        )
    return lengths.clone()


def chunks_of_groups(lengths: Tensor, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Runs of whole groups, and of their tokens, of at most `capacity` tokens; a longer group is alone in its run."""
    sizes = lengths.sum(1).tolist()
    ends = [0, *accumulate(sizes)]
    first = 0
    for group in range(len(sizes)):
        if group + 1 == len(sizes) or ends[group + 2] - ends[first] > capacity:
            yield slice(first, group + 1), slice(ends[first], ends[group + 1])
            first = group + 1


class _Sums:
    """Log-probs of responses and losses of groups, as chunks of whole groups come in."""

    def __init__(
        self,
        lengths: Tensor,
        ref_logps: Tensor,
        names: list[str],
        weights: list[float],
        beta: float,
        label_smoothing: float,
        discopop_tau: float,
    ) -> None:
        self.lengths, self.ref_logps = lengths.to(ref_logps.device, non_blocking=True), ref_logps
        self.names, self.weights = names, weights
        self.options = beta, label_smoothing, discopop_tau, len(lengths) / max(1, int(lengths[:, 0].sum()))
        self.logps = torch.empty_like(ref_logps)
        self.losses = torch.empty_like(ref_logps[:, 0])

    def add(self, groups: slice, logps: Tensor) -> Tensor:
        """DL/dlogps [n] for the log-probs [n] of the tokens of these groups, where L is the mean over all groups."""
        lengths = self.lengths[groups]
        sums = torch.segment_reduce(logps, "sum", lengths=lengths.flatten(), unsafe=True).view_as(lengths)
        losses, slopes = self._losses(sums, lengths, sums - self.ref_logps[groups])
        self.logps[groups], self.losses[groups] = sums, losses
        slopes = (slopes / len(self.lengths)).flatten()
        return slopes.repeat_interleave(lengths.flatten(), output_size=len(logps))

    def _losses(self, logps: Tensor, lengths: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = torch.zeros_like(ratios[:, 0]), torch.zeros_like(ratios)
        for name, weight in zip(self.names, self.weights, strict=True):
            if name == "sigmoid":
                loss, slope = softmax_loss(ratios, lengths > 0, self.options[0])
            else:
                tokens = lengths.to(ratios.dtype)
                sides = ratios[:, 0], ratios[:, 1], tokens[:, 0], tokens[:, 1]
                pairs = Pairs(*sides, logps[:, 0], *self.options)
                loss, chosen, rejected = PAIR_LOSSES[name](pairs)
                slope = torch.stack([chosen, rejected], 1)
            losses += weight * loss
            slopes += weight * slope
        return losses, slopes


_forward = register("mipo::linear_preference_loss", forward)
checked_lengths_op = register("mipo::checked_lengths", checked_lengths)


@torch.library.register_fake("mipo::checked_lengths")
def _checked_lengths_fake(lengths, tokens):  # type: ignore[no-untyped-def]
    return torch.empty_like(lengths)


@torch.library.register_fake("mipo::linear_preference_loss")
def _forward_fake(hidden, weight, targets, bias, down, up, *options):  # type: ignore[no-untyped-def]
    logits_dtype, _, statistics, _lengths, ref_logps = options[3:8]
    wide = hidden.new_empty(0, dtype=torch.promote_types(logits_dtype, torch.float32))
    return (
        ref_logps.new_empty(()),
        torch.empty_like(ref_logps[:, 0]),
        torch.empty_like(ref_logps),
        wide.new_empty(hidden.shape[0]),
        wide.new_empty(hidden.shape[0] if statistics else 0),
        wide.new_empty((3, hidden.shape[0]) if statistics else (0,)),
        *gradients_like(hidden, weight, bias, down, up, options[-1]),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[6:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(x is not None for x in others):
        refuse_second_order()
    dh, dw, db, dd, du = (None if upstream is None or not x.numel() else _times(x, upstream) for x in ctx.saved_tensors)
    return dh, dw, None, db, dd, du, *[None] * 14


def _times(gradient: Tensor, upstream: Tensor) -> Tensor:
    """The gradient, rounded once, and not in place: the graph may be retained and walked again."""
    rows = gradient if gradient.ndim == 2 else gradient[:, None]
    # x * upstream would round the upstream to the dtype of x first, on a GPU.
    product: Tensor = scaled_rows_op(rows, -upstream.expand(rows.shape[0]))
    return product.view_as(gradient)


torch.library.register_autograd("mipo::linear_preference_loss", _differentiate, setup_context=_save)


@register_flop_formula(_forward)
def _forward_flops(hidden, weight, targets, bias, down, up, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    return head_flops(hidden, weight, up) + gradient_flops(hidden, weight, up, options[-1])


def linear_preference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lengths: Tensor,
    ref_logps: Tensor,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor] | None,
    transform: Transform,
    *,
    loss_types: tuple[str, ...],
    loss_weights: tuple[float, ...],
    beta: float,
    label_smoothing: float,
    discopop_tau: float,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean loss [], differentiable once; detached losses [G], log-probs [G, K+1] and [T], entropy [T], others [3, T].

    Nothing is checked here: `mipo.fused.linear_preference_loss` is the door.
    """
    down, up = lora or (None, None)
    wanted = [x is not None and x.requires_grad for x in (hidden, weight, bias, down, up)]
    loss, *rest = _forward(
        hidden, weight, targets, bias, down, up, *transform, logits_dtype, chunk_bytes, statistics, lengths, ref_logps,
        ",".join(loss_types), list(loss_weights), beta, label_smoothing, discopop_tau, wanted,
    )  # fmt: skip
    losses, sums, logps, entropy, others = (x.detach() for x in rest[:5])
    return loss, losses, sums, logps, entropy, others
