"""The state of a row's softmax: its columns, and the log-probs and statistics that follow from it.

Knows torch. Knows nothing of who folds logits into it, in Triton or in PyTorch. README.md in this folder has the
derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The columns, over the final logits z folded so far; the last four exist only for statistics.
PEAK = 0  # m = max z; the lowest float and not -inf, so that a slice that is all -inf gives exp(-inf), not exp(NaN)
TOTAL = 1  # s = sum exp(z - m)
TARGET = 2  # z of the target; NaN as long as no slice has held it
SHIFTED = 3  # sum exp(z - m) (z - m)
SQUARES = 4  # sum exp(z - m)^2
LOGITS = 5  # sum z
EARLIER = 6  # max z of the words before the target

ALONE, WITH_STATISTICS = 3, 7  # columns


class Transform(NamedTuple):
    """The final logit z of a raw logit a: z = softcap tanh(scale a / softcap) / temperature."""

    scale: float
    softcap: float | None
    temperature: float


def new_state(targets: Tensor, dtype: torch.dtype, statistics: bool) -> Tensor:
    """An uninitialised state [rows, 3 or 7] for targets [rows]; the first `fold_rows` writes it."""
    return torch.empty(len(targets), WITH_STATISTICS if statistics else ALONE, dtype=dtype, device=targets.device)


def logps_of(state: Tensor) -> Tensor:
    """Log-probs [rows] of the targets, in nats."""
    return (state[:, TARGET] - state[:, PEAK]) - state[:, TOTAL].log()


def statistics_of(state: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Entropy [rows], and [3, rows]: mean logit, log of the sum of squared probabilities, 1 where the target is top."""
    total = state[:, TOTAL]
    entropy = total.log() - state[:, SHIFTED] / total
    top = (state[:, TARGET] >= state[:, PEAK]) & (state[:, TARGET] > state[:, EARLIER])
    others = (state[:, LOGITS] / vocabulary, state[:, SQUARES].log() - 2 * total.log(), top.to(state.dtype))
    return entropy, torch.stack(others)


def target_shares(state: Tensor, transform: Transform) -> Tensor:
    """G of the targets [rows], times the total of a finished row: (exp(z - m) - total) dz/da; 0 for unknown targets."""
    scale, softcap, temperature = transform
    z = state[:, TARGET]
    slope: Tensor | float = scale / temperature
    if softcap is not None:
        slope = slope * (1 - (z * (temperature / softcap)).square())
    return (((z - state[:, PEAK]).exp() - state[:, TOTAL]) * slope).masked_fill_(z.isnan(), 0)
