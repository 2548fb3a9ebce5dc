"""The command line: one command a stage, whose options are the keyword arguments of the stage's functions."""

from mipo.cli.app import main

__all__ = ["main"]
