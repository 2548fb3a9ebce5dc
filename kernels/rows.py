"""Rows of logits to the state of their softmax and, in the same memory, their gradient.

In PyTorch here, or in Triton (`row_kernels.py`). Knows nothing of the source of the logits. It takes a row's whole
vocabulary at once, or one slice after another. README.md in this folder has the derivation and the limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import row_kernels
from .row_kernels import runs_triton
from .row_state import EARLIER, LOGITS, PEAK, SHIFTED, SQUARES, TARGET, TOTAL, Transform

# Fp32 temporaries of the PyTorch rows and of casts on a CPU: small enough to stay in a cache, and never 4CV.
SLICE_BYTES = 4 << 20


def fold_rows(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    *,
    words: int,
    first: int = 0,
    g: Tensor | None = None,
    shares: bool = False,
) -> None:
    """Folds raw logits [rows, width] of the words from `first` on into `state`, which holds the words before `first`.

    The first `words` columns count; the others pad the vector loads and are overwritten. Targets [rows] and bias
    [words] are contiguous. With `g` [rows, width], which may be `logits` itself, the words must be the whole
    vocabulary: `g` gets G = (softmax(z) - onehot(target)) dz/da, the gradient of minus the log-prob with respect to the
    raw logit a. With `shares`, the words may be any, and `g` gets exp(z - m) dz/da, 0 at the target: m is the largest z
    so far.
    """
    assert g is None or ((shares or first == 0) and g.shape == logits.shape)
    if runs_triton(logits):
        row_kernels.fold(logits, targets, bias, transform, state, words, first, g, shares)
    else:
        g = None if g is None else g[:, :words]
        _fold_torch(logits[:, :words], targets, bias, transform, state, first, g, shares)


def gradient_rows(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    *,
    words: int,
    first: int,
    g: Tensor,
    weights: Tensor | None = None,
) -> None:
    """Fills `g` [rows, width], which may be `logits`, with G of the words from `first` on, from the finished state.

    With weights [rows, 2], of log-prob and entropy, `g` is minus the gradient of their weighted sum instead, and the
    state must have statistics.
    """
    if runs_triton(logits):
        row_kernels.gradient(logits, targets, bias, transform, state, words, first, g, weights)
    else:
        _gradient_torch(logits[:, :words], targets, bias, transform, state, first, g[:, :words], weights)


def _fold_torch(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    first: int,
    g: Tensor | None,
    shares: bool,
) -> None:
    if first == 0:
        state.zero_()
        # Slices of one column: without statistics there is no column EARLIER, and nothing is filled.
        for column, value in ((PEAK, torch.finfo(state.dtype).min), (TARGET, torch.nan), (EARLIER, -torch.inf)):
            state[:, column : column + 1].fill_(value)
    n = logits.shape[1]
    words = torch.arange(n, device=logits.device)
    for rows in _row_slices(logits, state.dtype):
        z, slope = _final_logits(logits[rows].to(state.dtype), bias, transform)
        before = state[rows].clone().unbind(1)
        now = state[rows].unbind(1)  # views, written in place
        target = targets[rows] - first
        known = (target >= 0) & (target < n)
        z_target = z.gather(1, target.clamp(0, n - 1)[:, None])[:, 0]
        now[TARGET].copy_(torch.where(known, z_target, before[TARGET]))
        torch.maximum(before[PEAK], z.amax(1), out=now[PEAK])
        shrink = (before[PEAK] - now[PEAK]).exp()
        if len(now) > EARLIER:
            now[LOGITS].add_(z.sum(1))
            earlier = z.masked_fill(words >= target[:, None], float("-inf")).amax(1)
            torch.maximum(before[EARLIER], earlier, out=now[EARLIER])
        z -= now[PEAK][:, None]
        e = z.exp()
        now[TOTAL].mul_(shrink).add_(e.sum(1))
        if len(now) > EARLIER:
            shifted = before[SHIFTED] + (before[PEAK] - now[PEAK]) * before[TOTAL]
            # Where e is 0, z may be -inf, and 0 times that is NaN.
            now[SHIFTED].copy_(shrink * shifted + (z.masked_fill_(e == 0, 0) * e).sum(1))
            now[SQUARES].mul_(shrink * shrink).add_(e.square().sum(1))
        if g is not None:
            at_target = target.clamp(0, n - 1)[:, None]
            if shares:
                e.scatter_(1, at_target, e.gather(1, at_target).masked_fill_(known[:, None], 0))
            else:
                e /= now[TOTAL][:, None]
                e.scatter_add_(1, at_target, -known[:, None].to(e.dtype))
            g[rows] = e.mul_(slope)


def _gradient_torch(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    first: int,
    g: Tensor,
    weights: Tensor | None,
) -> None:
    n = logits.shape[1]
    words = torch.arange(n, device=logits.device)
    for rows in _row_slices(logits, state.dtype):
        z, slope = _final_logits(logits[rows].to(state.dtype), bias, transform)
        z -= state[rows, PEAK, None]
        p = z.exp() / state[rows, TOTAL, None]
        gradient = p - (words == (targets[rows] - first)[:, None]).to(p.dtype)
        if weights is not None:
            log_total = state[rows, TOTAL, None].log()
            entropy = log_total - state[rows, SHIFTED, None] / state[rows, TOTAL, None]
            surprise = (z - log_total + entropy).masked_fill_(p == 0, 0) * p
            gradient = weights[rows, :1] * gradient + weights[rows, 1:] * surprise
        g[rows] = gradient.mul_(slope)


def _final_logits(a: Tensor, bias: Tensor | None, transform: Transform) -> tuple[Tensor, Tensor | float]:
    """Final logits z, as a new tensor, and the slope dz/da."""
    scale, softcap, temperature = transform
    a = (a if bias is None else a + bias) * scale
    slope: Tensor | float = scale / temperature
    if softcap is not None:
        t = torch.tanh(a / softcap)
        a, slope = softcap * t, slope * (1 - t * t)
    return a / temperature, slope


def aligned(words: int) -> int:
    """The width of a row of this many words in a buffer: a multiple of 16, for cuBLAS and vector loads."""
    return -(-words // 16) * 16


def _row_slices(logits: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    return slices(len(logits), SLICE_BYTES // (dtype.itemsize * max(1, logits.shape[1])))


def slices(n: int, size: int) -> Iterator[slice]:
    """The numbers from 0 to n - 1 in runs of `size`, or of 1 where that is less; the last run may be shorter."""
    size = max(1, size)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
