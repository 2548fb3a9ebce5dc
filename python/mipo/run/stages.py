"""Stages: a run folder in which each stage is done once for its inputs, by content, and found again after a kill.

Knows the manifest and files. Knows nothing of what a stage does.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io import checksum, files, records
from mipo.run.recipe import Recipe


@dataclass(frozen=True)
class Rows:
    """What a stage did with its rows: rows_in = rows_out + the sum of `dropped`; `first` is a reason's first row."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows_in == self.rows_out + sum(self.dropped.values()), f"rows lost unnamed: {self}"

    def describe(self) -> str:
        """One line: rows in, rows out, and rows dropped by reason."""
        line = f"{self.rows_in:,} rows in, {self.rows_out:,} out"
        told = [
            f"{r}: {n:,}" + (f", first in row {self.first[r]:,}" if r in self.first else "")
            for r, n in self.dropped.items()
        ]
        return line + (f" ({'; '.join(told)})" if told else "")


class Run:
    """A run folder and its `manifest.json`.

    Opens the folder for a recipe, or raises ValueError naming each setting in which the folder differs. Stages that a
    folder `reuse` did with the same inputs are taken over from there.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, about: dict[str, Any], reuse: Path | None = None) -> None:
        self.folder = folder
        self.max_dropped = recipe.max_dropped
        self.path = folder / "manifest.json"
        self.others = files.read_json(reuse / "manifest.json") if reuse else {}
        self.reuse = reuse
        try:
            found = files.read_json(self.path) if self.path.exists() else {}
        except ValueError:
            raise InputError(
                f"{self.path}: not valid JSON, so what the folder holds is unknown; name another"
            ) from None
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; name a folder with --output")
        if not found and folder.is_dir() and any(not _ours(child) for child in folder.iterdir()):
            raise InputError(f"{folder}: is not empty and holds no run; name another folder with --output")
        compared = {name: value for name, value in records.settings(recipe).items() if name != "max_dropped"}
        begun = any(stage["state"] == "done" for stage in found.get("stages", {}).values())
        if begun and (lines := _differences(found["settings"], json.loads(json.dumps(compared)))):
            raise InputError(
                f"{folder}: was made with other settings:\n  " + "\n  ".join(lines) + "\nName another folder with "
                f"--output (and --reuse {folder} to take over the stages that stay the same), or delete this one."
            )
        _clean(folder)
        self.manifest = {**about, "settings": compared, "stages": found.get("stages", {})}
        self._save()

    def hashes(self, *stages: str) -> dict[str, str]:
        """The checksum of every file that the stages made."""
        return {name: digest for stage in stages for name, digest in self.manifest["stages"][stage]["files"].items()}

    def stage(self, name: str, inputs: dict[str, Any], made: tuple[str, ...], work: Callable[[], Rows | None]) -> None:
        """Does `work`, which makes the files and folders `made`, unless it was done with the same `inputs`.

        What an interrupted `work` left is kept only where the inputs are the same, so `work` may go on from it.
        """
        key = checksum.of_value(inputs)
        record = self.manifest["stages"].get(name, {})
        if record.get("key") == key and record["state"] == "done" and self._intact(self.folder, record):
            print(f"{name}: done before with the same inputs")
            return
        if self._take_over(name, key, made):
            print(f"{name}: taken over from {self.reuse}")
            return
        if record.get("key") != key or record["state"] == "done":
            self._clear(made)
        self._record(name, {"state": "started", "key": key})
        started = time.monotonic()
        rows = work()
        if rows is not None:
            print(f"{name}: {rows.describe()}")
            self._check_dropped(name, rows)
        self._finish(name, key, made, time.monotonic() - started, rows)

    def _finish(self, name: str, key: str, made: tuple[str, ...], seconds: float, rows: Rows | None) -> None:
        counts = {"rows_in": rows.rows_in, "rows_out": rows.rows_out, "dropped": rows.dropped} if rows else {}
        hashes = {path.relative_to(self.folder).as_posix(): checksum.of_file(path) for path in self._files(made)}
        done = {
            "state": "done",
            "key": key,
            "mipo": self.manifest.get("mipo"),
            **counts,
            "files": hashes,
            "seconds": round(seconds, 2),
        }
        self._record(name, {**done, "finished": datetime.now(UTC).isoformat(timespec="seconds")})

    def _check_dropped(self, name: str, rows: Rows) -> None:
        limits, general = (self.max_dropped, 0.01) if isinstance(self.max_dropped, dict) else ({}, self.max_dropped)
        over = [reason for reason, n in rows.dropped.items() if reason in limits and n > limits[reason] * rows.rows_in]
        rest = sum(n for reason, n in rows.dropped.items() if reason not in limits)
        if over or rest > general * rows.rows_in:
            wanted = {
                **limits,
                **{r: math.ceil(100 * rows.dropped[r] / rows.rows_in) / 100 for r in over or rows.dropped},
            }
            raise InputError(
                f"{name}: more rows were dropped than max_dropped allows ({self.max_dropped}): {rows.describe()}. "
                f"Mend the input, or allow it in the recipe, as in max_dropped: {json.dumps(wanted)}"
            )

    def _files(self, made: tuple[str, ...]) -> list[Path]:
        paths = [self.folder / name for name in made]
        return sorted(
            file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
        )

    def _clear(self, made: tuple[str, ...]) -> None:
        for path in (self.folder / name for name in made):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _take_over(self, name: str, key: str, made: tuple[str, ...]) -> bool:
        record = self.others.get("stages", {}).get(name, {})
        if self.reuse is None or record.get("key") != key or record["state"] != "done":
            return False
        if not self._intact(self.reuse, record):
            return False
        self._clear(made)
        for file in record["files"]:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            with files.whole(self.folder / file) as temporary:
                shutil.copyfile(self.reuse / file, temporary)
        self._record(name, {**record, "taken_over_from": str(self.reuse)})
        return True

    def _intact(self, folder: Path, record: dict[str, Any]) -> bool:
        return all(
            (folder / name).is_file() and checksum.of_file(folder / name) == digest
            for name, digest in record["files"].items()
        )

    def _record(self, name: str, record: dict[str, Any]) -> None:
        self.manifest["stages"][name] = record
        self._save()

    def _save(self) -> None:
        files.write_json(self.path, self.manifest)


def _differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """The settings in which two recipes differ, a line each."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{at}{name}.")
        elif a != b:
            lines.append(f"{at}{name}: {a!r} there, {b!r} now")
    return lines


_TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp")  # of `files.whole` and `pairs.join`; the number is the process


def _ours(path: Path) -> bool:
    """Whether a folder that holds this alone may become a run: the demo's inputs, and a manifest that was cut off."""
    return path.name == "inputs" or bool(_TEMPORARY.fullmatch(path.name))


def _clean(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes left in a run folder."""
    for path in list(folder.rglob(".*.tmp")):
        owner = _TEMPORARY.fullmatch(path.name)
        if not owner or _alive(int(owner[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
