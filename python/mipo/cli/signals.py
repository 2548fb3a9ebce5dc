"""Signals: Ctrl-C and SIGTERM end a command within a second, whatever it is doing.

Python answers a signal between two steps of its own, and a library's native call may take minutes. So a thread waits
for signals too, and ends the process if it has not ended by itself. Whatever is written is there whole or not at all,
so a command may end anywhere.
"""

import os
import signal
import threading
import time

SECONDS = 0.7  # for the command to end by itself
_OURS = (signal.SIGINT, signal.SIGTERM)
_told = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: a command ends as after Ctrl-C."""


def end_on_signals(called: str) -> None:
    """Lets the first Ctrl-C or SIGTERM end this process, which is the command `called`."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader, called), daemon=True).start()


def tell(called: str) -> None:
    """Says once that the command was stopped."""
    if not _told.is_set():
        _told.set()
        line = f"\n{called}: stopped; run the same command again to continue\n"
        os.write(2, line.encode())  # past the buffers, which the stopped call may hold


def _watch(reader: int, called: str) -> None:
    number = 0
    while number not in _OURS:
        number = os.read(reader, 1)[0]
    time.sleep(SECONDS)
    tell(called)
    os._exit(128 + number)


def _hold() -> None:
    """Lets signals wait for the end of a fork: until then they would reach the parent through the child."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)


def _forget() -> None:
    """A worker's signals are not the command's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release()


def _terminate(*_: object) -> None:
    raise Terminated
