"""M1 and M0 in tiles of tokens by words: what a tile may be, and how exact the sums over tiles are."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import Case, arguments, leaves, make, rms_error, upstream
from torch import Tensor

from mipo.fused.operators import linear_logps
from mipo.kernels import projection, row_state

ONE_TILE, TILES = 1 << 30, 1 << 16
# Sums in float32 of products that are rounded alike: what is left of chance between two orders of rounding.
SAME = 1.02


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 1 << 20), st.booleans())
def test_tiles_cover_all_logits_and_keep_the_budget(tokens: int, words: int, chunk_bytes: int, separate: bool) -> None:
    hidden, weight = (torch.empty(n, 4, dtype=torch.bfloat16, device="meta") for n in (tokens, words))
    logits_dtype = torch.float32 if separate else torch.bfloat16
    targets = torch.empty(tokens, dtype=torch.int64, device="meta")
    transform = row_state.Transform(1.0, None, 1.0)
    inputs = projection.Inputs(hidden, weight, targets, None, None, None, transform, logits_dtype, chunk_bytes)
    for runs, n in zip(projection.Projection.of(inputs).tiles(with_gradient=True), (tokens, words), strict=True):
        assert (runs[0].start, runs[-1].stop) == (0, n)
        assert all(one.stop == other.start for one, other in pairwise(runs))
        # The first is the longest: buffers have its size.
        assert max(run.stop - run.start for run in runs) == runs[0].stop
    chunks, slices = projection.Projection.of(inputs).tiles(with_gradient=True)
    logit_bytes = 6 if separate else 2
    # One token, or 16 words, is the least.
    least = chunks[0].stop == 1 or slices[0].stop <= 16
    assert chunks[0].stop * slices[0].stop * logit_bytes <= chunk_bytes or least


@pytest.mark.parametrize("staging", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("spread", [2.0, 30.0])
def test_tiles_are_as_exact_as_whole_rows(spread: float, softcap: float | None, staging: torch.dtype) -> None:
    """bf16 against fp64, targets drawn from the model itself: likely ones are where p - 1 is smallest."""
    case = Case(tokens=256, width=64, vocabulary=2003, spread=spread, softcap=softcap)
    inputs, _ = make(case, "cpu", torch.bfloat16)
    logits = inputs["hidden"].double() @ inputs["weight"].double().t()
    targets = logits.softmax(1).multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]

    def gradient(dtype: torch.dtype, chunk_bytes: int, logits_dtype: torch.dtype | None) -> Tensor:
        params = leaves(inputs, ("hidden",), dtype)
        options = {**case.options, "mode": "M1", "chunk_bytes": chunk_bytes, "logits_dtype": logits_dtype}
        logps = linear_logps(**arguments(params), targets=targets, **options)
        return torch.autograd.grad(logps, params["hidden"], upstream(logps))[0]

    truth = gradient(torch.float64, ONE_TILE, None)
    whole, tiles = (rms_error(gradient(torch.bfloat16, size, staging), truth) for size in (ONE_TILE, TILES))
    assert tiles <= SAME * whole


def test_whole_rows_and_tiles_agree_in_float32() -> None:
    case = Case(tokens=30, width=16, vocabulary=500, bias=True, rank=2)
    inputs, targets = make(case, "cpu")
    runs = []
    for chunk_bytes in (ONE_TILE, 4 * 5 * 100):
        params = leaves(inputs, ("hidden", "down"))
        scored = linear_logps(**arguments(params), targets=targets, mode="M1", chunk_bytes=chunk_bytes, statistics=True)
        gradients = torch.autograd.grad(scored.logps, list(params.values())[::3], upstream(scored.logps))
        runs.append([scored.logps.detach(), scored.entropy.detach(), *gradients])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_frozen_head_scores_alike_with_gradients_and_without(dtype: torch.dtype) -> None:
    """A policy with fresh LoRA is its own reference: every log-ratio is exactly 0."""
    inputs, targets = make(Case(tokens=30, width=16, vocabulary=501), "cpu", dtype)
    params, options = leaves(inputs, ("hidden",)), {"chunk_bytes": 4 * 5 * 100, "logits_dtype": dtype}
    trained = linear_logps(**arguments(params), targets=targets, **options)
    assert torch.equal(trained.detach(), linear_logps(**arguments(inputs), targets=targets, **options))
