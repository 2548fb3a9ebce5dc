"""Batch files: requests in OpenAI's batch format, and the results that a batch runner gives back for them.

A request's `custom_id` states what is asked: the settings, the prompt, and the attempt. So results are found again in
any file and order, and those of other settings or prompts are recognized. Knows files. Knows no prompt and no answer.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mipo.errors import InputError, WriteError
from mipo.io import files

LARGEST = 200_000_000  # bytes of a file that a hosted API takes
ID = re.compile(r"mipo-([0-9a-f]{32})-([0-9a-f]{32})-(\d{1,4})")
_FIRST = re.compile(rb'\{"custom_id":"([^"]+)"')


class Name(NamedTuple):
    """What a `custom_id` states: the digest of the settings, the 16 bytes of the prompt's key, the attempt from 1."""

    settings: str
    prompt: bytes
    attempt: int

    @classmethod
    def read(cls, custom_id: object) -> Name | None:
        """What a `custom_id` states; None for one that is not mipo's."""
        parts = ID.fullmatch(custom_id) if isinstance(custom_id, str) else None
        return cls(parts[1], bytes.fromhex(parts[2]), int(parts[3])) if parts else None

    def __str__(self) -> str:
        return f"mipo-{self.settings}-{self.prompt.hex()}-{self.attempt}"


class Result(NamedTuple):
    """A line of a file of results: its name, what it says, or why it says nothing."""

    place: str
    name: Name | None
    value: dict[str, Any]
    problem: str | None = None


class BatchFiles:
    """The folder of the requests and results for some settings: `requests/` is mipo's, `results/` the user's."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.requests, self.results, self._settings = folder / "requests", folder / "results", settings
        self.pattern = self.requests / f"{settings[:8]}-*.jsonl"

    def asked(self) -> Iterator[list[Name]]:
        """The names of the requests in each file of these settings."""
        for path in self._own():
            with path.open("rb") as file:
                first = filter(None, map(_FIRST.match, file))
                names = (Name.read(match[1].decode("ascii", "replace")) for match in first)
                yield [name for name in names if name and name.settings == self._settings]

    def write(self, requests: Iterator[dict[str, Any]], *, most: int) -> list[Path]:
        """Writes requests into new files of at most `most` requests, each whole or not at all."""
        last = max((int(path.stem.rpartition("-")[2]) for path in self._own()), default=0)
        lines = (json.dumps(request, separators=(",", ":")).encode() + b"\n" for request in requests)
        paths, line = list[Path](), next(lines, None)
        try:
            self.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{self.results}: could not be written ({error.strerror or error})") from error
        while line:
            paths.append(self.requests / f"{self._settings[:8]}-{last + len(paths) + 1:05d}.jsonl")
            with files.whole(paths[-1]) as temporary, temporary.open("wb") as file:
                written = 0
                while line and written < most and file.tell() + len(line) <= LARGEST:
                    file.write(line)
                    written, line = written + 1, next(lines, None)
                if not written:
                    raise InputError(
                        f"{paths[-1]}: a request of {len(line or b''):,} bytes is more than a file may hold"
                    )
        return paths

    def read(self) -> Iterator[Result]:
        """The lines of all files of results, but for empty ones, in the order of the files' names."""
        if not self.results.is_dir():
            return
        for path in sorted(path for path in self.results.rglob("*") if path.is_file() and path.name[0] != "."):
            number = 0
            try:
                with path.open("rb") as plain:
                    packed = plain.read(2) == b"\x1f\x8b"
                with gzip.open(path) if packed else path.open("rb") as file:
                    for number, line in enumerate(file, start=1):
                        if line.strip():
                            yield _result(f"{path}:{number}", line)
            except (EOFError, OSError, zlib.error) as error:
                yield Result(f"{path}:{number + 1}", None, {}, f"could not be read ({error})")

    def _own(self) -> list[Path]:
        """The files of requests of these settings."""
        own = re.compile(rf"{self._settings[:8]}-\d+\.jsonl")
        return sorted(path for path in self.requests.glob("*.jsonl") if own.fullmatch(path.name))


def _result(place: str, line: bytes) -> Result:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Result(place, None, {}, f"expected a result as JSON, got a broken line ({error})")
    if not isinstance(value, dict) or not {"response", "error"} & value.keys():
        shown = line[:80].decode("utf-8", "replace").strip()
        return Result(place, None, {}, f"expected a result, with `response` or `error`, got {shown!r}")
    return Result(place, Name.read(value.get("custom_id")), value)
