"""Shards: a store of token ids on disk. A shard is a folder of Arrow files, written whole or not at all.

    manifest.json                 fingerprint, rows in and dropped, and the record of each shard
    shard-00000/prompts.arrow     ids: one prompt per row
    shard-00000/responses.arrow   ids: one response per row
    shard-00000/pairs.arrow       prompt_id, prompt, chosen, rejected: row numbers within the shard
    shard-00000/shard.json        the record of the shard, with checksums, until the manifest holds it too

Knows files and checksums. Knows nothing of texts or of tokenizers.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, NotThereError
from mipo.io import arrow, checksum, files
from mipo.io.lazy import np, pa
from mipo.tokenizer import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "mipo tokens 1"
MANIFEST, RECORD = "manifest.json", "shard.json"
NAMES = ("prompts", "responses", "pairs")


class ShardWriter:
    """Writes one shard, as a context manager; its `record` becomes `shard.json`."""

    def __init__(self, folder: Path, number: int) -> None:
        name = f"shard-{number:05}"
        self._path, self._temporary = folder / name, folder / f".{name}.{os.getpid()}.tmp"
        self.record: dict[str, Any] = {"folder": name, "prompts": 0, "responses": 0, "groups": 0}

    def __enter__(self) -> ShardWriter:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        try:
            self._writers = {name: arrow.Writer(self._temporary / f"{name}.arrow", _schema(name)) for name in NAMES}
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        return self

    def flush(self) -> None:
        """Waits until the added ids are on disk."""
        for name in ("prompts", "responses"):
            self._writers[name].flush()

    def put_tables(self, prompts: table.TokenTable, responses: table.TokenTable) -> None:
        """Adds rows of prompts and of responses."""
        for name, rows in (("prompts", prompts), ("responses", responses)):
            self.record[name] += len(rows)
            for piece in rows.pieces:
                self._writers[name].put(arrow.lists(*piece))

    def put_groups(
        self,
        prompt_id: NDArray[np.uint64],
        prompt: NDArray[np.uint64],
        chosen: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        rejected: NDArray[np.uint64],
    ) -> None:
        """Adds groups; arguments as in `mipo.tokens.store.Groups`."""
        self.record["groups"] += len(prompt)
        columns = [arrow.numbers(rows) for rows in (prompt_id, prompt, chosen)]
        self._writers["pairs"].put(*columns, arrow.lists(offsets, rejected))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.record["checksums"] = {name: writer.close() for name, writer in self._writers.items()}
                files.write_json(self._temporary / RECORD, checksum.signed(self.record))
                for writer in self._writers.values():
                    writer.flush()
                shutil.rmtree(self._path, ignore_errors=True)
                self._temporary.rename(self._path)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)


def record_of(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard, or None where there is none; `is_whole` checks its files."""
    path = folder / f"shard-{number:05}" / RECORD
    try:
        return _verified(path, files.read_json(path))
    except (FileNotFoundError, ValueError):
        return None


def is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the files of a shard have the bytes that were written."""
    try:
        for name in NAMES:
            read(folder, record, name)
    except (FileNotFoundError, ValueError):
        return False
    return True


def finish(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest, with the records of all shards in order: it makes the folder a store."""
    paths = [folder / f"shard-{number:05}" / RECORD for number in numbers(folder)]
    records = [_verified(path, files.read_json(path)) for path in paths]
    manifest = checksum.signed({"format": FORMAT, **settings, "shards": records})
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def numbers(folder: Path) -> list[int]:
    """The numbers of the shards in a folder that have a record, in order."""
    paths = (path.parent.name.rpartition("-")[2] for path in folder.glob(f"shard-*/{RECORD}"))
    return sorted(int(number) for number in paths if number.isdecimal())


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store; NotThereError where there is none, InputError where it was changed."""
    path = folder / MANIFEST
    if not path.is_file():
        begun = any(folder.glob("shard-*")) or any(folder.glob(".shard-*"))
        advice = "the store was not finished; run the same command again" if begun else "make one with `mipo tokens`"
        raise NotThereError(f"{folder}: expected a store of tokens, got no {MANIFEST}; {advice}")
    content = files.read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of a store of tokens ({FORMAT!r}); make one with `mipo tokens`")
    return _verified(path, content)


def read(folder: Path, record: dict[str, Any], name: str, *, trusted: bool = False) -> list[pa.RecordBatch]:
    """The batches of one file of a shard, memory-mapped; raises InputError unless its bytes have the record's checksum.

    `trusted` compares the checksum that the file states, without reading the bytes again.
    """
    path = files.inside(folder, f"{record['folder']}/{name}.arrow")
    batches, digits = arrow.read(path, _schema(name), trusted=trusted)
    if digits != record["checksums"][name]:
        raise InputError(f"{path}: is not the file that {folder / MANIFEST} describes; make the store again")
    return batches


def _schema(name: str) -> pa.Schema:
    if name != "pairs":
        return table.schema()
    kinds = {"prompt_id": pa.uint64(), "prompt": pa.uint64(), "chosen": pa.uint64()}
    kinds["rejected"] = pa.large_list(pa.uint64())
    return pa.schema([pa.field(column, kind, nullable=False) for column, kind in kinds.items()])


def _verified(path: Path, content: Any) -> dict[str, Any]:
    if not checksum.is_signed(content):
        raise InputError(f"{path}: changed since it was written; make the store again")
    return content  # type: ignore[no-any-return]
