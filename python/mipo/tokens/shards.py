"""Shards: what a store of token ids is on disk. A shard is a folder of Arrow files; there is all of it, or nothing.

    manifest.json                 fingerprint, rows in and dropped, and the shards with their checksums
    shard-00000/prompts.arrow     ids: a prompt a row
    shard-00000/responses.arrow   ids: a response a row
    shard-00000/pairs.arrow       prompt_id, prompt, chosen, rejected: row numbers within the shard
    shard-00000/shard.json        what the manifest says of the shard, before there is a manifest

Knows files and checksums. Knows nothing of texts or of tokenizers.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, NotThereError
from mipo.io import arrow, checksum, files
from mipo.io.lazy import lazy
from mipo.tokenizer import table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pa = lazy("pyarrow")

FORMAT = "mipo tokens 1"
MANIFEST, RECORD = "manifest.json", "shard.json"
NAMES = ("prompts", "responses", "pairs")


class Shard:
    """Writes one shard; what is to be told of it goes into `record`, which becomes `shard.json`."""

    def __init__(self, folder: Path, number: int) -> None:
        name = f"shard-{number:05}"
        self._path, self._temporary = folder / name, folder / f".{name}.{os.getpid()}.tmp"
        self.record: dict[str, Any] = {"folder": name, "prompts": 0, "responses": 0, "groups": 0}

    def __enter__(self) -> Shard:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        try:
            self._writers = {name: arrow.Writer(self._temporary / f"{name}.arrow", _schema(name)) for name in NAMES}
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        return self

    def flush(self) -> None:
        """Waits until the disk has all that was added."""
        for name in ("prompts", "responses"):
            self._writers[name].flush()

    def put_prompts(self, offsets: NDArray[np.int64], ids: NDArray[np.uint32]) -> None:
        """Adds rows of prompts."""
        self.record["prompts"] += len(offsets) - 1
        self._writers["prompts"].put(arrow.lists(offsets, ids))

    def put_responses(self, offsets: NDArray[np.int64], ids: NDArray[np.uint32]) -> None:
        """Adds rows of responses."""
        self.record["responses"] += len(offsets) - 1
        self._writers["responses"].put(arrow.lists(offsets, ids))

    def put_pairs(
        self,
        prompt_id: NDArray[np.uint64],
        prompt: NDArray[np.uint64],
        chosen: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        rejected: NDArray[np.uint64],
    ) -> None:
        """Adds groups."""
        self.record["groups"] += len(prompt)
        own = [arrow.numbers(rows) for rows in (prompt_id, prompt, chosen)]
        self._writers["pairs"].put(*own, arrow.lists(offsets, rejected))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.record["checksums"] = {name: writer.close() for name, writer in self._writers.items()}
                files.write_json(self._temporary / RECORD, _signed(self.record))
                for writer in self._writers.values():
                    writer.flush()
                shutil.rmtree(self._path, ignore_errors=True)
                self._temporary.rename(self._path)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)


def found(folder: Path, number: int) -> dict[str, Any] | None:
    """What is told of a shard that was written, or None; of its files `is_whole` knows."""
    path = folder / f"shard-{number:05}" / RECORD
    try:
        return _verified(path, files.read_json(path))
    except (FileNotFoundError, ValueError):
        return None


def is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether every byte of a shard's files is as it was written."""
    try:
        for name in NAMES:
            read(folder, record, name)
    except (FileNotFoundError, ValueError):
        return False
    return True


def finish(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest of the shards that are there, in their order: now it is a store."""
    paths = sorted(folder.glob(f"shard-*/{RECORD}"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    told = _signed({"format": FORMAT, **about, "shards": [_verified(path, files.read_json(path)) for path in paths]})
    files.write_json(folder / MANIFEST, told)
    return told


def clear(folder: Path) -> None:
    """Removes a store, manifest first, and what a killed process left of one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in [*folder.glob("shard-*"), *folder.glob(".shard-*.tmp")]:
        shutil.rmtree(path)


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store; FileNotFoundError for what is none, ValueError for one that is not as it was written."""
    path = folder / MANIFEST
    if not path.is_file():
        begun = any(folder.glob("shard-*")) or any(folder.glob(".shard-*"))
        what = "the store was not finished; run the same command again" if begun else "make one with `mipo tokens`"
        raise NotThereError(f"{folder}: no store of tokens, which has a {MANIFEST}; {what}")
    told = files.read_json(path)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of a store of tokens ({FORMAT!r}); make one with `mipo tokens`")
    return _verified(path, told)


def read(folder: Path, record: dict[str, Any], name: str, *, trusted: bool = False) -> list[pa.RecordBatch]:
    """The batches of one file of a shard, memory-mapped, after every byte of them was compared with its checksum.

    Of a `trusted` one, which was read through before, that checksum alone is compared.
    """
    path = folder / record["folder"] / f"{name}.arrow"
    batches, digits = arrow.read(path, _schema(name), trusted=trusted)
    if digits != record["checksums"][name]:
        raise InputError(f"{path}: is not the file that {folder / MANIFEST} tells of; make the store again")
    return batches


def _schema(name: str) -> pa.Schema:
    if name != "pairs":
        return table.schema()
    kinds = {"prompt_id": pa.uint64(), "prompt": pa.uint64(), "chosen": pa.uint64()}
    kinds["rejected"] = pa.large_list(pa.uint64())
    return pa.schema([pa.field(column, kind, nullable=False) for column, kind in kinds.items()])


def _signed(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, "checksum": _checksum(told)}


def _verified(path: Path, told: Any) -> dict[str, Any]:
    if not isinstance(told, dict) or told.get("checksum") != _checksum(told):
        raise InputError(f"{path}: is not as it was written; make the store again")
    return told


def _checksum(told: dict[str, Any]) -> str:
    return checksum.of_value({name: value for name, value in told.items() if name != "checksum"})
