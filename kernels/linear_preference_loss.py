"""LM head to the loss of preference groups, with every gradient in the forward: nothing is projected twice.

The logits of a group's last token complete its loss, and with it dL/dlogps of all its tokens. So each chunk of whole
groups goes through projection, loss and gradient products before the next one. `mipo.loss` defines log-probs and
losses; here the losses come with their derivatives, since no autograd runs inside an operator. README.md in this folder
has the costs and limits.
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

from .linear_logps import as_arguments, gradient_flops, gradients_like, head_flops, scaled_rows_op
from .projection import Gradients, Inputs, Projection
from .registry import Operator, refuse_second_order
from .row_state import logps_of, statistics_of


class LossInputs(NamedTuple):
    """The inputs of a pairwise loss; tensors are [G]."""

    chosen: Tensor  # log-ratio of policy and reference
    rejected: Tensor
    chosen_length: Tensor  # tokens
    rejected_length: Tensor
    chosen_logps: Tensor
    beta: float
    label_smoothing: float
    discopop_tau: float
    sft_weight: float  # groups / tokens of all chosen responses


# A loss and its derivatives by the two log-ratios: [G] each.
Differentiated = tuple[Tensor, Tensor, Tensor]


def _of_margin(inputs: LossInputs, loss: Tensor, slope: Tensor) -> Differentiated:
    """For a loss of x = beta (chosen - rejected), with its derivative by x."""
    return loss, inputs.beta * slope, -inputs.beta * slope


def _of_rewards(inputs: LossInputs, loss: Tensor, chosen: Tensor, rejected: Tensor) -> Differentiated:
    """For a loss of the implicit rewards beta chosen and beta rejected, with its derivatives by them."""
    return loss, inputs.beta * chosen, inputs.beta * rejected


def _margin(inputs: LossInputs) -> Tensor:
    return inputs.beta * (inputs.chosen - inputs.rejected)


def _mean_margin(inputs: LossInputs) -> Tensor:
    return inputs.chosen / inputs.chosen_length - inputs.rejected / inputs.rejected_length


def _bell(x: Tensor) -> Tensor:
    """The derivative of the sigmoid."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _hinge(inputs: LossInputs) -> Differentiated:
    short = 1 - _margin(inputs)
    return _of_margin(inputs, short.relu(), -(short > 0).to(short.dtype))


def _ipo(inputs: LossInputs) -> Differentiated:
    error = _mean_margin(inputs) - 1 / (2 * inputs.beta)
    return error**2, 2 * error / inputs.chosen_length, -2 * error / inputs.rejected_length


def _sigmoid_norm(inputs: LossInputs) -> Differentiated:
    x = inputs.beta * _mean_margin(inputs)
    slope = -inputs.beta * torch.sigmoid(-x)
    return -logsigmoid(x), slope / inputs.chosen_length, -slope / inputs.rejected_length


def _exo_pair(inputs: LossInputs) -> Differentiated:
    # At a log-prob of -inf, 0 log 0 is 0.
    most = torch.finfo(inputs.chosen.dtype).max
    x, e = _margin(inputs).clamp(-most, most), inputs.label_smoothing
    # KL((q, 1 - q), (1 - e, e)) with q = sigmoid(x).
    kept, flipped = logsigmoid(x) - math.log1p(-e), logsigmoid(-x) - math.log(e)
    return _of_margin(inputs, torch.sigmoid(x) * kept + torch.sigmoid(-x) * flipped, _bell(x) * (kept - flipped))


def _nca_pair(inputs: LossInputs) -> Differentiated:
    a, b = inputs.beta * inputs.chosen, inputs.beta * inputs.rejected
    loss = -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)
    return _of_rewards(inputs, loss, 0.5 * torch.sigmoid(a) - torch.sigmoid(-a), 0.5 * torch.sigmoid(b))


def _robust(inputs: LossInputs) -> Differentiated:
    x, e = _margin(inputs), inputs.label_smoothing
    loss = (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)
    return _of_margin(inputs, loss, (-(1 - e) * torch.sigmoid(-x) - e * torch.sigmoid(x)) / (1 - 2 * e))


def _bco_pair(inputs: LossInputs) -> Differentiated:
    a, b = inputs.beta * inputs.chosen, inputs.beta * inputs.rejected
    return _of_rewards(inputs, -logsigmoid(a) - logsigmoid(-b), -torch.sigmoid(-a), torch.sigmoid(b))


def _sppo_hard(inputs: LossInputs) -> Differentiated:
    a, b = inputs.chosen - 0.5 / inputs.beta, inputs.rejected + 0.5 / inputs.beta
    return a**2 + b**2, 2 * a, 2 * b


def _apo_zero(inputs: LossInputs) -> Differentiated:
    a, b = inputs.beta * inputs.chosen, inputs.beta * inputs.rejected
    return _of_rewards(inputs, 1 - torch.sigmoid(a) + torch.sigmoid(b), -_bell(a), _bell(b))


def _apo_down(inputs: LossInputs) -> Differentiated:
    a, x = inputs.beta * inputs.chosen, _margin(inputs)
    return _of_rewards(inputs, torch.sigmoid(a) + 1 - torch.sigmoid(x), _bell(a) - _bell(x), _bell(x))


def _discopop(inputs: LossInputs) -> Differentiated:
    x, tau = _margin(inputs), inputs.discopop_tau
    mix, rest = torch.sigmoid(x / tau), torch.sigmoid(-x / tau)
    # exp(-x) mix as one exponential: exp(-x) alone may overflow where the product is nearly 0.
    steep = torch.exp(logsigmoid(x / tau) - x)
    loss = -logsigmoid(x) * rest + steep
    slope = -torch.sigmoid(-x) * rest - steep + (logsigmoid(x) * mix * rest + steep * rest) / tau
    return _of_margin(inputs, loss, slope)


def _sft(inputs: LossInputs) -> Differentiated:
    slope = torch.full_like(inputs.chosen, -inputs.sft_weight)
    return slope * inputs.chosen_logps, slope, torch.zeros_like(slope)


PAIR_LOSSES: dict[str, Callable[[LossInputs], Differentiated]] = {
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
    """Loss [G] and derivative [G, K+1] of -log softmax(beta ratios)_0 over the responses of `mask`; K = 1 is DPO."""
    chosen, rejected = ratios[:, :1], ratios[:, 1:].masked_fill(~mask[:, 1:], -torch.inf)
    top = rejected.amax(1, keepdim=True)
    # A log-prob of -inf gives a loss of +inf, or no share, and no NaN. The total is 1 or more where `top` is finite.
    shares = (beta * (rejected - top.clamp(min=torch.finfo(top.dtype).min))).exp()
    total = shares.sum(1, keepdim=True).clamp(min=1)
    x = beta * (chosen - top) - total.log()
    wrong = beta * torch.sigmoid(-x)
    return -logsigmoid(x).squeeze(1), torch.cat([-wrong, wrong * shares / total], 1)


class Objective(NamedTuple):
    """Groups of responses and the loss of each."""

    lengths: Tensor  # [G, K+1] int64, on the CPU; 0 where there is no such response
    ref_logps: Tensor  # [G, K+1]
    loss_types: str  # names, with commas
    loss_weights: list[float]
    beta: float
    label_smoothing: float
    discopop_tau: float


Losses = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# `inputs.hidden` is packed: a group's responses one after another, the chosen one first.
def forward(inputs: Inputs, objective: Objective, statistics: bool, wanted: list[bool]) -> Losses:
    """Mean loss [], losses [G], log-probs [G, K+1] and [T], entropy [T], other statistics [3, T] (or [0]), gradients.

    The gradients are those of hidden, weight, bias, down and up, [0] where not wanted, the head's still in the dtype of
    sums: F FLOPs for each of the first two and F for the logits, F = 2TDV. A group longer than a chunk is projected
    twice, in slices of words.
    """
    p = Projection.of(inputs)
    capacity = p.capacity(True)
    chunks = list(chunks_of_groups(objective.lengths, capacity))
    sums, state, gradients = _Sums(objective), p.state(statistics), Gradients(p, wanted, len(chunks), keep_sums=True)
    fitting = max((t.stop - t.start for _, t in chunks if t.stop - t.start <= capacity), default=0)
    for groups, tokens in chunks:
        # Each function allocates its own logits, so that one buffer is freed before the next exists.
        if tokens.stop - tokens.start <= fitting:
            _at_once(p, groups, tokens, state, sums, gradients, fitting)
        else:
            _by_word_slices(p, groups, tokens, state, sums, gradients)
    # Two tensors: outputs of an operator may not be one.
    nothing = (state.new_empty(0), state.new_empty(0))
    entropy, others = statistics_of(state, len(p.weight)) if statistics else nothing
    dh, dw, db, dd, du = gradients.sums()
    return sums.losses.mean(), sums.losses, sums.logps, logps_of(state), entropy, others, dh, dw, db, dd, du


def _at_once(
    p: Projection, groups: slice, tokens: slice, state: Tensor, sums: _Sums, gradients: Gradients, most: int
) -> None:
    logits, g = p.buffers(most, len(p.weight))
    p.fold(tokens, p.words, logits, state, g)
    upstream = sums.add(groups, logps_of(state[tokens]))
    gradients.add(tokens, [p.words], lambda words: g[: len(upstream), words], upstream)


def _by_word_slices(
    p: Projection, groups: slice, tokens: slice, state: Tensor, sums: _Sums, gradients: Gradients
) -> None:
    slices = p.word_slices(tokens.stop - tokens.start, with_gradient=True)
    logits, g = p.buffers(tokens.stop - tokens.start, slices[0].stop)
    for words in slices:
        p.fold(tokens, words, logits, state)
    upstream = sums.add(groups, logps_of(state[tokens]))
    gradients.add(tokens, slices, lambda words: p.gradient(tokens, words, logits, state, g), upstream)


def checked_lengths(lengths: Tensor, tokens: int) -> Tensor:
    """A copy of the lengths [G, K+1], on the CPU; raises ValueError unless they sum to `tokens` and form groups.

    It is an operator so that it also reads the numbers inside a graph of torch.compile.
    """
    if int(lengths.sum()) != tokens or int(lengths.min()) < 0:
        raise ValueError(
            f"expected lengths that add up to the {tokens} tokens, got {int(lengths.sum())} with a least of "
            f"{int(lengths.min())}; count the response tokens in targets"
        )
    invalid = (lengths[:, 0] == 0) | (lengths[:, 1:].sum(1) == 0)
    if bool(invalid.any()):
        raise ValueError(
            "expected a chosen response (column 0) and at least one rejected one in every group, missing in groups "
            f"{invalid.nonzero().flatten().tolist()[:10]}; drop these groups"
        )
    return lengths.clone()


def chunks_of_groups(lengths: Tensor, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Runs of whole groups, and of their tokens, with at most `capacity` tokens; a longer group has its own run."""
    sizes = lengths.sum(1).tolist()
    ends = [0, *accumulate(sizes)]
    first = 0
    for group in range(len(sizes)):
        if group + 1 == len(sizes) or ends[group + 2] - ends[first] > capacity:
            yield slice(first, group + 1), slice(ends[first], ends[group + 1])
            first = group + 1


class _Sums:
    """Log-probs of responses and losses of groups, summed chunk by chunk."""

    def __init__(self, objective: Objective) -> None:
        lengths, ref_logps = objective.lengths, objective.ref_logps
        self.objective = objective._replace(lengths=lengths.to(ref_logps.device, non_blocking=True))
        self.sft_weight = len(lengths) / max(1, int(lengths[:, 0].sum()))
        self.logps = torch.empty_like(ref_logps)
        self.losses = torch.empty_like(ref_logps[:, 0])

    def add(self, groups: slice, logps: Tensor) -> Tensor:
        """Adds groups by the log-probs [n] of their tokens; returns dL/dlogps [n], L being the mean over all groups."""
        lengths = self.objective.lengths[groups]
        sums = torch.segment_reduce(logps, "sum", lengths=lengths.flatten(), unsafe=True).view_as(lengths)
        losses, slopes = self._losses(sums, lengths, sums - self.objective.ref_logps[groups])
        self.logps[groups], self.losses[groups] = sums, losses
        slopes = (slopes / len(self.losses)).flatten()
        return slopes.repeat_interleave(lengths.flatten(), output_size=len(logps))

    def _losses(self, logps: Tensor, lengths: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes, objective = torch.zeros_like(ratios[:, 0]), torch.zeros_like(ratios), self.objective
        for name, weight in zip(objective.loss_types.split(","), objective.loss_weights, strict=True):
            if name == "sigmoid":
                loss, slope = softmax_loss(ratios, lengths > 0, objective.beta)
            else:
                tokens = lengths.to(ratios.dtype)
                sides = ratios[:, 0], ratios[:, 1], tokens[:, 0], tokens[:, 1]
                loss, *both = PAIR_LOSSES[name](LossInputs(*sides, logps[:, 0], *objective[4:], self.sft_weight))
                slope = torch.stack(both, 1)
            losses += weight * loss
            slopes += weight * slope
        return losses, slopes


_forward = Operator("mipo::linear_preference_loss", forward)
checked_lengths_op = Operator("mipo::checked_lengths", checked_lengths)


@torch.library.register_fake("mipo::checked_lengths")
def _checked_lengths_fake(lengths, tokens):  # type: ignore[no-untyped-def]
    return torch.empty_like(lengths)


@torch.library.register_fake("mipo::linear_preference_loss")  # type: ignore[untyped-decorator]
def _forward_fake(*values: Any) -> Losses:
    inputs, objective, statistics, wanted = _forward.records(values)
    tokens, ref_logps = inputs.hidden.shape[0], objective.ref_logps
    wide = inputs.hidden.new_empty(0, dtype=torch.promote_types(inputs.logits_dtype, torch.float32))
    return (
        ref_logps.new_empty(()),
        torch.empty_like(ref_logps[:, 0]),
        torch.empty_like(ref_logps),
        wide.new_empty(tokens),
        wide.new_empty(tokens if statistics else 0),
        wide.new_empty((3, tokens) if statistics else (0,)),
        *gradients_like(inputs, wanted, sums=True),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    head, *_ = _forward.records(inputs)
    ctx.arguments, ctx.dtypes = len(inputs), [None if x is None else x.dtype for x in head.differentiable]
    ctx.save_for_backward(*output[6:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(x is not None for x in others):
        refuse_second_order()
    gradients = (
        None if upstream is None or not x.numel() else _times(x, upstream, dtype)
        for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )
    return as_arguments(ctx.arguments, gradients)


def _times(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times upstream, rounded once, in a new tensor: a retained graph may run again."""
    rows = gradient if gradient.ndim == 2 else gradient[:, None]
    # On a GPU, x * upstream would first round the upstream to the dtype of x.
    product: Tensor = scaled_rows_op(rows, upstream.expand(rows.shape[0]), dtype)
    return product.view_as(gradient)


torch.library.register_autograd("mipo::linear_preference_loss", _differentiate, setup_context=_save)


@register_flop_formula(_forward.op)
def _forward_flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    inputs, *_rest, wanted = _forward.records(shapes)
    return head_flops(inputs) + gradient_flops(inputs, wanted)


def linear_preference_loss(
    inputs: Inputs, objective: Objective, *, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean loss [], differentiable once; detached losses [G], log-probs [G, K+1] and [T], entropy [T], others [3, T].

    It checks no arguments: `mipo.fused.linear_preference_loss` does.
    """
    wanted = [x is not None and x.requires_grad for x in inputs.differentiable]
    loss, *rest = _forward(inputs, objective, statistics, wanted)
    losses, sums, logps, entropy, others = (x.detach() for x in rest[:5])
    return loss, losses, sums, logps, entropy, others
