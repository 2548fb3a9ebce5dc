"""Export: pairs as text, in the columns that other trainers read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mipo.errors import InputError
from mipo.io import columns, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pl
from mipo.pairing.filter import BATCH_ROWS
from mipo.pairing.stored import StoredPairs
from mipo.prompts.compose import message
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    from mipo.io.tables import Table

SIDES = ("prompt", "chosen", "rejected")
KINDS: dict[str, Kind] = {"prompt": "chat", "chosen": "chat", "rejected": "chat"}
Format = Literal["trl", "openrlhf", "nemo-rl"]


def export(
    pairs: Table | StoredPairs, path: str | Path, *, format: Format = "trl", batch_rows: int = BATCH_ROWS
) -> None:
    """Writes pairs as JSONL or Parquet (by the name of `path`) in the columns that a trainer reads.

    `trl`: prompt, chosen, rejected. `openrlhf`: the same, for its options prompt_key, chosen_key and rejected_key, and
    apply_chat_template where they are messages. `nemo-rl`: context (messages) and completions ranked 0 (chosen) and 1
    (rejected). A prompt with several rejected responses has a row for each. `pairs` is a table of texts, or the pairs
    of a run, which are joined with their texts here. `batch_rows` rows are held at a time.
    """
    if format not in get_args(Format):
        raise InputError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    batches: Iterator[pl.DataFrame]
    if isinstance(pairs, StoredPairs):
        batches = (batch.select(SIDES) for batch in pairs.batches(batch_rows))
    else:
        tables.check_columns(pairs, SIDES, "pairs")
        batches = tables.batches(columns.read(pairs.select(SIDES), KINDS, "pairs"), batch_rows)
    tables.write((_nemo(batch) for batch in batches) if format == "nemo-rl" else batches, Path(path))


def _nemo(table: pl.DataFrame) -> pl.DataFrame:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = [name for name in table.columns if not is_messages(table[name])]
    table = table.with_columns(message(roles[name], name).alias(name) for name in texts)
    ranked = [
        pl.struct(pl.lit(rank, pl.Int64).alias("rank"), pl.col(side).alias("completion"))
        for rank, side in enumerate(("chosen", "rejected"))
    ]
    return table.select(pl.col("prompt").alias("context"), pl.concat_list(*ranked).alias("completions"))
