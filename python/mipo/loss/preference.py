"""Preference losses, in plain PyTorch: the definition, the CPU path, the kernels' oracle.

Knows tensors of log-probs. Knows nothing of models, tokenizers, trainers or speed.

Letters in types: G groups, R = K + 1 responses of a group, the chosen one first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mipo.errors import InputError, InputTypeError
from mipo.loss.logps import check_wide, may_read

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# TRL 1.16's names.
LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# Sorted over the whole batch: the loss of one group depends on all others.
BATCH_LOSSES = frozenset({"aot", "aot_unpaired"})
# Divided by numbers of tokens; in sft, by the number in the whole batch.
LENGTH_LOSSES = frozenset({"ipo", "sft", "sigmoid_norm"})
_SMOOTHED_LOSSES = frozenset({"aot", "aot_unpaired", "exo_pair", "robust"})


def preference_loss(
    logps: Float[Tensor, "G R"],
    ref_logps: Float[Tensor, "G R"],
    *,
    beta: float = 0.1,
    mask: Bool[Tensor, "G R"] | None = None,
    loss_type: str | Sequence[str] = "sigmoid",
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    lengths: Int[Tensor, "G R"] | None = None,
) -> Float[Tensor, " G"]:
    """Cross-entropy of the chosen response against K rejected ones, by implicit reward, or another loss of TRL.

    s_k = beta (logps_k - ref_logps_k),  loss = -log softmax(s)_0,  d loss / d logps_k = beta (softmax(s)_k - [k = 0]).

    With one rejected response this is DPO's -logsigmoid(s_0 - s_1) to the bit, forward and backward. The loss bounds
    the mutual information from below: I >= log(K + 1) - loss (InfoNCE, arXiv 1807.03748).

    The other types need K = 1. Their names are those of TRL 1.16's `DPOTrainer`, and so are their values, averaged over
    groups, with the default divergence. With m = s_0 - s_1, l(x) = -logsigmoid(x), o = sigmoid, e = `label_smoothing`
    and n_k the number of tokens of a response:

    | type         | loss of a group                                                                             |
    |--------------|---------------------------------------------------------------------------------------------|
    | sigmoid      | l(m)                                                                                        |
    | sigmoid_norm | l(s_0 / n_0 - s_1 / n_1)                                                                    |
    | hinge        | max(0, 1 - m)                                                                               |
    | ipo          | (s_0 / n_0 - s_1 / n_1 - 1/2)^2 / beta^2                                                    |
    | robust       | ((1 - e) l(m) - e l(-m)) / (1 - 2e)                                                         |
    | exo_pair     | KL((o(m), o(-m)), (1 - e, e))                                                               |
    | nca_pair     | l(s_0) + l(-s_0) / 2 + l(-s_1) / 2                                                          |
    | bco_pair     | l(s_0) + l(-s_1)                                                                            |
    | sppo_hard    | ((s_0 - 1/2)^2 + (s_1 + 1/2)^2) / beta^2                                                    |
    | apo_zero     | o(-s_0) + o(s_1)                                                                            |
    | apo_down     | o(s_0) + o(-m)                                                                              |
    | discopop     | o(-m / tau) l(m) + o(m / tau) exp(-m)                                                       |
    | sft          | -logps_0 groups / (sum of n_0 over groups): its mean is that over the chosen tokens         |
    | aot          | (1 - e) l(d) + e l(-d), d = beta (sort(logps_0 - logps_1) - sort(ref_logps_0 - ref_logps_1))|
    | aot_unpaired | the same with d = sort(s_0) - sort(s_1)                                                     |

    The sorts are over the batch, so row i of `aot` and `aot_unpaired` belongs to the i-th smallest, not to group i. In
    float32 every loss and gradient is finite for s and m up to 1e4, except discopop's with tau > 1, which grows as
    exp(-m (1 - 1 / tau)). TRL computes exp(-m) alone, so its discopop is infinite or NaN from m = -89 on. Where one of
    the two log-probs is -inf, a loss has its limit, which may be +inf, with finite gradients; but the gradients of ipo
    and sppo_hard grow without bound, and are infinite or NaN there, as is all of discopop.

    Args:
        logps: [G, R], float32 or float64, nats: log-probs of whole responses (sums over response tokens) under the
            policy. Column 0 is the chosen response of a group, the others are the rejected ones.
        ref_logps: [G, R], the same under the reference policy.
        beta: inverse temperature of the implicit reward, > 0.
        mask: [G, R], bool; False where a group has no such rejected response: that entry is ignored. Column 0 and at
            least one other column of every group must be True.
        loss_type: one of `LOSS_TYPES`, or several to add up.
        loss_weights: one factor per type; `None` means 1.0 each.
        label_smoothing: probability that the two responses are swapped; used by robust (in [0, 0.5)), exo_pair (in
            (0, 1)), aot and aot_unpaired (in [0, 1)), and an error where no type uses it.
        discopop_tau: > 0, how gradually discopop moves from one of its terms to the other; no other type uses it.
        lengths: [G, R], integer, tokens per response; the types in `LENGTH_LOSSES` need it. As in TRL, a response
            without tokens is divided by 1.

    Returns:
        [G], nats for the logistic types, one loss per group; not averaged.

    Raises:
        InputTypeError, InputError: for other dtypes, shapes or options, and for an invalid mask. Reading a mask on an
            accelerator would wait for it, so there the loss of a group with an invalid mask is NaN instead.
    """
    _check_logps(logps, ref_logps, beta)
    if logps.ndim != 2 or logps.shape[1] < 2:
        raise InputError(
            f"expected logps of shape [groups, 1 + negatives] with at least one negative, got {list(logps.shape)}; "
            "put the chosen response in column 0 and the rejected ones beside it"
        )
    names, weights = check_losses(
        loss_type,
        loss_weights,
        beta=beta,
        label_smoothing=label_smoothing,
        discopop_tau=discopop_tau,
        negatives=logps.shape[1] - 1,
    )
    _check_lengths(lengths, logps, names)
    valid = None if mask is None else _check_mask(mask, logps)
    terms = []
    for name, weight in zip(names, weights, strict=True):
        if name == "sigmoid":
            loss = _softmax_loss(logps, ref_logps, beta, mask)
        else:
            loss = _pair_loss(name, logps, ref_logps, beta, label_smoothing, discopop_tau, lengths)
        terms.append(weight * loss)
    losses = torch.stack(terms).sum(0)
    return losses if valid is None else losses.masked_fill(~valid, math.nan)


def check_losses(
    loss_type: str | Sequence[str],
    loss_weights: Sequence[float] | None = None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    negatives: int = 1,
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and weights of the losses that `preference_loss` adds up; raises InputError where options do not agree.

    Needs only the options of `preference_loss` and the number of rejected responses per group, no log-probs.
    """
    names = (loss_type,) if isinstance(loss_type, str) else tuple(loss_type)
    unknown = [name for name in names if name not in LOSS_TYPES]
    if unknown or not names:
        raise InputError(
            f"expected loss types among {', '.join(LOSS_TYPES)}, got {', '.join(map(repr, unknown)) or 'none'}"
        )
    weights = (1.0,) * len(names) if loss_weights is None else tuple(map(float, loss_weights))
    if len(weights) != len(names) or not all(map(math.isfinite, weights)):
        raise InputError(
            f"expected one finite weight for each of the loss types {', '.join(names)}, got {list(weights)}; leave "
            "loss_weights out for 1.0 each"
        )
    pairwise = [name for name in names if name != "sigmoid"]
    if negatives > 1 and pairwise:
        raise InputError(
            f"expected one rejected response per group for {', '.join(pairwise)}, got {negatives}; only 'sigmoid' is "
            "defined for more, as the softmax over the group"
        )
    _check_beta(beta)
    _check_smoothing(label_smoothing, names)
    if not 0 < discopop_tau < math.inf:
        raise InputError(f"expected a positive, finite discopop_tau, got {discopop_tau}; TRL's is 0.05")
    return names, weights


def implicit_rewards(
    logps: Float[Tensor, "*R"], ref_logps: Float[Tensor, "*R"], *, beta: float = 0.1
) -> Float[Tensor, "*R"]:
    """Implicit reward of the policy: r = beta (logps - ref_logps), up to a constant per prompt.

    Takes and returns tensors of one shape, float32 or float64, nats; see `preference_loss` for the arguments.
    """
    _check_logps(logps, ref_logps, beta)
    return beta * (logps - ref_logps)


def _softmax_loss(
    logps: Float[Tensor, "G R"], ref_logps: Float[Tensor, "G R"], beta: float, mask: Bool[Tensor, "G R"] | None
) -> Float[Tensor, " G"]:
    ratios = logps - ref_logps
    chosen, rejected = ratios[:, :1], ratios[:, 1:]
    if mask is not None:
        rejected = rejected.masked_fill(~mask[:, 1:], -math.inf)
    # -log softmax = logistic(beta (chosen - top) - log sum exp(beta (rejected - top))), for any top. With the largest
    # rejected, a group of one is DPO to the bit: its logarithm is that of 1. A chosen response of log-prob -inf then
    # has a loss of +inf with finite gradients, and rejected ones of -inf have no share.
    top = rejected.detach().amax(1, keepdim=True)
    finite = top.clamp(min=torch.finfo(top.dtype).min)
    total = (beta * (rejected - finite)).exp().sum(1)
    total = total + (total == 0)
    return _logistic((beta * (chosen - top)).squeeze(1) - total.log())


def _pair_loss(
    name: str,
    logps: Float[Tensor, "G 2"],
    ref_logps: Float[Tensor, "G 2"],
    beta: float,
    flipped: float,
    tau: float,
    lengths: Int[Tensor, "G 2"] | None,
) -> Float[Tensor, " G"]:
    ratios = logps - ref_logps
    chosen, rejected = ratios.unbind(1)
    s_0, s_1, margin = beta * chosen, beta * rejected, beta * (chosen - rejected)
    match name:
        case "hinge":
            return (1 - margin).relu()
        case "ipo":
            return (_mean_difference(ratios, lengths) - 1 / (2 * beta)) ** 2
        case "sigmoid_norm":
            return _logistic(beta * _mean_difference(ratios, lengths))
        case "robust":
            return ((1 - flipped) * _logistic(margin) - flipped * _logistic(-margin)) / (1 - 2 * flipped)
        case "exo_pair":
            margin = _finite(margin)  # 0 log 0 is 0
            kept = _sigmoid(margin) * (functional.logsigmoid(margin) - math.log1p(-flipped))
            return kept + _sigmoid(-margin) * (functional.logsigmoid(-margin) - math.log(flipped))
        case "nca_pair":
            return _logistic(s_0) + (_logistic(-s_0) + _logistic(-s_1)) / 2
        case "bco_pair":
            return _logistic(s_0) + _logistic(-s_1)
        case "sppo_hard":
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "apo_zero":
            return _sigmoid(-s_0) + _sigmoid(s_1)
        case "apo_down":
            return _sigmoid(s_0) + _sigmoid(-margin)
        case "discopop":
            # One exponential of the sum of logarithms: exp(-margin) alone overflows where the product vanishes.
            exponential = (functional.logsigmoid(margin / tau) - margin).exp()
            return _sigmoid(-margin / tau) * _logistic(margin) + exponential
        case "sft":
            assert lengths is not None
            return -logps[:, 0] * (len(logps) / lengths[:, 0].sum().clamp(min=1).to(logps))
        case "aot":
            return _transport_loss(logps[:, 0] - logps[:, 1], ref_logps[:, 0] - ref_logps[:, 1], beta, flipped)
        case "aot_unpaired":
            return _transport_loss(chosen, rejected, beta, flipped)
    raise AssertionError(name)


def _transport_loss(
    high: Float[Tensor, " G"], low: Float[Tensor, " G"], beta: float, flipped: float
) -> Float[Tensor, " G"]:
    # In one dimension, sorting both sides is the optimal transport of one onto the other.
    margin = beta * (high.sort().values - low.sort().values)
    return (1 - flipped) * _logistic(margin) + flipped * _logistic(-margin)


def _mean_difference(ratios: Float[Tensor, "G 2"], lengths: Int[Tensor, "G 2"] | None) -> Float[Tensor, " G"]:
    assert lengths is not None
    chosen, rejected = (ratios / lengths.to(ratios).clamp(min=1)).unbind(1)
    return chosen - rejected


def _finite(x: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
    most = torch.finfo(x.dtype).max
    return x.clamp(-most, most)


def _logistic(x: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
    return -functional.logsigmoid(x)


def _sigmoid(x: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
    # The backward of torch.sigmoid is y (1 - y): the gradient is 0 where y rounds to 1, from x = 17 on.
    return functional.logsigmoid(x).exp()


def _check_logps(logps: Float[Tensor, "*R"], ref_logps: Float[Tensor, "*R"], beta: float) -> None:
    check_wide("logps", logps)
    check_wide("ref_logps", ref_logps)
    if logps.shape != ref_logps.shape:
        raise InputError(
            f"expected logps and ref_logps of one shape, got {list(logps.shape)} and {list(ref_logps.shape)}; "
            "score the same responses under both policies"
        )
    if logps.dtype != ref_logps.dtype or logps.device != ref_logps.device:
        raise InputTypeError(
            f"expected logps and ref_logps of one dtype on one device, got {logps.dtype} on {logps.device} and "
            f"{ref_logps.dtype} on {ref_logps.device}; pass ref_logps.to(logps)"
        )
    _check_beta(beta)


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise InputError(f"expected a positive, finite beta, got {beta}; the paper's value is 0.1")


def _check_smoothing(smoothing: float, names: tuple[str, ...]) -> None:
    if smoothing and not _SMOOTHED_LOSSES.intersection(names):
        raise InputError(
            f"expected label_smoothing 0 for {', '.join(names)}, got {smoothing}; only "
            f"{', '.join(sorted(_SMOOTHED_LOSSES))} use it, and robust is sigmoid with smoothing"
        )
    # At these ends of the range robust divides by zero and exo_pair is infinite.
    high, zero = (0.5 if "robust" in names else 1), "exo_pair" not in names
    if not 0 <= smoothing < high or not (smoothing or zero):
        raise InputError(
            f"expected label_smoothing in {'[' if zero else '('}0, {high}) for {', '.join(names)}, got {smoothing}; "
            "the papers' values are 0.1 for robust and 1e-3 for exo_pair"
        )


def _check_lengths(lengths: Int[Tensor, "G R"] | None, logps: Float[Tensor, "G R"], names: tuple[str, ...]) -> None:
    if lengths is None:
        if users := ", ".join(sorted(LENGTH_LOSSES.intersection(names))):
            raise InputError(f"expected lengths for {users}, got none; pass the number of tokens of each response")
        return
    if lengths.shape != logps.shape:
        raise InputError(f"expected one length per entry of logps, {list(logps.shape)}, got {list(lengths.shape)}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise InputTypeError(f"expected int64 or int32 lengths, got {lengths.dtype}; call .long() on them")
    if may_read(lengths) and int(lengths.min()) < 0:
        raise InputError(f"expected lengths of 0 or more tokens, got {int(lengths.min())}; count the response tokens")


def _check_mask(mask: Bool[Tensor, "G R"], logps: Float[Tensor, "G R"]) -> Bool[Tensor, " G"]:
    if mask.dtype != torch.bool:
        raise InputTypeError(f"expected a bool mask, got {mask.dtype}; call .bool() on it")
    if mask.shape != logps.shape:
        raise InputError(
            f"expected a mask of the shape of logps, {list(logps.shape)}, got {list(mask.shape)}; "
            "True where a response exists"
        )
    valid = mask[:, 0] & mask[:, 1:].any(1)
    if may_read(mask) and not bool(valid.all()):
        raise InputError(
            "expected a chosen response (column 0) and at least one rejected one in every group, missing in groups "
            f"{(~valid).nonzero().flatten().tolist()[:10]}; drop these groups"
        )
    return valid
