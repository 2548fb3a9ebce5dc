"""Cluster: a Ray to work on, and tables on it as blocks. Knows Ray. Knows nothing of what the columns mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import ray
else:
    pl = lazy("polars")
    ray = lazy("ray")

Result = TypeVar("Result")


@contextmanager
def connected(address: str | None = None, *, cores: int | None = None) -> Iterator[None]:
    """Connects to the Ray at `address`, or starts one on this machine (on `cores`) and stops it at the end.

    Where this process is connected already, and no address is given, that Ray is used and goes on.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each start to its authors
    if ray.is_initialized() and address is None:
        yield
        return
    where = {"address": address} if address else {"address": "local", "num_cpus": cores, "include_dashboard": False}
    ray.init(**where, log_to_driver=False, logging_level="WARNING")
    try:
        yield
    finally:
        ray.shutdown()


def perform(work: Sequence[Callable[[], Result]]) -> Iterator[Result]:
    """Calls each piece of work on one core of the cluster; the results as they come."""
    alone = {"env_vars": {name: "1" for name in ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS")}}
    remote = ray.remote(num_cpus=1, runtime_env=alone)(_call)
    left = [remote.remote(piece) for piece in work]
    while left:
        done, left = ray.wait(left)
        yield from ray.get(done)


def spread(frame: pl.DataFrame, *, blocks: int | None = None) -> ray.data.Dataset:
    """A frame as a dataset of about equal blocks, by default two for each core of the cluster."""
    wanted = blocks or 2 * int(ray.cluster_resources().get("CPU", 1))
    rows = max(1, -(-frame.height // wanted))
    pieces = list(frame.iter_slices(rows)) or [frame]
    return ray.data.from_arrow([piece.to_arrow(compat_level=pl.CompatLevel.oldest()) for piece in pieces])


def gather(dataset: ray.data.Dataset) -> pl.DataFrame:
    """All rows of a dataset as one frame, in the order of its blocks."""
    return pl.concat([frame_of(table) for table in ray.get(blocks_of(dataset))], how="vertical_relaxed")


def blocks_of(dataset: ray.data.Dataset) -> list[ray.ObjectRef]:
    """The blocks in their order, as Arrow tables held by Ray, less those without rows, but for one."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        refs = dataset.to_arrow_refs()
    finally:
        options.preserve_order = before
    rows = ray.get([remote(_count).remote(ref) for ref in refs])
    return [ref for ref, held in zip(refs, rows, strict=True) if held] or refs[:1]


def _call(piece: Callable[[], Result]) -> Result:
    return piece()


def _count(block: pa.Table) -> int:
    rows: int = block.num_rows
    return rows


def remote(function: Any) -> Any:
    """The function, to be called on the cluster."""
    return ray.remote(function)


def frame_of(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a frame, on the same memory."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
