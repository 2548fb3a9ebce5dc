"""Verification: whether the operators give the loss and gradients of `mipo.loss` on a device, tried on a small problem.

Knows the operators and their definition. Where no test has run, on a new GPU or with another Triton, a trainer asks
this before it relies on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mipo.errors import InputError
from mipo.fused.arguments import Mode
from mipo.fused.operators import linear_preference_loss
from mipo.loss.logps import sequence_logps, token_logps
from mipo.loss.preference import preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NAMES = ("loss", "gradient of the states", "gradient of the head")
# The modes, with the numbers of what each has a gradient of: states 0, head 1.
TRAINED: dict[Mode, tuple[int, ...]] = {"M0": (), "M1": (0,), "M2": (0, 1), "M3": (0, 1), "M4": (0, 1)}
LENGTHS = ((5, 9), (8, 2))
WIDTH = 64
# Norm of the difference over the norm: bfloat16 and TF32 give less than a hundredth, a wrong row or word far more.
RTOL = 0.05


def verify(device: Any, dtype: torch.dtype, vocabulary: int, softcap: float | None = None) -> None:
    """Raises InputError unless loss and gradients on `device` are the definition's within rounding, in every mode.

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

    def run(loss_of: Any, trained: Sequence[int] = (0, 1)) -> list[Any]:
        inputs = [tensor.clone().requires_grad_(number in trained) for number, tensor in enumerate(states)]
        loss = loss_of(*inputs)
        if trained:
            loss.backward()
        return [loss.detach(), *(tensor.grad for tensor in inputs)]

    def plain(hidden: Float[Tensor, "T D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, ""]:
        logps = token_logps(hidden, weight, targets, softcap=softcap)
        sums = sequence_logps(logps, numbers, lengths.numel()).view(lengths.shape)
        return preference_loss(sums, ref_logps).mean()

    definition = run(plain)
    # Two thirds of the logits at a time, so that pieces meet.
    pieces = tokens * 2 // 3 * vocabulary * dtype.itemsize
    for mode, trained in TRAINED.items():
        if mode == "M2" and dtype == torch.float16:
            continue  # never chosen: a loss scaler acts after the forward
        fused = run(lambda hidden, weight, mode=mode: linear_preference_loss(
            hidden, weight, targets, lengths, ref_logps, softcap=softcap, mode=mode, statistics=True,
            chunk_bytes=None if mode == "M3" else pieces).loss, trained)  # fmt: skip
        for name, ours, truth in zip(NAMES, fused, definition, strict=True):
            if ours is None:
                continue
            off = float((ours.float() - truth.float()).norm() / truth.float().norm())
            if not off <= RTOL:
                raise InputError(
                    f"expected mipo's LM head on {device} within {RTOL:.0%} of its definition, got the {name} "
                    f"{off:.0%} off in mode {mode}; train with fused_loss: false, and report it"
                )
