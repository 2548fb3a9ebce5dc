"""Errors: which of them become one line on standard error. All others are bugs and keep their traceback.

Knows mipo's own errors, and those of argument parsing, of the operating system and of missing libraries.
"""

import difflib

from cyclopts import CycloptsError, UnknownCommandError

from mipo.errors import MipoError


def one_line(error: Exception) -> str | None:
    """The error in one line, with what to do; None for a bug."""
    match error:
        case UnknownCommandError():
            return _unknown(error)
        case CycloptsError():
            return f"{' '.join(str(error).split())} --help shows what it takes."
        case ImportError(__cause__=ModuleNotFoundError() as cause):  # raised when a command's file is imported
            return one_line(cause)
        case ModuleNotFoundError(name=str(library)) if not library.startswith("mipo."):
            extra = "ray" if library.partition(".")[0] == "ray" else "train"
            return f"{library} is not installed; this command needs `pip install 'mipo[{extra}]'`"
        case MipoError():
            return str(error)
        case OSError(errno=int(), filename=path) if path is not None:
            return f"{path}: {error.strerror}"
        case _:
            return None


def _unknown(error: UnknownCommandError) -> str:
    """Like the error's own text, which would load every command."""
    word = (error.unused_tokens or [""])[0]
    near = difflib.get_close_matches(word, [name for name in error.app or () if name.isalpha()], n=1)
    return f"unknown command {word!r}; " + (f"did you mean {near[0]!r}?" if near else "--help lists the commands.")
