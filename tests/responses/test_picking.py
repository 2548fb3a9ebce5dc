"""Picking: tokens have the probabilities that transformers gives them, and depend on nothing but their own row."""

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from mipo.errors import InputError
from mipo.responses.engines.picking import FIRST, picker, sample
from mipo.responses.sampling import Sampling

DRAWS = 20_000
EVENLY = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS


def logits_of(vocabulary: int, spread: float) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize(("vocabulary", "spread"), [(2, 1.0), (50, 2.0), (3 * FIRST, 0.1), (20 * FIRST, 3.0)])
def test_shares_of_tokens_are_those_of_transformers(top_p: float, vocabulary: int, spread: float) -> None:
    """Evenly spaced numbers hit each token as often as its probability says, up to one draw at either end."""
    logits = logits_of(vocabulary, spread)
    tokens = torch.cat([sample(logits.expand(len(part), -1), top_p, part) for part in EVENLY.split(1000)])
    counts = torch.bincount(tokens, minlength=vocabulary)
    warped = TopPLogitsWarper(top_p)(None, logits[None].clone()) if top_p < 1 else logits[None]
    expected = warped.softmax(-1)[0] * DRAWS
    assert (counts - expected).abs().max() <= 2
    assert not counts[expected == 0].any()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_impossible_tokens_are_never_picked(top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert sample(logits, top_p, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_named(top_p: float, value: float) -> None:
    with pytest.raises(InputError, match="dtype: expected finite logits of the model"):
        sample(torch.tensor([[0.0, value, 1.0]]), top_p, torch.tensor([0.5], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_s_tokens_do_not_depend_on_the_rows_beside_it(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=3)
    logits = torch.stack([logits_of(40 + row, 1.0)[:40] for row in range(6)])
    seeds = [11, 12, 13, 11, 15, 16]

    def tokens(places: list[int]) -> np.ndarray:
        pick = picker(sampling, seeds)
        steps = [pick(logits[places], places, [count] * len(places)).tolist() for count in range(3)]
        return np.array(steps).T

    together = tokens([0, 1, 2, 3, 4, 5])
    for places in ([5, 1], [3], [4, 3, 2, 1, 0]):
        np.testing.assert_array_equal(tokens(places), together[places])


def test_seeds_decide_and_each_token_has_a_number_of_its_own() -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40)
    logits = torch.zeros(2, 1000)
    one, other = (picker(sampling, seeds) for seeds in ([1, 2], [3, 2]))
    picks = [(one(logits, [0, 1], [n, n]).tolist(), other(logits, [0, 1], [n, n]).tolist()) for n in range(40)]
    assert [a[1] for a, _ in picks] == [b[1] for _, b in picks]
    assert sum(a[0] == b[0] for a, b in picks) < 3
    assert len({a[0] for a, _ in picks}) > 35
