"""Store: tokenized preference groups, in memory or on disk, as row numbers of prompts and responses stored once.

Knows rows and data sets. Knows nothing of texts, or of tokenization.
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
from mipo.io import arrow, checksum, outputs
from mipo.io.lazy import np, pa, pl
from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

ROW_OF_PROMPTS, ROW_OF_RESPONSES = "row_of_prompts", "row_of_responses"


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups as row numbers: group g rejects the responses `rejected[offsets[g]:offsets[g + 1]]`.

    Row numbers start at the rows `before` of the store's prompts and responses. All are uint64, `offsets` is int64.
    """

    prompt_id: NDArray[np.uint64]
    prompt: NDArray[np.uint64]
    chosen: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    rejected: NDArray[np.uint64]
    before: tuple[int, int] = (0, 0)

    @classmethod
    def none(cls) -> Groups:
        """No groups."""
        empty = np.empty(0, np.uint64)
        return cls(empty, empty, empty, np.zeros(1, np.int64), empty)

    def frame(self) -> pl.DataFrame:
        """A table of prompt_id, prompt, chosen and rejected (a list), with row numbers of the whole store."""
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
    """Preference groups of token ids: prompts and responses are rows, shared within a shard; groups are row numbers.

    In `merged` groups a token spans the border of prompt and response: their prompt is the ids that the prompt alone
    has in common with all responses, as in TRL. `fingerprint` identifies the tokenizer and chat template of the ids. A
    store is a data set: `store[i]` is a group, and reads its ids on access.
    """

    prompts: TokenTable
    responses: TokenTable
    pieces: tuple[Groups, ...]
    merged: int
    fingerprint: str
    folder: Path | None = None
    checksum: str | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, group: int) -> dict[str, Any]:
        """The prompt_ids, chosen_ids and rejected_ids of a group, as lists; for K > 1 the last is a list of lists."""
        if not 0 <= group < len(self):
            raise IndexError(f"group {group} of a store of {len(self)} groups")
        number = bisect_right(self._starts, group) - 1
        piece, place = self.pieces[number], group - self._starts[number]
        prompts, responses = piece.before
        rows = piece.rejected[piece.offsets[place] : piece.offsets[place + 1]]
        rejected = [self.responses[responses + int(row)].tolist() for row in rows]
        return {
            "prompt_ids": self.prompts[prompts + int(piece.prompt[place])].tolist(),
            "chosen_ids": self.responses[responses + int(piece.chosen[place])].tolist(),
            "rejected_ids": rejected if self.negatives > 1 else rejected[0],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[group] for group in range(len(self)))

    def __reduce__(self) -> Any:
        """Pickles a store on disk as the name of its folder; opening it there does not read its bytes again."""
        if self.folder is not None:
            return _read, (self.folder.absolute(), self.checksum)
        return PairStore, (self.prompts, self.responses, self.pieces, self.merged, self.fingerprint)

    @cached_property
    def content(self) -> str:
        """Equal for stores that were read from the same manifest, and for equal ids in memory."""
        if self.checksum is not None:
            return self.checksum
        tables = [array for table in (self.prompts, self.responses) for piece in table.pieces for array in piece]
        groups = [getattr(piece, name) for piece in self.pieces for name in ("prompt", "chosen", "offsets", "rejected")]
        return checksum.of_value([checksum.of_bytes(np.ascontiguousarray(array).data) for array in (*tables, *groups)])

    @cached_property
    def _starts(self) -> list[int]:
        """The group at which each piece starts, and the number of groups."""
        return [0, *accumulate(len(piece.prompt) for piece in self.pieces)]

    @cached_property
    def pairs(self) -> pl.DataFrame:
        """One row per group: prompt_id, prompt (row of `prompts`), chosen, rejected (row and rows of `responses`)."""
        return pl.concat([piece.frame() for piece in self.pieces or [Groups.none()]])

    @cached_property
    def negatives(self) -> int:
        """K: the largest number of rejected responses in a group."""
        return max((int(np.diff(piece.offsets).max(initial=0)) for piece in self.pieces), default=0)

    def lengths(self) -> pl.DataFrame:
        """Numbers of tokens of each group's prompt, chosen and (a list) rejected responses, uint32; reads no ids."""
        prompts, responses = (table.lengths().astype(np.uint32) for table in (self.prompts, self.responses))
        rows = self.pairs
        flat = responses[rows["rejected"].list.explode(empty_as_null=False).to_numpy()]
        offsets = np.concatenate([[0], np.cumsum(rows["rejected"].list.len().to_numpy().astype(np.int64))])
        return pl.DataFrame(
            {
                "prompt": prompts[rows["prompt"].to_numpy()],
                "chosen": responses[rows["chosen"].to_numpy()],
                "rejected": pl.Series(arrow.lists(offsets, flat)),
            }
        )

    def rows(
        self, side: str, groups: pl.Series | None = None
    ) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
        """The prompt ids and the response ids of every response of one side, `chosen` or `rejected`; of `groups` alone,
        one boolean a group, where they are given.
        """
        rows = (self.pairs if groups is None else self.pairs.filter(groups)).select("prompt", side)
        rows = rows.explode(side) if side == "rejected" else rows
        return [self.prompts[row] for row in rows["prompt"]], [self.responses[row] for row in rows[side]]

    def to_trl(self) -> datasets.Dataset:
        """A `datasets.Dataset` with prompt_ids, chosen_ids, rejected_ids, as TRL's DPOTrainer tokenizes it.

        It copies no ids: it holds row numbers, and shows ids when it is indexed, iterated, mapped or filtered. Another
        format (`with_format`) shows the row numbers. With one rejected response in every group, rejected_ids is a list
        of ids; otherwise it is a list of such lists. `mipo.trainer.MIPOTrainer` takes both.
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
        """Writes the store as one shard, its manifest last; replaces a store of mipo's in the folder.

        Raises InputError for a folder that holds something else.
        """
        folder = Path(folder)
        with outputs.claim(folder, "tokens"):
            outputs.empty(folder)
            with shards.ShardWriter(folder, 0) as writer:
                writer.put_tables(self.prompts, self.responses)
                for piece in self.pieces:
                    prompts, responses = map(np.uint64, piece.before)
                    rows = (piece.prompt + prompts, piece.chosen + responses, piece.offsets, piece.rejected + responses)
                    writer.put_groups(piece.prompt_id, *rows)
                writer.record |= {"merged": self.merged}
            shards.finish(folder, {"fingerprint": self.fingerprint})

    @classmethod
    def open(cls, folder: str | Path) -> PairStore:
        """Opens a store of `save` or `mipo tokens`, memory-mapped.

        Reads every byte once to check its checksum, at the speed of memory or of the disk. Raises NotThereError for a
        folder without a finished store, and InputError, with the file's name, for a file that was changed.
        """
        return _read(Path(folder))


def _read(folder: Path, digits: str | None = None) -> PairStore:
    """The store in a folder. With the checksum `digits` of its manifest, its bytes are not read again."""
    manifest = shards.manifest(folder)
    trusted = digits is not None
    if trusted and manifest["checksum"] != digits:
        raise InputError(f"{folder}: holds another store than before; open it again")
    prompts, responses = list[pa.RecordBatch](), list[pa.RecordBatch]()
    pieces, before = [], (0, 0)
    for record in manifest["shards"]:
        for batch in shards.read(folder, record, "pairs", trusted=trusted):
            prompt_id, prompt, chosen = (batch.column(place).to_numpy() for place in range(3))
            pieces.append(Groups(prompt_id, prompt, chosen, *arrow.parts(batch.column("rejected")), before))
        prompts += shards.read(folder, record, "prompts", trusted=trusted)
        responses += shards.read(folder, record, "responses", trusted=trusted)
        before = (before[0] + record["prompts"], before[1] + record["responses"])
    merged = sum(record["merged"] for record in manifest["shards"])
    tables = TokenTable.of(prompts), TokenTable.of(responses)
    return PairStore(*tables, tuple(pieces), merged, manifest["fingerprint"], folder, manifest["checksum"])


class _Ids:
    """The transform of a lazy data set: token ids for row numbers."""

    def __init__(self, store: PairStore) -> None:
        self.store = store

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [self._ids(value) for value in values] for name, values in batch.items()}

    def _ids(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._ids(item) for item in value]
        if not isinstance(value, dict) or len(value) != 1:
            return value
        ((name, row),) = value.items()
        table = {ROW_OF_PROMPTS: self.store.prompts, ROW_OF_RESPONSES: self.store.responses}.get(name)
        return value if table is None else table[row].tolist()
