"""Picking: the next token of each row, from its logits. Knows numbers alone: no model, no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import np, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mipo.responses.sampling import Sampling

# The next token [n] of rows with these logits [n, V] in float32, places among all prompts, and counts of new tokens.
Pick = Callable[["Tensor", Sequence[int], Sequence[int]], "Tensor"]
FIRST = 256  # tokens among which the nucleus is looked for first


def picker(sampling: Sampling, seeds: Sequence[int]) -> Pick:
    """How tokens are picked under `sampling`; a place's random numbers come from its seed alone, not from its batch."""
    if not sampling.temperature:
        return lambda logits, places, counts: logits.argmax(-1)
    numbers: dict[int, NDArray[np.float64]] = {}

    def pick(logits: Tensor, places: Sequence[int], counts: Sequence[int]) -> Tensor:
        for place, count in zip(places, counts, strict=True):
            if not count:
                numbers[place] = np.random.default_rng(seeds[place]).random(sampling.max_new_tokens)
        uniform = [numbers[place][count] for place, count in zip(places, counts, strict=True)]
        return sample(logits / sampling.temperature, sampling.top_p, torch.tensor(uniform, dtype=torch.float64))

    return pick


def sample(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """The token [n] at which the distribution function of logits [n, V] passes `uniform` [n], numbers from [0, 1).

    With `top_p` below 1, of the fewest most likely tokens that have this share of the probability together.
    """
    if top_p == 1:
        return _invert(logits.softmax(-1), uniform)
    total, count = logits.logsumexp(-1, keepdim=True), FIRST
    while True:  # a nucleus is small as a rule: to sort the whole vocabulary costs more than the model
        values, tokens = logits.topk(min(count, logits.shape[-1]))
        shares = (values - total).exp()
        if count >= logits.shape[-1] or bool((shares.sum(-1) >= top_p).all()):
            break
        count *= 16
    before = shares.cumsum(-1) - shares
    nucleus = shares.masked_fill(before >= top_p, 0.0)
    return tokens.gather(-1, _invert(nucleus, uniform)[:, None]).squeeze(-1)


def _invert(shares: Tensor, uniform: Tensor) -> Tensor:
    """The first place [n] where the running sum of shares [n, V] is above that part of their whole sum."""
    sums = shares.to(torch.float32 if shares.device.type == "mps" else torch.float64).cumsum(-1)
    total = sums[:, -1:]
    if not total.isfinite().all():
        raise InputError("dtype: expected finite logits of the model, got NaN or infinity; answer in another dtype")
    wanted = torch.minimum(uniform[:, None].to(sums) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, wanted, right=True).squeeze(-1)
