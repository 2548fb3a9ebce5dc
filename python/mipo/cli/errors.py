"""Errors: which of them are one line on standard error, and how it reads. All others are bugs and keep their traceback.

Knows mipo's own errors, and those of argument parsing, of the operating system and of missing libraries.
"""

import difflib

from cyclopts import CycloptsError, UnknownCommandError

from mipo.errors import MipoError


def one_line(error: Exception) -> str | None:
    """What is wrong, in one line with what to do; None for a bug."""
    match error:
        case UnknownCommandError():
            return _unknown(error)
        case CycloptsError():
            return f"{' '.join(str(error).split())} --help shows what it takes."
        case ImportError(__cause__=ModuleNotFoundError() as cause):  # of a command whose file could not be imported
            return one_line(cause)
        case ModuleNotFoundError(name=str(library)) if not library.startswith("mipo."):
            extra = "ray" if library.partition(".")[0] == "ray" else "train"
            return f"{library} is not installed; this command needs `pip install 'mipo[{extra}]'`"
        case MipoError():
            return str(error)
        case OSError(errno=int(), filename=place) if place is not None:
            return f"{place}: {error.strerror}"
        case _:
            return None


def _unknown(error: UnknownCommandError) -> str:
    """As the error's own text, which would load every command."""
    word = (error.unused_tokens or [""])[0]
    near = difflib.get_close_matches(word, [name for name in error.app or () if name.isalpha()], n=1)
    return f"unknown command {word!r}; " + (f"did you mean {near[0]!r}?" if near else "--help lists the commands.")
