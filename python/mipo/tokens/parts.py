"""Parts: the rows of a source of pairs that become one shard, identified by their content.

Knows files of pairs, and pairs that are row numbers. Knows nothing of tokenization.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast

from mipo.errors import InputError
from mipo.io import checksum, columns
from mipo.io.lazy import pl
from mipo.io.streams import Stream, open_stream
from mipo.pairing.stored import PAIRS, RESPONSES, StoredPairs
from mipo.tokens.trl_reference import KINDS, SIDES

BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Files:
    """A file, a folder of files or a data set that holds the texts of pairs."""

    name: str
    stream: Stream

    @property
    def split(self) -> str:
        """The split that is read."""
        return self.stream.split

    @property
    def content(self) -> str:
        """The checksum of the files of the split, or the fingerprint of the data set."""
        return self.stream.content

    @property
    def is_streamed(self) -> bool:
        """Whether its format can be read from any row on."""
        return self.stream.is_seekable

    @property
    def note(self) -> str | None:
        """What a missing prompt column means, which is the same for all rows: TRL's rule."""
        fields = self.stream.fields
        if "prompt" in fields or not {"chosen", "rejected"} <= set(fields):
            return None
        others = [repr(name) for name in fields if name not in KINDS and name != "id" and not name.endswith("_id")]
        hint = f"; if the prompt is in {' or '.join(others)}, rename that column to 'prompt'" if others else ""
        return f"no column 'prompt', so a prompt is what chosen and rejected begin with in common, as in TRL{hint}"

    def height(self) -> int:
        """The number of rows."""
        return self.stream.rows

    def batches(self, start: int, stop: int) -> Iterator[pl.DataFrame]:
        """The rows from `start` up to but not including `stop`, in order.

        A side of the pairs that other rows of the source have is null where a batch has none, and is not missing.
        """
        row, sides = start, [side for side in SIDES if side in self.stream.fields]
        for batch in self.stream.batches(BATCH_ROWS, start=start, stop=stop, texts=KINDS):
            pairs = cast("pl.DataFrame", columns.read(batch, KINDS, self.name, before=row))
            yield pairs.with_columns(pl.lit(None).alias(side) for side in sides if side not in pairs.columns)
            row += batch.height

    ids = batches

    def opened(self) -> AbstractContextManager[Files]:
        """The source itself: each part reads its own rows."""
        return nullcontext(self)


@dataclass(frozen=True)
class Stored:
    """The pairs of a run, which are row numbers."""

    name: str
    pairs: StoredPairs
    split: str = "train"
    is_streamed: bool = True
    note: str | None = None

    @cached_property
    def content(self) -> str:
        """The checksum of the pairs and of the responses."""
        folder = self.pairs.folder
        return checksum.of_value([checksum.of_file(folder / PAIRS), checksum.of_folder(folder / RESPONSES)])

    def height(self) -> int:
        """The number of pairs."""
        return self.pairs.height()

    def batches(self, start: int, stop: int) -> Iterator[pl.DataFrame]:
        """The pairs from `start` up to but not including `stop`, in order."""
        return self.pairs.batches(BATCH_ROWS, start=start, stop=stop)

    def ids(self, start: int, stop: int) -> Iterator[pl.DataFrame]:
        """The same pairs as row numbers."""
        return self.pairs.numbers(BATCH_ROWS, start=start, stop=stop)

    @contextmanager
    def opened(self) -> Iterator[Stored]:
        """The pairs with the texts of all responses at hand."""
        with self.pairs.opened() as pairs:
            yield replace(self, pairs=pairs)


Source: TypeAlias = Files | Stored


@dataclass(frozen=True)
class Part:
    """The rows of a source from `start` up to but not including `stop`."""

    source: Source
    start: int
    stop: int

    def batches(self) -> Iterator[pl.DataFrame]:
        """Its rows, in order."""
        return self.source.batches(self.start, self.stop)

    def identity(self) -> dict[str, Any]:
        """Equal for equal rows."""
        return {"content": self.source.content, "split": self.source.split, "start": self.start, "stop": self.stop}


def parts_of(path: str | Path, shard_rows: int, split: str, scratch: Path | None = None) -> Iterator[Part]:
    """The parts of a source of pairs, about `shard_rows` rows each; consecutive rows of a prompt_id share a part.

    Compressed lines are unpacked into `scratch`, for as long as parts are read.
    """
    stored = StoredPairs.find(path)
    if stored and split != "train":
        raise InputError(f"{path}: no split {split!r}; the pairs of a run are one split, train, so leave the split out")
    name = str(Path(path).absolute()) if Path(path).exists() else str(path)
    source: Source = (
        Stored(str(stored.folder.absolute() / PAIRS), stored)
        if stored
        else Files(name, open_stream(name, split=split, sought=SIDES, scratch=scratch))
    )
    rows = source.height()
    if not rows:
        raise InputError(f"{path}: expected preference pairs, got no row")
    whole = Part(source, 0, rows)
    borders = [0, *(_borders(whole, shard_rows) if source.is_streamed else ()), rows]
    yield from (replace(whole, start=start, stop=stop) for start, stop in pairwise(borders))


def _borders(whole: Part, shard_rows: int) -> Iterator[int]:
    """The rows at which all parts but the first start."""
    last = 0
    for border in range(shard_rows, whole.stop, shard_rows):
        if last < border:
            last = _next_prompt(whole, border)
            if last < whole.stop:
                yield last


def _next_prompt(whole: Part, row: int) -> int:
    """The first row from `row` on whose prompt_id is not that of row `row` - 1."""
    position, before = row - 1, None
    for batch in whole.source.ids(position, whole.stop):
        ids = batch.get_column("prompt_id", default=None)
        before = ids[:1] if ids is not None and before is None else before
        if ids is None or before is None or ids.dtype != before.dtype or before.null_count():
            return max(row, position)
        if len(other := ids.ne_missing(before).arg_true()):
            return position + int(other[0])
        position += batch.height
    return whole.stop
