"""LM head to log-probs of target tokens, in chunks of tokens, without keeping the logits.

This file knows torch and triton. It does not know mipo, models or losses; its truth is `token_logps` in mipo/loss.py,
and its derivation, costs and limits are in README.md beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows have no Triton: the PyTorch rows below do the same work
    triton = tl = None

# One program per row. Many threads per program and so few programs per multiprocessor, because the second read of a
# row should still be in L2: two programs of 1,024 threads on each of 132 multiprocessors hold 68 MB of bf16 rows of
# 128,256, eight programs of 256 threads would hold 271 MB. Arithmetic, not a measurement: no GPU was at hand.
BLOCK = 8192
NUM_WARPS = 32

# Fp32 temporaries of the PyTorch rows and of casts on a CPU: small enough to stay in a cache, and never 4CV.
SLICE_BYTES = 4 << 20


class Transform(NamedTuple):
    """What happens to a raw logit a before the softmax: z = softcap tanh(scale a / softcap) / temperature."""

    scale: float
    softcap: float | None
    temperature: float


def _jit(function: Callable[..., Any]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _capped_tanh(a, softcap):  # type: ignore[no-untyped-def]
    # tanh(x) = 2 sigmoid(2x) - 1: no libdevice, so that the interpreter can run it.
    return 2.0 * tl.sigmoid(2.0 * a / softcap) - 1.0


@_jit
def _load_scaled(z_ptr, bias_ptr, offsets, mask, scale, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(z_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        a += tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return a * scale


@_jit
def _row_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # [rows, n_cols] raw logits
    g_ptr,  # [rows, n_cols] gradient out; may be z_ptr
    targets_ptr,  # [rows] int64
    bias_ptr,  # [n_cols]
    logps_ptr,  # [rows] fp32
    z_stride,
    g_stride,
    n_cols,
    scale,
    softcap,
    inv_t,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WRITE_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    g_row = g_ptr + row * g_stride
    target = tl.load(targets_ptr + row)

    # The lowest float and not -inf, so that a block of logits that are all -inf gives exp(-inf) and not exp(NaN).
    m = -3.4028234663852886e38
    s = 0.0
    for start in range(0, n_cols, BLOCK):
        offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
        inside = offsets < n_cols
        z = _load_scaled(z_row, bias_ptr, offsets, inside, scale, HAS_BIAS)
        if HAS_SOFTCAP:
            z = softcap * _capped_tanh(z, softcap)
        z = tl.where(inside, z * inv_t, -float("inf"))
        new_m = tl.maximum(m, tl.max(z, 0))
        s = s * tl.exp(m - new_m) + tl.sum(tl.exp(z - new_m), 0)
        m = new_m

    # A target outside the vocabulary reads nothing, and its log-prob is NaN.
    known = (target >= 0) & (target < n_cols)
    z_target = _load_scaled(z_row, bias_ptr, target, known, scale, HAS_BIAS)
    if HAS_SOFTCAP:
        z_target = softcap * _capped_tanh(z_target, softcap)
    logp = (z_target * inv_t - m) - tl.log(s)
    tl.store(logps_ptr + row, tl.where(known, logp, float("nan")))

    if WRITE_G:
        # Every thread has read the target's logit before any thread overwrites the row.
        tl.debug_barrier()
        inv_s = 1.0 / s
        for start in range(0, n_cols, BLOCK):
            offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
            inside = offsets < n_cols
            z = _load_scaled(z_row, bias_ptr, offsets, inside, scale, HAS_BIAS)
            slope = scale * inv_t
            if HAS_SOFTCAP:
                t = _capped_tanh(z, softcap)
                z = softcap * t
                slope = slope * (1.0 - t * t)
            p = tl.exp(z * inv_t - m) * inv_s
            g = (p - tl.where(offsets == target, 1.0, 0.0)) * slope
            tl.store(g_row + offsets, g.to(g_ptr.dtype.element_ty), mask=inside)


def runs_triton(logits: Tensor) -> bool:
    """Whether rows like these go through the Triton kernel: on CUDA or ROCm, or under TRITON_INTERPRET=1; not fp64."""
    if triton is None or logits.dtype == torch.float64:
        return False
    return logits.is_cuda or not isinstance(_row_kernel, triton.JITFunction)


def rewrite_rows(
    logits: Tensor, targets: Tensor, bias: Tensor | None, transform: Transform, g: Tensor | None
) -> Tensor:
    """Log-probs [C] of the targets from raw logits [C, V]; fills g [C, V], which may be `logits` itself.

    G = (softmax(z) - onehot(target)) dz/da, the gradient of minus the log-prob with respect to the raw logit a.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logps = torch.empty(len(logits), dtype=wide, device=logits.device)
    (_rewrite_rows_triton if runs_triton(logits) else _rewrite_rows_torch)(logits, targets, bias, transform, g, logps)
    return logps


def _rewrite_rows_triton(
    logits: Tensor, targets: Tensor, bias: Tensor | None, transform: Transform, g: Tensor | None, logps: Tensor
) -> None:
    n_cols = logits.shape[1]
    out = logits if g is None else g
    _row_kernel[(len(logits),)](
        logits,
        out,
        targets,
        logits if bias is None else bias,
        logps,
        logits.stride(0),
        out.stride(0),
        n_cols,
        transform.scale,
        transform.softcap or 1.0,
        1.0 / transform.temperature,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=transform.softcap is not None,
        WRITE_G=g is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(n_cols)),
        num_warps=NUM_WARPS if n_cols >= BLOCK else 4,
    )


def _rewrite_rows_torch(
    logits: Tensor, targets: Tensor, bias: Tensor | None, transform: Transform, g: Tensor | None, logps: Tensor
) -> None:
    scale, softcap, temperature = transform
    for rows in _slices(len(logits), SLICE_BYTES // (logps.itemsize * logits.shape[1])):
        z = logits[rows].to(logps.dtype)
        z = (z if bias is None else z + bias) * scale
        slope: Tensor | float = scale / temperature
        if softcap is not None:
            t = torch.tanh(z / softcap)
            z, slope = softcap * t, slope * (1 - t * t)
        z = z / temperature
        z -= z.amax(1, keepdim=True)
        target = targets[rows].unsqueeze(1)
        z_target = z.gather(1, target)
        p = z.exp_()
        total = p.sum(1, keepdim=True)
        logps[rows] = (z_target - total.log()).squeeze(1)
        if g is not None:
            p /= total
            p.scatter_add_(1, target, torch.full_like(z_target, -1.0))
            g[rows] = p.mul_(slope)


def forward_chunks(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    targets: Tensor,  # [T]
    bias: Tensor | None,  # [V]
    scale: float,
    softcap: float | None,
    temperature: float,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probs [T], and G weight [T, D] (empty without `with_gradient`): F FLOPs, or 2F, where F = 2TDV."""
    logps = hidden.new_empty(len(hidden), dtype=torch.promote_types(logits_dtype, torch.float32))
    gradient = hidden.new_empty(hidden.shape if with_gradient else 0)
    chunks = _Chunks(hidden, weight, logits_dtype, chunk_bytes, with_gradient)
    for rows in chunks:
        logps[rows], g = chunks.rewrite(rows, targets, bias, Transform(scale, softcap, temperature))
        if g is not None:
            torch.mm(g, weight, out=gradient[rows])
    return logps, gradient


def weight_gradient(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    targets: Tensor,  # [T]
    bias: Tensor | None,  # [V]
    upstream: Tensor,  # [T] dL/dlogps
    scale: float,
    softcap: float | None,
    temperature: float,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
    with_weight: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight [V, D] and bias [V] (empty where not asked for): recomputes G; 2F FLOPs, F for bias alone."""
    chunks = _Chunks(hidden, weight, logits_dtype, chunk_bytes, with_gradient=True)
    # One chunk is one product, rounded once by the GEMM; several are summed in fp32.
    sum_dtype = weight.dtype if chunks.count == 1 else torch.promote_types(weight.dtype, torch.float32)
    dw = weight.new_zeros(weight.shape if with_weight else 0, dtype=sum_dtype)
    db = weight.new_zeros(len(weight) if with_bias else 0, dtype=upstream.dtype)
    for rows in chunks:
        _, g = chunks.rewrite(rows, targets, bias, Transform(scale, softcap, temperature))
        assert g is not None
        if with_weight:
            _add_product(dw, g.t(), (hidden[rows] * -upstream[rows].unsqueeze(1)).to(hidden.dtype))
        if with_bias:
            _add_column_sums(db, g, -upstream[rows])
    return dw.to(weight.dtype), db.to(weight.dtype)


class _Chunks:
    """Even runs of tokens whose logits fit the byte budget, and the one buffer they are all projected into."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, logits_dtype: torch.dtype, chunk_bytes: int, with_gradient: bool
    ) -> None:
        self.hidden, self.weight = hidden, weight
        tokens, vocabulary = len(hidden), len(weight)
        # Rows start on 16 elements, whatever the vocabulary: cuBLAS and vector stores need aligned rows.
        width = -(-vocabulary // 16) * 16
        # G is multiplied with the weight, so it has the weight's dtype; in place when the logits have it, too.
        separate = with_gradient and logits_dtype != weight.dtype
        row_bytes = width * (logits_dtype.itemsize + separate * weight.itemsize)
        self.count = -(-tokens // max(1, chunk_bytes // row_bytes))
        self.size = -(-tokens // max(1, self.count))
        self.logits = hidden.new_empty(self.size, width, dtype=logits_dtype)[:, :vocabulary]
        self.g = None
        if with_gradient:
            self.g = hidden.new_empty(self.size, width)[:, :vocabulary] if separate else self.logits

    def __iter__(self) -> Iterator[slice]:
        return _slices(len(self.hidden), self.size)

    def rewrite(
        self, rows: slice, targets: Tensor, bias: Tensor | None, transform: Transform
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs of one chunk, and its G, which the next chunk overwrites."""
        n = rows.stop - rows.start
        logits, g = self.logits[:n], None if self.g is None else self.g[:n]
        _project(self.hidden[rows], self.weight, logits)
        return rewrite_rows(logits, targets[rows], bias, transform, g), g


def _slices(n: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _project(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """Out [C, V] = hidden [C, D] weight^T, each element rounded once, to the dtype of `out`."""
    if out.dtype == hidden.dtype:
        torch.mm(hidden, weight.t(), out=out)
    elif out.is_cuda:
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)
    else:
        wide = hidden.to(out.dtype)
        for columns in _slices(len(weight), SLICE_BYTES // (out.itemsize * weight.shape[1])):
            torch.mm(wide, weight[columns].to(out.dtype).t(), out=out[:, columns])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Total [V, D] += a [V, C] b [C, D], with nothing rounded to a narrower dtype than that of `total`."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        wide = b.to(total.dtype)
        for rows in _slices(len(a), SLICE_BYTES // (total.itemsize * a.shape[1])):
            torch.addmm(total[rows], a[rows].to(total.dtype), wide, out=total[rows])


def _add_column_sums(total: Tensor, g: Tensor, row_weights: Tensor) -> None:
    for rows in _slices(len(g), SLICE_BYTES // (total.itemsize * g.shape[1])):
        total.addmv_(g[rows].t().to(total.dtype), row_weights[rows])


def _register(name: str, function: Callable[..., Any]) -> Any:
    # What torch.library.custom_op does, less its wrapper, which imports torch._dynamo at the first call: 3.8 s on two
    # cores, 2026-11-24.
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "CompositeExplicitAutograd", function)
    return getattr(torch.ops.mipo, name.removeprefix("mipo::"))


# Operators, so that torch.compile sees one node forward and one backward, and does not unroll the chunks.
_forward_op = _register("mipo::linear_logps", forward_chunks)
_weight_gradient_op = _register("mipo::linear_logps_weight_gradient", weight_gradient)


@torch.library.register_fake("mipo::linear_logps")
def _forward_fake(hidden, weight, targets, bias, scale, softcap, temperature, logits_dtype, chunk_bytes, with_gradient):  # type: ignore[no-untyped-def]
    logps = hidden.new_empty(len(hidden), dtype=torch.promote_types(logits_dtype, torch.float32))
    return logps, hidden.new_empty(hidden.shape if with_gradient else 0)


@torch.library.register_fake("mipo::linear_logps_weight_gradient")
def _weight_gradient_fake(hidden, weight, targets, bias, upstream, *options):  # type: ignore[no-untyped-def]
    with_weight, with_bias = options[-2:]
    return weight.new_empty(weight.shape if with_weight else 0), weight.new_empty(len(weight) if with_bias else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, targets, bias, *ctx.options, with_gradient = inputs
    _, gradient = output
    trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
    # A frozen head keeps [T, D] and nothing else.
    ctx.save_for_backward(gradient if with_gradient else None, *((hidden, weight, targets, bias) if trained else ()))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, second_order: Tensor | None) -> tuple[Tensor | None, ...]:
    if second_order is not None:
        raise RuntimeError(
            "linear_logps has first derivatives only, but a second one was asked for (create_graph=True); "
            "use mipo.loss.token_logps, which autograd differentiates as often as you like"
        )
    dh = dw = db = None
    if upstream is not None:
        gradient, *head = ctx.saved_tensors
        assert gradient is not None or not ctx.needs_input_grad[0], "the op ran without with_gradient"
        if gradient is not None:
            # Not in place: the graph may be retained and walked again.
            dh = (gradient * -upstream.unsqueeze(1)).to(gradient.dtype)
        if head:
            with_weight, with_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
            dw, db = _weight_gradient_op(*head, upstream, *ctx.options, with_weight, with_bias)
            dw, db = dw if with_weight else None, db if with_bias else None
    return dh, dw, None, db, None, None, None, None, None, None


torch.library.register_autograd("mipo::linear_logps", _backward, setup_context=_save)


@register_flop_formula(_forward_op)
def _forward_flops(hidden_shape, weight_shape, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    tokens, width = hidden_shape
    return int(2 * tokens * width * weight_shape[0] * (1 + options[-1]))


@register_flop_formula(_weight_gradient_op)
def _weight_gradient_flops(hidden_shape, weight_shape, *options, out_shape=None, **_) -> int:  # type: ignore[no-untyped-def]
    tokens, width = hidden_shape
    return int(2 * tokens * width * weight_shape[0] * (1 + options[-2]))


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    transform: Transform,
    *,
    logits_dtype: torch.dtype,
    chunk_bytes: int,
) -> Tensor:
    """Log-probs [T] of targets [T] under hidden [T, D] and weight [V, D]; differentiable once in hidden, weight, bias.

    Nothing is checked here: `mipo.fused.linear_logps` is the door.
    """
    with_gradient = torch.is_grad_enabled() and hidden.requires_grad
    logps, _ = _forward_op(hidden, weight, targets, bias, *transform, logits_dtype, chunk_bytes, with_gradient)
    return logps  # type: ignore[no-any-return]
