"""Arrow: IPC files that are written batch by batch and carry a checksum of each; what is broken is refused when opened.

Knows columns of numbers and of lists of numbers, without nulls. Knows nothing of what they mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pa = lazy("pyarrow")

CHECKSUM = b"mipo.xxh3"


class Writer:
    """Writes an Arrow IPC file; `checksum`, after `close`, is of all that was written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer, self._checksums = pa.ipc.new_file(str(path), schema), list[str]()
        self._schema = schema

    def put(self, *columns: Any) -> None:
        """Adds a batch: an Arrow array a column."""
        batch = pa.record_batch(list(columns), schema=self._schema)
        self._checksums.append(_checksum(batch))
        self._writer.write_batch(batch, custom_metadata={CHECKSUM: self._checksums[-1]})

    def close(self) -> str:
        """Ends the file, and returns its checksum."""
        self._writer.close()
        return _sum(self._checksums)


def read(path: Path, schema: pa.Schema) -> tuple[list[pa.RecordBatch], str]:
    """The batches of a file that `Writer` wrote, memory-mapped, and its checksum.

    Every byte of the batches is read, on all threads. FileNotFoundError for no file, ValueError for one that was cut
    off, or is not as it was written, or has other columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it was not written, or not to its end")
    try:
        # The descriptor may be closed then: the mapping stays as long as a batch is in use.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        found = [reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole Arrow file ({error}); make it again") from None
    if not reader.schema.equals(schema):
        told = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ValueError(f"{path}: expected the columns {told}; came {reader.schema.to_string()}; make it again")
    batches, checksums = [], []
    for number, (batch, told) in enumerate(found):
        try:
            batch.validate()
            written = (told or {})[CHECKSUM].decode()
            as_written = written == _checksum(batch)
        except (pa.ArrowException, KeyError, ValueError):
            as_written = False
        if not as_written:
            raise ValueError(f"{path}: batch {number} is not as it was written; make the file again")
        batches.append(batch)
        checksums.append(written)
    return batches, _sum(checksums)


def lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    """Lists `values[offsets[i]:offsets[i + 1]]`, on the same memory."""
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def parts(column: pa.LargeListArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets and values of lists, on the same memory."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _checksum(batch: pa.RecordBatch) -> str:
    arrays: list[NDArray[Any]] = []
    for column in batch.columns:
        assert not column.null_count
        arrays += parts(column) if pa.types.is_large_list(column.type) else [column.to_numpy()]
    return _native.checksum([array.view(np.uint8) for array in arrays])


def _sum(checksums: list[str]) -> str:
    return _native.checksum([np.frombuffer(" ".join(checksums).encode(), np.uint8)])
