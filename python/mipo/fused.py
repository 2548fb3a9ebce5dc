"""LM heads without logits: log-probs of tokens straight from hidden states, at a fraction of the memory and the FLOPs.

This room knows the arguments and the choice of a mode; `kernels/` does the work and `mipo.loss` says what it must be.
It does not know models or trainers: select the hidden states of the response tokens before you come here.
"""

import torch
from torch import Tensor

from mipo.kernels import linear_logps as kernel  # type: ignore[attr-defined, unused-ignore]
from mipo.loss import check_head


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    *,
    chunk_bytes: int = 2 << 30,
    logits_dtype: torch.dtype | None = None,
) -> Tensor:
    """Log-prob of each target token under an LM head, in chunks of tokens; equals `mipo.loss.token_logps`.

    a = scale (hidden weight^T + bias),  z = softcap tanh(a / softcap) / temperature,  result = z_target - logsumexp(z).

    With T tokens and F = 2 T D V, the multiplications of one product with the head, and bytes for bf16:

    | what requires a gradient | FLOPs forward + backward | bytes beside inputs and gradients              |
    |--------------------------|--------------------------|------------------------------------------------|
    | nothing                  | F                        | `chunk_bytes`                                  |
    | hidden                   | 2F + 0                   | `chunk_bytes`, then 2 T D until the backward   |
    | hidden and weight        | 2F + 2F                  | the same, and 4 V D if more than one chunk     |
    | weight                   | F + 2F                   | `chunk_bytes`, and 4 V D if more than one chunk|

    Args:
        hidden: [..., D], floating: final hidden states, position t already aligned with the token it predicts.
        weight: [V, D], the dtype of `hidden`, or any under autocast.
        targets: [...], int64, in [0, V). On a CPU others raise; on a GPU, where looking would wait, they give NaN.
        bias: [V], the dtype of `weight`.
        softcap: > 0, logits; `None` means none.
        scale: multiplies the logits, not 0.
        temperature: divides them, > 0.
        chunk_bytes: budget for the logits held at any one time; more means fewer, larger products.
        logits_dtype: dtype in which a chunk's logits wait for their log-sum-exp, which itself is always at least
            float32. `None` means float32 without gradients, where accuracy is nearly free, and the dtype of `hidden`
            with them. bfloat16 logits cost 0.02 to 0.35 nats on the sum of 200 tokens.

    Returns:
        [...], nats, float32 (float64 for float64 inputs). Differentiable once in hidden, weight and bias.

    Raises:
        TypeError, ValueError: on shapes, dtypes or options other than these.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check_head(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature)
    if chunk_bytes < 1:
        raise ValueError(f"expected a positive chunk_bytes, got {chunk_bytes}; the default is {2 << 30}, 2 GiB")
    logits_dtype = logits_dtype or _logits_dtype(hidden, weight, bias)
    if logits_dtype not in (hidden.dtype, torch.promote_types(hidden.dtype, torch.float32)):
        raise TypeError(
            f"expected logits_dtype to be {hidden.dtype}, the dtype of hidden, or float32, got {logits_dtype}; "
            "leave it out to have it chosen"
        )
    logps: Tensor = kernel.linear_logps(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        bias,
        kernel.Transform(scale, softcap, temperature),
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
    )
    return logps.reshape(targets.shape)


def _logits_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    tensors = (hidden, weight) if bias is None else (hidden, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return hidden.dtype
    return torch.promote_types(hidden.dtype, torch.float32)
