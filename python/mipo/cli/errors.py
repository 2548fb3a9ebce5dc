"""Errors: which of them are one line on standard error, and how it reads. All others are bugs and keep their traceback.

Knows the errors of argument parsing, of the operating system and of missing libraries. Knows no command.
"""

import difflib

from cyclopts import CycloptsError, UnknownCommandError

EXPECTED = (ValueError, OSError, ImportError, TypeError)


def one_line(error: Exception) -> str | None:
    """What is wrong, in one line with what to do; None for a bug."""
    if isinstance(error, UnknownCommandError):
        return _unknown(error)
    if isinstance(error, CycloptsError):
        return f"{' '.join(str(error).split())} --help shows what it takes."
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__  # of a command whose file could not be imported
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = "ray" if error.name.partition(".")[0] == "ray" else "train"
        return f"{error.name} is not installed; this command needs `pip install 'mipo[{extra}]'`"
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; nothing half-written is kept, free the cause and run the same command again"
    if isinstance(error, EXPECTED):
        return str(error)
    if "No space left" in str(error):  # torch and safetensors say so of a full disk, in errors of their own
        return f"the disk is full ({error}); free some space and run the same command again to go on"
    return None


def _unknown(error: UnknownCommandError) -> str:
    """As the error's own text, which would load every command."""
    word = (error.unused_tokens or [""])[0]
    near = difflib.get_close_matches(word, [name for name in error.app or () if name.isalpha()], n=1)
    return f"unknown command {word!r}; " + (f"did you mean {near[0]!r}?" if near else "--help lists the commands.")
