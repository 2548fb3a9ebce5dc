"""Stored requests: whatever the batches, they are those that are composed in memory, and so are the links."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from failed import failures
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo import contrast, demo
from mipo.errors import InputError
from mipo.models.model import Model
from mipo.responses.generation import generate, generate_to
from mipo.responses.requests import compose_requests, link
from mipo.responses.sampling import Sampling
from mipo.responses.stored_requests import StoredRequests, open_requests
from mipo.tokenizer.messages import key

TEXTS = [f"Name a {word}. Say why." for word in ("fruit", "river", "king", "song", "stone")]
CONTEXTS = ["I am tall.", "I am old.", "I sing."]
rows_of_two_columns = st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(CONTEXTS)), min_size=6, max_size=20)


def some(frame: pl.DataFrame, rows: int) -> Iterator[pl.DataFrame]:
    """The frame in batches."""
    return (frame[start : start + rows] for start in range(0, frame.height, rows))


@given(
    rows_of_two_columns, st.sampled_from(["random", "context", "dropped", "partial"]), st.integers(1, 7),
    st.integers(1, 2), st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_requests_and_links_are_those_composed_in_memory(
    rows: list[tuple[str, str]], kind: Any, batch: int, negatives: int, samples: int, fresh: bool, chat: bool
) -> None:
    prompts = pl.DataFrame(rows, schema=["prompt", "context"], orient="row").with_row_index("prompt_id")
    each = 1 if kind in ("dropped", "partial") else negatives
    try:
        drawn = contrast(prompts, kind=kind, negatives=each)
    except InputError:
        return  # all prompts, or all contexts, are alike
    expected = compose_requests(prompts, drawn, chat=chat, samples=samples, fresh=fresh)
    opened = open_requests(some(prompts, batch), some(drawn, batch), chat=chat, samples=samples, fresh=fresh)
    with opened as requests:
        assert requests.take(np.arange(requests.rows)).equals(expected.prompts)
        assert requests.own.to_list() == expected.own.to_list()
        assert requests.counter.to_list() == expected.counter.to_list()
        links = pl.concat(requests.links(some(drawn, batch * each)))
        assert links.equals(link(prompts, drawn, expected))


def test_chats_with_fields_of_their_own_are_kept() -> None:
    chats = [[{"role": "user", "content": f"What is {row}?", "name": None if row % 2 else "Ann"}] for row in range(5)]
    prompts = pl.DataFrame({"prompt": [*chats, chats[0]]})
    with open_requests(some(prompts, 2), chat=True) as requests:
        frame = requests.take(np.arange(requests.rows))
        assert frame.schema == compose_requests(prompts, chat=True).prompts.schema
        assert key(frame["prompt"]).to_list() == key(prompts["prompt"][:5]).to_list()
        assert requests.own.to_list() == [0, 1, 2, 3, 4, 0]


def test_counterparts_of_other_prompts_are_refused() -> None:
    prompts = pl.DataFrame({"prompt": TEXTS})
    drawn = contrast(prompts).with_columns(counterpart_id=pl.lit(99, pl.UInt64))
    with (
        pytest.raises(InputError, match="counterpart_id 99: not among the prompts"),
        open_requests([prompts], [drawn], chat=True),
    ):
        pass


@pytest.mark.parametrize("ids", [[0, 1, -1], [0, 1, None], ["a", "b", "c"], [0.0, 1.0, 2.0], [0, 2, 2], [0, 2, 0]])
def test_ids_that_are_no_distinct_whole_numbers_are_refused_as_in_memory(ids: list[Any]) -> None:
    """Also where the batches are right by themselves."""
    prompts = pl.DataFrame({"prompt_id": ids, "prompt": TEXTS[:3]})
    drawn = contrast(pl.DataFrame({"prompt": TEXTS}))[:0]
    message = "prompt_id: expected . distinct whole numbers from 0, got"
    with pytest.raises(InputError, match=message):
        compose_requests(prompts, drawn, chat=True)
    with pytest.raises(InputError, match=message), open_requests(some(prompts, 2), [drawn], chat=True):
        pass


@pytest.mark.usefixtures("one_thread")
def test_responses_of_stored_requests_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of the requests is left in the folder."""
    monkeypatch.setattr("mipo.responses.generation.PART_ROWS", 4)
    prompts = pl.DataFrame({"prompt": [f"what should i {verb} ?" for verb in ("eat", "cook", "do", "buy", "see")] * 2})
    prompts = pl.concat([prompts, pl.DataFrame({"prompt": ["i " * 120]})])
    model = Model(str(demo.HERE / "model"))
    sampling = Sampling(temperature=0.0, max_new_tokens=6)
    expected = generate(
        compose_requests(prompts, chat=True).prompts, model, folder=tmp_path / "memory", temperature=0.0,
        max_new_tokens=6, max_failures=0.5,
    )  # fmt: skip
    with open_requests(some(prompts, 3), chat=True, folder=tmp_path) as requests:
        counts = generate_to(tmp_path / "disk", requests, model, sampling, max_failures=0.5)
    assert counts == (6, failures(expected))
    assert len(counts[1]) == 1
    paths = sorted(path.name for path in (tmp_path / "memory").glob("part-*"))
    assert len(paths) == 2
    for name in paths:
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory"]


@pytest.mark.usefixtures("one_thread")
def test_no_more_prompts_are_read_at_once_than_are_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asking.READ_ROWS", "generation.READ_ROWS", "generation.PART_ROWS", "engines.local.BLOCK_ROWS"):
        monkeypatch.setattr(f"mipo.responses.{name}", 3)
    read = list[int]()
    take = StoredRequests.take
    monkeypatch.setattr(StoredRequests, "take", lambda self, rows: read.append(len(rows)) or take(self, rows))
    prompts = pl.DataFrame({"prompt": [f"what should number {row} eat ?" for row in range(20)]})
    sampling = Sampling(temperature=0.0, max_new_tokens=4)
    with open_requests([prompts], chat=True, folder=tmp_path) as requests:
        generate_to(tmp_path / "out", requests, Model(str(demo.HERE / "model")), sampling)
    assert max(read) == 3
    assert pl.read_parquet(tmp_path / "out" / "part-*.parquet")["response"].null_count() == 0
