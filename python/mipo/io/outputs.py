"""Outputs: mipo writes into what is new, empty or its own, and removes nothing that it did not write.

A folder that mipo writes into holds `.mipo.json`, which says of what kind it is and is locked while a command works
there. A table in Parquet says the same in its metadata. Knows which files belong to each kind of folder, and nothing of
what they hold.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mipo.errors import InputError, MipoError, WriteError
from mipo.io.lazy import pa, pq

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

MARK = ".mipo.json"
PARQUET_MARK = {"mipo": "table"}  # metadata of a Parquet file that mipo wrote
# The files that mipo writes into a folder of each kind, as patterns relative to it. What the stages of a run wrote is
# in its manifest; a model's mark names its files.
FILES: dict[str, tuple[str, ...]] = {
    "run": (),
    "demo inputs": (),
    "responses": (
        "answers.sqlite",
        "answers.sqlite-wal",
        "part-*.parquet",
        f"batch/requests/{'[0-9a-f]' * 8}-[0-9]*.jsonl",
    ),
    "tokens": ("manifest.json", "shard-*/shard.json", "shard-*/*.arrow", "reference-*.parquet"),
    "model": (),
    "unfinished model": ("**/*",),
    "checkpoints": ("checkpoint-*/**/*", "README.md"),  # and TRL's card, but not what `report_to` logs
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what a disk answers, whatever is written
_TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp")  # the number is the process
_held: set[Path] = set()  # folders that this process has claimed


def check_file(path: Path) -> Path:
    """The file that a path names, its links followed; InputError for what mipo must not write over.

    That is a device or a pipe, a folder, and a file with contents that no metadata shows to be mipo's. Removes what
    killed processes left beside it.
    """
    target = path.resolve()
    if target.parent.is_dir():
        beginning = f".{target.name}."
        _clean(other for other in target.parent.glob(".*.tmp") if other.name.startswith(beginning))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except OSError as error:
        raise WriteError(f"{path}: could not be written ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"{path}: expected the name of a file, got {what}; name a file")
    if target.stat().st_size and not _is_own_table(target):
        raise InputError(f"{path}: exists, and nothing in it says that mipo wrote it; delete it, or name another file")
    return target


def check_folder(folder: Path, *kinds: str) -> None:
    """InputError for a folder that is neither new, nor empty, nor mipo's own of one of these kinds."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, got a file; name another with --output")
    known = _mark(folder)
    entries = sorted(path.name for path in folder.iterdir() if path.name != MARK)
    if not known and entries:
        raise InputError(
            f"{folder}: expected a new or empty folder, or one for {kinds[0]} that mipo made, got one that holds "
            f"{entries[0]!r} and no {MARK}; name another with --output"
        )
    if known and known.get("mipo") not in kinds:
        raise InputError(
            f"{folder}: expected a folder for {kinds[0]}, got the one that mipo made for {known.get('mipo')}; name "
            "another with --output"
        )
    if "model" in kinds and (strangers := _strangers(folder, known)):
        raise InputError(
            f"{folder}: holds {strangers[0].name!r}, which mipo did not write and would have to remove; move it, or "
            "name another folder with --output"
        )


@contextmanager
def claim(folder: Path, kind: str) -> Iterator[None]:
    """Marks a folder as mipo's of this kind, and locks it, also against other machines on the same file system.

    Removes what killed processes left half-written there. Raises InputError as `check_folder` does, and for a folder in
    which another process works.
    """
    check_folder(folder, kind)
    place = folder.resolve()
    if place in _held:
        yield
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / MARK).open("a+", encoding="utf-8")
    except OSError as error:
        raise WriteError(f"{folder}: could not be written ({error.strerror or error})") from error
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another mipo process works there; wait for it, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        _clean(place.rglob(".*.tmp"))
        _held.add(place)
        try:
            if not _mark(place):
                mark(place, kind)
            yield
        except OSError as error:
            if error.errno not in NO_ROOM or isinstance(error, MipoError):
                raise
            raise WriteError(
                f"{folder}: could not be written ({os.strerror(error.errno)}); remove the cause and run the same "
                "command again to continue"
            ) from error
        finally:
            _held.discard(place)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A name in a claimed folder for what is needed only meanwhile; what is made there is removed at the end."""
    path = folder / f".scratch.{os.getpid()}.tmp"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mark(folder: Path, kind: str) -> None:
    """Marks a folder, new or mipo's, as one of this kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps({"mipo": kind}) + "\n", encoding="utf-8")


def check_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Notes in the mark of a claimed folder what its files are made from; InputError if it says something else."""
    known = _mark(folder)
    if "made_from" not in known:
        (folder / MARK).write_text(json.dumps(known | {"made_from": origin}) + "\n", encoding="utf-8")
        return
    earlier = known["made_from"]
    differing = [name for name in sorted({*earlier, *origin}) if earlier.get(name) != origin.get(name)]
    lines = [f"{name}: {earlier.get(name)!r} there, {origin.get(name)!r} now" for name in differing]
    if lines:
        raise InputError(
            f"{folder}: holds the {known.get('mipo')} of another training:\n  "
            + "\n  ".join(lines)
            + "\nName another folder, or delete this one."
        )


def mark_model(folder: Path, *more: str) -> None:
    """Marks a folder as a model of mipo's, with the files in it and `more` that will follow as its own."""
    names = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} | {*more})
    (folder / MARK).write_text(json.dumps({"mipo": "model", "files": names}) + "\n", encoding="utf-8")


def is_own(schema: pa.Schema) -> bool:
    """Whether the schema of a Parquet file says that mipo wrote it."""
    metadata = schema.metadata or {}
    return all(metadata.get(name.encode()) == value.encode() for name, value in PARQUET_MARK.items())


def remove(path: Path) -> None:
    """Removes a file of mipo's, or what mipo wrote into a folder; the folder too, unless something else is in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif _mark(path):
        empty(path)
        (path / MARK).unlink(missing_ok=True)
        _prune(path)


def empty(folder: Path) -> None:
    """Removes what mipo wrote into a marked folder, and leaves the folder marked."""
    strangers = set(_strangers(folder, _mark(folder)))
    for file in sorted(folder.rglob("*")):
        if (file.is_symlink() or not file.is_dir()) and file not in strangers and file != folder / MARK:
            file.unlink(missing_ok=True)
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            _prune(inner)


def _strangers(folder: Path, mark: dict[str, Any]) -> list[Path]:
    """The files in a marked folder that mipo did not write."""
    kind, own = str(mark.get("mipo")), {folder / str(name) for name in mark.get("files", ())}
    own |= {path for pattern in FILES.get(kind, ()) for path in folder.glob(pattern)}
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    inside = (path for path in files if path not in own and path != folder / MARK)
    return sorted(path for path in inside if not any(map(_TEMPORARY.fullmatch, path.relative_to(folder).parts)))


def _prune(folder: Path) -> None:
    """Removes a folder and those in it, from the innermost, as far as they are empty."""
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            continue


def _mark(folder: Path) -> dict[str, Any]:
    """What the mark of a folder says; nothing where there is none, or one that a killed process left unwritten."""
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_own_table(path: Path) -> bool:
    if path.suffix != ".parquet":
        return False
    try:
        return is_own(pq.read_schema(path))
    except (pa.ArrowException, OSError):
        return False


def _clean(temporaries: Iterable[Path]) -> None:
    """Removes those of the temporary files and folders that killed processes of this machine left."""
    for path in list(temporaries):
        owner = _TEMPORARY.fullmatch(path.name)
        if owner and not _is_running(int(owner[1])):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
