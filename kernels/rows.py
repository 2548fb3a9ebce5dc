"""Rows of logits to the state of their softmax and, in the same memory, their gradient.

Knows torch and triton. Knows nothing of the source of the logits. It takes a row's whole vocabulary at once, or one
slice after another. README.md in this folder has the derivation and the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows have no Triton: the PyTorch rows below replace it
    triton = tl = None

# One program per row, with many threads, so that few programs share a multiprocessor and the second read of a row still
# hits L2: two programs of 1,024 threads on each of 132 multiprocessors hold 68 MB of bf16 rows of 128,256 words; eight
# programs of 256 threads would hold 271 MB. This is arithmetic, not a measurement.
BLOCK = 8192
NUM_WARPS = 32

# Fp32 temporaries of the PyTorch rows and of casts on a CPU: small enough to stay in a cache, and never 4CV.
SLICE_BYTES = 4 << 20

# The columns of a row's state, over the final logits z folded so far; the last four exist only for statistics.
PEAK = 0  # m = max z; the lowest float and not -inf, so that a slice that is all -inf gives exp(-inf), not exp(NaN)
TOTAL = 1  # s = sum exp(z - m)
TARGET = 2  # z of the target; NaN as long as no slice has held it
SHIFTED = 3  # sum exp(z - m) (z - m)
SQUARES = 4  # sum exp(z - m)^2
LOGITS = 5  # sum z
EARLIER = 6  # max z of the words before the target


class Transform(NamedTuple):
    """The final logit z of a raw logit a: z = softcap tanh(scale a / softcap) / temperature."""

    scale: float
    softcap: float | None
    temperature: float


def _jit(function: Callable[..., Any]) -> Any:
    # Only logits, their gradient and bias are wide: the alignment of others, which a chunk's start decides, would
    # compile more kernels.
    narrow = [x for x in ("targets_ptr", "state_ptr", "weights_ptr") if x in function.__code__.co_varnames]
    return function if triton is None else triton.jit(function, do_not_specialize_on_alignment=narrow)


@_jit
def _capped_tanh(a, softcap):  # type: ignore[no-untyped-def]
    # tanh(x) = 2 sigmoid(2x) - 1, without libdevice, so that the interpreter can run it.
    return 2.0 * tl.sigmoid(2.0 * a / softcap) - 1.0


@_jit
def _load_scaled(z_ptr, bias_ptr, offsets, there, inside, scale, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(z_ptr + offsets, mask=there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        a += tl.load(bias_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    return a * scale


@_jit
def _row_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # [rows, width] raw logits of the words from `first` on
    g_ptr,  # [rows, width] gradient out; may be z_ptr
    targets_ptr,  # [rows] int64
    bias_ptr,  # [n_cols], from `first` on
    state_ptr,  # [rows, STATE] fp32
    weights_ptr,  # [rows, 2] fp32: upstream of log-prob and entropy
    z_stride,
    g_stride,
    first,
    n_cols,
    width,  # n_cols or more: a multiple of 16 allows vector loads and stores
    scale,
    softcap,
    inv_t,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    FOLD: tl.constexpr,  # fold these words into the state
    RESUME: tl.constexpr,  # the state holds the words before `first`
    STATISTICS: tl.constexpr,
    WRITE_G: tl.constexpr,
    ENTROPY: tl.constexpr,  # g is the weighted sum for log-prob and entropy
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    g_row = g_ptr + row * g_stride
    state = state_ptr + row * STATE
    target = tl.load(targets_ptr + row) - first

    m = -3.4028234663852886e38
    s = 0.0
    shifted = 0.0
    squares = 0.0
    logits = 0.0
    earlier = -float("inf")
    if RESUME:
        m = tl.load(state)
        s = tl.load(state + 1)
        if STATISTICS:
            shifted = tl.load(state + 3)
            squares = tl.load(state + 4)
            logits = tl.load(state + 5)
            earlier = tl.load(state + 6)

    if FOLD:
        for start in range(0, width, BLOCK):
            offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
            inside = offsets < n_cols
            z = _load_scaled(z_row, bias_ptr, offsets, offsets < width, inside, scale, HAS_BIAS)
            if HAS_SOFTCAP:
                z = softcap * _capped_tanh(z, softcap)
            z = tl.where(inside, z * inv_t, -float("inf"))
            new_m = tl.maximum(m, tl.max(z, 0))
            shrink = tl.exp(m - new_m)
            e = tl.exp(z - new_m)
            if STATISTICS:
                logits += tl.sum(tl.where(inside, z, 0.0), 0)
                earlier = tl.maximum(earlier, tl.max(tl.where(offsets < target, z, -float("inf")), 0))
                # Where e is 0, z may be -inf, and 0 times that is NaN.
                shifted = shrink * (shifted + (m - new_m) * s) + tl.sum(e * tl.where(e > 0, z - new_m, 0.0), 0)
                squares = shrink * shrink * squares + tl.sum(e * e, 0)
            s = s * shrink + tl.sum(e, 0)
            m = new_m

        # A target outside the vocabulary reads nothing, and its log-prob is NaN.
        known = (target >= 0) & (target < n_cols)
        z_target = _load_scaled(z_row, bias_ptr, target, known, known, scale, HAS_BIAS)
        if HAS_SOFTCAP:
            z_target = softcap * _capped_tanh(z_target, softcap)
        z_target = z_target * inv_t
        elsewhere = float("nan")
        if RESUME:
            elsewhere = tl.load(state + 2)
        tl.store(state, m)
        tl.store(state + 1, s)
        tl.store(state + 2, tl.where(known, z_target, elsewhere))
        if STATISTICS:
            tl.store(state + 3, shifted)
            tl.store(state + 4, squares)
            tl.store(state + 5, logits)
            tl.store(state + 6, earlier)

    if WRITE_G:
        # Every thread has read the target's logit before any thread overwrites the row.
        tl.debug_barrier()
        inv_s = 1.0 / s
        slope = scale * inv_t
        if ENTROPY:
            weight = tl.load(weights_ptr + row * 2)
            weight_entropy = tl.load(weights_ptr + row * 2 + 1)
            log_s = tl.log(s)
            entropy = log_s - shifted * inv_s
        for start in range(0, width, BLOCK):
            offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
            inside = offsets < n_cols
            z = _load_scaled(z_row, bias_ptr, offsets, offsets < width, inside, scale, HAS_BIAS)
            bend = slope
            if HAS_SOFTCAP:
                t = _capped_tanh(z, softcap)
                z = softcap * t
                bend = slope * (1.0 - t * t)
            z = z * inv_t - m
            p = tl.exp(z) * inv_s
            g = p - tl.where(offsets == target, 1.0, 0.0)
            if ENTROPY:
                g = weight * g + weight_entropy * p * tl.where(p > 0, z - log_s + entropy, 0.0)
            tl.store(g_row + offsets, (g * bend).to(g_ptr.dtype.element_ty), mask=offsets < width)


def new_state(targets: Tensor, dtype: torch.dtype, statistics: bool) -> Tensor:
    """An uninitialised state [rows, 3 or 7] for targets [rows]; the first `fold_rows` writes it."""
    return torch.empty(len(targets), 7 if statistics else 3, dtype=dtype, device=targets.device)


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


def block_of(state: Tensor) -> int:
    """Words that a program reads at a time: fewer with statistics, so that two programs still fit a multiprocessor."""
    return BLOCK // 4 if state.shape[1] == 7 else BLOCK


def runs_triton(logits: Tensor) -> bool:
    """Whether these rows use the Triton kernel: on CUDA or ROCm, or with TRITON_INTERPRET=1, but not in fp64."""
    if triton is None or logits.dtype == torch.float64:
        return False
    return logits.is_cuda or not isinstance(_row_kernel, triton.JITFunction)


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
) -> None:
    """Folds raw logits [rows, width] of the words from `first` on into `state`, which holds the words before `first`.

    The first `words` columns count; the others pad the vector loads and are overwritten. Targets [rows] and bias
    [words] are contiguous. With `g` [rows, width], which may be `logits` itself, the words must be the whole
    vocabulary: `g` gets G = (softmax(z) - onehot(target)) dz/da, the gradient of minus the log-prob with respect to the
    raw logit a.
    """
    assert g is None or (first == 0 and g.shape == logits.shape)
    if runs_triton(logits):
        _launch(logits, targets, bias, transform, state, words, first, g, None, FOLD=True, RESUME=first > 0)
    else:
        g = None if g is None else g[:, :words]
        _fold_torch(logits[:, :words], targets, bias, transform, state, first, g)


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
        _launch(logits, targets, bias, transform, state, words, first, g, weights, FOLD=False, RESUME=True)
    else:
        _gradient_torch(logits[:, :words], targets, bias, transform, state, first, g[:, :words], weights)


def _launch(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    words: int,
    first: int,
    g: Tensor | None,
    weights: Tensor | None,
    **steps: bool,
) -> None:
    out = logits if g is None else g
    # Triton launches on the current device, which need not be that of the logits.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call, unused-ignore]
        _row_kernel[(len(logits),)](
            logits,
            out,
            targets,
            logits if bias is None else bias,
            state,
            state if weights is None else weights,
            logits.stride(0),
            out.stride(0),
            first,
            words,
            logits.shape[1],
            transform.scale,
            transform.softcap or 1.0,
            1.0 / transform.temperature,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=transform.softcap is not None,
            STATISTICS=state.shape[1] == 7,
            WRITE_G=g is not None,
            ENTROPY=weights is not None,
            STATE=state.shape[1],
            BLOCK=min(block_of(state), triton.next_power_of_2(logits.shape[1])),
            num_warps=NUM_WARPS if words >= BLOCK else 4,
            **steps,
        )


def _fold_torch(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    first: int,
    g: Tensor | None,
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
            e /= now[TOTAL][:, None]
            e.scatter_add_(1, target.clamp(0, n - 1)[:, None], -known[:, None].to(e.dtype))
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
