"""Several samples of a prompt, and fresh ones: who is asked how often, and which responses stand in which pair."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mipo import demo
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.responses.answers import keys_of
from mipo.responses.generation import generate
from mipo.responses.requests import Requests, compose_requests, link

DEMO = str(Path(demo.__file__).parent / "model")
FOODS = ("soup", "ramen", "curry", "tacos", "stew", "bread")
PROMPTS = pl.DataFrame(
    {"prompt": [f"what goes with {food} ?" for food in FOODS], "context": [f"i like {food} ." for food in FOODS]}
)


def composed(kind: Any, negatives: int, **settings: Any) -> tuple[Requests, pl.DataFrame]:
    """The requests, and the links with the prompts of both responses instead of their numbers."""
    drawn = contrast(PROMPTS, kind=kind, negatives=negatives, seed=1)
    requests = compose_requests(PROMPTS, drawn, chat=False, **settings)
    return requests, link(PROMPTS, drawn, requests)


def asked(requests: Requests, ids: pl.Series) -> pl.DataFrame:
    assert requests.prompts["response_id"].to_list() == list(range(requests.prompts.height))
    return requests.prompts[ids].drop("response_id")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("kind", "negatives"), [("random", 1), ("random", 2), ("context", 2), ("dropped", 1)])
def test_sample_s_is_paired_with_sample_s_of_the_same_prompts(
    kind: str, negatives: int, samples: int, fresh: bool
) -> None:
    once, pairs = composed(kind, negatives)
    requests, links = composed(kind, negatives, samples=samples, fresh=fresh)
    repeated = pl.concat([pairs] * samples).sort("prompt_id", maintain_order=True)
    numbers = [s for _ in range(PROMPTS.height) for s in range(samples) for _ in range(negatives)]
    assert links["prompt_id"].to_list() == repeated["prompt_id"].to_list()
    assert links["negative"].to_list() == list(range(negatives)) * samples * PROMPTS.height
    chosen, rejected = (asked(requests, links[f"{side}_id"]) for side in ("chosen", "rejected"))
    assert asked(requests, links["asked_id"])["prompt"].equals(chosen["prompt"])
    for row in range(links.height):
        block, negative = divmod(row, negatives)
        pair = pairs.row(block // samples * negatives + negative, named=True)
        assert chosen["prompt"][row] == once.prompts["prompt"][pair["chosen_id"]]
        assert rejected["prompt"][row] == once.prompts["prompt"][pair["rejected_id"]]
    if samples > 1:
        assert chosen["sample"].to_list() == numbers
        assert (rejected["sample"] % samples).to_list() == numbers


@pytest.mark.parametrize("samples", [1, 2])
def test_a_fresh_rejected_response_is_chosen_nowhere(samples: int) -> None:
    _, reused = composed("random", 2, samples=samples)
    requests, links = composed("random", 2, samples=samples, fresh=True)
    assert set(reused["chosen_id"]) == set(reused["rejected_id"])
    assert not set(links["chosen_id"]) & set(links["rejected_id"])
    assert requests.prompts.height == 2 * samples * PROMPTS.height
    # Where counter-prompts are asked for their own sake, nothing would be reused, and nothing is asked twice.
    assert composed("dropped", 1, samples=samples, fresh=True)[0].prompts.height == 2 * samples * PROMPTS.height


def test_all_samples_have_keys_and_answers_of_their_own(tmp_path: Path) -> None:
    requests = compose_requests(PROMPTS, chat=True, samples=4)
    keys = {key.tobytes() for key in keys_of(requests.prompts)}
    assert len(keys) == 4 * PROMPTS.height
    first = keys_of(compose_requests(PROMPTS, chat=True).prompts)
    assert {key.tobytes() for key in first} < keys  # more samples keep the answers that are there
    sampled = {"temperature": 1.5, "top_p": 1.0, "max_new_tokens": 8}
    one = generate(compose_requests(PROMPTS, chat=True).prompts, Model(DEMO), folder=tmp_path, **sampled)
    all_four = generate(requests.prompts, Model(DEMO), folder=tmp_path, **sampled)
    assert all_four["response"].gather_every(4).to_list() == one["response"].to_list()
    assert all_four.group_by("prompt").agg(pl.col("response").n_unique() > 1)["response"].any()
