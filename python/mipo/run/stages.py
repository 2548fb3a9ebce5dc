"""Stages: a run folder in which each stage is done once for its inputs, by content, and resumed after a kill.

Knows the manifest and files. Knows nothing of what a stage does; what its outputs depend on, and so when it is done
again, is in `mipo.run.provenance`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mipo import reasons
from mipo.errors import InputError
from mipo.io import checksum, files, outputs, records
from mipo.responses.sampling import Sampling
from mipo.run.recipe import Recipe

# Settings that change no result, so that a run may go on with others. Of the responses' settings, only RESPONSES do.
FREE = ("max_dropped", "redo_after_upgrade")
RESPONSES = (*Sampling.__struct_fields__, "reasoning", "samples", "fresh", "choose")


@dataclass(frozen=True)
class Rows:
    """What a stage did with its rows: rows_in = rows_out + the sum of `dropped`; `first` is a reason's first row."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows_in == self.rows_out + sum(self.dropped.values()), f"rows dropped without a reason: {self}"

    def describe(self) -> str:
        """One line: rows in, rows out, and rows dropped by reason."""
        first = {reason: f", first in row {row:,}" for reason, row in self.first.items()}
        reasons = [f"{reason}: {count:,}{first.get(reason, '')}" for reason, count in self.dropped.items()]
        drops = f" ({'; '.join(reasons)})" if reasons else ""
        return f"{self.rows_in:,} rows in, {self.rows_out:,} out{drops}"


class RunFolder:
    """A run folder and its `manifest.json`.

    `provenance` is what the manifest says of the whole run. Stages that the folder `reuse` did with the same inputs are
    taken over from there. Raises InputError for a folder that is no run's, or naming each setting in which it differs.
    """

    def __init__(self, folder: Path, recipe: Recipe, provenance: dict[str, Any], *, reuse: Path | None = None) -> None:
        self.folder = folder
        self.max_dropped, self.redo_after_upgrade = recipe.max_dropped, recipe.redo_after_upgrade
        self.path = folder / "manifest.json"
        self.reuse = reuse
        if reuse:
            outputs.check_folder(reuse, "run")
        self.reusable = _read(reuse / "manifest.json").get("stages", {}) if reuse else {}
        earlier = _read(self.path) if self.path.exists() else {}
        stages = earlier.get("stages", {})
        settings = {name: value for name, value in records.settings(recipe).items() if name not in FREE}
        settings["responses"] = {name: settings["responses"][name] for name in RESPONSES}
        begun = any(stage["state"] == "done" for stage in stages.values())
        if begun and (lines := records.differences(earlier["settings"], json.loads(json.dumps(settings)))):
            raise InputError(
                f"{folder}: was made with other settings:\n  " + "\n  ".join(lines) + "\nName another folder with "
                f"--output (and --reuse {folder} to take over the stages that stay the same), or delete this one."
            )
        self.manifest = {**provenance, "settings": settings, "stages": stages}
        self.versions = {"mipo": provenance.get("mipo"), **provenance.get("versions", {})}
        self._told = set[str]()
        self._save()

    def checksums(self, *stages: str) -> dict[str, str]:
        """The checksum of every file that the stages wrote."""
        return {name: digest for stage in stages for name, digest in self.manifest["stages"][stage]["files"].items()}

    def do(self, stage: str, inputs: dict[str, Any], outputs: tuple[str, ...], work: Callable[[], Rows | None]) -> None:
        """Calls `work`, which writes the files and folders `outputs`, unless they were written from the same `inputs`.

        What an interrupted `work` wrote is kept if the inputs are the same, so `work` can continue from it.
        """
        key = checksum.of_value(inputs)
        record = self.manifest["stages"].get(stage, {})
        current = self._is_current(stage, record, key)
        if current and record["state"] == "done" and _is_intact(self.folder, record):
            print(f"{stage}: done before with the same inputs")
            return
        if self._take_over(stage, key, outputs):
            print(f"{stage}: taken over from {self.reuse}")
            return
        if not current or record["state"] == "done":
            self._clear(outputs)
        self._record(stage, {"state": "started", "key": key, "versions": self.versions})
        started = time.monotonic()
        rows = work()
        if rows is not None:
            print(f"{stage}: {rows.describe()}")
            self._check_dropped(stage, rows)
        self._finish(stage, key, outputs, time.monotonic() - started, rows)

    def _is_current(self, stage: str, record: dict[str, Any], key: str) -> bool:
        """Whether a stage had these inputs; with `redo_after_upgrade`, also the versions. Says if the versions differ.

        Stages that the same versions did are told of once.
        """
        if record.get("key") != key:
            return False
        then, now = record.get("versions", {}), self.versions
        changed = [
            f"{name} {then.get(name)} → {now.get(name)}" for name in then | now if then.get(name) != now.get(name)
        ]
        if not then or not changed:
            return True
        what = f"done with other versions ({', '.join(changed)})"
        if self.redo_after_upgrade:
            print(f"{stage}: {what}, so it is done again (redo_after_upgrade)")
            return False
        if what not in self._told:
            self._told.add(what)
            print(f"{stage} and what follows: {what}, and kept; redo_after_upgrade: true in the recipe does it again")
        return True

    def _finish(self, stage: str, key: str, outputs: tuple[str, ...], seconds: float, rows: Rows | None) -> None:
        counts = {"rows_in": rows.rows_in, "rows_out": rows.rows_out, "dropped": rows.dropped} if rows else {}
        paths = [self.folder / name for name in outputs]
        written = sorted(file for path in paths for file in (path, *path.rglob("*")) if file.is_file())
        done = {
            "state": "done",
            "key": key,
            "versions": self.versions,
            **counts,
            "files": {path.relative_to(self.folder).as_posix(): checksum.of_file(path) for path in written},
            "seconds": round(seconds, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._record(stage, done)

    def _check_dropped(self, stage: str, rows: Rows) -> None:
        limits, general = (self.max_dropped, 0.01) if isinstance(self.max_dropped, dict) else ({}, self.max_dropped)
        total = max(1, rows.rows_in - rows.dropped.get(reasons.ANOTHER_SAMPLE, 0))
        counts = {reason: n for reason, n in rows.dropped.items() if reason != reasons.ANOTHER_SAMPLE}
        over = [reason for reason, n in counts.items() if reason in limits and n > limits[reason] * total]
        rest = sum(n for reason, n in counts.items() if reason not in limits)
        if over or rest > general * total:
            needed = {reason: math.ceil(100 * counts[reason] / total) / 100 for reason in over or counts}
            raise InputError(
                f"{stage}: more rows were dropped than max_dropped allows ({self.max_dropped}): {rows.describe()}. "
                f"Mend the input, or allow it in the recipe with max_dropped: {json.dumps({**limits, **needed})}"
            )

    def _clear(self, names: tuple[str, ...]) -> None:
        for name in names:
            outputs.remove(self.folder / name)

    def _take_over(self, stage: str, key: str, outputs: tuple[str, ...]) -> bool:
        record = self.reusable.get(stage, {})
        if self.reuse is None or record.get("state") != "done" or not self._is_current(stage, record, key):
            return False
        if not _is_intact(self.reuse, record):
            return False
        self._clear(outputs)
        for file in record["files"]:
            with files.whole(files.inside(self.folder, file)) as temporary:
                shutil.copyfile(files.inside(self.reuse, file), temporary)
        self._record(stage, {**record, "taken_over_from": str(self.reuse)})
        return True

    def _record(self, stage: str, record: dict[str, Any]) -> None:
        self.manifest["stages"][stage] = record
        self._save()

    def _save(self) -> None:
        files.write_json(self.path, checksum.signed(self.manifest))


def _read(path: Path) -> dict[str, Any]:
    manifest = files.read_json(path)
    if not checksum.is_signed(manifest):
        raise InputError(f"{path}: changed since it was written; put it back, or delete it to do all stages again")
    return manifest  # type: ignore[no-any-return]


def _is_intact(folder: Path, record: dict[str, Any]) -> bool:
    """Whether all files of a stage are in the folder as it wrote them."""
    return all(
        (path := files.inside(folder, name)).is_file() and checksum.of_file(path) == digest
        for name, digest in record["files"].items()
    )
