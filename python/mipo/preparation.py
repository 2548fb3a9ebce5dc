"""Preparation: files of preference pairs become a store of token ids, shard by shard, on this machine or on many.

Knows which rows make a shard, and which shards are there. Knows nothing of how a pair is tokenized.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import shards, sources, tables, tokens
from mipo.groups import SIDES, GroupBuilder, aligned
from mipo.lazy import lazy
from mipo.store import Pairs
from mipo.tokens import Choice, TokenTable

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")

BATCH_ROWS = 16_384
PENDING = 1 << 25  # bytes of ids after which they go to disk
BLOCK = 1 << 26  # bytes of a source that are read at once for its content


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
    """Tokenizes files of preference pairs as TRL 1.16 would, into a store for `mipo.PairStore.open`.

    `pairs`: files of TRL's preference format (text or conversational, prompt explicit or implicit) as JSONL, Parquet or
    CSV (also .gz, .xz), folders of Parquet parts, or Hugging Face datasets. Parquet is cut into shards of about
    `shard_rows` rows, never within a prompt_id; any other source is one shard. In a shard a prompt or response is
    stored once, unless 200,000 others came in between. Memory is that of a few batches, whatever the number of rows.
    Shards that are there, of the same rows and settings, are not made again. `max_length` and `encoder` as in
    `mipo.groups.tokenize`. `each` does the work of the shards elsewhere, as `mipo.cluster.run`.

    Returns the manifest: rows_in, dropped (reason → rows), merged, groups, and the shards. Raises ValueError for what
    are no pairs, with the row, and for a folder that holds tokens of other pairs or settings.
    """
    from tqdm import tqdm

    folder = folder.absolute()
    if shard_rows < 1:
        raise ValueError(f"shard_rows: expected at least 1 row, came {shard_rows}")
    parts = [part for source in pairs for part in _parts(source, shard_rows, split)]
    about = {"fingerprint": tokens.fingerprint(tokenizer), "max_length": max_length}
    alone = progress if each is None else None
    work = [Shard(folder, number, part, tokenizer, encoder, about, alone) for number, part in enumerate(parts)]
    todo = [shard for shard in work if not shard.is_there()]
    if shards.found(folder, len(parts)):
        raise ValueError(f"{folder}: holds tokens of more pairs than these; name another folder, or delete this one")
    made = map(Shard.__call__, todo) if each is None else each(todo)
    for _ in tqdm(made, total=len(todo), desc=progress, unit="shard", delay=0.5, disable=each is None or not progress):
        pass
    written = [shards.found(folder, number) or {} for number in range(len(parts))]
    totals: dict[str, Any] = {name: sum(told[name] for told in written) for name in ("rows_in", "groups", "merged")}
    lost = sum((Counter(told["dropped"]) for told in written), Counter[str]())
    return shards.finish(folder, {**about, **totals, "dropped": dict(lost)})


@dataclass(frozen=True)
class Part:
    """Rows of a source, by its content: `stop` is None for all of them."""

    source: str
    content: str
    split: str
    start: int = 0
    stop: int | None = None


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
        told = {**asdict(self.part), "source": None, **self.about}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def is_there(self) -> bool:
        """Whether it was made before; ValueError if another one has its place."""
        told = shards.found(self.folder, self.number)
        if told and told.get("key") != self.key:
            source = told.get("source", "a store that was saved")
            raise ValueError(
                f"{self.folder}: holds tokens of other pairs, or of another tokenizer or max_length "
                f"({told['folder']}, of {source}); name another folder, or delete this one"
            )
        return told is not None and shards.is_whole(self.folder, told)

    def __call__(self) -> dict[str, Any]:
        """Makes it, and returns its record."""
        from tqdm import tqdm

        builder = GroupBuilder(self.tokenizer, max_length=self.about["max_length"], encoder=self.encoder)
        total = self.part.stop and self.part.stop - self.part.start
        bar = tqdm(total=total, desc=self.progress, unit="row", delay=0.5, disable=self.progress is None)
        # One batch is read, one tokenized and one written at a time.
        batches = tables.ahead(aligned(_batches(self.part)))
        rows = 0
        with shards.Shard(self.folder, self.number) as shard, bar:
            for read, made, taken in tables.ahead(self._groups(builder, batches)):
                shard.put_pairs(made.prompt_id, made.prompt, made.chosen, made.offsets, made.rejected)
                if taken:
                    _put(shard, *taken)
                rows += read
                bar.update(read)
            _put(shard, *builder.take())
            shard.record |= {"key": self.key, "source": self.part.source, "rows_in": rows}
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
                raise ValueError(f"{self.part.source}: {error}") from error
            yield batch.height, made, builder.take() if builder.pending() > PENDING else None
            before += batch.height


def _put(shard: shards.Shard, prompts: TokenTable, responses: TokenTable) -> None:
    for ids in prompts.pieces:
        shard.put_prompts(*ids)
    for ids in responses.pieces:
        shard.put_responses(*ids)


def _batches(part: Part) -> Iterator[pl.DataFrame]:
    if part.stop is None:
        return sources.stream(part.source, BATCH_ROWS, split=part.split, texts=SIDES)
    return sources.parquet_rows(part.source, BATCH_ROWS, start=part.start, stop=part.stop)


def _parts(source: str | Path, shard_rows: int, split: str) -> Iterator[Part]:
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    told = " ".join(_content(file) for file in files) if path.exists() else str(source)
    part = Part(str(path.absolute() if path.exists() else source), hashlib.sha256(told.encode()).hexdigest(), split)
    whole = sources.scan(source) if path.suffix == ".parquet" or any(path.glob("*.parquet")) else None
    if not isinstance(whole, pl.LazyFrame):
        yield part
        return
    rows = tables.height(whole)
    borders = [0, *_borders(whole, rows, shard_rows), rows]
    yield from (replace(part, start=start, stop=stop) for start, stop in pairwise(borders))


def _borders(whole: pl.LazyFrame, rows: int, shard_rows: int) -> Iterator[int]:
    """Where shards start, but for the first one: a prompt_id stays in one shard."""
    last, ids = 0, "prompt_id" in whole.collect_schema()
    for border in range(shard_rows, rows, shard_rows):
        while ids and border < rows:
            near = whole.slice(border - 1, BATCH_ROWS).select("prompt_id").collect()["prompt_id"]
            other = (near != near[0]).arg_true()
            border += int(other[0]) - 1 if len(other) else near.len()
            if len(other):
                break
        if last < border < rows:
            yield border
            last = border


def _content(path: Path) -> str:
    """What a file holds, in 128 bits."""
    found = []
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            found.append(_native.checksum([np.frombuffer(data, np.uint8)]))
    return " ".join(found)
