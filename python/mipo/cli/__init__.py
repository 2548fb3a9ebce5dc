"""The command line: one command per stage; its options are the keyword arguments of the stage's functions."""

from mipo.cli.app import main

__all__ = ["main"]
