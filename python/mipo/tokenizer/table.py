"""Token tables: the ids of texts in Arrow buffers, memory-mapped from files. Knows nothing of tokenizers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.io import arrow, files
from mipo.io.lazy import np, pa

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids, one text per row, in one piece or several.

    A piece is a pair of `offsets`, int64 [n + 1], and `ids`, uint32: its row i is `ids[offsets[i]:offsets[i + 1]]`.
    """

    pieces: tuple[tuple[NDArray[np.int64], NDArray[np.uint32]], ...]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> NDArray[np.uint32]:
        """The ids of one row, a view."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)} rows")
        piece = bisect_right(self._starts, row) - 1
        offsets, ids = self.pieces[piece]
        place = row - self._starts[piece]
        return ids[offsets[place] : offsets[place + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (ids[a:b] for offsets, ids in self.pieces for a, b in pairwise(offsets.tolist()))

    @cached_property
    def _starts(self) -> list[int]:
        """The row at which each piece starts, and the number of rows."""
        return [0, *accumulate(len(offsets) - 1 for offsets, _ in self.pieces)]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Row i of the whole table is `ids[offsets[i]:offsets[i + 1]]`."""
        if len(self.pieces) == 1:
            return self.pieces[0][0]
        return np.concatenate([[0], np.cumsum(self.lengths())])

    @property
    def ids(self) -> NDArray[np.uint32]:
        """The ids of all rows, one after another; a copy where there are several pieces."""
        if len(self.pieces) == 1:
            return self.pieces[0][1]
        parts = (ids[offsets[0] : offsets[-1]] for offsets, ids in self.pieces)
        return np.concatenate([np.empty(0, np.uint32), *parts])

    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each row, [n]; reads no ids."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(offsets) for offsets, _ in self.pieces)])

    def take(self, rows: NDArray[np.uint64]) -> TokenTable:
        """A copy of these rows, in one piece."""
        taken = self.to_arrow().take(pa.array(rows)).combine_chunks()
        lists = taken if isinstance(taken, pa.LargeListArray) else pa.concat_arrays(taken.chunks)
        return TokenTable((arrow.parts(lists),))

    def to_arrow(self) -> pa.ChunkedArray:
        """The rows as Arrow lists of uint32 on the same memory, one chunk per piece."""
        return pa.chunked_array([arrow.lists(*piece) for piece in self.pieces], type=pa.large_list(pa.uint32()))

    def save(self, path: str | Path) -> None:
        """Writes an Arrow IPC file with one column, `ids`, and one batch per piece, whole or not at all."""
        with files.whole(Path(path)) as temporary:
            writer = arrow.Writer(temporary, schema())
            for piece in self.pieces:
                writer.put(arrow.lists(*piece))
            writer.close()

    @classmethod
    def open(cls, path: str | Path) -> TokenTable:
        """Opens a file of `save`, memory-mapped; raises InputError for another file, or one that was changed.

        That check reads the whole file once, at the speed of memory or of the disk.
        """
        return cls.of(arrow.read(Path(path), schema())[0])

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> TokenTable:
        """The table on the memory of record batches with one column, `ids`."""
        return cls(tuple(arrow.parts(batch.column(0)) for batch in batches))


def schema() -> pa.Schema:
    """The Arrow schema of a TokenTable."""
    return pa.schema([pa.field("ids", pa.large_list(pa.uint32()), nullable=False)])
