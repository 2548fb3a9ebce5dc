"""Store: tokenized preference groups on disk, each prompt and response once and every group as row numbers.

Knows files. Knows nothing of texts, or of how ids were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.lazy import lazy
from mipo.tokens import TokenTable, read_arrow, write_arrow

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


@dataclass(frozen=True, eq=False)
class PairStore:
    """Preference groups on token ids: each distinct prompt and response once, and `pairs` of row numbers.

    `pairs` has a row a group: prompt_id, prompt (row of `prompts`), chosen (row of `responses`) and rejected (a list of
    them), all uint64. `merged` groups have responses that begin before their prompt, tokenized alone, ends: there the
    common ids are the prompt, as TRL has it. `fingerprint` tells the tokenizer and template that made the ids.
    """

    prompts: TokenTable
    responses: TokenTable
    pairs: pl.DataFrame
    merged: int
    fingerprint: str

    def __len__(self) -> int:
        return self.pairs.height

    @property
    def negatives(self) -> int:
        """K: the most rejected responses that a group has."""
        return int(self.pairs["rejected"].list.len().max() or 0)  # type: ignore[arg-type]

    def rows(self, side: str) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
        """Prompt ids and response ids of every `chosen`, or of every `rejected`, response."""
        said = self.pairs.select("prompt", side)
        said = said.explode(side) if side == "rejected" else said
        return [self.prompts[row] for row in said["prompt"]], [self.responses[row] for row in said[side]]

    def to_trl(self) -> datasets.Dataset:
        """A `datasets.Dataset` with prompt_ids, chosen_ids, rejected_ids, as TRL's DPOTrainer tokenizes it.

        With one rejected response in every group rejected_ids is a list of ids; otherwise a list of such lists, which
        `mipo.trainer.MIPOTrainer` takes.
        """
        import datasets

        prompts, responses = self.prompts.to_arrow(), self.responses.to_arrow()
        rejected = responses.take(pa.array(flat(self.pairs["rejected"])))
        if self.negatives > 1:
            rejected = pa.LargeListArray.from_arrays(pa.array(offsets_of(self.pairs["rejected"])), rejected)
        columns = {
            "prompt_ids": prompts.take(pa.array(self.pairs["prompt"].to_numpy())),
            "chosen_ids": responses.take(pa.array(self.pairs["chosen"].to_numpy())),
            "rejected_ids": rejected,
        }
        return datasets.Dataset(pa.table(columns))

    def save(self, folder: str | Path) -> None:
        """Writes `prompts.arrow`, `responses.arrow` and, last, `pairs.arrow`: without it there is no store."""
        folder = Path(folder)
        (folder / "pairs.arrow").unlink(missing_ok=True)
        self.prompts.save(folder / "prompts.arrow")
        self.responses.save(folder / "responses.arrow")
        told = {"mipo.merged": str(self.merged), "mipo.fingerprint": self.fingerprint}
        table = self.pairs.to_arrow(compat_level=pl.CompatLevel.oldest())
        write_arrow(table.replace_schema_metadata(told), folder / "pairs.arrow")

    @classmethod
    def open(cls, folder: str | Path) -> PairStore:
        """Opens what `save` wrote, memory-mapped; FileNotFoundError or ValueError for a folder with no whole store."""
        folder = Path(folder)
        table = read_arrow(folder / "pairs.arrow")
        told = table.schema.metadata or {}
        if b"mipo.fingerprint" not in told:
            raise ValueError(f"{folder / 'pairs.arrow'}: belongs to no PairStore; make one with `mipo tokens`")
        pairs = pl.DataFrame(table)
        prompts, responses = (TokenTable.open(folder / f"{name}.arrow") for name in ("prompts", "responses"))
        said = pl.concat([pairs["chosen"], pl.Series(flat(pairs["rejected"]))])
        used = {"prompts": pairs["prompt"], "responses": said}
        for (name, rows), found in zip(used.items(), (prompts, responses), strict=True):
            if len(rows) and rows.max() >= len(found):  # type: ignore[operator]
                raise ValueError(
                    f"{folder}: {name}.arrow is not of the same store as pairs.arrow; make the store again"
                )
        return cls(prompts, responses, pairs, int(told[b"mipo.merged"]), told[b"mipo.fingerprint"].decode())


def offsets_of(lists: pl.Series) -> NDArray[np.int64]:
    """Where each list begins among the values of all, [n + 1]."""
    return np.concatenate([[0], np.cumsum(lists.list.len().cast(pl.Int64).to_numpy())])


def flat(lists: pl.Series) -> NDArray[np.uint64]:
    """The values of all lists, one after another."""
    values: NDArray[np.uint64] = lists.to_arrow().flatten().to_numpy()
    return values
