"""`mipo demo`: the whole way on a tiny model, on this machine."""

from typing import Any

from mipo.cli.options import mirrors
from mipo.demo import run_demo


@mirrors(run_demo)
def command(**options: Any) -> None:
    """Runs the demo."""
    run_demo(**options)
