"""The preference loss and the log-probs under it, in plain PyTorch: the definition, the CPU path, the kernels' oracle.

This room knows tensors of log-probs and an LM head. It does not know models, tokenizers, trainers, or how to be fast.
"""

import math

import torch
from torch import BoolTensor, Tensor
from torch.nn import functional


def preference_loss(
    logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1, mask: BoolTensor | Tensor | None = None
) -> Tensor:
    """Cross-entropy of the chosen response against K rejected ones, by implicit reward; K = 1 is DPO.

    s_k = beta (logps_k - ref_logps_k),  loss = -log softmax(s)_0,  d loss / d logps_k = beta (softmax(s)_k - [k = 0]).

    With one rejected response this is DPO's -logsigmoid(s_0 - s_1) to the bit, forward and backward. The loss bounds
    the mutual information from below: I >= log(K + 1) - loss (method.md).

    Args:
        logps: [G, K+1], float32 or float64, nats: log-probs of whole responses (sums over response tokens) under the
            policy. Column 0 is the chosen response of a group, the others are its rejected ones.
        ref_logps: [G, K+1], the same under the reference policy.
        beta: inverse temperature of the implicit reward, > 0.
        mask: [G, K+1], bool; False means that this group has no such rejected response, and what stands there is
            ignored. Column 0 and at least one other column of every group must be True.

    Returns:
        [G], nats, one loss per group; not averaged.

    Raises:
        TypeError, ValueError: on other dtypes, shapes or an impossible mask. Reading a mask on an accelerator would
            wait for it, so there the loss of a group whose mask is impossible is NaN instead.
    """
    _check_logps(logps, ref_logps, beta)
    if logps.ndim != 2 or logps.shape[1] < 2:
        raise ValueError(
            f"expected logps of shape [groups, 1 + negatives] with at least one negative, got {list(logps.shape)}; "
            "put the chosen response in column 0 and the rejected ones beside it"
        )
    ratios = logps - ref_logps
    # Rejected minus chosen, scaled after the subtraction: the order of DPO, so that K = 1 gives its bits.
    deficits = -(beta * (ratios[:, :1] - ratios[:, 1:]))
    if mask is None:
        return -functional.logsigmoid(-_logsumexp(deficits))
    possible = _check_mask(mask, logps)
    deficits = deficits.masked_fill(~mask[:, 1:], -math.inf)
    return (-functional.logsigmoid(-_logsumexp(deficits))).masked_fill(~possible, math.nan)


def implicit_rewards(logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """Reward that the policy assigns without saying so: r = beta (logps - ref_logps), up to a constant per prompt.

    Takes and returns tensors of one shape, float32 or float64, nats; see `preference_loss` for the arguments.
    """
    _check_logps(logps, ref_logps, beta)
    return beta * (logps - ref_logps)


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Log-prob of each target token under an LM head: what `mipo.fused.linear_logps` computes, without its economy.

    a = scale (hidden weight^T + bias),  z = softcap tanh(a / softcap) / temperature  (z = a / temperature without a
    softcap),  result = z_target - logsumexp(z).  This is TRL's order: scale, softcap, temperature.

    Args:
        hidden: [..., D], floating: final hidden states, position t already aligned with the token it predicts.
        weight: [V, D], the dtype of `hidden`.
        targets: [...], int64, in [0, V).
        bias: [V], the dtype of `hidden`.
        softcap: > 0, logits; `None` means none.
        scale: multiplies the logits, not 0.
        temperature: divides them, > 0.

    Returns:
        [...], nats, computed in float32 (float64 for float64 inputs). The logits [..., V] are materialised.

    Raises:
        TypeError, ValueError: on shapes, dtypes or options other than these.
    """
    check_head(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits / temperature).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def sequence_logps(logps: Tensor, sequence_ids: Tensor, n: int) -> Tensor:
    """Log-prob of each of n sequences: the sum of its tokens' log-probs, wherever they stand.

    Args:
        logps: [T], float32 or float64, nats: one per response token.
        sequence_ids: [T], int64, in [0, n): the sequence each token belongs to, in any order.
        n: number of sequences; one without tokens gets 0.

    Returns:
        [n], nats, in the dtype of `logps`. On CUDA the order of the additions, so the last bit, may vary from run to
        run, as with any `index_add`.

    Raises:
        TypeError, ValueError: on shapes and dtypes other than these.
    """
    _check_wide("logps", logps)
    if logps.ndim != 1 or logps.shape != sequence_ids.shape:
        raise ValueError(
            f"expected logps and sequence_ids of one shape [tokens], got {list(logps.shape)} and "
            f"{list(sequence_ids.shape)}; select the response tokens first, logps[mask] and sequence_ids[mask]"
        )
    if sequence_ids.dtype != torch.int64:
        raise TypeError(f"expected int64 sequence_ids, got {sequence_ids.dtype}; call .long() on them")
    return logps.new_zeros(n).index_add(0, sequence_ids, logps)


def check_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    temperature: float,
) -> None:
    """Raise TypeError or ValueError unless these are arguments of an LM head as `token_logps` describes them."""
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"expected hidden [..., D] and weight [V, D] with one D, got {list(hidden.shape)} and "
            f"{list(weight.shape)}; weight is the LM head's own `lm_head.weight`, not transposed"
        )
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"expected one target per hidden state, shape {list(hidden.shape[:-1])}, got {list(targets.shape)}; "
            "shift first: hidden[:, :-1] predicts ids[:, 1:]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias of shape {list(weight.shape[:1])}, got {list(bias.shape)}; pass lm_head.bias")
    dtypes = {hidden.dtype, weight.dtype} | (set() if bias is None else {bias.dtype})
    if len(dtypes) > 1 or not hidden.is_floating_point():
        raise TypeError(
            f"expected hidden, weight and bias in one floating dtype, got {sorted(map(str, dtypes))}; "
            "cast them, for instance hidden.to(weight.dtype)"
        )
    _check_targets(targets, weight.shape[0])
    _check_options(softcap, scale, temperature)


def _logsumexp(rows: Tensor) -> Tensor:
    # torch.logsumexp takes its gradient as exp(x - result), and at a result of 1e4 in fp32 the rounding of the result
    # alone is worth 5e-4. Here x - peak is small where it matters, and one column still gives itself to the bit.
    peak = rows.detach().amax(1, keepdim=True)
    return peak.squeeze(1) + (rows - peak).exp().sum(1).log()


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    if targets.dtype != torch.int64:
        raise TypeError(f"expected int64 targets, got {targets.dtype}; call .long() on them")
    # Only where reading costs nothing: on an accelerator it would wait for every kernel queued before.
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or targets.numel() == 0:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"expected targets in [0, {vocabulary}), got values from {low} to {high}; select the response tokens "
            "before the head instead of marking the others with -100"
        )


def _check_options(softcap: float | None, scale: float, temperature: float) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"expected a positive softcap or None, got {softcap}; for no softcap pass None")
    if scale == 0 or not math.isfinite(scale):
        raise ValueError(f"expected a finite scale other than 0, got {scale}; for no scaling pass 1.0")
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected a positive temperature, got {temperature}; for no temperature pass 1.0")


def _check_logps(logps: Tensor, ref_logps: Tensor, beta: float) -> None:
    _check_wide("logps", logps)
    _check_wide("ref_logps", ref_logps)
    if logps.shape != ref_logps.shape:
        raise ValueError(
            f"expected logps and ref_logps of one shape, got {list(logps.shape)} and {list(ref_logps.shape)}; "
            "score the same responses under both policies"
        )
    if logps.dtype != ref_logps.dtype or logps.device != ref_logps.device:
        raise TypeError(
            f"expected logps and ref_logps of one dtype on one device, got {logps.dtype} on {logps.device} and "
            f"{ref_logps.dtype} on {ref_logps.device}; pass ref_logps.to(logps)"
        )
    if not 0 < beta < math.inf:
        raise ValueError(f"expected a positive, finite beta, got {beta}; the paper's value is 0.1")


def _check_wide(name: str, logps: Tensor) -> None:
    # A sum of hundreds of nats in bfloat16 is known to the nearest nat or two: no loss can be made of that.
    if logps.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"expected {name} in float32 or float64, got {logps.dtype}; call .float() on the token log-probs before "
            "summing them"
        )


def _check_mask(mask: Tensor, logps: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a bool mask, got {mask.dtype}; call .bool() on it")
    if mask.shape != logps.shape:
        raise ValueError(
            f"expected a mask of the shape of logps, {list(logps.shape)}, got {list(mask.shape)}; "
            "True where a response exists"
        )
    possible = mask[:, 0] & mask[:, 1:].any(1)
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(possible.all()):
        raise ValueError(
            "expected a chosen response (column 0) and at least one rejected one in every group, missing in groups "
            f"{(~possible).nonzero().flatten().tolist()[:10]}; drop these groups"
        )
    return possible
