"""Commands in a fork of a process that has loaded the libraries, killed at a chosen point or left to end.

A point is the n-th time that Python changes or opens a file below a folder, or so many milliseconds after it. Knows
nothing of pytest.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, below 0 a signal's; what it printed; how many events it had."""

    code: int
    output: str
    events: int


def load() -> None:
    """Loads what the commands need, before the first fork."""
    import mipo.demo.train_base
    import mipo.run.pipeline
    import mipo.trainer.training  # noqa: F401


def command(
    words: Sequence[str], *, below: Path, event: int | None = None, delay: float = 0, seconds: float = 300
) -> Ended:
    """Runs `mipo WORDS`, killed at its `event`-th event below a folder and `delay` seconds."""

    def main() -> int:
        from mipo import cli

        return cli.main([*words])

    return call(main, below=below, event=event, delay=delay, seconds=seconds)


def call(
    work: Callable[[], int], *, below: Path, event: int | None = None, delay: float = 0, seconds: float = 300
) -> Ended:
    """Calls `work`, which returns an exit code, in a fork; SIGKILL after `seconds`."""
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as counted:
        child = os.fork()
        if not child:
            _be_child(work, printed.fileno(), counted.fileno(), str(below), event, delay)
        end = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        printed.seek(0)
        output = printed.read().decode(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), output, os.fstat(counted.fileno()).st_size)


def _be_child(work: Callable[[], int], printed: int, counted: int, below: str, event: int | None, delay: float) -> None:
    code = 70
    try:
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(n, "w", closefd=False), line_buffering=True) for n in (1, 2)
        )
        _count(counted, below, event, delay)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count(counted: int, below: str, event: int | None, delay: float) -> None:
    """Writes a byte for each event, and dies at the chosen one."""
    seen = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if name not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if not os.fsdecode(arguments[0]).startswith(below):
            return
        seen += 1
        os.write(counted, b".")
        if seen == event:
            threading.Timer(delay, die).start() if delay else die()

    sys.addaudithook(hook)
