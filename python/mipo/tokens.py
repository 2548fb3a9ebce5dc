"""Tokens: texts become ids once, in Arrow buffers filled by Rust.

Knows tokenizers. Knows nothing of chat templates, pairs or training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import files
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


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of one text a row: row i is `ids[offsets[i]:offsets[i + 1]]`. Opened from disk it is memory-mapped.

    `offsets`: int64 [n + 1]; `ids`: uint32 [offsets[n]].
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.uint32]:
        """The ids of one row, a view."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)} rows")
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (self[row] for row in range(len(self)))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, [n]."""
        return np.diff(self.offsets)

    def to_arrow(self) -> pa.LargeListArray:
        """The rows as an Arrow list array on the same memory."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.ids))

    def save(self, path: str | Path) -> None:
        """Writes an Arrow IPC file with the one column `ids`."""
        write_arrow(pa.table({"ids": self.to_arrow()}), Path(path))

    @classmethod
    def open(cls, path: str | Path) -> TokenTable:
        """Opens what `save` wrote, without reading the ids into memory; ValueError for another file."""
        table = read_arrow(Path(path))
        if table.schema.names != ["ids"] or table.schema.types != [pa.large_list(pa.uint32())]:
            raise ValueError(f"{path}: no TokenTable, which has the one column ids of lists of uint32; make it again")
        column = table["ids"]
        # Only a chunk by itself stays in the file: combine_chunks copies even a single one.
        lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return cls(lists.offsets.to_numpy(), lists.values.to_numpy())


def encode(texts: Any, tokenizer: Any, *, add_special_tokens: bool = True) -> TokenTable:
    """Token ids of each text, in Rust on all threads.

    `texts`: a polars Series, an Arrow or NumPy array, or a list of str. `tokenizer`: a Hugging Face fast tokenizer, a
    `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or of its folder; nothing is cut or padded. Raises
    TypeError or ValueError, with the row counted from 0, for what is no text.
    """
    if not hasattr(texts, "__arrow_c_stream__") and not hasattr(texts, "__arrow_c_array__"):
        texts = _strings(texts)
    return TokenTable(*_native.Encoder(_tokenizer_json(tokenizer)).encode(texts, add_special_tokens))


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer and its chat template: equal exactly where the same texts become the same ids."""
    # What calls with padding or truncation left behind stands before the tokens, and changes no id here.
    made = _tokenizer_json(tokenizer)
    said = [getattr(tokenizer, name, None) for name in ("chat_template", "bos_token", "eos_token")]
    return hashlib.sha256(made[max(0, made.find(b'"added_tokens"')) :] + b"\0" + repr(said).encode()).hexdigest()


def _tokenizer_json(tokenizer: Any) -> bytes:
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer.json")
        return path.read_bytes()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise TypeError(
            "tokenizer: expected a Hugging Face fast tokenizer, a tokenizers.Tokenizer or a path of a tokenizer.json, "
            f"came {type(tokenizer).__name__}"
        )
    return str(backend.to_str()).encode()


def _strings(texts: Any) -> pa.Array:
    """Texts as an Arrow array; TypeError or ValueError names the row of what is no text."""
    if isinstance(texts, str):
        raise TypeError("texts: expected several texts, came one; put it into a list")
    texts = texts if hasattr(texts, "__len__") else list(texts)
    try:
        return pa.array(texts, type=pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts: expected text in row {row}, came {type(text).__name__}") from None
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"texts: row {row} holds half of a surrogate pair, which is no character") from None
        raise


def write_arrow(table: pa.Table, path: Path) -> None:
    """One Arrow IPC file of one record batch, whole or not at all."""
    with files.whole(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(path: Path) -> pa.Table:
    """What `write_arrow` wrote, memory-mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it was not written, or not to its end")
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Arrow file ({error}); make it again") from None
