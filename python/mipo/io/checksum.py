"""Checksums: one kind for files, values and stores, to see whether something changed or equals something else.

XXH3 with 128 bits, as 32 hexadecimal digits, at the speed of memory (rust/checksum.rs). It detects broken disks,
truncated files and changed inputs. It does not protect against anyone who wants two files to have the same checksum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mipo.io.lazy import _native, np

# A file may hold its own checksum: the mark and its digits, which count as NUL in it.
MARK, DIGITS = b"mipo.xxh3:", 32


def of_bytes(data: bytes | memoryview) -> str:
    """The checksum of bytes."""
    return _native.checksum([np.frombuffer(data, np.uint8)])


def of_value(value: Any) -> str:
    """The checksum of a JSON value, equal for equal values."""
    return of_bytes(json.dumps(value, sort_keys=True).encode())


def of_file(path: Path) -> str:
    """The checksum of a file's bytes, read on all threads; OSError for a file that cannot be read."""
    return _native.checksum_file(path, 0, 0)


def stamp(path: Path, place: int) -> str:
    """Writes the checksum of a file, with these digits read as NUL, into its digits at `place`; returns it."""
    digits = _native.checksum_file(path, place, place + DIGITS)
    with path.open("rb+") as file:
        file.seek(place)
        file.write(digits.encode())
    return digits


def is_stamped(path: Path, place: int, digits: str) -> bool:
    """Whether a file is as `stamp` left it."""
    return _native.checksum_file(path, place, place + DIGITS) == digits


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum."""
    return {**value, "checksum": _of_object(value)}


def is_signed(value: Any) -> bool:
    """Whether a JSON object is as `signed` made it."""
    return isinstance(value, dict) and value.get("checksum") == _of_object(value)


def of_files(folder: Path) -> dict[str, str]:
    """The checksum of each file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): of_file(path) for path in files}


def of_folder(folder: Path) -> str:
    """The checksum of the names and contents of all files in a folder."""
    return of_value(list(of_files(folder).items()))


def _of_object(value: dict[str, Any]) -> str:
    return of_value({name: inner for name, inner in value.items() if name != "checksum"})
