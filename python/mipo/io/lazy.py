"""Libraries imported at their first use: `import mipo` must stay under 0.3 s, and polars alone takes 0.2.

A file that needs one has `from mipo.io.lazy import np, pl`; for a type checker these are the modules themselves.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["_native", "lazy", "np", "pa", "pl", "pq", "ray", "torch"]


class lazy(ModuleType):
    """Stands in for the module `name`, and imports it when an attribute is first used."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)

    def __reduce__(self) -> Any:
        """By its name, so that functions which use it can be hashed by `datasets` and sent to other processes."""
        return lazy, (self.__name__,)


if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    import torch

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pl = lazy("polars")
    pq = lazy("pyarrow.parquet")
    ray = lazy("ray")
    torch = lazy("torch")
