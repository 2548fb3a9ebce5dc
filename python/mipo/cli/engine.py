"""Engine: where a command's work is done, on this machine or on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from mipo.errors import InputError
from mipo.io import cluster


@contextmanager
def connected(engine: str, address: str | None) -> Iterator[None]:
    """Connects to Ray where `engine` is "ray": to the cluster at `address`, or to one that is started here."""
    if engine == "ray":
        with cluster.connected(address):
            yield
        return
    if address is not None:
        raise InputError("--address is that of a Ray cluster; give --engine ray with it")
    yield
