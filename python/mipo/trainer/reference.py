"""Reference: log-probs of a store's responses under the reference model, kept beside the store by what they depend on.

Knows stores and tables. Knows no model: the trainer scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import polars as pl

from mipo.errors import InputError
from mipo.io import checksum, tables
from mipo.tokens.store import PairStore
from mipo.trainer.config import MIPOConfig
from mipo.trainer.packing import REF

# Settings that decide how log-probs are rounded; weights and ids decide the rest.
ROUNDED_BY = ("bf16", "fp16", "tf32", "model_init_kwargs", "shared_prompts", "fused_loss")


def file_name(store: PairStore, content: dict[str, Any], args: MIPOConfig) -> str:
    """The name of the file for a model's `content`, as in `mipo.models.model.Model`."""
    settings = {name: getattr(args, name) for name in ROUNDED_BY}
    return f"reference-{checksum.of_value([store.content, content, settings])[:16]}.parquet"


def read(folders: Iterable[Path], name: str) -> dict[str, list[Any]] | None:
    """The columns `REF`, a row a group, from the first of the folders that has them as they were written."""
    for folder in folders:
        path = folder / name
        if tables.is_own(path):
            frame = pl.read_parquet(path, glob=False)
            return {column: frame[column].to_list() for column in REF}
    return None


def write(dataset: datasets.Dataset, path: Path) -> None:
    """Keeps the columns `REF` of a data set; a folder that cannot be written to is told of, and no error."""
    table = dataset.with_format("arrow").select_columns(list(REF))[:]
    try:
        tables.write([tables.from_arrow(table)], path)
    except (InputError, OSError) as error:
        print(f"train: the reference's log-probs are not kept for another training ({error})")
