"""The estimate of a run rests on what is there, and on nothing else."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mipo import contrast, demo
from mipo.models.model import Model
from mipo.responses.engines.choice import of_settings
from mipo.responses.estimate import Estimate, duration, estimate
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests, link
from mipo.responses.sampling import Prices, Responses
from mipo.tokenizer.chat import encode_prompts

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = Model(str(demo.HERE / "model"))
SETTINGS = Responses(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def prompts() -> pl.DataFrame:
    foods = pl.DataFrame(
        {"prompt": [f"what should i {verb} tonight ?" for verb in ("eat", "cook", "do", "buy", "see")]}
    )
    return compose_requests(foods, chat=True).prompts


def expect(prompts: pl.DataFrame, database: Path, **changes: Any) -> Estimate:
    settings = Responses(temperature=0.0, max_new_tokens=12, **changes)
    expected = estimate(prompts, MODEL, database, of_settings(settings), settings, 0)
    assert expected
    return expected


def test_without_answers_only_the_most_is_known(prompts: pl.DataFrame, tmp_path: Path) -> None:
    expected = expect(prompts, tmp_path / "answers.sqlite")
    tokens = int(encode_prompts(prompts["prompt"], MODEL.tokenizer).lengths().sum())
    assert (expected.tokens_in, expected.most_tokens_out, expected.answers) == (tokens, 60, 0)
    assert expected.describe(None) == f"tokens of the responses that are missing: {tokens:,} in, at most 60 out"
    million = Prices(input=1e6, output=2e6)
    assert expected.describe(million).endswith(f"at most 60 out, for at most {tokens + 120:,.2f}")
    assert list(tmp_path.iterdir()) == []


def test_answers_that_are_there_tell_of_the_others(prompts: pl.DataFrame, tmp_path: Path) -> None:
    first = generate(prompts[:2], MODEL, folder=tmp_path, temperature=0.0, max_new_tokens=12)
    expected = expect(prompts, tmp_path / "answers.sqlite")
    assert expected.missing.tolist() == [2, 3, 4]
    assert expected.answers == 2
    assert expected.tokens_out == pytest.approx(first["response_tokens"].mean() * 3)
    assert expected.seconds is not None
    lines = expected.describe(Prices(output=1e6)).splitlines()
    assert lines[1].startswith(
        f"by the 2 answers that are there: about {expected.tokens_out:,.0f} out, at most 0 seconds, for "
    )


def test_a_batch_that_was_not_full_tells_the_most_seconds(prompts: pl.DataFrame, tmp_path: Path) -> None:
    generate(prompts[:2], MODEL, folder=tmp_path, temperature=0.0, max_new_tokens=12)
    database = tmp_path / "answers.sqlite"
    assert expect(prompts, database).is_most
    assert expect(prompts, database, batch_size=3).is_most
    assert not expect(prompts, database, batch_size=2).is_most
    assert ", 0 seconds" in expect(prompts, database, batch_size=2).describe(None)
    assert not expect(prompts, database, engine="server", urls=("http://localhost:1/v1",)).is_most


def test_a_choice_of_the_best_is_charged_for_its_scores(tmp_path: Path) -> None:
    table = pl.DataFrame({"prompt": [f"what should i {verb} tonight ?" for verb in ("eat", "cook", "do", "buy")]})
    drawn = contrast(table, negatives=2)
    requests = compose_requests(table, drawn, chat=True, samples=3)
    links = link(table, drawn, requests)
    settings = Responses(temperature=0.5, max_new_tokens=12, samples=3, choose="best")

    def expected() -> Estimate:
        database = tmp_path / "answers.sqlite"
        known = estimate(requests.prompts, MODEL, database, of_settings(settings), settings, 0, links=links)
        assert known
        return known

    # Each of 4 · 3 responses is scored under its prompt and two others.
    lengths = encode_prompts(requests.prompts["prompt"], MODEL.tokenizer).lengths()
    asked = lengths[links["rejected_id"]].sum() + lengths[links.unique("chosen_id")["asked_id"]].sum()
    assert expected().scores == 36
    assert expected().tokens_scored == asked + 36 * 12
    assert expected().describe(None).endswith(f"choose: best scores 36 times: at most {asked + 432:,} tokens in")
    answers = generate(requests.prompts, MODEL, folder=tmp_path, temperature=0.5, max_new_tokens=12)
    assert expected().tokens_scored == pytest.approx(asked + 36 * answers["response_tokens"].mean())
    cost = expected().tokens_scored + 36 * 2
    assert expected().describe(Prices(input=1e6, output=2e6)).endswith(f"tokens in, for {cost:,.2f}")
    each = Responses(temperature=0.5, max_new_tokens=12, samples=3)
    plain = estimate(requests.prompts, MODEL, tmp_path / "answers.sqlite", of_settings(each), each, 0, links=links)
    assert plain
    assert plain.scores == 0


def test_another_engine_s_answers_say_nothing_of_the_time(prompts: pl.DataFrame, tmp_path: Path) -> None:
    generate(prompts[:2], MODEL, folder=tmp_path, temperature=0.0, max_new_tokens=12)
    expected = expect(prompts, tmp_path / "answers.sqlite", engine="server", urls=("http://localhost:1/v1",))
    assert expected.tokens_out
    assert expected.seconds is None
    assert "seconds" not in expected.describe(None)


def test_nothing_is_expected_where_nothing_is_missing(prompts: pl.DataFrame, tmp_path: Path) -> None:
    generate(prompts, MODEL, folder=tmp_path, temperature=0.0, max_new_tokens=12)
    expected = expect(prompts, tmp_path / "answers.sqlite")
    assert len(expected.missing) == 0
    assert expected.describe(None) == "tokens of the responses that are missing: 0 in, at most 0 out"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7_199, "120 minutes"), (86_400, "24 hours"),
     (1e6, "12 days")],
)  # fmt: skip
def test_a_duration_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words
