"""Reference: log-probs under the reference model as columns of a data set, and kept beside the store of its ids.

Knows data sets, stores and tables. Knows no model: the trainer scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mipo.errors import InputError
from mipo.io import checksum, tables
from mipo.tokens.store import PairStore
from mipo.trainer.config import MIPOConfig, is_partitioned
from mipo.trainer.packing import REF

# Settings that log-probs depend on, most by rounding, beside weights and ids.
SETTINGS = ("bf16", "fp16", "tf32", "model_init_kwargs", "use_liger_kernel", "shared_prompts", "fused_loss", "ld_alpha")


def file_name(store: PairStore, content: dict[str, Any], args: MIPOConfig) -> str:
    """The name of the file for a model's `content`, as in `mipo.models.model.Model`."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    if args.deepspeed_plugin is not None and (args.bf16 or args.fp16):
        settings["weights"] = "half"  # DeepSpeed casts the weights themselves, others what goes into a product
    plain = json.loads(json.dumps(settings, default=str))
    return f"reference-{checksum.of_value([store.content, content, plain])[:16]}.parquet"


def is_kept(args: MIPOConfig, lora: Mapping[str, Any] | None) -> bool:
    """Whether the reference of a training is kept: one that is scored before, of whole rows, under the model's weights.

    TRL's `max_length` drops rows and cuts others; PiSSA and its like initialize an adapter by a change of the weights.
    """
    scored = args.precompute_ref_log_probs is not False and not args.sync_ref_model and not is_partitioned(args)
    plain = lora is None or lora.get("init_lora_weights", True) in (True, False, "gaussian")
    return scored and plain and args.max_length is None


def read(folders: Iterable[Path], name: str) -> dict[str, pa.Array] | None:
    """The columns `REF`, a row a group, from the first of the folders that has them as they were written."""
    for folder in folders:
        path = folder / name
        if tables.is_own(path):
            frame = pl.read_parquet(path, glob=False)
            return {column: frame[column].to_arrow() for column in REF}
    return None


def write(dataset: datasets.Dataset, path: Path) -> None:
    """Keeps the columns `REF` of a data set; a folder that cannot be written to is told of, and no error."""
    table = dataset.with_format("arrow").select_columns(list(REF))[:]
    try:
        tables.write([tables.from_arrow(table)], path)
    except (InputError, OSError) as error:
        print(f"train: the reference's log-probs are not kept for another training ({error})")


def can_precompute(args: MIPOConfig, row: Mapping[str, Any] | None, train: Any, held_out: Any) -> bool:
    """Whether TRL takes reference log-probs from before training with these settings and data sets."""
    pictures = row is not None and not {"image", "images"}.isdisjoint(row)
    refused = pictures or args.sync_ref_model or is_partitioned(args)
    return not (is_streamed(train) or is_streamed(held_out) or refused)


def is_streamed(data: Any) -> bool:
    """Whether a data set, or one of several by name, is a stream."""
    each = data.values() if isinstance(data, Mapping) else [data]
    return any(isinstance(dataset, datasets.IterableDataset) for dataset in each)


def with_columns(dataset: datasets.Dataset, columns: Mapping[str, list[Any] | pa.Array]) -> datasets.Dataset:
    """The data set with new columns and its format, which `add_column` forgets: a lazy one needs it to show ids."""
    form = dataset.format
    wider = dataset.with_format("arrow")  # without the transform: `add_column` may copy rows, as row numbers
    for name, values in columns.items():
        wider = wider.add_column(name, values)
    shown = None if set(form["columns"]) == set(dataset.column_names) else [*form["columns"], *columns]
    options = {"columns": shown, "output_all_columns": form["output_all_columns"], **form["format_kwargs"]}
    return wider.with_format(form["type"], **options)


def group_sizes(dataset: datasets.Dataset) -> list[int]:
    """The number of rejected responses of each group, without making Python lists of token ids."""
    table = dataset.select_columns("rejected_ids").with_format("arrow")[:]
    lengths: list[int] = pc.list_value_length(table["rejected_ids"]).to_pylist()
    return lengths
