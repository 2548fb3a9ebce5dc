"""Checksums: one kind for files, values and stores, to see whether something changed or equals something else.

XXH3 with 128 bits, as 32 hexadecimal digits, at the speed of memory (rust/checksum.rs). It detects broken disks,
truncated files and changed inputs. It does not protect against anyone who wants two files to have the same checksum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mipo.io.lazy import _native, np


def of_bytes(data: bytes | memoryview) -> str:
    """The checksum of bytes."""
    return _native.checksum([np.frombuffer(data, np.uint8)])


def of_value(value: Any) -> str:
    """The checksum of a JSON value, equal for equal values."""
    return of_bytes(json.dumps(value, sort_keys=True).encode())


def of_file(path: Path) -> str:
    """The checksum of a file's bytes, read on all threads; OSError for a file that cannot be read."""
    return _native.checksum_file(path, 0, 0)


def of_folder(folder: Path) -> str:
    """The checksum of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return of_value([(path.relative_to(folder).as_posix(), of_file(path)) for path in files])
