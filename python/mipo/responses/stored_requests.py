"""Stored requests: what a model is asked, composed of tables that are read in batches, with the texts on disk.

The same requests as those of `mipo.responses.requests`, in the same order. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.io import rowfile, tables
from mipo.io.keys import NOWHERE, Ids, Index, check_ids
from mipo.io.lazy import np, pl
from mipo.io.rowfile import READ_ROWS
from mipo.responses.answers import keys_of
from mipo.responses.requests import DRAWN, check_known, compose_counter, compose_own, linked, sampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.rowfile import RowFile


@dataclass(frozen=True, eq=False)
class StoredRequests:
    """Requests whose prompts are in a row file: request i is its row `places[i]`, sample `sample[i]` of it.

    `own`, `counter` and `samples` are as in `mipo.responses.requests.Requests`. `ids` are those of the prompts. Beside
    the file it holds 8 bytes of each request (16 with samples), and of each row of prompts and counterparts; 24 more of
    each prompt where ids are no row numbers.
    """

    file: RowFile
    places: NDArray[np.int64]
    own: pl.Series
    counter: pl.Series
    ids: Ids
    samples: int = 1
    sample: NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """How many requests there are."""
        return len(self.places)

    def take(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """These requests, as the rows of `Requests.prompts`."""
        frame = self.file.take(self.places[rows])
        columns = [pl.Series("response_id", rows, dtype=pl.UInt64), frame["prompt"]]
        if self.sample is not None:
            columns.append(pl.Series("sample", self.sample[rows], dtype=pl.UInt64))
        return pl.DataFrame(columns)

    def links(self, counterparts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The links of the counterparts, batch by batch (see `mipo.responses.requests.link`).

        They are those that the requests were composed of, in the same order; a batch has whole prompts.
        """
        start = 0
        for batch in counterparts:
            asked = self.own.gather(pl.Series(self.ids.find(batch["prompt_id"])))
            yield linked(batch, asked, self.counter[start : start + batch.height], self.samples)
            start += batch.height


@contextmanager
def open_requests(
    prompts: Iterable[pl.DataFrame], counterparts: Iterable[pl.DataFrame] = (), *, chat: bool, samples: int = 1,
    fresh: bool = False, folder: Path | None = None,
) -> Iterator[StoredRequests]:  # fmt: skip
    """Composes requests as `mipo.responses.requests.compose_requests` does, of tables in batches.

    The files have no name, and lie in `folder` (default: the system's temporary folder).
    """
    with rowfile.create(folder) as file:
        yield _composed(file, prompts, counterparts, chat, samples, fresh, folder)


def _composed(
    file: RowFile, prompts: Iterable[pl.DataFrame], counterparts: Iterable[pl.DataFrame], chat: bool, samples: int,
    fresh: bool, folder: Path | None,
) -> StoredRequests:  # fmt: skip
    with rowfile.create(folder) as texts:
        composer = _Composer(file, texts, chat)
        for frame in tables.regroup(prompts, READ_ROWS):
            composer.add_prompts(frame)
        counter = _Column(np.int64)
        for batch in counterparts:
            counter.add(composer.counter(batch))
        return composer.requests(counter.values(), samples, fresh)


class _Column:
    """Numbers that come in batches, in one piece of memory: several would be held twice while they are joined."""

    def __init__(self, dtype: type) -> None:
        self._dtype, self._bytes = dtype, bytearray()

    def add(self, values: NDArray[Any]) -> None:
        """Adds the numbers of a batch."""
        self._bytes += values.astype(self._dtype, copy=False).tobytes()

    def values(self) -> NDArray[Any]:
        """All numbers, on the same memory; none is added any more."""
        return np.frombuffer(self._bytes, self._dtype)


class _Composer:
    """The row files of requests while they are written, with the key of each row."""

    def __init__(self, file: RowFile, texts: RowFile, chat: bool) -> None:
        self._file, self._texts, self._chat = file, texts, chat
        self._keys = _Column(np.uint64)
        self._own, self._numbers = _Column(np.int64), _Column(np.uint64)  # by prompt: its row, its id

    def add_prompts(self, frame: pl.DataFrame) -> None:
        """Adds some prompts: columns prompt, prompt_id (else the row number), and context if there is any."""
        composed = compose_own(frame, chat=self._chat)
        self._own.add(self._add(composed))
        before = len(self._texts)
        default = pl.int_range(before, before + frame.height, eager=True)
        self._numbers.add(check_ids(frame.get_column("prompt_id", default=default)).to_numpy())
        self._texts.add(frame.select(name for name in frame.columns if name in ("prompt", "context")))

    def counter(self, counterparts: pl.DataFrame) -> NDArray[np.int64]:
        """The row in the file of each counter-prompt, NOWHERE where there is none."""
        tables.check_columns(counterparts, DRAWN, "counterparts")
        own, others = (self._rows_of(counterparts[name]) for name in ("prompt_id", "counterpart_id"))
        there = counterparts["reason"].is_null().to_numpy()
        # A counter-prompt of kind random is the prompt of another row, with its context.
        is_random = (counterparts["kind"] == "random").to_numpy()
        rows = np.full(counterparts.height, NOWHERE)
        rows[there & is_random] = self._places[others[there & is_random]]
        if (new := there & ~is_random).any():
            texts = self._texts.take(own[new]), self._texts.take(others[new])
            rows[new] = self._add(compose_counter(*texts, counterparts.filter(new), chat=self._chat))
        return rows

    def requests(self, counter: NDArray[np.int64], samples: int, fresh: bool) -> StoredRequests:
        """The requests, each distinct prompt once, in the order of the rows in which it stands first."""
        keys = self._keys.values().reshape(-1, 2)
        index = Index(keys)
        first = np.empty(len(keys), dtype=np.int64)
        for start in range(0, len(keys), READ_ROWS):
            first[start : start + READ_ROWS] = index.find(keys[start : start + READ_ROWS])
        del index
        is_first = first == np.arange(len(first))
        number, places = np.cumsum(is_first) - 1, np.flatnonzero(is_first)

        def numbers(rows: NDArray[np.int64]) -> pl.Series:
            taken = pl.Series(number[first[np.maximum(rows, 0)]] if len(first) else rows, dtype=pl.UInt64)
            return taken.set(pl.Series(rows == NOWHERE), None)

        own, rejected = numbers(self._places), numbers(counter)
        if samples == 1 and not fresh:
            return StoredRequests(self._file, places, own, rejected, self._ids)
        distinct, sample, own, rejected = sampled(own, rejected, len(places), samples, fresh)
        return StoredRequests(self._file, places[distinct], own, rejected, self._ids, samples, sample)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """The row in the file of each prompt."""
        return self._own.values()

    @cached_property
    def _ids(self) -> Ids:
        return Ids.of(pl.DataFrame({"prompt_id": self._numbers.values()}), "prompt_id")

    def _rows_of(self, ids: pl.Series) -> NDArray[np.int64]:
        rows = self._ids.find(ids)
        check_known(ids, pl.Series(rows != NOWHERE))
        return rows

    def _add(self, composed: pl.Series) -> NDArray[np.int64]:
        """Adds composed prompts to the file, those that are there already in this batch once; the row of each."""
        present = composed.is_not_null().to_numpy()
        frame = composed.alias("prompt").to_frame().filter(present)
        keys = keys_of(frame)
        first = Index(keys).find(keys)
        is_first = first == np.arange(len(first))
        rows = np.full(len(composed), NOWHERE)
        rows[present] = len(self._file) + (np.cumsum(is_first) - 1)[first]
        if is_first.any():
            self._file.add(frame.filter(is_first))
            self._keys.add(keys[is_first])
        return rows
