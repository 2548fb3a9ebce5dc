"""Cluster: a Ray cluster, and tables on it as blocks. Knows Ray. Knows nothing of what the columns mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mipo.errors import StoppedError, first_line
from mipo.io.lazy import pl, ray
from mipo.io.tables import from_arrow, to_arrow

Result = TypeVar("Result")
Shared = TypeVar("Shared")


@contextmanager
def connected(address: str | None = None, *, cores: int | None = None) -> Iterator[None]:
    """Connects to the cluster at `address`, or starts one on this machine (with `cores`) and stops it at the end.

    Without an address, a process that is connected already stays with its cluster, which keeps running, and
    `RAY_ADDRESS` counts where it is set, as in a job that was submitted to a cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each start to its authors
    if ray.is_initialized() and address is None:
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    target = {"address": address} if address else {"address": "local", "num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(**target, log_to_driver=False, logging_level="WARNING")
    except ConnectionError as error:
        what = f"{address}: no Ray cluster answers there ({first_line(error)})"
        raise StoppedError(f"{what}; start it, or name another with address") from None
    try:
        yield
    finally:
        ray.shutdown()


def perform(tasks: Sequence[Callable[[Shared], Result]], shared: Shared) -> Iterator[Result]:
    """Calls each task on one core of the cluster, with `shared`, which is sent once; yields results as they arrive."""
    single = {"env_vars": {name: "1" for name in ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS")}}
    call = ray.remote(num_cpus=1, runtime_env=single)(_call)
    place = ray.put(shared)
    pending = [call.remote(task, place) for task in tasks]
    while pending:
        done, pending = ray.wait(pending)
        yield from ray.get(done)


def spread(frame: pl.DataFrame, *, blocks: int | None = None) -> ray.data.Dataset:
    """A frame as a dataset of about equal blocks, by default two for each core of the cluster."""
    blocks = blocks or 2 * int(ray.cluster_resources().get("CPU", 1))
    rows = max(1, -(-frame.height // blocks))
    return ray.data.from_arrow([to_arrow(piece) for piece in frame.iter_slices(rows)] or [to_arrow(frame)])


def gather(dataset: ray.data.Dataset) -> pl.DataFrame:
    """All rows of a dataset as one frame, in the order of its blocks."""
    return pl.concat([from_arrow(table) for table in ray.get(blocks_of(dataset))], how="vertical_relaxed")


def blocks_of(dataset: ray.data.Dataset) -> list[ray.ObjectRef]:
    """The blocks in their order, as Arrow tables held by Ray. Empty blocks are left out, but one block always stays."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        refs = dataset.to_arrow_refs()
    finally:
        options.preserve_order = before
    heights = ray.get([ray.remote(lambda block: block.num_rows).remote(ref) for ref in refs])
    return [ref for ref, rows in zip(refs, heights, strict=True) if rows] or refs[:1]


def _call(task: Callable[[Shared], Result], shared: Shared) -> Result:
    return task(shared)
