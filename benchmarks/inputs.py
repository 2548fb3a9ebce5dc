"""Inputs of the head benchmarks: a preference batch whose softmax is as peaked as a trained model's, and its truth.

Knows shapes and how the numbers are drawn. Does not know what is timed on them.

An LM head on random hidden states gives every word about 1/V. A method that skips small probabilities would skip all of
them there and look fast for nothing, so hidden states are built to predict something, W being random with rows of norm
1 and `level` the logit at which one word weighs as much as all other words together:

    h_t = TAIL noise                                    logits of the rest: normal, standard deviation TAIL
        + sum_j (level - 1 + 2 normal) W[candidate_j]   RIVALS other plausible words
        + (c + HARDNESS normal) W[target]               c by bisection: log p of the targets is -1 on average

Targets and rivals follow Zipf's law with the frequent words first, as token numbers of a BPE do: a filter that works on
tiles needs the likely words side by side. The result is measured on every token and recorded in `facts`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mipo.loss import preference_loss, sequence_logps, token_logps

BETA = 0.1
MEAN_LOGP = -1.0
TAIL = 1.5
RIVALS = 4
HARDNESS = 4.0
RESPONSE = 256  # tokens, on average
# The threshold of Cut Cross-Entropy for bf16, and the tile it skips when nothing in it is above.
FILTER = 2.0**-12
TILE = 128
# Tokens whose fp32 logits exist at a time.
SLICE_BYTES = 1 << 30


@dataclass(frozen=True)
class Point:
    """Sizes of one benchmark: tokens T, width D, vocabulary V."""

    name: str
    tokens: int
    width: int
    vocabulary: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def product_flops(self) -> int:
        """F: FLOPs of one product of all hidden states with the head."""
        return 2 * self.tokens * self.width * self.vocabulary

    @property
    def title(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"T {self.tokens:,}, D {self.width:,}, V {self.vocabulary:,}, {dtype}"


POINTS = (
    Point("large", 16384, 4096, 128256),
    Point("small-model", 8192, 2048, 151936),
    Point("short", 1024, 4096, 128256),
)
# For a CPU: odd sizes, and both dtypes, because each has its own tolerance.
TINY_POINTS = (
    Point("tiny-fp32", 250, 96, 2003, torch.float32),
    Point("tiny-bf16", 250, 96, 2003),
)


@dataclass(frozen=True)
class Batch:
    """Response tokens of G pairs, packed: chosen, rejected, the next pair's chosen, ..."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [T] int64
    lengths: Tensor  # [G, 2] int64, on the CPU
    sequence_ids: Tensor  # [T] int64: 2 g + k
    ref_logps: Tensor  # [G, 2] fp32, nats
    facts: dict[str, float]

    def loss_of(self, logps: Tensor) -> Tensor:
        """DPO loss, averaged over pairs, of per-token log-probs [T]: added to every method that has no loss itself."""
        sums = sequence_logps(logps, self.sequence_ids, self.lengths.numel())
        return preference_loss(sums.view(self.lengths.shape), self.ref_logps, beta=BETA).mean()


@dataclass(frozen=True)
class Truth:
    """Loss and gradients in fp32 from the same inputs."""

    loss: float
    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]


def make(point: Point, device: str, seed: int = 0) -> Batch:
    """Draws a batch; the same point, device and seed give the same batch."""
    random = torch.Generator(device).manual_seed(seed)
    normal: dict[str, Any] = {"generator": random, "device": device}
    weight = torch.randn(point.vocabulary, point.width, **normal) / math.sqrt(point.width)
    words = 1 / (torch.arange(point.vocabulary, device=device) + 2.7)
    targets = torch.multinomial(words, point.tokens, replacement=True, generator=random)
    hidden = TAIL * torch.randn(point.tokens, point.width, **normal)
    level = math.log(point.vocabulary) + TAIL**2 / 2
    for _ in range(RIVALS):
        rivals = torch.multinomial(words, point.tokens, replacement=True, generator=random)
        hidden += (level - 1 + 2 * torch.randn(point.tokens, 1, **normal)) * weight[rivals]
    hardness = HARDNESS * torch.randn(point.tokens, 1, **normal)
    hidden += (_calibrate(hidden, weight, targets, hardness) + hardness) * weight[targets]
    hidden, weight = hidden.to(point.dtype), weight.to(point.dtype)
    logps, facts = _look(hidden, weight, targets)
    lengths = _lengths(point.tokens, seed)
    sequence_ids = torch.repeat_interleave(torch.arange(lengths.numel()), lengths.flatten()).to(device)
    sums = sequence_logps(logps, sequence_ids, lengths.numel()).view(lengths.shape)
    # A reference 3 nats away: the sigmoid of beta times that is far from both of its ends.
    ref_logps = sums + 3 * torch.randn(lengths.shape, **normal)
    return Batch(hidden, weight, targets, lengths, sequence_ids, ref_logps, facts)


def compute_truth(batch: Batch) -> Truth:
    """Loss and gradients by autograd in fp32, a slice of tokens at a time."""
    hidden = batch.hidden.detach().float()
    weight = batch.weight.detach().float().requires_grad_()
    logps = torch.cat([token_logps(hidden[s], weight.detach(), batch.targets[s]) for s in _slices(batch)])
    logps.requires_grad_()
    loss = batch.loss_of(logps)
    (upstream,) = torch.autograd.grad(loss, logps)
    gradient = torch.empty_like(hidden)
    for s in _slices(batch):
        rows = hidden[s].requires_grad_()
        torch.autograd.backward(token_logps(rows, weight, batch.targets[s]), upstream[s])
        assert rows.grad is not None
        gradient[s] = rows.grad
    assert weight.grad is not None
    return Truth(float(loss.detach()), gradient, weight.grad)


def _calibrate(hidden: Tensor, weight: Tensor, targets: Tensor, hardness: Tensor) -> float:
    """The c of the module's formula, from a sample of tokens; log p grows with c, so bisection finds it."""
    sample = slice(0, 512)
    rest = hidden[sample] @ weight.t()
    push = weight[targets[sample]] @ weight.t()

    def mean_logp(c: float) -> float:
        logits = rest + (c + hardness[sample]) * push
        return float(logits.log_softmax(-1).gather(1, targets[sample, None]).mean())

    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_logp(middle) < MEAN_LOGP else (low, middle)
    return low


def _look(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Token log-probs in fp32, and how peaked the softmax is, without any of the timed methods."""
    logps, likely, tiles, n_tiles = [], 0, 0, 0
    wide = weight.float()
    for start in range(0, len(hidden), TILE):
        rows = slice(start, start + TILE)
        log_p = (hidden[rows].float() @ wide.t()).log_softmax(-1)
        logps.append(log_p.gather(1, targets[rows, None]).squeeze(1))
        above = log_p > math.log(FILTER)
        likely += int(above.sum())
        blocks = torch.nn.functional.pad(above.any(0), (0, -len(wide) % TILE)).view(-1, TILE).any(1)
        tiles, n_tiles = tiles + int(blocks.sum()), n_tiles + len(blocks)
    all_logps = torch.cat(logps)
    low, middle = torch.quantile(all_logps, all_logps.new_tensor([0.1, 0.5])).tolist()
    facts = {
        "mean_logp": float(all_logps.mean()),
        "logp_of_the_hardest_tenth": low,
        "median_logp": middle,
        "share_of_probabilities_above_filter": likely / (len(hidden) * len(weight)),
        "share_of_tiles_above_filter": tiles / n_tiles,
    }
    return all_logps, facts


def _lengths(tokens: int, seed: int) -> Tensor:
    """[G, 2] lengths around RESPONSE that sum to `tokens`; at least two pairs."""
    n = 2 * max(2, round(tokens / (2 * RESPONSE)))
    random = torch.Generator().manual_seed(seed)
    shares = 0.75 + 0.5 * torch.rand(n, generator=random)
    ends = (shares.cumsum(0) / shares.sum() * tokens).round().long()
    return torch.diff(ends, prepend=ends.new_zeros(1)).view(-1, 2)


def _slices(batch: Batch) -> list[slice]:
    size = max(1, SLICE_BYTES // (4 * len(batch.weight)))
    return [slice(start, start + size) for start in range(0, len(batch.hidden), size)]
