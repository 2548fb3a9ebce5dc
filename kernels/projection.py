"""The products with an LM head, in pieces that fit a byte budget: logits from hidden states, and their gradients.

Knows torch and the rows. Knows nothing of modes, which each fused operation has of its own. README.md in this folder
has the costs and limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .row_state import Transform, new_state
from .rows import SLICE_BYTES, aligned, fold_rows, gradient_rows, slices


class Inputs(NamedTuple):
    """What an LM head gets, with its low-rank product, and the room for its logits: arguments of every operator."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D], of any floating dtype; its gradient has the same
    targets: Tensor  # [T]
    bias: Tensor | None  # [V]
    down: Tensor | None  # [T, r]
    up: Tensor | None  # [V, r]
    transform: Transform
    logits_dtype: torch.dtype
    chunk_bytes: int  # that logits may take

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """Hidden, weight, bias, down and up: the order of gradients."""
        return self.hidden, self.weight, self.bias, self.down, self.up


@dataclass(frozen=True)
class Projection:
    """The logits of inputs and what follows from them, for some tokens and words at a time."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [T]
    bias: Tensor | None  # [V]
    down: Tensor | None  # [T, r]
    up: Tensor | None  # [V, r]
    transform: Transform
    logits_dtype: torch.dtype
    chunk_bytes: int
    # The dtype of the original weight and of its gradient. All products have the dtype of hidden.
    weight_dtype: torch.dtype

    @classmethod
    def of(cls, inputs: Inputs) -> Projection:
        """Casts the weight to the dtype of hidden where it has another one, as under autocast."""
        contiguous = inputs._replace(
            weight=inputs.weight.to(inputs.hidden.dtype),
            targets=inputs.targets.contiguous(),
            bias=None if inputs.bias is None else inputs.bias.contiguous(),
        )
        return cls(*contiguous, inputs.weight.dtype)

    def part(self, tokens: slice, chunk_bytes: int) -> Projection:
        """The same for some of the tokens, with another budget."""
        down = None if self.down is None else self.down[tokens]
        hidden, targets = self.hidden[tokens], self.targets[tokens]
        return replace(self, hidden=hidden, targets=targets, down=down, chunk_bytes=chunk_bytes)

    @property
    def tokens(self) -> slice:
        """All tokens."""
        return slice(0, len(self.hidden))

    @property
    def words(self) -> slice:
        """The whole vocabulary."""
        return slice(0, len(self.weight))

    @property
    def separate(self) -> bool:
        """Whether G needs its own buffer: G has the dtype of the weight, its factor in the products."""
        return self.logits_dtype != self.weight.dtype

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums."""
        return torch.promote_types(self.logits_dtype, torch.float32)

    def capacity(self, with_gradient: bool) -> int:
        """The number of tokens whose logits fit the budget; at least one."""
        return max(1, self.chunk_bytes // (aligned(len(self.weight)) * self._logit_bytes(with_gradient)))

    def word_slices(self, tokens: int, with_gradient: bool) -> list[slice]:
        """Even runs of words, with the logits of this many tokens within the budget; at least 16 words each."""
        size = self.chunk_bytes // (max(1, tokens) * self._logit_bytes(with_gradient))
        return list(even(len(self.weight), size // 16 * 16 or 16, 16))

    def tiles(self, with_gradient: bool) -> tuple[list[slice], list[slice]]:
        """Even runs of tokens and of words, with the logits of a tile within the budget; one tile where all fit.

        With sums [tokens, D], a run of tokens reads the weight twice, 4VD bytes, and a run of words reads and writes
        the sums twice in fp32, 16TD bytes. Four words for a token make the least of both.
        """
        if len(self.hidden) <= self.capacity(with_gradient):
            return [self.tokens], [self.words]
        size = self.chunk_bytes // self._logit_bytes(with_gradient)
        tokens = list(even(len(self.hidden), max(1, math.isqrt(size) // 2)))
        return tokens, self.word_slices(tokens[0].stop, with_gradient)

    def buffer(self, tokens: int, words: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised [tokens, words], with wider rows for alignment."""
        rows = self.hidden.new_empty(tokens, aligned(words), dtype=dtype)
        if not rows.is_cuda:
            # oneDNN's bf16 product with AMX multiplies the word after an odd number of them by 0: it must not be NaN.
            rows[:, words:].zero_()
        return rows

    def buffers(self, tokens: int, words: int) -> tuple[Tensor, Tensor]:
        """Buffers for logits and their G: the same buffer where the dtypes allow it."""
        logits = self.buffer(tokens, words, self.logits_dtype)
        return logits, self.buffer(tokens, words, self.weight.dtype) if self.separate else logits

    def state(self, statistics: bool) -> Tensor:
        """An uninitialised state of the softmax of every token."""
        return new_state(self.targets, self.wide, statistics)

    def fold(
        self,
        tokens: slice,
        words: slice,
        logits: Tensor,
        state: Tensor,
        g: Tensor | None = None,
        shares: bool = False,
    ) -> None:
        """Projects tokens on words into the buffer `logits` and folds these into `state` [T, …]; fills `g`, if any."""
        if tokens.start == tokens.stop:
            return
        logits = self._project(tokens, words, logits)
        fold_rows(
            logits,
            self.targets[tokens],
            self._bias(words),
            self.transform,
            state[tokens],
            words=words.stop - words.start,
            first=words.start,
            g=None if g is None else g[: logits.shape[0], : logits.shape[1]],
            shares=shares,
        )

    def gradient(
        self, tokens: slice, words: slice, logits: Tensor, state: Tensor, g: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Projects again into `logits`, and returns G of these tokens and words, in `g`, from the finished state."""
        logits = self._project(tokens, words, logits)
        n = words.stop - words.start
        gradient_rows(
            logits,
            self.targets[tokens],
            self._bias(words),
            self.transform,
            state[tokens],
            words=n,
            first=words.start,
            g=g[: logits.shape[0], : logits.shape[1]],
            weights=None if weights is None else weights[tokens],
        )
        return g[: logits.shape[0], :n]

    def _logit_bytes(self, with_gradient: bool) -> int:
        return self.logits_dtype.itemsize + (with_gradient and self.separate) * self.weight.itemsize

    def _bias(self, words: slice) -> Tensor | None:
        return None if self.bias is None else self.bias[words]

    def _project(self, tokens: slice, words: slice, buffer: Tensor) -> Tensor:
        n = words.stop - words.start
        out = buffer[: tokens.stop - tokens.start, : aligned(n)]
        product(out[:, :n], self.hidden[tokens], self.weight[words].t())
        if self.down is not None and self.up is not None:
            product(out[:, :n], self.down[tokens], self.up[words].t(), add=True)
        return out


class Gradients:
    """Gradients of hidden, weight, bias, down and up, summed over chunks of tokens; None where not wanted."""

    def __init__(self, projection: Projection, wanted: list[bool], chunks: int, keep_sums: bool = False) -> None:
        p = self.projection = projection
        self.chunks = self.left = chunks
        # One chunk is one product, rounded once by the GEMM; several are summed in fp32, and so is one that the caller
        # will multiply again. cuBLAS gives products in their factors' dtype or in fp32.
        wide, one = torch.promote_types(p.hidden.dtype, torch.float32), chunks == 1 and not keep_sums
        dtype = p.weight_dtype if one and p.weight_dtype == p.hidden.dtype else wide
        low_dtype = p.hidden.dtype if one else wide
        # Without chunks there is no first product: the sum is 0.
        empty = torch.zeros_like if chunks == 0 else torch.empty_like
        self.hidden = torch.empty_like(p.hidden) if wanted[0] else None
        self.weight = empty(p.weight, dtype=dtype) if wanted[1] else None
        self.bias = torch.zeros_like(p.weight[:, 0], dtype=p.wide) if wanted[2] else None
        self.down = torch.empty_like(p.down) if wanted[3] and p.down is not None else None
        self.up = empty(p.up, dtype=low_dtype) if wanted[4] and p.up is not None else None

    def add(self, tokens: slice, words: list[slice], g_of: Callable[[slice], Tensor], upstream: Tensor) -> None:
        """Adds a chunk: `g_of` returns G [n, words] of a slice of words, `upstream` [n] is dL/dlogps of its tokens."""
        p, first, scales = self.projection, self.left == self.chunks, -upstream
        scaled_hidden, scaled_down = (
            None if whole is None or rows is None else scaled_rows(rows[tokens], scales, rows.dtype)
            for whole, rows in ((self.weight, p.hidden), (self.up, p.down))
        )
        # With one slice dH is one product, rounded once; several are summed in fp32.
        dh, dd = (
            None
            if whole is None
            else whole[tokens]
            if len(words) == 1
            else whole.new_zeros(len(upstream), whole.shape[1], dtype=torch.promote_types(whole.dtype, torch.float32))
            for whole in (self.hidden, self.down)
        )
        for columns in words:
            g = g_of(columns)
            if self.weight is not None and scaled_hidden is not None:
                product(self.weight[columns], g.t(), scaled_hidden, add=not first)
            if self.up is not None and scaled_down is not None:
                product(self.up[columns], g.t(), scaled_down, add=not first)
            if self.bias is not None:
                product(self.bias[columns][None], scales[None].to(g.dtype), g, add=True)
            if dh is not None:
                product(dh, g, p.weight[columns], add=len(words) > 1)
            if dd is not None and p.up is not None:
                product(dd, g, p.up[columns], add=len(words) > 1)
        for whole, part in ((self.hidden, dh), (self.down, dd)):
            if whole is not None and part is not None:
                torch.mul(part, scales[:, None], out=whole[tokens])
        self.left -= 1

    def sums(self) -> list[Tensor]:
        """Hidden [T, D], weight [V, D], bias [V], down [T, r], up [V, r], in the dtype of sums; [0] if not wanted."""
        assert self.left == 0, "every chunk is added once"
        gradients = (self.hidden, self.weight, self.bias, self.down, self.up)
        return [self.projection.hidden.new_empty(0) if x is None else x for x in gradients]

    def finished(self) -> list[Tensor]:
        """The sums, in the dtypes of what they are the gradients of."""
        p, nothing = self.projection, self.projection.hidden.new_empty(0)
        gradients = self.sums()
        dtypes = [p.hidden.dtype, p.weight_dtype, *[p.hidden.dtype] * 3]
        return [nothing if x is None else x.to(dtype) for x, dtype in zip(gradients, dtypes, strict=True)]


def product(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """Computes out [n, m] = a [n, k] b [k, m], or += with `add`; rounds each element once, to the dtype of `out`."""
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    elif out.is_cuda:
        if add:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        _product_on_cpu(out, a, b, add)


def _product_on_cpu(out: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    # A CPU has no product of narrow factors into a wide sum: cast the larger factor piece by piece.
    if a.numel() >= b.numel():
        wide = b.to(out.dtype)
        for rows in slices(len(a), SLICE_BYTES // (out.itemsize * a.shape[1])):
            product(out[rows], a[rows].to(out.dtype), wide, add=add)
    else:
        wide = a.to(out.dtype)
        for columns in slices(b.shape[1], SLICE_BYTES // (out.itemsize * len(b))):
            product(out[:, columns], wide, b[:, columns].to(out.dtype), add=add)


def scaled_rows(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows [n, d] times scales [n], multiplied in the wider dtype and rounded once, to `dtype`."""
    return torch.mul(rows, scales[:, None], out=torch.empty_like(rows, dtype=dtype))


def even(n: int, size: int, multiple: int = 1) -> Iterator[slice]:
    """The fewest runs of at most `size`, of about one length, which is a multiple of `multiple`."""
    count = -(-n // size)
    length = -(-n // max(1, count))
    return slices(n, -(-length // multiple) * multiple)
