"""Preparation: files of preference pairs become a store of token ids, shard by shard, on one machine or many.

Knows which rows make a shard, and which shards exist. Knows nothing of how a pair is tokenized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io import checksum, outputs, sources, tables
from mipo.io.lazy import pl
from mipo.tokenizer.encoder import Choice, fingerprint
from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards
from mipo.tokens.groups import GroupBuilder, aligned
from mipo.tokens.parts import Part, parts_of
from mipo.tokens.store import Groups

PENDING = 1 << 25  # bytes of ids to hold before they are written


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
    perform: Callable[[list[ShardTask], Any], Iterable[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Tokenizes preference pairs as TRL 1.16 does, into a store for `mipo.PairStore.open`.

    `pairs`: folders of runs, whose pairs are row numbers; files of TRL's preference format (text or conversational,
    prompt explicit or implicit) as JSONL, Parquet or CSV (also .gz, .xz); folders of these, of which the files of
    `split` are read as `datasets.load_dataset` does; or Hugging Face datasets. They are split into shards of about
    `shard_rows` rows, never within a prompt_id. A shard stores each prompt and response once; after every 229,376 new
    ones it forgets which it has. Memory is that of a few batches, whatever the number of rows. (CSV and compressed
    Parquet files are read whole and become one shard.) Existing shards of the same rows and settings are kept.
    `max_length` and `encoder` as in `mipo.tokens.groups.tokenize`. `perform` runs the tasks elsewhere, for example
    `mipo.io.cluster.perform`.

    Returns the manifest: rows_in, dropped (reason → rows), merged, groups, and the shards. Raises InputError for rows
    that are not pairs, with the row number, and for a folder that holds tokens of other pairs or settings.
    """
    from tqdm import tqdm

    folder = folder.absolute()
    if shard_rows < 1:
        raise InputError(f"shard_rows: expected at least 1 row, got {shard_rows}")
    for source in pairs:
        sources.check(source)
    settings = {"fingerprint": fingerprint(tokenizer), "max_length": max_length}
    row_bar = progress if perform is None else None
    with outputs.claim(folder, "tokens"), outputs.scratch(folder) as scratch:
        parts = [part for source in pairs for part in parts_of(source, shard_rows, split, scratch)]
        tasks = [ShardTask(folder, number, part, encoder, settings, row_bar) for number, part in enumerate(parts)]
        todo = [task for task in tasks if not task.is_done()]
        if max(shards.numbers(folder), default=0) >= len(parts):
            raise InputError(
                f"{folder}: holds tokens of more pairs than these; name another folder, or delete this one"
            )
        results = (perform or _perform_here)(todo, tokenizer)
        hidden = perform is None or not progress
        for _ in tqdm(results, total=len(todo), desc=progress, unit="shard", delay=0.5, disable=hidden):
            pass
        records = [shards.record_of(folder, number) or {} for number in range(len(parts))]
        names = ("rows_in", "groups", "merged", "repeated")
        totals: dict[str, Any] = {name: sum(record.get(name, 0) for record in records) for name in names}
        dropped = sum((Counter(record["dropped"]) for record in records), Counter[str]())
        return shards.finish(folder, {**settings, **totals, "dropped": dict(dropped)})


def _perform_here(tasks: Sequence[ShardTask], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Writes one shard after another, with what the shards of a source share read once."""
    for source, group in groupby(tasks, key=lambda task: task.part.source):
        with source.opened() as opened:
            for task in group:
                yield replace(task, part=replace(task.part, source=opened))(tokenizer)


@dataclass(frozen=True)
class ShardTask:
    """One shard to write, on this machine or another."""

    folder: Path
    number: int
    part: Part
    encoder: Choice
    settings: dict[str, Any]
    progress: str | None

    @property
    def key(self) -> str:
        """Equal for equal rows and settings."""
        return checksum.of_value({**self.part.identity(), "source": None, **self.settings})

    def is_done(self) -> bool:
        """Whether the shard is there and whole; says so of a damaged one. InputError if its folder holds another."""
        record = shards.record_of(self.folder, self.number)
        if record and record.get("key") != self.key:
            source = record.get("source", "a store that was saved")
            raise InputError(
                f"{self.folder}: holds tokens of other pairs, or of another tokenizer or max_length "
                f"({record['folder']}, of {source}); name another folder, or delete this one"
            )
        if record is None:
            return False
        is_whole = shards.is_whole(self.folder, record)
        if not is_whole:
            print(f"{self.folder / record['folder']}: is damaged, and is made again")
        return is_whole

    def __call__(self, tokenizer: Any) -> dict[str, Any]:
        """Writes the shard, tokenized by `tokenizer`, and returns its record."""
        from tqdm import tqdm

        builder = GroupBuilder(tokenizer, max_length=self.settings["max_length"], encoder=self.encoder)
        total = self.part.stop - self.part.start
        bar = tqdm(total=total, desc=self.progress, unit="row", delay=0.5, disable=self.progress is None)
        # At any time one batch is read, one is tokenized and one is written.
        batches = tables.ahead(aligned(self.part.batches()))
        results = tables.ahead(self._results(builder, batches))
        rows = 0
        with shards.ShardWriter(self.folder, self.number) as writer, bar, closing(batches), closing(results):
            for height, groups, texts in results:
                writer.put_groups(groups.prompt_id, groups.prompt, groups.chosen, groups.offsets, groups.rejected)
                if texts:
                    writer.put_tables(*texts)
                    writer.flush()
                rows += height
                bar.update(height)
            if rows != total:
                raise InputError(
                    f"{self.part.source.name}: expected {total:,} rows after row {self.part.start}, got {rows:,}; was "
                    "it changed meanwhile? Start again with another folder"
                )
            writer.put_tables(*builder.take())
            # Not its folder: a store is the same wherever it is made, and can be published.
            source = Path(self.part.source.name).name
            writer.record |= {"key": self.key, "source": source, "rows_in": rows}
            writer.record |= {"merged": builder.merged, "dropped": dict(builder.dropped)}
            writer.record |= {"repeated": builder.repeated, "note": self.part.source.note}
            writer.record |= {"encoder": builder.encoder.name, "why": builder.encoder.why}
        return writer.record

    def _results(
        self, builder: GroupBuilder, batches: Iterator[pl.DataFrame]
    ) -> Iterator[tuple[int, Groups, tuple[TokenTable, TokenTable] | None]]:
        """The height and groups of each batch, and the prompts and responses once there are enough to write."""
        before = self.part.start
        for batch in batches:
            try:
                groups = builder.add(batch, before=before)
            except ValueError as error:
                raise InputError(f"{self.part.source.name}: {error}") from error
            yield batch.height, groups, builder.take() if builder.pending() > PENDING else None
            before += batch.height
