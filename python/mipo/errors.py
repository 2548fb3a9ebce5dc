"""mipo's own errors: what a caller can fix. The command line shows them in one line; any other exception is a bug.

Each is also the built-in exception that a Python caller expects, so `except ValueError` catches an `InputError`.
"""


class MipoError(Exception):
    """The base of mipo's own errors; its message says what was expected, what it got, and what to do."""


class InputError(MipoError, ValueError):
    """A value, a table or a file that mipo cannot work with."""


class InputTypeError(MipoError, TypeError):
    """An argument of a type that mipo cannot work with."""


class NotThereError(MipoError, FileNotFoundError):
    """A file, a folder, a model or a data set that does not exist."""


class WriteError(MipoError, OSError):
    """A file that could not be written."""


class StoppedError(MipoError, RuntimeError):
    """Work that cannot go on now, such as without its server; the same call continues it later."""


class LibraryError(MipoError, ImportError):
    """A library that is not installed; the message names the extra that installs it."""


class UnsupportedError(MipoError, NotImplementedError):
    """A model or a setting that mipo recognizes but does not support."""


def first_line(error: Exception) -> str:
    """The first line of a library's message, for one of mipo's; the error's type where there is no message."""
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, KeyError):  # its message is a name alone
        lines = [" ".join([type(error).__name__, *lines])]
    return lines[0]
