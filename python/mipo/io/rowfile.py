"""Row files: rows of a table by number, in any order, for a table that need not fit in memory.

Knows rows and files. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from mipo.errors import WriteError
from mipo.io import tables
from mipo.io.lazy import np, pa, pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.tables import Table


READ_ROWS = 16_384  # rows of a table whose texts are in memory at once


class Rows(Protocol):
    """Access to the rows of a table by number."""

    def take(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """The rows with these numbers, in this order; nulls for a number below 0."""


@contextmanager
def open_rows(table: Table, batch_rows: int, *, folder: Path | None = None) -> Iterator[Rows]:
    """The rows of `table` by number. A LazyFrame of more than `batch_rows` rows goes to a temporary Arrow file first.

    The file is uncompressed and lies in `folder` (default: the system's temporary folder) without a name, so that
    nothing is left of it however the process ends. The pages that `take` reads belong to the operating system's cache,
    and are released before the next call.
    """
    if isinstance(table, pl.DataFrame) or tables.height(table) <= batch_rows:
        yield _Frame(table.lazy().collect())
        return
    with create(folder) as file:
        for frame in tables.batches(table, batch_rows):
            file.add(frame)
        yield file


@contextmanager
def create(folder: Path | None = None) -> Iterator[RowFile]:
    """A row file without rows, in `folder` (see `open_rows`). WriteError where it cannot be written."""
    place = folder or Path(tempfile.gettempdir())
    with _named(place):
        place.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
    try:
        yield RowFile(file, place)
    finally:
        with suppress(OSError):  # of a disk that is full, of which `add` has told
            file.close()


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Names the folder in the error of a disk."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{place}: a temporary file could not be written ({error.strerror or error}); make room there, or remove "
            "the cause, and run the same command again"
        ) from error


class _Frame:
    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def take(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        return _gather(self._frame, rows)


class RowFile:
    """An Arrow file, mapped into memory anew for each call of `take`, which releases the pages in between."""

    def __init__(self, file: IO[bytes], place: Path) -> None:
        self._file, self._place, self._starts = file, place, [0]
        self._writer: Any = None

    def __len__(self) -> int:
        return self._starts[-1]

    def add(self, frame: pl.DataFrame) -> None:
        """Adds rows, which are read together; before the first `take`."""
        batch = tables.to_arrow(frame).combine_chunks()
        with _named(self._place):
            self._writer = self._writer or pa.ipc.new_file(self._file, batch.schema)
            self._writer.write_table(batch)
        self._starts.append(len(self) + len(batch))

    def take(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """The rows with these numbers, in this order; nulls for a number below 0."""
        self._finish()
        present = rows[rows >= 0]
        order = np.argsort(present, kind="stable")
        sorted_rows = present[order]
        borders = np.searchsorted(sorted_rows, self._starts)
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_file(pa.py_buffer(mapped)) as file:
            pieces = [
                file.get_batch(number).take(pa.array(sorted_rows[start:stop] - self._starts[number]))
                for number, (start, stop) in enumerate(pairwise(borders))
                if start < stop
            ]
            frame = tables.from_arrow(pa.Table.from_batches(pieces, file.schema))
        places = np.full(len(rows), -1)
        places[np.flatnonzero(rows >= 0)[order]] = np.arange(len(present))
        return _gather(frame, places)

    def _finish(self) -> None:
        """Ends the file, once."""
        if self._writer:
            with _named(self._place):
                self._writer.close()
                self._writer = None
                self._file.flush()


def _gather(frame: pl.DataFrame, rows: NDArray[np.int64]) -> pl.DataFrame:
    places = pl.Series(rows)
    if (rows < 0).any():
        places = places.set(places < 0, None)
    return frame.select(pl.all().gather(places))
