"""Log-probs of tokens under an LM head, in plain PyTorch: the definition, the CPU path, the kernels' oracle.

Knows hidden states, a head and targets. Knows nothing of models, losses or speed. `mipo.loss` exports its functions.

Letters in types: T tokens (`*T`: any number of axes), D the width of a hidden state, V the words of a vocabulary, r the
rank of an adapter, N sequences.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mipo.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, Shaped

    Lora = tuple[Float[Tensor, "*T r"], Float[Tensor, "V r"]]


class TokenStatistics(NamedTuple):
    """Statistics of each target token under an LM head; every field has the shape of the targets."""

    logps: Float[Tensor, "*T"]
    """Log-prob of the target, nats; like all fields float32 (float64 for float64 inputs)."""
    entropy: Float[Tensor, "*T"]
    """Entropy of the distribution over the vocabulary, nats; differentiable."""
    mean_logits: Float[Tensor, "*T"]
    """Mean over the vocabulary of the logits after scale, softcap and temperature; without gradient."""
    log_sum_sq_probs: Float[Tensor, "*T"]
    """log sum_v p_v^2, minus the collision entropy, nats; without gradient."""
    is_top1: Bool[Tensor, "*T"]
    """bool: the target has the largest logit, and no earlier word of the vocabulary has the same."""


def token_statistics(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    lora: Lora | None = None,
) -> TokenStatistics:
    """Log-prob of each target token under an LM head, and the statistics that a trainer logs.

    Arguments and errors are those of `token_logps`; `logps` equals its result to the bit.
    """
    logits = _logits(hidden, weight, targets, bias, softcap, scale, temperature, lora)
    all_logps = logits.log_softmax(-1)
    return TokenStatistics(
        logps=_gather(all_logps, targets),
        entropy=-(all_logps.exp() * all_logps).sum(-1),
        mean_logits=logits.detach().mean(-1),
        log_sum_sq_probs=(2 * all_logps.detach()).logsumexp(-1),
        # argmax takes the first of equal logits: TRL's rule.
        is_top1=logits.argmax(-1) == targets,
    )


def token_logps(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    lora: Lora | None = None,
) -> Float[Tensor, "*T"]:
    """Log-prob of each target token under an LM head: the definition of `mipo.fused.linear_logps`.

    a = scale (hidden weight^T + down up^T + bias),  z = softcap tanh(a / softcap) / temperature  (z = a / temperature
    without a softcap),  result = z_target - logsumexp(z).  The order (scale, softcap, temperature) is TRL's.

    Args:
        hidden: [..., D], floating: final hidden states, each aligned with the token that it predicts.
        weight: [V, D], the dtype of `hidden`.
        targets: [...], int64, in [0, V).
        bias: [V], the dtype of `hidden`.
        softcap: > 0, logits; `None` means none.
        scale: multiplies the logits, not 0.
        temperature: divides them, > 0.
        lora: (down [..., r], up [V, r]), the dtype of `hidden`: for an adapter with weight' = weight + up A, down is
            hidden A^T times the adapter's scaling, with its dropout on that `hidden`.

    Returns:
        [...], nats, computed in float32 (float64 for float64 inputs). The logits [..., V] are materialised.

    Raises:
        InputTypeError, InputError: for other shapes, dtypes or options.
    """
    logits = _logits(hidden, weight, targets, bias, softcap, scale, temperature, lora)
    return _gather(logits.log_softmax(-1), targets)


def sequence_logps(logps: Float[Tensor, " T"], sequence_ids: Int64[Tensor, " T"], n: int) -> Float[Tensor, " N"]:
    """Log-prob of each of n sequences: the sum of the log-probs of its tokens, in any order.

    Args:
        logps: [T], float32 or float64, nats: one per response token.
        sequence_ids: [T], int64, in [0, n): the sequence each token belongs to, in any order.
        n: number of sequences; one without tokens gets 0.

    Returns:
        [n], nats, in the dtype of `logps`. On CUDA the order of the additions, and so the last bit, may vary from run
        to run, as in every `index_add`.

    Raises:
        InputTypeError, InputError: for other shapes and dtypes.
    """
    check_wide("logps", logps)
    if logps.ndim != 1 or logps.shape != sequence_ids.shape:
        raise InputError(
            f"expected logps and sequence_ids of one shape [tokens], got {list(logps.shape)} and "
            f"{list(sequence_ids.shape)}; select the response tokens first, logps[mask] and sequence_ids[mask]"
        )
    if sequence_ids.dtype != torch.int64:
        raise InputTypeError(f"expected int64 sequence_ids, got {sequence_ids.dtype}; call .long() on them")
    return logps.new_zeros(n).index_add(0, sequence_ids, logps)


def check_head(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    *,
    bias: Float[Tensor, " V"] | None,
    softcap: float | None,
    scale: float,
    temperature: float,
    lora: Lora | None = None,
) -> None:
    """Raises InputTypeError or InputError unless these are arguments of `token_logps`."""
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[-1]:
        raise InputError(
            f"expected hidden [..., D] and weight [V, D] with one D, got {list(hidden.shape)} and "
            f"{list(weight.shape)}; weight is the LM head's own `lm_head.weight`, not transposed"
        )
    if targets.shape != hidden.shape[:-1]:
        raise InputError(
            f"expected one target per hidden state, shape {list(hidden.shape[:-1])}, got {list(targets.shape)}; "
            "shift first: hidden[:, :-1] predicts ids[:, 1:]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"expected bias of shape {list(weight.shape[:1])}, got {list(bias.shape)}; pass lm_head.bias")
    if lora is not None:
        _check_lora(*lora, hidden, weight)
    dtypes = {t.dtype for t in (hidden, weight, bias, *(lora or ())) if t is not None}
    if len(dtypes) > 1 or not hidden.is_floating_point():
        raise InputTypeError(
            f"expected hidden, weight and bias in one floating dtype{' with lora' if lora else ''}, got "
            f"{sorted(map(str, dtypes))}; cast them, for example hidden.to(weight.dtype)"
        )
    _check_targets(targets, weight.shape[0])
    _check_options(softcap, scale, temperature)


def check_wide(name: str, logps: Float[Tensor, "..."]) -> None:
    """Raises InputTypeError unless the log-probs called `name` are float32 or float64."""
    # bfloat16 rounds a sum of hundreds of nats to the nearest nat or two, too coarse for a loss.
    if logps.dtype not in (torch.float32, torch.float64):
        raise InputTypeError(
            f"expected {name} in float32 or float64, got {logps.dtype}; call .float() on the token log-probs before "
            "summing them"
        )


def may_read(tensor: Shaped[Tensor, "..."]) -> bool:
    """Whether reading values is cheap: on an accelerator it would wait for all queued kernels."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.numel() > 0


def _logits(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    bias: Float[Tensor, " V"] | None,
    softcap: float | None,
    scale: float,
    temperature: float,
    lora: Lora | None,
) -> Float[Tensor, "*T V"]:
    check_head(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature, lora=lora)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if lora is not None:
        logits = logits + functional.linear(*(factor.to(dtype) for factor in lora))
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def _gather(all_logps: Float[Tensor, "*T V"], targets: Int64[Tensor, "*T"]) -> Float[Tensor, "*T"]:
    return all_logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _check_lora(
    down: Float[Tensor, "*T r"],
    up: Float[Tensor, "V r"],
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
) -> None:
    if up.ndim != 2 or up.shape[0] != weight.shape[0] or down.shape != (*hidden.shape[:-1], up.shape[1]):
        raise InputError(
            f"expected lora = (down {[*hidden.shape[:-1], 'r']}, up [{weight.shape[0]}, r]) with one r, got "
            f"{list(down.shape)} and {list(up.shape)}; up is `lora_B.weight`, down is scaling * lora_A(hidden)"
        )


def _check_targets(targets: Int64[Tensor, "*T"], vocabulary: int) -> None:
    if targets.dtype != torch.int64:
        raise InputTypeError(f"expected int64 targets, got {targets.dtype}; call .long() on them")
    if not may_read(targets):
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"expected targets in [0, {vocabulary}), got values from {low} to {high}; select the response tokens "
            "before the head instead of marking the others with -100"
        )


def _check_options(softcap: float | None, scale: float, temperature: float) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise InputError(f"expected a positive softcap or None, got {softcap}; for no softcap pass None")
    if scale == 0 or not -math.inf < scale < math.inf:
        raise InputError(f"expected a finite scale other than 0, got {scale}; for no scaling pass 1.0")
    if not 0 < temperature < math.inf:
        raise InputError(f"expected a positive temperature, got {temperature}; for no temperature pass 1.0")
