"""`mipo completion`: shell completion of mipo's commands, options, choices and file names."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.completion.detect import ShellDetectionError

from mipo.cli.app import app
from mipo.errors import InputError


def command(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="the shell; by default the one that this is called from")
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="write the script to this file and do not touch the shell's start-up file")
    ] = None,
) -> None:
    """Writes the completion script to where the shell looks for it, and names it in the shell's start-up file."""
    try:
        path = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError:
        raise InputError(
            "expected bash, zsh or fish, got a shell that cannot be recognized; name it with --shell"
        ) from None
    print(f"completion in {path}" + ("; new shells will use it" if output is None else ""))
