"""Paths: how a path on somebody's machine appears on a page that others read. Knows text, and the run folder.

An absolute path becomes relative to the run folder if it lies there, and its last part otherwise. Relative paths, names
on the hub and addresses stay as they are.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

# An absolute path within a longer text: /a/b, ~/a, file:///a/b, C:\a\b. A slash after a word, a dot or another slash
# begins no path: it belongs to a hub name, a relative path or an address.
_WITHIN = re.compile(r"(?<![\w./~\\-])(?:file://)?(?:~[\w.-]*/|/(?=[\w.@+-]+/)|[A-Za-z]:\\)[\w.@+/\\-]+")


def last_part(name: str, *, folder: bool = False) -> str:
    """The last part of an absolute path, or of any path with `folder`; another name as it is."""
    path = _absolute(name) or (PureWindowsPath(name) if folder else None)
    return path.name or name if path else name


def shorten(text: str, run: Path) -> str:
    """A text without absolute paths: it may be one as a whole, end in one after a `=`, or hold some."""
    name, equals, value = text.partition("=")
    if path := _absolute(text):
        return _short(path, run)
    if equals and (path := _absolute(value)):
        return f"{name}={_short(path, run)}"
    return _WITHIN.sub(lambda match: _short(_absolute(match[0]) or PurePosixPath(match[0]), run), text)


def shorten_command(command: str, run: Path) -> str:
    """A command line whose arguments are shortened one by one."""
    try:
        arguments = shlex.split(command)
    except ValueError:
        return shorten(command, run)
    return shlex.join(shorten(argument, run) for argument in arguments)


def shorten_recipe(recipe: str, run: Path) -> str:
    """A recipe as a run writes it, its values shortened one by one, except patterns; other text as `shorten` does."""
    import yaml

    try:
        settings = yaml.safe_load(recipe)
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        return shorten(recipe, run)
    text: str = yaml.safe_dump(_shorten_values(settings, run), sort_keys=False, allow_unicode=True)
    return text


def _shorten_values(value: Any, run: Path) -> Any:
    if isinstance(value, dict):
        return {name: inner if name == "pattern" else _shorten_values(inner, run) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shorten_values(inner, run) for inner in value]
    return shorten(value, run) if isinstance(value, str) else value


def _absolute(text: str) -> PurePath | None:
    text = text.removeprefix("file://")
    if text.startswith(("/", "~")):
        return PurePosixPath(text)
    path = PureWindowsPath(text)
    return path if path.is_absolute() else None


def _short(path: PurePath, run: Path) -> str:
    for folder in (type(path)(run.absolute()), type(path)(run.resolve())):
        if path == folder:
            return run.resolve().name
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name or str(path)
