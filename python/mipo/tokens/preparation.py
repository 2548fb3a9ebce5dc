"""Preparation: files of preference pairs become a store of token ids, shard by shard, on this machine or on many.

Knows which rows make a shard, and which shards are there. Knows nothing of how a pair is tokenized.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import sources, tables
from mipo.io.lazy import lazy
from mipo.tokenizer.encoder import Choice, fingerprint
from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards
from mipo.tokens.groups import SIDES, GroupBuilder, aligned
from mipo.tokens.store import Pairs

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
    CSV (also .gz, .xz), folders of Parquet parts, or Hugging Face datasets. They are cut into shards of about
    `shard_rows` rows, never within a prompt_id. In a shard each prompt and response is stored once; after every 229,376
    new ones it forgets which it has. Memory is that of a few batches, whatever the number of rows. (CSV and compressed
    Parquet files are read whole, and are one shard.)
    Shards that are there, of the same rows and settings, are not made again. `max_length` and `encoder` as in
    `mipo.tokens.groups.tokenize`. `each` does the work of the shards elsewhere, as `mipo.io.cluster.perform`.

    Returns the manifest: rows_in, dropped (reason → rows), merged, groups, and the shards. Raises ValueError for what
    are no pairs, with the row, and for a folder that holds tokens of other pairs or settings.
    """
    from tqdm import tqdm

    folder = folder.absolute()
    if shard_rows < 1:
        raise InputError(f"shard_rows: expected at least 1 row, came {shard_rows}")
    parts = [part for source in pairs for part in _parts(source, shard_rows, split)]
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
class Part:
    """Rows start..stop of a source, by its content."""

    source: str
    content: str
    split: str
    start: int
    stop: int

    def batches(self) -> Iterator[pl.DataFrame]:
        """Its rows, in order."""
        return sources.stream(self.source, BATCH_ROWS, start=self.start, stop=self.stop, split=self.split, texts=SIDES)


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
                    f"{self.part.source}: expected {total:,} rows after row {self.part.start}, came {rows:,}; was it "
                    "changed meanwhile? Start again, with another folder"
                )
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
                raise InputError(f"{self.part.source}: {error}") from error
            yield batch.height, made, builder.take() if builder.pending() > PENDING else None
            before += batch.height


def _put(shard: shards.Shard, prompts: TokenTable, responses: TokenTable) -> None:
    for ids in prompts.pieces:
        shard.put_prompts(*ids)
    for ids in responses.pieces:
        shard.put_responses(*ids)


def _parts(source: str | Path, shard_rows: int, split: str) -> Iterator[Part]:
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    told = " ".join(_content(file) for file in files) if path.exists() else str(source)
    content = hashlib.sha256(told.encode()).hexdigest()
    rows = sources.height(source, split=split)
    if not rows:
        raise InputError(f"{source}: expected preference pairs, came no row")
    whole = Part(str(path.absolute() if path.exists() else source), content, split, 0, rows)
    borders = [0, *(_borders(whole, shard_rows) if sources.is_streamed(source) else ()), rows]
    yield from (replace(whole, start=start, stop=stop) for start, stop in pairwise(borders))


def _borders(whole: Part, shard_rows: int) -> Iterator[int]:
    """Where shards start, but for the first one: a prompt_id stays in one shard."""
    last = 0
    for border in range(shard_rows, whole.stop, shard_rows):
        if last < border:
            last = _other_prompt(whole, border)
            if last < whole.stop:
                yield last


def _other_prompt(whole: Part, row: int) -> int:
    """The first row from this one on whose prompt_id is not that of the row before it."""
    at, before = row - 1, None
    for batch in replace(whole, start=at).batches():
        ids = batch.get_column("prompt_id", default=None)
        before = ids[:1] if ids is not None and before is None else before
        if ids is None or before is None or ids.dtype != before.dtype or before.null_count():
            return max(row, at)
        if len(other := ids.ne_missing(before).arg_true()):
            return at + int(other[0])
        at += batch.height
    return whole.stop


def _content(path: Path) -> str:
    """What a file holds, in 128 bits."""
    found = []
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            found.append(_native.checksum([np.frombuffer(data, np.uint8)]))
    return " ".join(found)
