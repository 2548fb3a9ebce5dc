"""Scores: a table of log-probs beside the answers, by what was scored, so that nothing is scored twice.

Each is found again by the settings (the model's content, how the engine rounds) and 128 bits of the ids. Knows scores
and files. Knows nothing of engines.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.responses.answers import AT_ONCE, attached, connect, settings_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.lazy import np

TABLE = """
CREATE TABLE IF NOT EXISTS scores (
    settings INTEGER NOT NULL, ids BLOB NOT NULL, logp REAL NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (settings, ids)
) WITHOUT ROWID
"""


def key_of(prompt: NDArray[np.uint32], response: NDArray[np.uint32]) -> bytes:
    """128 bits of the ids of a prompt and a response, and of where they separate."""
    ids = prompt.astype("<u4").tobytes() + response.astype("<u4").tobytes()
    return blake2b(len(prompt).to_bytes(8, "little") + ids, digest_size=16).digest()


class Scores:
    """The log-probs in a database under one choice of settings."""

    def __init__(self, connection: sqlite3.Connection, settings: dict[str, Any]) -> None:
        self._connection = connection
        connection.execute(TABLE)
        self._id, self._value = settings_id(connection, settings)

    @classmethod
    @contextmanager
    def open(cls, path: Path | None, settings: dict[str, Any]) -> Iterator[Scores]:
        """The scores in the database `path` (see `mipo.responses.answers.connect`)."""
        with connect(path) as connection:
            yield cls(connection, settings)

    def known(self, keys: Collection[bytes]) -> dict[bytes, float]:
        """Each log-prob of these keys whose checksum agrees."""
        logps, wanted = dict[bytes, float](), iter(keys)
        while some := list(islice(wanted, AT_ONCE)):
            rows = self._connection.execute(
                f"SELECT ids, logp, checksum FROM scores WHERE settings = ? AND ids IN ({', '.join('?' * len(some))})",
                (self._id, *some),
            )
            logps.update((key, logp) for key, logp, digest in rows if _checksum(key, logp) == digest)
        return logps

    def copy_from(self, path: Path) -> None:
        """Takes over the scores of another database under the same settings."""
        with attached(self._connection, path) as tables:
            if "scores" in tables:
                self._connection.execute(
                    f"INSERT OR IGNORE INTO main.scores SELECT {self._id}, ids, logp, checksum FROM other.scores "
                    "WHERE settings = (SELECT id FROM other.settings WHERE value = ?)",
                    (self._value,),
                )

    def add(self, scores: dict[bytes, float]) -> None:
        """Keeps log-probs by their keys. A kill after this returns loses none of them. NaN is not kept."""
        rows = [(self._id, key, logp, _checksum(key, logp)) for key, logp in scores.items() if logp == logp]
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")


def _checksum(key: bytes, logp: float) -> int:
    return zlib.crc32(key + struct.pack("<d", logp))
