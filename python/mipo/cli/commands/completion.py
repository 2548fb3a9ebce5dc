"""`mipo completion`: the shell completes commands, options, choices and file names of mipo."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.completion.detect import ShellDetectionError

from mipo.cli.app import app
from mipo.errors import InputError


def command(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="by default the one that this is called from")
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="write the script there, and leave the shell's start-up file as it is")
    ] = None,
) -> None:
    """Writes the completion script where the shell looks for such, and names it in the shell's start-up file."""
    try:
        path = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError:
        raise InputError("cannot tell which shell this is; name it with --shell") from None
    print(f"completion in {path}" + ("; shells started from now on have it" if output is None else ""))
