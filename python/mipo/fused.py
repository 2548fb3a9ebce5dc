"""LM heads without logits: log-probs and preference losses straight from hidden states, with fewer FLOPs than any peer.

This room knows the arguments and the choice of a mode; `kernels/` does the work and `mipo.loss` says what it must be.
It does not know models or trainers: select the hidden states of the response tokens before you come here.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mipo.kernels import linear_logps as logps_kernel  # type: ignore[attr-defined, unused-ignore]
from mipo.kernels import linear_preference_loss as loss_kernel  # type: ignore[attr-defined, unused-ignore]
from mipo.kernels.rows import Transform  # type: ignore[import-not-found, unused-ignore]
from mipo.logps import TokenStatistics, check_head
from mipo.loss import BATCH_LOSSES, check_losses, preference_loss

TILE_BYTES = 256 << 20
Lora = tuple[Tensor, Tensor]
Mode = Literal["M0", "M1", "M2", "M3", "M4"]


@overload
def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = ...,
    softcap: float | None = ...,
    scale: float = ...,
    temperature: float = ...,
    *,
    lora: Lora | None = ...,
    statistics: Literal[False] = ...,
    mode: Mode | None = ...,
    chunk_bytes: int | None = ...,
    logits_dtype: torch.dtype | None = ...,
) -> Tensor: ...
@overload
def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = ...,
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
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    *,
    lora: Lora | None = None,
    statistics: bool = False,
    mode: Mode | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> Tensor | TokenStatistics:
    """Log-prob of each target token under an LM head, in chunks; equals `mipo.loss.token_logps`.

    a = scale (hidden weight^T + bias),  z = softcap tanh(a / softcap) / temperature,  result = z_target - logsumexp(z).

    With T tokens and F = 2 T D V, the FLOPs of one product with the head, and bytes for bf16:

    | mode | what requires a gradient         | forward + backward | bytes beside inputs and gradients           |
    |------|----------------------------------|--------------------|---------------------------------------------|
    | M0   | nothing                          | F                  | `chunk_bytes`                               |
    | M1   | hidden: the head is frozen       | 2F + 0             | `chunk_bytes`, 2 T D until the backward     |
    | M3   | also the head; 2 T V fit         | F + 2F             | 2 T V until the backward, 2 T D             |
    | M4   | also the head; 2 T V do not fit  | F + 3F             | `chunk_bytes`, 8 T D in the backward        |

    Args:
        hidden: [..., D], floating: final hidden states, position t already aligned with the token it predicts.
        weight: [V, D], the dtype of `hidden`, or any under autocast.
        targets: [...], int64, in [0, V). On a CPU others raise; on a GPU, where looking would wait, they give NaN.
        bias: [V], the dtype of `weight`.
        softcap: > 0, logits; `None` means none.
        scale: multiplies the logits, not 0.
        temperature: divides them, > 0.
        lora: (down [..., r], up [V, r]) adds down up^T to hidden weight^T: LoRA on the head, where `up` is B and down =
            scaling dropout(hidden) A^T is yours to compute, so that A and hidden have their gradients of it.
        statistics: return all of `mipo.loss.TokenStatistics` instead of the log-probs alone. The gradient of the
            entropy projects once more, 2F to 4F, if it is ever asked for.
        mode: named here, or `None` to have it chosen as the table says. M1 needs a frozen head.
        chunk_bytes: budget for the logits held at any one time; more means fewer, larger products. `None` means 256 MiB
            and 4 T D, with a trained head also 2 V D: what TRL 1.16's head takes for one tile and what it casts.
        logits_dtype: dtype in which a chunk's logits wait for their log-sum-exp, which itself is always at least
            float32. `None` means float32 without gradients, where accuracy is nearly free, and the dtype of `hidden`
            with them. bfloat16 logits cost 0.02 to 0.35 nats on the sum of 200 tokens.

    Returns:
        [...], nats, float32 (float64 for float64 inputs). Differentiable once in hidden, weight, bias and lora.

    Raises:
        TypeError, ValueError: on shapes, dtypes or options other than these.
    """
    hidden, weight, bias, lora = _autocast(hidden, weight, bias, lora)
    check_head(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature, lora=lora)
    logits_dtype = _logits_dtype(logits_dtype, hidden, weight, bias, lora)
    head_trained = _trained(weight, bias, lora[1] if lora else None)
    budget = _budget(chunk_bytes, hidden, weight, head_trained)
    if mode is None and head_trained:
        mode = "M3" if _logit_bytes(hidden, weight, logits_dtype) <= budget else "M4"
    mode = _checked_mode(mode, head_trained, _trained(hidden, lora[0] if lora else None))
    logps, entropy, others = logps_kernel.linear_logps(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        bias,
        None if lora is None else (lora[0].reshape(-1, lora[0].shape[-1]), lora[1]),
        Transform(scale, softcap, temperature),
        logits_dtype=logits_dtype,
        chunk_bytes=budget,
        mode=mode,
        statistics=statistics,
    )
    if not statistics:
        return logps.reshape(targets.shape)  # type: ignore[no-any-return]
    return _statistics(logps, entropy, others, targets.shape)


class PreferenceOutput(NamedTuple):
    """What `linear_preference_loss` returns; only `loss` has a gradient."""

    loss: Tensor
    """[], the mean over the groups."""
    losses: Tensor
    """[G]."""
    logps: Tensor
    """[G, K+1], nats: log-probs of whole responses, 0 where a group has no such response."""
    statistics: TokenStatistics | None
    """[T] each, if asked for."""


def linear_preference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lengths: Tensor,
    ref_logps: Tensor,
    bias: Tensor | None = None,
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

    Equals the mean of `mipo.loss.preference_loss` over the sums of `mipo.loss.token_logps`. In mode M2 every gradient
    is made in the forward, chunk by chunk of whole groups, so that nothing is projected twice; a group that does not
    fit `chunk_bytes` by itself is, by slices of words, F more for its tokens.

    | mode   | when                                           | FLOPs  | bytes beside inputs and gradients, bf16    |
    |--------|------------------------------------------------|--------|--------------------------------------------|
    | M0     | nothing requires a gradient                    | F      | `chunk_bytes`                              |
    | M1     | the head is frozen                             | 2F     | `chunk_bytes`, 2 T D                       |
    | M2     | the head is trained                            | 3F     | `chunk_bytes`, + 4 V D if several chunks   |
    | M3, M4 | the head is trained, a loss is that of a batch | 3F, 4F | as in `linear_logps`                       |

    Args:
        hidden: [T, D]: final hidden states of the response tokens alone, no padding, each aligned with the token it
            predicts; all tokens of the first group's chosen response, then of its rejected ones, then the next group's.
        weight: [V, D], the dtype of `hidden`, or any under autocast.
        targets: [T], int64: the response tokens.
        lengths: [G, K+1], int64: how many tokens each response has, chosen first; 0 where a group has fewer than K
            rejected ones. Kept on the CPU: elsewhere, reading it waits for the device.
        ref_logps: [G, K+1], nats, at least float32: log-probs of the responses under the reference; anything where
            there is none.
        bias, softcap, scale, temperature, lora, chunk_bytes, logits_dtype: see `linear_logps`.
        beta, loss_type, loss_weights, label_smoothing, discopop_tau: see `mipo.loss.preference_loss`.
        statistics: also return those of every token, detached.
        mode: named here, or `None` to have it chosen as the table says.

    Raises:
        TypeError, ValueError: on shapes, dtypes or options other than these.
    """
    hidden, weight, bias, lora = _autocast(hidden, weight, bias, lora)
    check_head(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature, lora=lora)
    lengths = _checked_lengths(lengths.cpu(), ref_logps, targets)
    options = {"beta": beta, "label_smoothing": label_smoothing, "discopop_tau": discopop_tau}
    names, weights = check_losses(loss_type, loss_weights, **options, negatives=lengths.shape[1] - 1)
    logits_dtype = _logits_dtype(logits_dtype, hidden, weight, bias, lora)
    ref_logps = ref_logps.to(torch.promote_types(logits_dtype, torch.float32))
    head_trained = _trained(weight, bias, lora[1] if lora else None)
    of_a_batch = BATCH_LOSSES.intersection(names)
    if mode == "M2" and (of_a_batch or not head_trained):
        why = (
            f"{', '.join(sorted(of_a_batch))} are losses of a batch" if of_a_batch else "the head requires no gradient"
        )
        raise ValueError(f"expected another mode than M2, or None to have it chosen: {why}")
    if mode != "M2" and (mode or of_a_batch or not head_trained):
        scored = linear_logps(
            hidden, weight, targets, bias, softcap, scale, temperature, lora=lora, statistics=True, mode=mode,
            chunk_bytes=chunk_bytes, logits_dtype=logits_dtype,
        )  # fmt: skip
        logps, on_device = _response_sums(scored.logps, lengths), lengths.to(hidden.device, non_blocking=True)
        losses = preference_loss(
            logps, ref_logps, mask=on_device > 0, loss_type=names, loss_weights=weights, lengths=on_device, **options
        )
        seen = TokenStatistics(*(x.detach() for x in scored)) if statistics else None
        return PreferenceOutput(losses.mean(), losses.detach(), logps.detach(), seen)
    loss, losses, logps, token_logps, entropy, others = loss_kernel.linear_preference_loss(
        hidden, weight, targets, lengths, ref_logps, bias, lora, Transform(scale, softcap, temperature), **options,
        loss_types=names, loss_weights=weights, logits_dtype=logits_dtype,
        chunk_bytes=_budget(chunk_bytes, hidden, weight, head_trained), statistics=statistics,
    )  # fmt: skip
    seen = _statistics(token_logps, entropy, others, targets.shape) if statistics else None
    return PreferenceOutput(loss, losses, logps, seen)


class FusedPreferenceLoss(nn.Module):
    """`linear_preference_loss` with its options set once; the arguments are described there.

    It has no parameters: the head's weight comes in with every call, so that it may be sharded, tied or wrapped.
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
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        lengths: Tensor,
        ref_logps: Tensor,
        bias: Tensor | None = None,
        lora: Lora | None = None,
    ) -> PreferenceOutput:
        """Hidden [T, D], weight [V, D], targets [T], lengths and ref_logps [G, K+1], bias [V]."""
        return linear_preference_loss(hidden, weight, targets, lengths, ref_logps, bias, lora=lora, **self.options)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


def _autocast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None
) -> tuple[Tensor, Tensor, Tensor | None, Lora | None]:
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias, lora
    dtype = torch.get_autocast_dtype(device)
    return (
        hidden.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        None if lora is None else (lora[0].to(dtype), lora[1].to(dtype)),
    )


def _budget(chunk_bytes: int | None, hidden: Tensor, weight: Tensor, head_trained: bool) -> int:
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"expected a positive chunk_bytes, got {chunk_bytes}; leave it out to have it chosen")
    if chunk_bytes is not None:
        return chunk_bytes
    return TILE_BYTES + 4 * hidden.numel() + head_trained * weight.numel() * weight.itemsize


def _logits_dtype(
    wanted: torch.dtype | None, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: Lora | None
) -> torch.dtype:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if wanted is None:
        return hidden.dtype if _trained(hidden, weight, bias, *(lora or ())) else wide
    if wanted not in (hidden.dtype, wide):
        raise TypeError(
            f"expected logits_dtype to be {hidden.dtype}, the dtype of hidden, or float32, got {wanted}; "
            "leave it out to have it chosen"
        )
    return wanted


def _trained(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _logit_bytes(hidden: Tensor, weight: Tensor, logits_dtype: torch.dtype) -> int:
    """Of all tokens, with their G."""
    separate = logits_dtype != weight.dtype
    return hidden[..., 0].numel() * len(weight) * (logits_dtype.itemsize + separate * weight.itemsize)


def _checked_mode(mode: Mode | None, head_trained: bool, hidden_trained: bool) -> Mode:
    """The mode of `linear_logps`, or the cheapest one that gives what is trained its gradient."""
    able: tuple[Mode, ...] = ("M3", "M4") if head_trained else ("M1", "M3", "M4")
    able = able if head_trained or hidden_trained else ("M0", *able)
    if mode is not None and mode not in able:
        trained = "the head requires" if head_trained else "hidden requires" if hidden_trained else "nothing requires"
        raise ValueError(f"expected mode None or one of {', '.join(able)}, got {mode!r}: {trained} a gradient")
    return mode or able[0]


def _checked_lengths(lengths: Tensor, ref_logps: Tensor, targets: Tensor) -> Tensor:
    if lengths.ndim != 2 or lengths.shape[0] < 1 or lengths.shape[1] < 2 or ref_logps.shape != lengths.shape:
        raise ValueError(
            "expected lengths and ref_logps [groups, 1 + negatives] with at least one group and one negative, got "
            f"{list(lengths.shape)} and {list(ref_logps.shape)}; one row a group, the chosen response in column 0"
        )
    if lengths.dtype != torch.int64:
        raise TypeError(f"expected int64 lengths, got {lengths.dtype}; call .long() on them")
    if ref_logps.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"expected ref_logps in float32 or float64, got {ref_logps.dtype}; sum the log-probs in float32"
        )
    if ref_logps.requires_grad:
        raise ValueError("expected ref_logps without a gradient: the reference is not trained; call .detach() on them")
    if targets.ndim != 1:
        raise ValueError(
            f"expected packed targets [tokens], got {list(targets.shape)}; select the response tokens first"
        )
    if torch.compiler.is_compiling():
        return lengths
    if int(lengths.sum()) != len(targets) or int(lengths.min()) < 0:
        raise ValueError(
            f"expected lengths that add up to the {len(targets)} tokens, got {int(lengths.sum())}, the least "
            f"{int(lengths.min())}; count the response tokens that are in targets"
        )
    impossible = (lengths[:, 0] == 0) | (lengths[:, 1:].sum(1) == 0)
    if bool(impossible.any()):
        raise ValueError(
            "expected a chosen response (column 0) and at least one rejected one in every group, missing in groups "
            f"{impossible.nonzero().flatten().tolist()[:10]}; drop these groups"
        )
    return lengths


def _response_sums(logps: Tensor, lengths: Tensor) -> Tensor:
    """[G, K+1] from [T]; unlike an index_add in the same order, so with the same bits, on every device."""
    on_device = lengths.flatten().to(logps.device, non_blocking=True)
    return torch.segment_reduce(logps, "sum", lengths=on_device, unsafe=True).view_as(lengths)


def _statistics(logps: Tensor, entropy: Tensor, others: Tensor, shape: torch.Size) -> TokenStatistics:
    mean_logits, log_sum_sq_probs, is_top1 = others
    return TokenStatistics(*(x.reshape(shape) for x in (logps, entropy, mean_logits, log_sum_sq_probs, is_top1 != 0)))
