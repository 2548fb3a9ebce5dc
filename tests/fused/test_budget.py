"""The default budget: the whole head takes no more memory than TRL's, at the sizes that are measured on a GPU.

Tensors are on the meta device, so nothing is computed: the storages that come into being are counted. On a GPU the
products and the row kernels of both write in place, so here they are left out.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import LookInside, PeakMemory
from torch.utils.flop_counter import FlopCounterMode

from mipo.fused.operators import linear_logps, linear_preference_loss
from mipo.kernels import linear_logps as logps_kernel
from mipo.kernels import projection

trl_head = pytest.importorskip("trl.kernels.chunked_logprob")

# Tokens, width, words: those of benchmarks/inputs.py.
POINTS = {"large": (16384, 4096, 128256), "small-model": (8192, 2048, 151936), "short": (1024, 4096, 128256)}
STATISTICS = ("entropy", "mean_logits", "is_top1")
TRL_CHUNK = 32768


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any, **options: Any) -> None:
        pass

    for place, names in (
        (trl_head, ("_forward_tile", "_backward_tile", "_addmm_fp32")),
        (projection, ("fold_rows", "gradient_rows", "product")),
        (logps_kernel, ("product",)),
    ):
        for name in names:
            monkeypatch.setattr(place, name, nothing)
    # Autocast knows no meta device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)


def step(loss: Callable[..., torch.Tensor], tokens: int, width: int, words: int, trained: bool) -> None:
    """Forward and backward."""

    def leaf(rows: int, requires_grad: bool) -> torch.Tensor:
        return torch.empty(rows, width, dtype=torch.bfloat16, device="meta").requires_grad_(requires_grad)

    hidden, weight = leaf(tokens, True), leaf(words, trained)
    targets = torch.zeros(tokens, dtype=torch.int64, device="meta")
    torch.autograd.grad(loss(hidden, weight, targets), [hidden, weight][: 1 + trained])


def peak(loss: Callable[..., torch.Tensor], tokens: int, width: int, words: int, trained: bool) -> int:
    """Bytes at one time in forward and backward, with the gradients."""
    with PeakMemory() as memory, LookInside():
        step(loss, tokens, width, words, trained)
    return memory.peak


def theirs(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    head = trl_head.ChunkedLogProbFunction
    return head.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, STATISTICS)[0].sum()


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(hidden) // 512, 2), 256)
    ref_logps = torch.zeros(lengths.shape, device="meta")
    return linear_preference_loss(hidden, weight, targets, lengths, ref_logps, statistics=True).loss


def in_trl(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return linear_logps(hidden, weight, targets, statistics=True).logps.sum()


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("loss", [ours, in_trl], ids=["loss inside", "TRL's trainers"])
def test_the_head_takes_no_more_than_trl_s(loss: Callable[..., torch.Tensor], point: str, trained: bool) -> None:
    assert peak(loss, *POINTS[point], trained) <= peak(theirs, *POINTS[point], trained)


@pytest.mark.parametrize("point", ["large", "small-model"])
def test_with_the_loss_outside_a_trained_head_keeps_g_of_many_tokens(point: str) -> None:
    """Less than TRL's 4F where not all logits fit, within its memory: 3F, and F for the tokens that are not kept."""
    tokens, width, words = POINTS[point]
    with FlopCounterMode(display=False) as counter:
        step(in_trl, tokens, width, words, trained=True)
    assert 3 < counter.get_total_flops() / (2 * tokens * width * words) < 3.65


@pytest.mark.parametrize("point", POINTS)
def test_scoring_takes_little_more_than_a_tile(point: str) -> None:
    """Without gradients: TRL's tile, in float32 as many bytes, and a few numbers of a token."""
    tokens, width, words = POINTS[point]
    hidden, weight = (torch.empty(n, width, dtype=torch.bfloat16, device="meta") for n in (tokens, words))
    targets = torch.zeros(tokens, dtype=torch.int64, device="meta")
    with PeakMemory() as memory, LookInside():
        linear_logps(hidden, weight, targets)
    tile = 2 * min(tokens, trl_head.TOKEN_CHUNK_SIZE) * TRL_CHUNK
    assert memory.peak <= tile + 64 * tokens
