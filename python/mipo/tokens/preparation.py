"""Preparation: files of preference pairs become a store of token ids, shard by shard, on this machine or on many.

Knows which rows make a shard, and which shards are there. Knows nothing of how a pair is tokenized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import checksum, tables
from mipo.io.lazy import lazy
from mipo.tokenizer.encoder import Choice, fingerprint
from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards
from mipo.tokens.groups import GroupBuilder, aligned
from mipo.tokens.parts import Part, parts_of
from mipo.tokens.store import Pairs

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")

PENDING = 1 << 25  # bytes of ids after which they go to disk


def prepare(
    pairs: Sequence[str | Path],
    tokenizer: Any,
    folder: Path,
    *,
    max_length: int | None = None,
    shard_rows: int = 1_000_000,
    split: str = "train",
    encoder: Choice = "auto",
    progress: str | None = "tokens",
    each: Callable[[list[Shard]], Iterable[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Tokenizes preference pairs as TRL 1.16 would, into a store for `mipo.PairStore.open`.

    `pairs`: the folders of runs, whose pairs are row numbers, or files of TRL's preference format (text or
    conversational, prompt explicit or implicit) as JSONL, Parquet or CSV (also .gz, .xz), folders of Parquet parts, or
    Hugging Face datasets. They are cut into shards of about `shard_rows` rows, never within a prompt_id. In a shard
    each prompt and response is stored once; after every 229,376 new ones it forgets which it has. Memory is that of a
    few batches, whatever the number of rows. (CSV and compressed Parquet files are read whole, and are one shard.)
    Shards that are there, of the same rows and settings, are not made again. `max_length` and `encoder` as in
    `mipo.tokens.groups.tokenize`. `each` does the work of the shards elsewhere, as `mipo.io.cluster.perform`.

    Returns the manifest: rows_in, dropped (reason → rows), merged, groups, and the shards. Raises ValueError for what
    are no pairs, with the row, and for a folder that holds tokens of other pairs or settings.
    """
    from tqdm import tqdm

    folder = folder.absolute()
    if shard_rows < 1:
        raise InputError(f"shard_rows: expected at least 1 row, came {shard_rows}")
    parts = [part for source in pairs for part in parts_of(source, shard_rows, split)]
    about = {"fingerprint": fingerprint(tokenizer), "max_length": max_length}
    alone = progress if each is None else None
    work = [Shard(folder, number, part, tokenizer, encoder, about, alone) for number, part in enumerate(parts)]
    todo = [shard for shard in work if not shard.is_there()]
    if shards.found(folder, len(parts)):
        raise InputError(f"{folder}: holds tokens of more pairs than these; name another folder, or delete this one")
    made = map(Shard.__call__, todo) if each is None else each(todo)
    for _ in tqdm(made, total=len(todo), desc=progress, unit="shard", delay=0.5, disable=each is None or not progress):
        pass
    written = [shards.found(folder, number) or {} for number in range(len(parts))]
    totals: dict[str, Any] = {name: sum(told[name] for told in written) for name in ("rows_in", "groups", "merged")}
    lost = sum((Counter(told["dropped"]) for told in written), Counter[str]())
    return shards.finish(folder, {**about, **totals, "dropped": dict(lost)})


@dataclass(frozen=True)
class Shard:
    """One shard to be made, here or on another machine."""

    folder: Path
    number: int
    part: Part
    tokenizer: Any
    encoder: Choice
    about: dict[str, Any]
    progress: str | None

    @property
    def key(self) -> str:
        """Equal for equal rows and settings."""
        told = {**self.part.about(), "source": None, **self.about}
        return checksum.of_value(told)

    def is_there(self) -> bool:
        """Whether it was made before; ValueError if another one has its place."""
        told = shards.found(self.folder, self.number)
        if told and told.get("key") != self.key:
            source = told.get("source", "a store that was saved")
            raise InputError(
                f"{self.folder}: holds tokens of other pairs, or of another tokenizer or max_length "
                f"({told['folder']}, of {source}); name another folder, or delete this one"
            )
        return told is not None and shards.is_whole(self.folder, told)

    def __call__(self) -> dict[str, Any]:
        """Makes it, and returns its record."""
        from tqdm import tqdm

        builder = GroupBuilder(self.tokenizer, max_length=self.about["max_length"], encoder=self.encoder)
        total = self.part.stop - self.part.start
        bar = tqdm(total=total, desc=self.progress, unit="row", delay=0.5, disable=self.progress is None)
        # One batch is read, one tokenized and one written at a time.
        batches = tables.ahead(aligned(self.part.batches()))
        groups = tables.ahead(self._groups(builder, batches))
        rows = 0
        with shards.Shard(self.folder, self.number) as shard, bar, closing(batches), closing(groups):
            for read, made, taken in groups:
                shard.put_pairs(made.prompt_id, made.prompt, made.chosen, made.offsets, made.rejected)
                if taken:
                    _put(shard, *taken)
                    shard.flush()
                rows += read
                bar.update(read)
            if rows != total:
                raise InputError(
                    f"{self.part.source.name}: expected {total:,} rows after row {self.part.start}, got {rows:,}; was "
                    "it changed meanwhile? Start again, with another folder"
                )
            _put(shard, *builder.take())
            shard.record |= {"key": self.key, "source": self.part.source.name, "rows_in": rows}
            shard.record |= {"merged": builder.merged, "dropped": dict(builder.dropped)}
            shard.record |= {"encoder": builder.encoder.name, "why": builder.encoder.why}
        return shard.record

    def _groups(
        self, builder: GroupBuilder, batches: Iterator[pl.DataFrame]
    ) -> Iterator[tuple[int, Pairs, tuple[TokenTable, TokenTable] | None]]:
        """Of each batch its rows, its groups, and prompts and responses once there are enough of them to be written."""
        before = self.part.start
        for batch in batches:
            try:
                made = builder.add(batch, before=before)
            except ValueError as error:
                raise InputError(f"{self.part.source.name}: {error}") from error
            yield batch.height, made, builder.take() if builder.pending() > PENDING else None
            before += batch.height


def _put(shard: shards.Shard, prompts: TokenTable, responses: TokenTable) -> None:
    for ids in prompts.pieces:
        shard.put_prompts(*ids)
    for ids in responses.pieces:
        shard.put_responses(*ids)
