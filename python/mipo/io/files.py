"""Files written whole or not at all: under a temporary name, synced, then renamed. Knows nothing of their contents."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mipo.errors import InputError, MipoError, NotThereError, WriteError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`. The file written there becomes `path`, or is deleted on an error.

    Where `path` is a link, the file that it names is written. Raises InputError for a folder, a device or a pipe.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: expected the name of a file, got a folder, a device or a pipe; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, MipoError):
            raise WriteError(
                f"{path}: could not be written ({error.strerror or error}); no partial file is kept; remove the "
                "cause and run the same command again"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; NotThereError for a missing file, InputError for a broken one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotThereError(f"{path}: no such file") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run again") from None


def inside(folder: Path, name: object) -> Path:
    """The path of a name that a file of mipo's states; InputError for one that leads out of `folder`."""
    path = folder / str(name)
    if not isinstance(name, str) or not name or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: a file in it names {name!r}, which is not inside it; it was not written by mipo")
    return path
