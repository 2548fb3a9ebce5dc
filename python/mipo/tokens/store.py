"""Store: tokenized preference groups, in memory or on disk; what they share is stored once, and a group is row numbers.

Knows rows and data sets. Knows nothing of texts, or of how ids were made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import arrow
from mipo.io.lazy import lazy
from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray
else:
    np = lazy("numpy")
    pl = lazy("polars")
    pa = lazy("pyarrow")

ROW_OF_PROMPTS, ROW_OF_RESPONSES = "row_of_prompts", "row_of_responses"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Groups as row numbers: group g rejects the responses `rejected[offsets[g]:offsets[g + 1]]`.

    Row numbers count from the rows `before` of all prompts and responses. All are uint64, `offsets` int64.
    """

    prompt_id: NDArray[np.uint64]
    prompt: NDArray[np.uint64]
    chosen: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    rejected: NDArray[np.uint64]
    before: tuple[int, int] = (0, 0)

    def frame(self) -> pl.DataFrame:
        """prompt_id, prompt, chosen and rejected (a list), with row numbers of the whole store."""
        prompts, responses = (np.uint64(rows) for rows in self.before)
        rejected = pl.Series(arrow.lists(self.offsets, self.rejected + responses))
        return pl.DataFrame(
            {
                "prompt_id": self.prompt_id,
                "prompt": self.prompt + prompts,
                "chosen": self.chosen + responses,
                "rejected": rejected,
            }
        )


@dataclass(frozen=True, eq=False)
class PairStore:
    """Preference groups on token ids: prompts and responses are rows, shared within a shard, and groups row numbers.

    `merged` groups have responses that begin before their prompt, tokenized alone, ends: there the common ids are the
    prompt, as TRL has it. `fingerprint` tells the tokenizer and template that made the ids. A store is a data set:
    `store[i]` is a group, and its ids are read when it is asked for.
    """

    prompts: TokenTable
    responses: TokenTable
    pieces: tuple[Pairs, ...]
    merged: int
    fingerprint: str
    folder: Path | None = None
    checksum: str | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, group: int) -> dict[str, Any]:
        """prompt_ids, chosen_ids, rejected_ids of one group, as lists; rejected_ids is a list of lists where K > 1."""
        if not 0 <= group < len(self):
            raise IndexError(f"group {group} of a store of {len(self)} groups")
        number = bisect_right(self._starts, group) - 1
        piece, place = self.pieces[number], group - self._starts[number]
        prompts, responses = piece.before
        own = piece.rejected[piece.offsets[place] : piece.offsets[place + 1]]
        rejected = [self.responses[responses + int(row)].tolist() for row in own]
        return {
            "prompt_ids": self.prompts[prompts + int(piece.prompt[place])].tolist(),
            "chosen_ids": self.responses[responses + int(piece.chosen[place])].tolist(),
            "rejected_ids": rejected if self.negatives > 1 else rejected[0],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[group] for group in range(len(self)))

    def __reduce__(self) -> Any:
        """A store on disk goes to another process as the name of its folder; its bytes are not compared again."""
        if self.folder is not None:
            return _read, (self.folder.absolute(), self.checksum)
        return PairStore, (self.prompts, self.responses, self.pieces, self.merged, self.fingerprint)

    @cached_property
    def _starts(self) -> list[int]:
        """The group at which each piece starts, and how many there are."""
        return [0, *accumulate(len(piece.prompt) for piece in self.pieces)]

    @cached_property
    def pairs(self) -> pl.DataFrame:
        """A row a group: prompt_id, prompt (row of `prompts`), chosen and rejected (row, and rows, of `responses`)."""
        nothing = np.empty(0, np.uint64)
        pieces = self.pieces or (Pairs(nothing, nothing, nothing, np.zeros(1, np.int64), nothing),)
        return pl.concat([piece.frame() for piece in pieces])

    @cached_property
    def negatives(self) -> int:
        """K: the most rejected responses that a group has."""
        return max((int(np.diff(piece.offsets).max(initial=0)) for piece in self.pieces), default=0)

    def lengths(self) -> pl.DataFrame:
        """Tokens of each group's prompt, chosen and (a list) rejected responses, uint32; no id is touched."""
        prompts, responses = (table.lengths().astype(np.uint32) for table in (self.prompts, self.responses))
        rows = self.pairs
        flat = responses[rows["rejected"].list.explode(empty_as_null=False).to_numpy()]
        offsets = np.concatenate([[0], np.cumsum(rows["rejected"].list.len().to_numpy().astype(np.int64))])
        rejected = pl.Series(arrow.lists(offsets, flat))
        own = {"prompt": prompts[rows["prompt"].to_numpy()], "chosen": responses[rows["chosen"].to_numpy()]}
        return pl.DataFrame({**own, "rejected": rejected})

    def rows(self, side: str) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
        """Prompt ids and response ids of every `chosen`, or of every `rejected`, response."""
        said = self.pairs.select("prompt", side)
        said = said.explode(side) if side == "rejected" else said
        return [self.prompts[row] for row in said["prompt"]], [self.responses[row] for row in said[side]]

    def to_trl(self) -> datasets.Dataset:
        """A `datasets.Dataset` with prompt_ids, chosen_ids, rejected_ids, as TRL's DPOTrainer tokenizes it.

        No id is copied: its rows are row numbers, and what is read of them, or mapped, filtered, iterated over, is ids.
        Another format than this one (`with_format`) shows the row numbers. With one rejected response in every group
        rejected_ids is a list of ids; otherwise a list of such lists. `mipo.trainer.MIPOTrainer` takes both.
        """
        import datasets

        rows = self.pairs
        response = pl.struct(pl.element().alias(ROW_OF_RESPONSES))
        rejected = pl.col("rejected").list.eval(response)
        frame = rows.select(
            pl.struct(pl.col("prompt").alias(ROW_OF_PROMPTS)).alias("prompt_ids"),
            pl.struct(pl.col("chosen").alias(ROW_OF_RESPONSES)).alias("chosen_ids"),
            (rejected if self.negatives > 1 else rejected.list.first()).alias("rejected_ids"),
        )
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        return datasets.Dataset(table).with_transform(_Ids(self))

    def save(self, folder: str | Path) -> None:
        """Writes the store as one shard, in the place of a store that is there; its manifest last."""
        folder = Path(folder)
        shards.clear(folder)
        with shards.Shard(folder, 0) as shard:
            for ids in self.prompts.pieces:
                shard.put_prompts(*ids)
            for ids in self.responses.pieces:
                shard.put_responses(*ids)
            for piece in self.pieces:
                prompts, responses = map(np.uint64, piece.before)
                rows = (piece.prompt + prompts, piece.chosen + responses, piece.offsets, piece.rejected + responses)
                shard.put_pairs(piece.prompt_id, *rows)
            shard.record |= {"merged": self.merged}
        shards.finish(folder, {"fingerprint": self.fingerprint})

    @classmethod
    def open(cls, folder: str | Path) -> PairStore:
        """Opens what `save` or `mipo tokens` wrote, memory-mapped.

        Every byte is read once and compared with its checksum, at the speed of memory or of the disk. FileNotFoundError
        for a folder with no store, or one that was not finished; ValueError, naming the file, for what is not as it was
        written.
        """
        return _read(Path(folder))


def _read(folder: Path, checksum: str | None = None) -> PairStore:
    """The store in a folder; with `checksum`, which its manifest must have, its bytes were read through before."""
    manifest = shards.manifest(folder)
    trusted = checksum is not None
    if trusted and manifest["checksum"] != checksum:
        raise InputError(f"{folder}: holds another store than it did; open it anew")
    prompts, responses = list[pa.RecordBatch](), list[pa.RecordBatch]()
    pieces, before = [], (0, 0)
    for record in manifest["shards"]:
        for batch in shards.read(folder, record, "pairs", trusted=trusted):
            prompt_id, prompt, chosen = (batch.column(place).to_numpy() for place in range(3))
            pieces.append(Pairs(prompt_id, prompt, chosen, *arrow.parts(batch.column("rejected")), before))
        prompts += shards.read(folder, record, "prompts", trusted=trusted)
        responses += shards.read(folder, record, "responses", trusted=trusted)
        before = (before[0] + record["prompts"], before[1] + record["responses"])
    merged = sum(record["merged"] for record in manifest["shards"])
    tables = TokenTable.of(prompts), TokenTable.of(responses)
    return PairStore(*tables, tuple(pieces), merged, manifest["fingerprint"], folder, manifest["checksum"])


class _Ids:
    """What a lazy data set shows for its row numbers."""

    def __init__(self, store: PairStore) -> None:
        self.store = store

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [self._ids(value) for value in values] for name, values in batch.items()}

    def _ids(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._ids(one) for one in value]
        if not isinstance(value, dict) or len(value) != 1:
            return value
        ((table, row),) = value.items()
        found = {ROW_OF_PROMPTS: self.store.prompts, ROW_OF_RESPONSES: self.store.responses}.get(table)
        return value if found is None else found[row].tolist()
