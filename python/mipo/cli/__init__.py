"""The command line: one command a stage, whose options are the keyword arguments of the stage's function."""

from mipo.cli.commands import main

__all__ = ["main"]
