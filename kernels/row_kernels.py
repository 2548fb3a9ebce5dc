"""The Triton kernels of the rows: one folds logits into the state of their softmax, one makes the gradient from it.

Knows torch and triton. Knows nothing of the source of the logits, and of the same work in PyTorch (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .row_state import EARLIER, LOGITS, PEAK, SHIFTED, SQUARES, TARGET, TOTAL, WITH_STATISTICS, Transform

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows have no Triton: `rows.py` replaces it
    triton = tl = None

# One program per row, with many threads, so that few programs share a multiprocessor and the second read of a row still
# hits L2: two programs of 1,024 threads on each of 132 multiprocessors hold 68 MB of bf16 rows of 128,256 words; eight
# programs of 256 threads would hold 271 MB. This is arithmetic, not a measurement.
NUM_WARPS = 32
# Two programs share the 65,536 registers of a multiprocessor. Without this limit ptxas takes up to 44 for statistics on
# some GPUs; with it nothing is spilled.
REGISTERS = 65536 // (2 * 32 * NUM_WARPS)
# Threads of a warp: ROCm's on its GPUs for data centres, else CUDA's.
WARP = 64 if torch.version.hip else 32
# Bytes that a lane reads at a time. Lanes fold their words without a message to another. A lane is a thread, unless a
# row has fewer words than that takes.
LANE_BYTES = 16

if triton is not None:
    # A kernel reads globals only as constexpr.
    _PEAK, _TOTAL, _TARGET = tl.constexpr(PEAK), tl.constexpr(TOTAL), tl.constexpr(TARGET)
    _SHIFTED, _SQUARES = tl.constexpr(SHIFTED), tl.constexpr(SQUARES)
    _LOGITS, _EARLIER = tl.constexpr(LOGITS), tl.constexpr(EARLIER)
    _LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def _jit(function: Callable[..., Any]) -> Any:
    # Only logits, their gradient and bias are wide: the alignment of others, which a chunk's start decides, would
    # compile more kernels.
    narrow = [x for x in ("targets_ptr", "state_ptr", "weights_ptr") if x in function.__code__.co_varnames]
    return function if triton is None else triton.jit(function, do_not_specialize_on_alignment=narrow)


@_jit
def _words(start, LANES: tl.constexpr, PER_LANE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers of the words of a block: each lane has its own few, one beside the other."""
    lanes = tl.arange(0, LANES)[:, None] * PER_LANE
    return start + lanes + tl.arange(0, PER_LANE)[None, :]  # [LANES, PER_LANE]


@_jit
def _load(z_ptr, bias_ptr, offsets, there, inside, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scaled and capped logits before the temperature, and the slope of the cap."""
    z = tl.load(z_ptr + offsets, mask=there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    z *= scale
    bend = 1.0
    if HAS_SOFTCAP:
        # tanh(x) = 2 sigmoid(2x) - 1, without libdevice, so that the interpreter can run it.
        t = 2.0 * tl.sigmoid(2.0 * z / softcap) - 1.0
        z = softcap * t
        bend = 1.0 - t * t
    return z, bend


@_jit
def _resumed(state, column, lanes, empty, RESUME: tl.constexpr):  # type: ignore[no-untyped-def]
    """An accumulator [LANES]: empty, but the first lane goes on from the stored state."""
    accumulator = tl.full(lanes.shape, empty, tl.float32)
    if RESUME:
        accumulator = tl.where(lanes == 0, tl.load(state + column), accumulator)
    return accumulator


@_jit
def _write(  # type: ignore[no-untyped-def]
    z_row,
    g_row,
    bias_ptr,
    target,
    n_cols,
    width,
    m,
    inv_s,
    weight,
    weight_entropy,
    shift,  # entropy - log s
    scale,
    softcap,
    inv_t,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    SHARES: tl.constexpr,
    LANES: tl.constexpr,
    PER_LANE: tl.constexpr,
):
    for start in range(0, width, LANES * PER_LANE):
        offsets = _words(start, LANES, PER_LANE)
        inside = offsets < n_cols
        there = offsets < width
        z, bend = _load(z_row, bias_ptr, offsets, there, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        z = z * inv_t - m
        p = tl.exp(z) * inv_s
        g = tl.where(offsets == target, 0.0 if SHARES else p - 1.0, p)
        if ENTROPY:
            # Where p is 0, z may be -inf, and 0 times that is NaN.
            g = weight * g + weight_entropy * p * tl.where(p > 0, z + shift, 0.0)
        tl.store(g_row + offsets, (g * (bend * (scale * inv_t))).to(g_row.dtype.element_ty), mask=there)


@_jit
def _meet(m, s, shifted, squares, logits, earlier):  # type: ignore[no-untyped-def]
    """The state of all lanes together. Side by side, maxima are one reduction and sums another: three barriers."""
    peak, earlier = tl.split(tl.max(tl.join(m, earlier), 0))
    shrink = tl.exp(m - peak)
    shifted = shrink * (shifted + (m - peak) * s)
    first = tl.join(shrink * s, shrink * shrink * squares)
    last = tl.join(shifted, logits)
    first, last = tl.split(tl.sum(tl.join(first, last), 0))
    total, squares = tl.split(first)
    shifted, logits = tl.split(last)
    return peak, total, shifted, squares, logits, earlier


@_jit
def _fold_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # [rows, width] raw logits of the words from `first` on
    g_ptr,  # [rows, width] out, if anything is written; may be z_ptr
    targets_ptr,  # [rows] int64
    bias_ptr,  # [n_cols], from `first` on
    state_ptr,  # [rows, STATE] fp32
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
    STATISTICS: tl.constexpr,
    RESUME: tl.constexpr,  # the state holds the words before `first`
    WRITE_G: tl.constexpr,  # of a whole row
    SHARES: tl.constexpr,  # g gets exp(z - m) dz/da instead, and 0 at the target; the row need not be whole
    STATE: tl.constexpr,
    LANES: tl.constexpr,
    PER_LANE: tl.constexpr,
):
    """Folds a row into its state. Every lane folds its own words; lanes meet once, after the last."""
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    state = state_ptr + row * STATE
    target = tl.load(targets_ptr + row) - first

    lanes = tl.arange(0, LANES)  # and so are all accumulators: [LANES]
    m = _resumed(state, _PEAK, lanes, _LOWEST, RESUME)
    s = _resumed(state, _TOTAL, lanes, 0.0, RESUME)
    if STATISTICS:
        shifted = _resumed(state, _SHIFTED, lanes, 0.0, RESUME)
        squares = _resumed(state, _SQUARES, lanes, 0.0, RESUME)
        logits = _resumed(state, _LOGITS, lanes, 0.0, RESUME)
        earlier = _resumed(state, _EARLIER, lanes, -float("inf"), RESUME)

    for start in range(0, width, LANES * PER_LANE):
        offsets = _words(start, LANES, PER_LANE)
        inside = offsets < n_cols
        z, _ = _load(z_row, bias_ptr, offsets, offsets < width, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        z = tl.where(inside, z * inv_t, -float("inf"))
        new_m = tl.maximum(m, tl.max(z, 1))
        shrink = tl.exp(m - new_m)
        d = z - new_m[:, None]
        e = tl.exp(d)
        if STATISTICS:
            logits += tl.sum(tl.where(inside, z, 0.0), 1)
            earlier = tl.maximum(earlier, tl.max(tl.where(offsets < target, z, -float("inf")), 1))
            # Where e is 0, d may be -inf, and 0 times that is NaN.
            shifted = shrink * (shifted + (m - new_m) * s) + tl.sum(e * tl.where(e > 0, d, 0.0), 1)
            squares = shrink * shrink * squares + tl.sum(e * e, 1)
        s = s * shrink + tl.sum(e, 1)
        m = new_m

    if STATISTICS:
        peak, total, shifted, squares, logits, earlier = _meet(m, s, shifted, squares, logits, earlier)
    else:
        peak = tl.max(m, 0)
        total = tl.sum(tl.exp(m - peak) * s, 0)
    # A target outside the vocabulary reads nothing, and its log-prob is NaN.
    known = (target >= 0) & (target < n_cols)
    z_target, _ = _load(z_row, bias_ptr, target, known, known, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    elsewhere = float("nan")
    if RESUME:
        elsewhere = tl.load(state + _TARGET)
    tl.store(state + _PEAK, peak)
    tl.store(state + _TOTAL, total)
    tl.store(state + _TARGET, tl.where(known, z_target * inv_t, elsewhere))
    if STATISTICS:
        tl.store(state + _SHIFTED, shifted)
        tl.store(state + _SQUARES, squares)
        tl.store(state + _LOGITS, logits)
        tl.store(state + _EARLIER, earlier)

    if WRITE_G:
        # Every thread has read the target's logit before any thread overwrites the row.
        tl.debug_barrier()
        inv_s = 1.0 if SHARES else 1.0 / total
        _write(
            z_row, g_ptr + row * g_stride, bias_ptr, target, n_cols, width, peak, inv_s, 1.0, 0.0, 0.0, scale, softcap,
            inv_t, HAS_BIAS, HAS_SOFTCAP, False, SHARES, LANES, PER_LANE,
        )  # fmt: skip


@_jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # [rows, width] raw logits of the words from `first` on
    g_ptr,  # [rows, width] gradient out; may be z_ptr
    targets_ptr,  # [rows] int64
    bias_ptr,  # [n_cols], from `first` on
    state_ptr,  # [rows, STATE] fp32, of the whole row
    weights_ptr,  # [rows, 2] fp32: upstream of log-prob and entropy
    z_stride,
    g_stride,
    first,
    n_cols,
    width,
    scale,
    softcap,
    inv_t,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,  # g is the weighted sum for log-prob and entropy
    STATE: tl.constexpr,
    LANES: tl.constexpr,
    PER_LANE: tl.constexpr,
):
    """Writes the gradient of a row's words from the finished state of the row."""
    row = tl.program_id(0).to(tl.int64)
    state = state_ptr + row * STATE
    m = tl.load(state + _PEAK)
    s = tl.load(state + _TOTAL)
    inv_s = 1.0 / s
    weight = 1.0
    weight_entropy = 0.0
    shift = 0.0
    if ENTROPY:
        weight = tl.load(weights_ptr + row * 2)
        weight_entropy = tl.load(weights_ptr + row * 2 + 1)
        # Minus log s plus the entropy, log s - shifted / s.
        shift = -tl.load(state + _SHIFTED) * inv_s
    _write(
        z_ptr + row * z_stride, g_ptr + row * g_stride, bias_ptr, tl.load(targets_ptr + row) - first, n_cols, width, m,
        inv_s, weight, weight_entropy, shift, scale, softcap, inv_t, HAS_BIAS, HAS_SOFTCAP, ENTROPY, False, LANES,
        PER_LANE,
    )  # fmt: skip


def runs_triton(logits: Tensor) -> bool:
    """Whether these rows use Triton: on CUDA or ROCm, or with TRITON_INTERPRET=1, but not in fp64."""
    if triton is None or logits.dtype == torch.float64:
        return False
    return logits.is_cuda or not isinstance(_fold_kernel, triton.JITFunction)


def fold(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    words: int,
    first: int,
    g: Tensor | None,
    shares: bool,
) -> None:
    """`rows.fold_rows` in Triton."""
    pointers = (logits, logits if g is None else g, targets, logits if bias is None else bias, state)
    steps = {"STATISTICS": state.shape[1] == WITH_STATISTICS, "RESUME": first > 0, "WRITE_G": g is not None}
    _launch(_fold_kernel, pointers, transform, bias, words, first, SHARES=shares, **steps)


def gradient(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    state: Tensor,
    words: int,
    first: int,
    g: Tensor,
    weights: Tensor | None,
) -> None:
    """`rows.gradient_rows` in Triton."""
    pointers = (logits, g, targets, logits if bias is None else bias, state, state if weights is None else weights)
    _launch(_gradient_kernel, pointers, transform, bias, words, first, ENTROPY=weights is not None)


def _launch(
    kernel: Any,
    pointers: tuple[Tensor, ...],
    transform: Transform,
    bias: Tensor | None,
    words: int,
    first: int,
    **steps: bool,
) -> None:
    logits, out, _, _, state, *_ = pointers
    lanes, per_lane = lanes_of(logits)
    # ROCm has no such limit, and refuses its name.
    limit = {} if torch.version.hip else {"maxnreg": REGISTERS}
    # Triton launches on the current device, which need not be that of the logits.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call, unused-ignore]
        kernel[(len(logits),)](
            *pointers,
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
            STATE=state.shape[1],
            LANES=lanes,
            PER_LANE=per_lane,
            num_warps=max(1, lanes // WARP),
            **limit,
            **steps,
        )


def lanes_of(logits: Tensor) -> tuple[int, int]:
    """Lanes of a program for rows [rows, width], at most 32 * NUM_WARPS, and the words that each reads at a time."""
    per_lane = LANE_BYTES // logits.itemsize
    return min(32 * NUM_WARPS, triton.next_power_of_2(-(-logits.shape[1] // per_lane))), per_lane
