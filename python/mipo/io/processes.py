"""Processes: the end of one that mipo started. Knows nothing of what it does."""

from __future__ import annotations

import subprocess
from typing import Any

PATIENCE = 30.0  # seconds


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process, if it still runs: asks it to, and kills it where it does not within `PATIENCE`."""
    process.terminate()
    try:
        process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
