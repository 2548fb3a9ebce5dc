"""Verification: whether the operators give the loss and gradients of `mipo.loss` on a device, tried on a small problem.

Knows the operators and their definition. Where no test has run, on a new GPU or with another Triton, a trainer asks
this before it relies on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mipo.errors import InputError
from mipo.fused.operators import linear_preference_loss
from mipo.loss.logps import sequence_logps, token_logps
from mipo.loss.preference import preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LENGTHS = ((5, 9), (8, 2))
WIDTH = 64
# Norm of the difference over the norm: bfloat16 and TF32 give less than a hundredth, a wrong row or word far more.
RTOL = 0.05


def verify(device: Any, dtype: torch.dtype, vocabulary: int, softcap: float | None = None) -> None:
    """Raises InputError unless loss and gradients on `device` are the definition's within rounding.

    The hidden states are few and narrow, so it takes 1 KiB of memory for each of the `vocabulary` words, and no time.
    What the device's libraries raise passes.
    """
    dice = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    tokens = int(lengths.sum())
    numbers = torch.arange(lengths.numel()).repeat_interleave(lengths.flatten()).to(device)
    targets = torch.randint(vocabulary, (tokens,), generator=dice).to(device)
    ref_logps = -10 * torch.rand(lengths.shape, generator=dice).to(device)
    states = [torch.randn(rows, WIDTH, generator=dice).to(device, dtype) / 4 for rows in (tokens, vocabulary)]

    def run(loss_of: Any) -> list[Float[Tensor, "..."]]:
        hidden, weight = (tensor.clone().requires_grad_() for tensor in states)
        loss = loss_of(hidden, weight)
        loss.backward()
        return [loss.detach(), hidden.grad, weight.grad]

    def plain(hidden: Float[Tensor, "T D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, ""]:
        logps = token_logps(hidden, weight, targets, softcap=softcap)
        sums = sequence_logps(logps, numbers, lengths.numel()).view(lengths.shape)
        return preference_loss(sums, ref_logps).mean()

    fused = run(lambda hidden, weight: linear_preference_loss(
        hidden, weight, targets, lengths, ref_logps, softcap=softcap, statistics=True).loss)  # fmt: skip
    for name, ours, theirs in zip(("loss", "gradient of the states", "gradient of the head"), fused, run(plain),
                                  strict=True):  # fmt: skip
        off = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        if not off <= RTOL:
            raise InputError(f"expected mipo's LM head on {device} within {RTOL:.0%} of its definition, got the {name} "
                             f"{off:.0%} off; train with fused_loss: false, and report it")  # fmt: skip
