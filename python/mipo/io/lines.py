"""Lines of a JSONL file: counted in one pass, which notes where blocks of lines start, so that any row is a seek away.

Knows lines and bytes, and the names of fields. Parses no values.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mipo.errors import InputError, WriteError

BOM = b"\xef\xbb\xbf"
BLOCK = 16_384  # lines between two noted starts


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, without gzip or xz."""
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            yield file
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: broken {path.suffix[1:]} file ({error})") from None


def is_blank(data: bytes) -> bool:
    """Whether the bytes hold no row."""
    return not data.removeprefix(BOM).strip()


def utf8_error(data: bytes) -> UnicodeDecodeError | None:
    """The error of decoding data that is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with data that is not UTF-8, and what to do."""
    return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file"


@dataclass(frozen=True)
class Lines:
    """The rows of a JSONL file, which are its lines without the blank ones.

    `path` has the bytes that are read: the file itself, or what it was unpacked to. `starts` are the row, the line and
    the byte at which each block starts. `fields` are those of the first row, and those sought that any row has.
    """

    path: Path
    size: int
    rows: int
    starts: tuple[tuple[int, int, int], ...]
    fields: tuple[str, ...]

    @contextmanager
    def at(self, row: int) -> Iterator[tuple[IO[bytes], int]]:
        """The bytes from a row on (or from the end), and the number of lines before; InputError for a changed file."""
        with unpacked(self.path) as file:
            if self.path.stat().st_size != self.size:
                raise InputError(f"{self.path}: was changed while it was read; run the same command again")
            before, number, byte = self.starts[max(bisect_right(self.starts, row, key=lambda start: start[0]) - 1, 0)]
            file.seek(byte)
            while before < row and (line := file.readline()):
                before, number = before + (not is_blank(line)), number + 1
            yield file, number


def survey(path: Path, *, sought: Sequence[str] = (), copy: Path | None = None) -> Lines:
    """Reads a file once, and unpacks it to `copy`, which the caller removes."""
    rows = number = byte = 0
    starts, fields = [], dict[str, None]()
    with unpacked(path) as file, _Copy(copy) as written:
        while lines := list(islice(file, BLOCK)):
            data = b"".join(lines)
            starts.append((rows, number, byte))
            _add_fields(fields, lines, data, sought)
            rows, number, byte = rows + sum(not is_blank(line) for line in lines), number + len(lines), byte + len(data)
            written.add(data)
    place = copy or path
    return Lines(place, place.stat().st_size, rows, tuple(starts) or ((0, 0, 0),), tuple(fields))


def _add_fields(fields: dict[str, None], lines: list[bytes], data: bytes, sought: Sequence[str]) -> None:
    """Adds those of the first row, and those sought that a row in the block has; other rows are not parsed."""
    if not fields:
        fields |= dict.fromkeys(next((_fields(line) for line in lines if not is_blank(line)), ()))
    for name in sought:
        quoted = json.dumps(name).encode()
        if name not in fields and quoted in data and any(quoted in line and name in _fields(line) for line in lines):
            fields[name] = None


def _fields(line: bytes) -> tuple[str, ...]:
    """The fields of a row; none of one that is broken, which whoever reads it will say."""
    try:
        row = json.loads(line.removeprefix(BOM))
    except (ValueError, RecursionError):
        return ()
    return tuple(row) if isinstance(row, dict) else ()


class _Copy:
    """The file that a survey writes, if any; WriteError where it cannot be written."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.file = path, None if path is None else path.open("wb")

    def __enter__(self) -> _Copy:
        return self

    def add(self, data: bytes) -> None:
        if self.file:
            try:
                self.file.write(data)
                self.file.flush()
            except OSError as error:
                raise WriteError(
                    f"{self.path}: could not be written ({error.strerror}); make room to unpack"
                ) from error

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()
