"""Engine: where a command runs, on this machine or on a Ray cluster."""

from contextlib import AbstractContextManager, nullcontext

from mipo.errors import InputError
from mipo.io import cluster


def check_engine(engine: str, address: str | None) -> None:
    """Raises InputError for a cluster's address without the engine that uses it."""
    if address is not None and engine != "ray":
        raise InputError("--address: expected --engine ray with it, since it names a Ray cluster")


def connected(engine: str, address: str | None) -> AbstractContextManager[None]:
    """A connection to Ray where `engine` is "ray": to the cluster at `address`, or to one that is started here."""
    return cluster.connected(address) if engine == "ray" else nullcontext()
