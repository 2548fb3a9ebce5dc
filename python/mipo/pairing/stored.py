"""Stored pairs: row numbers in a folder, beside the responses that they number. Reading joins them with the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mipo.io import sources, tables
from mipo.io.keys import Ids
from mipo.io.lazy import pl
from mipo.io.rowfile import Rows, open_rows
from mipo.pairing.filter import BATCH_ROWS
from mipo.pairing.texts import texts_of, with_texts

PAIRS, RESPONSES = "pairs.parquet", "responses"


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of a run: `folder` holds `pairs.parquet` (see `mipo.pairing.filter`) and the folder `responses`."""

    folder: Path
    texts: tuple[Ids, Rows] | None = None

    @classmethod
    def find(cls, path: str | Path) -> StoredPairs | None:
        """The stored pairs of `path`, a run's folder or the `pairs.parquet` in it; None for any other path."""
        path = Path(path)
        folder = path.parent if path.name == PAIRS else path
        if not (folder / PAIRS).is_file() or not (folder / RESPONSES).is_dir():
            return None
        columns = sources.scan(folder / PAIRS).lazy().collect_schema()
        return cls(folder) if {"asked_id", "chosen_id", "rejected_id", "reason"} <= columns.keys() else None

    def rows(self) -> pl.LazyFrame:
        """All rows, pairs and others: prompt_id, negative, kind, asked_id, chosen_id, rejected_id, reason."""
        return tables.scan(self.folder / PAIRS)

    def height(self) -> int:
        """How many of the rows are pairs."""
        return tables.height(self._pairs())

    def numbers(self, rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Pairs `start` to `stop` as row numbers, at most `rows` at a time."""
        return tables.batches(self._pairs().slice(start, None if stop is None else stop - start), rows)

    def batches(self, rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Pairs `start` to `stop` with their texts (`mipo.pairing.texts.COLUMNS`), at most `rows` at a time."""
        with nullcontext(self) if self.texts else self.opened() as opened:
            assert opened.texts is not None
            for batch in self.numbers(rows, start=start, stop=stop):
                yield with_texts(batch, *opened.texts)

    @contextmanager
    def opened(self) -> Iterator[StoredPairs]:
        """The same pairs with their texts at hand, so that many calls of `batches` write them to one temporary file."""
        responses = sources.scan(self.folder / RESPONSES)
        with open_rows(texts_of(responses), BATCH_ROWS) as texts:
            yield StoredPairs(self.folder, (Ids.of(responses, "response_id"), texts))

    def take(self, places: Sequence[int]) -> pl.DataFrame:
        """The pairs at these places, counted from 0, with their texts; holds only their responses in memory."""
        pairs = self._pairs().with_row_index("place").filter(pl.col("place").is_in(places)).drop("place").collect()
        wanted = pl.concat([pairs["asked_id"], pairs["chosen_id"], pairs["rejected_id"]]).unique()
        responses = sources.scan(self.folder / RESPONSES).filter(pl.col("response_id").is_in(wanted.implode()))
        texts = responses.lazy().collect()
        with open_rows(texts_of(texts), BATCH_ROWS) as rows:
            return with_texts(pairs, Ids.of(texts, "response_id"), rows)

    def kinds(self) -> list[str]:
        """The kinds of negative among the pairs."""
        return self._pairs().select(pl.col("kind").unique().sort()).collect().to_series().to_list()

    def _pairs(self) -> pl.LazyFrame:
        return self.rows().filter(pl.col("reason").is_null()).drop("reason")
