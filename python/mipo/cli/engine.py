"""Engine: where a command's work is done, on this machine or on a Ray cluster."""

from contextlib import AbstractContextManager, nullcontext

from mipo.errors import InputError
from mipo.io import cluster


def check_engine(engine: str, address: str | None) -> None:
    """InputError for the address of a cluster that is not asked for."""
    if address is not None and engine != "ray":
        raise InputError("--address is that of a Ray cluster; give --engine ray with it")


def connected(engine: str, address: str | None) -> AbstractContextManager[None]:
    """A connection to Ray where `engine` is "ray": to the cluster at `address`, or to one that is started here."""
    return cluster.connected(address) if engine == "ray" else nullcontext()
