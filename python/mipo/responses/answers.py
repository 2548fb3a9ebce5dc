"""Answers: a database of what was answered, by what was asked, so that nothing is asked twice.

SQLite in WAL mode: an answer is kept from the moment it comes, whenever the process is killed. Each is found again by
the settings (the model's and tokenizer's content, sampling, seed) and 128 bits of its prompt, whatever engine answered.
Knows answers and files. Knows nothing of engines.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, NotThereError, WriteError
from mipo.io import checksum
from mipo.io.lazy import _native, np, pl
from mipo.responses.engines.contract import Answer
from mipo.tokenizer.messages import key

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "answers.sqlite"
COLUMNS = tuple(field.name for field in fields(Answer))
KEPT = (*COLUMNS, "engine", "answered", "checksum")
_values = attrgetter(*COLUMNS)
TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    settings INTEGER NOT NULL, prompt BLOB NOT NULL, response TEXT, response_tokens INTEGER, prompt_tokens INTEGER,
    finish_reason TEXT, reasoning TEXT, failure TEXT, detail TEXT, final INTEGER, seconds REAL,
    engine TEXT, answered TEXT, checksum INTEGER, PRIMARY KEY (settings, prompt)
) WITHOUT ROWID;
"""
APART = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)  # odd: 2⁶⁴ samples of a prompt have keys of their own
AT_ONCE = 512  # answers that one query reads
FRAME_ROWS = 16_384  # answers that are Python objects at once
# What a part of the responses holds beside the prompts.
SCHEMA = {
    "response": "String", "response_tokens": "UInt32", "truncated": "Boolean", "reasoning": "String",
    "failure": "String", "detail": "String",
}  # fmt: skip


def keys_of(prompts: pl.DataFrame) -> NDArray[np.uint64]:
    """128 bits of each row of prompt (composed) and, where there are several, sample, uint64 [n, 2].

    Equal for equal rows, on every machine.
    """
    keys = np.ascontiguousarray(_native.digests(key(prompts["prompt"])))
    if "sample" in prompts.columns:
        keys += prompts["sample"].to_numpy()[:, None].astype(np.uint64) * np.array(APART, dtype=np.uint64)
    return keys


@contextmanager
def connect(path: Path | None) -> Iterator[sqlite3.Connection]:
    """The database `path`, which is made where there is none; without a path, one in memory.

    Nothing else may have the database open. Raises InputError for a file that is no database of mipo's, WriteError
    where one cannot be written.
    """
    try:
        name = path.resolve().as_uri() if path else ":memory:"
        connection = sqlite3.connect(name, isolation_level=None, uri=True)
    except sqlite3.OperationalError as error:
        raise WriteError(f"{path}: could not be opened ({error})") from None
    with closing(connection), _named(path):
        # One process at a time: no memory is shared, which network file systems do not have.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if others := tables - {"settings", "answers", "scores"}:
            raise InputError(
                f"{path}: expected a database of mipo's, got one with the table {min(others)}; name another"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        yield connection


@contextmanager
def attached(connection: sqlite3.Connection, path: Path) -> Iterator[set[str]]:
    """Another database, read as the schema `other`: the names of its tables. Raises InputError as `connect` does."""
    with _named(path):
        # A killed process leaves a log of what is not in the file yet; only without one can the file be read alone.
        how = "mode=rw" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
        connection.execute("ATTACH ? AS other", (f"{path.resolve().as_uri()}?{how}",))
        try:
            yield {name for (name,) in connection.execute("SELECT name FROM other.sqlite_master WHERE type = 'table'")}
        finally:
            connection.execute("DETACH other")


def reused(folder: Path | None, database: Path | None) -> Path | None:
    """The database in `folder` that is to be taken over into `database`; None where there is nothing to take over.

    That is without a folder, and where both are the same file. Raises NotThereError for a folder without a database,
    and InputError as `connect` does.
    """
    if folder is None:
        return None
    path = folder / FILE
    if not path.exists():
        raise NotThereError(f"{folder}: no {FILE} there; name a folder of responses, or of a run, that has one")
    if database and path.resolve() == database.resolve():
        return None
    with connect(None) as connection, attached(connection, path):
        return path


def settings_id(connection: sqlite3.Connection, settings: dict[str, Any]) -> tuple[int, str]:
    """The number of these settings in a database, which is given where there is none, and their text."""
    value = json.dumps(settings, sort_keys=True)
    connection.execute("CREATE TABLE IF NOT EXISTS settings (id INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE)")
    connection.execute("INSERT OR IGNORE INTO settings (value) VALUES (?)", (value,))
    return connection.execute("SELECT id FROM settings WHERE value = ?", (value,)).fetchone()[0], value


class Answers:
    """The answers in a database under one choice of settings.

    `digest` stands for the settings; `folder` is where the database lies, None where it is in memory.
    """

    def __init__(self, connection: sqlite3.Connection, settings: dict[str, Any], folder: Path | None) -> None:
        self._connection, self.folder, self.digest = connection, folder, checksum.of_value(settings)
        connection.executescript(TABLES)
        self._id, self._value = settings_id(connection, settings)

    @classmethod
    @contextmanager
    def open(cls, path: Path | None, settings: dict[str, Any]) -> Iterator[Answers]:
        """The answers in the database `path` (see `connect`)."""
        with connect(path) as connection:
            yield cls(connection, settings, path and path.parent)

    def missing(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The rows of the prompts that have no answer here, and no failure that is final."""
        rows = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(keys), AT_ONCE):
            blobs = [key.tobytes() for key in keys[start : start + AT_ONCE]]
            known = {
                blob for (blob,) in self._connection.execute(
                    "SELECT prompt FROM answers WHERE settings = ? AND (failure IS NULL OR final) "
                    f"AND prompt IN ({', '.join('?' * len(blobs))})",
                    (self._id, *blobs),
                )
            }  # fmt: skip
            places = [place for place, blob in enumerate(blobs) if blob not in known]
            rows.append(np.array(places, dtype=np.int64) + start)
        return np.concatenate(rows)

    def averages(self, engine: str) -> tuple[int, float | None, int, float | None]:
        """How many answers there are, their mean tokens, how many are by `engine`, and their mean seconds."""
        count, tokens, own, seconds = self._connection.execute(
            "SELECT count(*), avg(response_tokens), total(engine LIKE ?1), avg(CASE WHEN engine LIKE ?1 THEN seconds "
            "END) FROM answers WHERE settings = ?2 AND failure IS NULL",
            (f"{engine},%", self._id),
        ).fetchone()
        return count, tokens, int(own), seconds

    def add(self, answers: list[tuple[bytes, Answer]], engine: str) -> None:
        """Keeps answers to the prompts with these keys. A kill after this returns loses none of them."""
        rows = []
        for prompt, answer in answers:
            values = [*_values(answer), engine, datetime.now(UTC).isoformat(timespec="seconds")]
            rows.append((self._id, prompt, *values, _checksum(prompt, values)))
        places = ", ".join("?" * (len(COLUMNS) + 5))
        self._connection.execute("BEGIN")
        self._connection.executemany(f"INSERT OR REPLACE INTO answers VALUES ({places})", rows)
        self._connection.execute("COMMIT")

    def copy_from(self, path: Path) -> None:
        """Takes over the answers of another database under the same settings, also where there is only a failure."""
        with attached(self._connection, path) as tables:
            if "answers" in tables:
                self._connection.execute(
                    f"INSERT INTO main.answers SELECT {self._id}, prompt, "
                    f"{', '.join(KEPT)} FROM other.answers "
                    "WHERE settings = (SELECT id FROM other.settings WHERE value = ?) ON CONFLICT DO UPDATE SET "
                    f"({', '.join(KEPT)}) = ({', '.join(f'excluded.{name}' for name in KEPT)}) "
                    "WHERE answers.failure IS NOT NULL",
                    (self._value,),
                )

    def discard_damaged(self, keys: NDArray[np.uint64]) -> int:
        """Forgets those answers to these prompts whose checksum does not agree; returns how many."""
        damaged = 0
        for blob, *values, digest in self._rows(keys):
            if _checksum(blob, values) != digest:
                self._connection.execute("DELETE FROM answers WHERE settings = ? AND prompt = ?", (self._id, blob))
                damaged += 1
        return damaged

    def frame(self, keys: NDArray[np.uint64]) -> pl.DataFrame:
        """The answers to the prompts with these keys, in their order (`SCHEMA`); nulls where there is none."""
        chunks = (keys[start : start + FRAME_ROWS] for start in range(0, len(keys), FRAME_ROWS))
        return pl.concat(self._frame(chunk) for chunk in chunks)

    def _frame(self, keys: NDArray[np.uint64]) -> pl.DataFrame:
        rows = {blob: values for blob, *values, _ in self._rows(keys)}
        nothing = [None] * (len(COLUMNS) + 2)
        columns = list(zip(*(rows.get(key.tobytes(), nothing) for key in keys), strict=True))
        frame = pl.DataFrame(columns[: len(COLUMNS)], schema=dict.fromkeys(COLUMNS), infer_schema_length=None)
        is_answer = pl.col("response").is_not_null()
        truncated = pl.when(is_answer).then(pl.col("finish_reason").cast(pl.String) == "length")
        tokens = pl.when(is_answer).then(pl.col("response_tokens"))
        frame = frame.with_columns(truncated=truncated, response_tokens=tokens)
        return frame.select(pl.col(name).cast(getattr(pl, kind)) for name, kind in SCHEMA.items())

    def _rows(self, keys: NDArray[np.uint64]) -> Iterator[tuple[Any, ...]]:
        """Prompt, the values of its answer, engine, time and checksum."""
        for start in range(0, len(keys), AT_ONCE):
            blobs = [key.tobytes() for key in keys[start : start + AT_ONCE]]
            yield from self._connection.execute(
                f"SELECT prompt, {', '.join(KEPT)} FROM answers "
                f"WHERE settings = ? AND prompt IN ({', '.join('?' * len(blobs))})",
                (self._id, *blobs),
            ).fetchall()


def _checksum(prompt: bytes, values: list[Any]) -> int:
    """The checksum of an answer, CRC-32: XXH3 in Rust takes longer to call than to compute. SQLite keeps true as 1."""
    plain = [int(value) if isinstance(value, bool) else value for value in values]
    return zlib.crc32(prompt + json.dumps(plain).encode())


@contextmanager
def _named(path: Path | None) -> Iterator[None]:
    """Names the file in the errors of SQLite, and says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise WriteError(
            f"{path}: could not be written ({error}); remove the cause and run the same command again to continue"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path}: expected a database of answers, got a damaged file or another ({error}); `sqlite3 {path} "
            ".recover` may save what is in it; delete it to ask everything again"
        ) from error
