"""Operators: log-probs and losses from hidden states and an LM head, piece by piece, in the FLOPs of stored logits.

`arguments.py` checks what is given, `kernels/` computes, and `mipo.loss` defines the results. Knows nothing of models
or trainers: callers select the hidden states of the response tokens.

Letters in types: T tokens, D the width of a hidden state, V words, r the rank of an adapter, G groups of R = K + 1
responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mipo.errors import InputError, InputTypeError
from mipo.fused.arguments import CheckedHead, Mode, check_arguments
from mipo.kernels import linear_preference_loss as loss_kernel  # type: ignore[attr-defined, unused-ignore]
from mipo.kernels.linear_preference_loss import Objective  # type: ignore[import-not-found, unused-ignore]
from mipo.kernels.row_state import Transform  # type: ignore[import-not-found, unused-ignore]
from mipo.loss.logps import TokenStatistics
from mipo.loss.preference import BATCH_LOSSES, check_losses, preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    from mipo.fused.arguments import Lora


@overload
def linear_logps(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    bias: Float[Tensor, " V"] | None = ...,
    softcap: float | None = ...,
    scale: float = ...,
    temperature: float = ...,
    *,
    lora: Lora | None = ...,
    statistics: Literal[False] = ...,
    mode: Mode | None = ...,
    chunk_bytes: int | None = ...,
    logits_dtype: torch.dtype | None = ...,
) -> Float[Tensor, "*T"]: ...
@overload
def linear_logps(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    bias: Float[Tensor, " V"] | None = ...,
    softcap: float | None = ...,
    scale: float = ...,
    temperature: float = ...,
    *,
    lora: Lora | None = ...,
    statistics: Literal[True],
    mode: Mode | None = ...,
    chunk_bytes: int | None = ...,
    logits_dtype: torch.dtype | None = ...,
) -> TokenStatistics: ...
def linear_logps(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    *,
    lora: Lora | None = None,
    statistics: bool = False,
    mode: Mode | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> Float[Tensor, "*T"] | TokenStatistics:
    """Log-prob of each target token under an LM head, in chunks; equals `mipo.loss.token_logps`.

    a = scale (hidden weight^T + bias),  z = softcap tanh(a / softcap) / temperature,  result = z_target - logsumexp(z).

    With T tokens, F = 2 T D V (the FLOPs of one product with the head) and bytes in bf16:

    | mode | what requires a gradient         | forward + backward | bytes besides inputs and gradients          |
    |------|----------------------------------|--------------------|---------------------------------------------|
    | M0   | nothing                          | F                  | `chunk_bytes`                               |
    | M1   | hidden: the head is frozen       | 2F + 0             | `chunk_bytes`, 2 T D until the backward     |
    | M3   | also the head; 2 T V fit         | F + 2F             | 2 T V until the backward, 2 T D             |
    | M4   | also the head; 2 T V do not fit  | F + 2F to 3F       | `chunk_bytes`, 6 T D in the backward        |

    Args:
        hidden: [..., D], floating: final hidden states, each aligned with the token that it predicts.
        weight: [V, D], the dtype of `hidden`, or any under autocast; its gradient is never rounded to a narrower one.
        targets: [...], int64, in [0, V). Others raise on a CPU, and give NaN on a GPU, where a check would wait.
        bias: [V], the dtype of `weight`.
        softcap: > 0, logits; `None` means none.
        scale: multiplies the logits, not 0.
        temperature: divides them, > 0.
        lora: (down [..., r], up [V, r]) adds down up^T to hidden weight^T: LoRA on the head. `up` is B; the caller
            computes down = scaling dropout(hidden) A^T, so that A and hidden get their gradients.
        statistics: return `mipo.loss.TokenStatistics` instead of the log-probs alone. A backward through the entropy
            projects once more: 4F in all.
        mode: one of the table; `None` chooses it as the table says. M1 needs a frozen head.
        chunk_bytes: budget for the logits held at a time; a larger one means fewer, larger products. `None` means
            what makes the whole head take no more than TRL 1.16's: its tile of 4,096 tokens by 32,768 words, and with
            a trained head (or bias, or LoRA) also its 4 T D + 2 V D for sums and casts.
        logits_dtype: dtype of a chunk's logits until their log-sum-exp, which is always at least float32. `None` means
            float32 without gradients, where accuracy is nearly free, and the dtype of `hidden` with them. bfloat16
            logits cost 0.02 to 0.6 nats on the sum of 200 tokens. Name one dtype for a policy and its reference if
            they must start equal: to the bit if all logits fit, or if the head is frozen and the logits have the dtype
            of `hidden`; else to the order of sums.

    Returns:
        [...], nats, float32 (float64 for float64 inputs). Differentiable once in hidden, weight, bias and lora.

    Raises:
        InputTypeError, InputError: for other shapes, dtypes or options.
    """
    head = check_arguments(
        hidden, weight, targets, bias, lora, Transform(scale, softcap, temperature), chunk_bytes, logits_dtype
    )
    logps, entropy, others = head.score(mode, statistics)
    if not statistics:
        return logps.reshape(targets.shape)
    return _statistics(logps, entropy, others, targets.shape)


class PreferenceOutput(NamedTuple):
    """The result of `linear_preference_loss`; only `loss` has a gradient."""

    loss: Float[Tensor, ""]
    """[], the mean of `losses`."""
    losses: Float[Tensor, " G"]
    """[G], the loss of each group."""
    logps: Float[Tensor, "G R"]
    """[G, R], nats: log-probs of whole responses, 0 where a group has no such response."""
    statistics: TokenStatistics | None
    """[T] each, with `statistics=True`."""


def linear_preference_loss(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, " T"],
    lengths: Int64[Tensor, "G R"],
    ref_logps: Float[Tensor, "G R"],
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    *,
    beta: float = 0.1,
    loss_type: str | Sequence[str] = "sigmoid",
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    lora: Lora | None = None,
    statistics: bool = False,
    mode: Mode | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> PreferenceOutput:
    """The preference loss of packed groups of responses from their hidden states, 3F with a trained head.

    Equals the mean of `mipo.loss.preference_loss` over the sums of `mipo.loss.token_logps`. In mode M2 the forward
    computes every gradient, in chunks of whole groups, so that nothing is projected twice. The exception is a group
    that alone exceeds `chunk_bytes`: it goes through slices of words, for F more on its tokens.

    | mode | when                                                  | FLOPs | bytes besides inputs and gradients, bf16 |
    |------|-------------------------------------------------------|-------|------------------------------------------|
    | M0   | nothing requires a gradient                           | F     | `chunk_bytes`                            |
    | M1   | the head is frozen                                    | 2F    | `chunk_bytes`, 2 T D                     |
    | M3   | the head is trained, its logits fit                   | 3F    | 2 T V until the backward, 2 T D          |
    | M2   | they do not fit                                       | 3F    | `chunk_bytes`, 4 V D                     |
    | M4   | they do not fit, and a loss needs the batch, or float16 | 3F to 4F | `chunk_bytes`, 6 T D                |

    Args:
        hidden: [T, D]: final hidden states of the response tokens alone, without padding, each aligned with the token
            that it predicts: the chosen response of the first group, its rejected ones, then the next group.
        weight: [V, D], the dtype of `hidden`, or any under autocast.
        targets: [T], int64: the response tokens.
        lengths: [G, R], int64: the number of tokens of each response, chosen first; 0 where a group has fewer than K
            rejected ones. Keep it on the CPU: reading it elsewhere waits for the device.
        ref_logps: [G, R], nats, at least float32: log-probs of the responses under the reference; any value where
            there is no response.
        bias, softcap, scale, temperature, lora, chunk_bytes, logits_dtype: see `linear_logps`.
        beta, loss_type, loss_weights, label_smoothing, discopop_tau: see `mipo.loss.preference_loss`.
        statistics: also return those of every token, detached.
        mode: one of the table; `None` chooses it as the table says.

    Raises:
        InputTypeError, InputError: for other shapes, dtypes or options.
    """
    options: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing, "discopop_tau": discopop_tau}
    names, weights = check_losses(loss_type, loss_weights, **options)
    inside = mode in (None, "M2") and BATCH_LOSSES.isdisjoint(names)
    transform = Transform(scale, softcap, temperature)
    head = check_arguments(hidden, weight, targets, bias, lora, transform, chunk_bytes, logits_dtype, inside=inside)
    lengths = _checked_lengths(lengths, ref_logps, targets)
    check_losses(names, weights, **options, negatives=lengths.shape[1] - 1)
    ref_logps = ref_logps.to(torch.promote_types(head.inputs.logits_dtype, torch.float32))
    if mode == "M2" and not torch.is_grad_enabled():
        mode = None  # a trainer passes its mode in evaluation too
    if _is_m2(mode, names, head):
        objective = Objective(lengths, ref_logps, ",".join(names), list(weights), **options)
        loss, losses, sums, logps, entropy, others = loss_kernel.linear_preference_loss(
            head.inputs, objective, statistics=statistics
        )
    else:
        logps, entropy, others = head.score(mode, statistics)
        on_device = lengths.to(logps.device, non_blocking=True)
        # Unlike index_add, segment_reduce adds in one order, so the bits repeat.
        sums = torch.segment_reduce(logps, "sum", lengths=on_device.flatten(), unsafe=True).view_as(lengths)
        losses = preference_loss(
            sums, ref_logps, mask=on_device > 0, loss_type=names, loss_weights=weights, lengths=on_device, **options
        )
        loss = losses.mean()
    token_statistics = _statistics(logps.detach(), entropy.detach(), others, targets.shape) if statistics else None
    return PreferenceOutput(loss, losses.detach(), sums.detach(), token_statistics)


class FusedPreferenceLoss(nn.Module):
    """`linear_preference_loss` as a module that holds all its options but `mode`; see there for the arguments.

    It has no parameters: every call takes the head's weight, so the head may be sharded, tied or wrapped.
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        loss_type: str | Sequence[str] = "sigmoid",
        loss_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
        softcap: float | None = None,
        scale: float = 1.0,
        temperature: float = 1.0,
        statistics: bool = False,
        chunk_bytes: int | None = None,
        logits_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_losses(loss_type, loss_weights, beta=beta, label_smoothing=label_smoothing, discopop_tau=discopop_tau)
        self.options: dict[str, Any] = {
            "beta": beta, "loss_type": loss_type, "loss_weights": loss_weights, "label_smoothing": label_smoothing,
            "discopop_tau": discopop_tau, "softcap": softcap, "scale": scale, "temperature": temperature,
            "statistics": statistics, "chunk_bytes": chunk_bytes, "logits_dtype": logits_dtype,
        }  # fmt: skip

    def forward(
        self,
        hidden: Float[Tensor, "T D"],
        weight: Float[Tensor, "V D"],
        targets: Int64[Tensor, " T"],
        lengths: Int64[Tensor, "G R"],
        ref_logps: Float[Tensor, "G R"],
        bias: Float[Tensor, " V"] | None = None,
        lora: Lora | None = None,
    ) -> PreferenceOutput:
        """Hidden [T, D], weight [V, D], targets [T], lengths and ref_logps [G, R], bias [V]."""
        return linear_preference_loss(hidden, weight, targets, lengths, ref_logps, bias, lora=lora, **self.options)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


def _is_m2(mode: Mode | None, names: Sequence[str], head: CheckedHead) -> bool:
    """Whether to use mode M2: one operator for the loss and its gradients."""
    batch_losses = sorted(BATCH_LOSSES.intersection(names))
    if mode == "M2" and (batch_losses or not head.trained):
        why = f"{', '.join(batch_losses)} need the whole batch" if batch_losses else "the head requires no gradient"
        raise InputError(f"expected another mode than M2, or None for the default: {why}")
    # Where G of all tokens fits, M3 takes no more FLOPs, and no second copy of the gradients in the backward. float16
    # needs its gradients computed after the loss is scaled.
    default = head.trained and not batch_losses and not head.fits and head.inputs.hidden.dtype != torch.float16
    return mode == "M2" or (mode is None and default)


def _checked_lengths(
    lengths: Int64[Tensor, "G R"], ref_logps: Float[Tensor, "G R"], targets: Int64[Tensor, " T"]
) -> Int64[Tensor, "G R"]:
    if lengths.ndim != 2 or lengths.shape[0] < 1 or lengths.shape[1] < 2 or ref_logps.shape != lengths.shape:
        raise InputError(
            "expected lengths and ref_logps [groups, 1 + negatives] with at least one group and one negative, got "
            f"{list(lengths.shape)} and {list(ref_logps.shape)}; one row per group, the chosen response in column 0"
        )
    if lengths.dtype != torch.int64:
        raise InputTypeError(f"expected int64 lengths, got {lengths.dtype}; call .long() on them")
    if ref_logps.dtype not in (torch.float32, torch.float64):
        raise InputTypeError(
            f"expected ref_logps in float32 or float64, got {ref_logps.dtype}; sum the log-probs in float32"
        )
    if ref_logps.device != targets.device:
        raise InputTypeError(
            f"expected ref_logps on {targets.device}, got them on {ref_logps.device}; move them there first"
        )
    if ref_logps.requires_grad:
        raise InputError("expected ref_logps without a gradient: the reference is not trained; call .detach() on them")
    if targets.ndim != 1:
        raise InputError(
            f"expected packed targets [tokens], got {list(targets.shape)}; select the response tokens first"
        )
    checked: Tensor = loss_kernel.checked_lengths_op(lengths.cpu(), targets.shape[0])
    return checked


def _statistics(
    logps: Float[Tensor, " T"], entropy: Float[Tensor, " T"], others: Float[Tensor, "3 T"], shape: torch.Size
) -> TokenStatistics:
    mean_logits, log_sum_sq_probs, is_top1 = others
    return TokenStatistics(*(x.reshape(shape) for x in (logps, entropy, mean_logits, log_sum_sq_probs, is_top1 != 0)))
