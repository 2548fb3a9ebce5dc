"""Bounds on the mutual information of prompt and response. Knows log-probs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.evaluation.figures import Figure, mean
from mipo.io.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Information:
    """The interval [InfoNCE, leave-one-out] around the mutual information of prompt and response, in nats."""

    infonce: Figure
    leave_one_out: Figure
    negatives: int
    rows: int


def information(logps: NDArray[np.floating[Any]], *, seed: int = 0) -> Information:
    """Bounds on the mutual information from `logps` [n, K+1], the log π(y_i|x) of response i under K + 1 prompts x.

    Column 0 is the prompt that y_i answers; the others are prompts that it does not answer. InfoNCE = mean log π(y|x_0)
    − log mean_{k=0…K} π(y|x_k), a lower bound that cannot exceed log(K+1); leave-one-out = the same without x_0 in the
    mean, an upper estimate. Both tighten with K; neither alone is "the" mutual information (method: arXiv 2603.19294;
    bounds: Poole et al. 2019). Raises InputError for other shapes and for values that are not finite.
    """
    lower, upper = row_bounds(logps)
    return Information(mean(lower, seed=seed), mean(upper, seed=seed), np.shape(logps)[1] - 1, len(lower))


def row_bounds(logps: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each row's term of InfoNCE and of leave-one-out, [n]."""
    logps = np.asarray(logps, dtype=np.float64)
    if logps.ndim != 2 or logps.shape[1] < 2 or not len(logps):
        raise InputError(f"logps: expected [n, K+1] with n ≥ 1 rows and K ≥ 1 other prompts, got {logps.shape}")
    if not np.isfinite(logps).all():
        raise InputError("logps: expected finite log-probabilities; leave out masked and empty responses")
    own, negatives = logps[:, 0], logps.shape[1] - 1
    lower = own - (np.logaddexp.reduce(logps, axis=1) - np.log(negatives + 1))
    upper = own - (np.logaddexp.reduce(logps[:, 1:], axis=1) - np.log(negatives))
    return lower, upper
