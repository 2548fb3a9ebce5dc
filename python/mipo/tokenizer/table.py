"""Token tables: the ids of texts in Arrow buffers, memory-mapped when they are opened. Knows nothing of tokenizers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.io import arrow, files
from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of one text a row, in one piece or several, as an Arrow file has them. Opened, it is memory-mapped.

    A piece is a pair of `offsets`, int64 [n + 1], and `ids`, uint32: row i of it is `ids[offsets[i]:offsets[i + 1]]`.
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
        """The row at which each piece starts, and how many there are."""
        return [0, *accumulate(len(offsets) - 1 for offsets, _ in self.pieces)]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Row i of the whole table is `ids[offsets[i]:offsets[i + 1]]`."""
        if len(self.pieces) == 1:
            return self.pieces[0][0]
        return np.concatenate([[0], np.cumsum(self.lengths())])

    @property
    def ids(self) -> NDArray[np.uint32]:
        """The ids of all rows, one after another; of several pieces a copy."""
        said = [ids[offsets[0] : offsets[-1]] for offsets, ids in self.pieces]
        return self.pieces[0][1] if len(said) == 1 else np.concatenate([np.empty(0, np.uint32), *said])

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, [n]; no id is touched."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(offsets) for offsets, _ in self.pieces)])

    def take(self, rows: NDArray[np.uint64]) -> TokenTable:
        """The given rows, copied, in one piece."""
        taken = self.to_arrow().take(pa.array(rows)).combine_chunks()
        lists = taken if isinstance(taken, pa.LargeListArray) else pa.concat_arrays(taken.chunks)
        return TokenTable((arrow.parts(lists),))

    def to_arrow(self) -> pa.ChunkedArray:
        """The rows as Arrow lists of uint32 on the same memory, a chunk a piece."""
        return pa.chunked_array([arrow.lists(*piece) for piece in self.pieces], type=pa.large_list(pa.uint32()))

    def save(self, path: str | Path) -> None:
        """Writes an Arrow IPC file with the one column `ids`, a batch a piece, whole or not at all."""
        with files.whole(Path(path)) as temporary:
            writer = arrow.Writer(temporary, schema())
            for piece in self.pieces:
                writer.put(arrow.lists(*piece))
            writer.close()

    @classmethod
    def open(cls, path: str | Path) -> TokenTable:
        """Opens what `save` wrote, memory-mapped; ValueError for another file, or one that is not as it was written.

        To find that out reads the whole file once, at the speed of memory or of the disk.
        """
        return cls.of(arrow.read(Path(path), schema())[0])

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> TokenTable:
        """The table on the memory of record batches with the one column `ids`."""
        return cls(tuple(arrow.parts(batch.column(0)) for batch in batches))


def schema() -> pa.Schema:
    """The one column of a TokenTable in Arrow."""
    return pa.schema([pa.field("ids", pa.large_list(pa.uint32()), nullable=False)])
