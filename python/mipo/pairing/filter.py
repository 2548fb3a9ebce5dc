"""The filter: which links are pairs, and the reason why any other is none. Knows row numbers and no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.io import tables
from mipo.io.columns import Kind
from mipo.io.keys import NOWHERE, Ids
from mipo.io.lazy import np, pl
from mipo.reasons import EMPTY_RESPONSE, EQUAL_RESPONSES, NO_RESPONSE, by_frequency

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.tables import Table

BATCH_ROWS = 131_072  # with prompts and responses of 300 characters each, under a gibibyte
MISSING, EMPTY, THERE = 0, 1, 2
KINDS: dict[str, Kind] = {
    "prompt": "chat", "response": "text", "truncated": "flag", "finish_reason": "text", "response_id": "id",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ResponseStates:
    """The state of each response, and 64 bits of its text without outer white space; 9 bytes per response, 33 with ids.

    Texts are compared pair by pair, so the chance that two different ones count as equal is 2⁻⁶⁴ per pair.
    """

    state: NDArray[np.uint8]
    text: NDArray[np.uint64]
    ids: Ids

    @classmethod
    def of(cls, responses: Table, batch_rows: int) -> ResponseStates:
        """Reads the column response, and response_id (else the row number); other columns are not read."""
        tables.check_columns(responses, ("prompt", "response"), "responses")
        states, texts = [], []
        for batch in tables.batches(responses.select("response"), batch_rows):
            text = batch["response"].str.strip_chars()
            state = pl.when(text.is_null()).then(MISSING).when(text == "").then(EMPTY).otherwise(THERE)
            states.append(pl.select(state.cast(pl.UInt8)).to_series().to_numpy())
            texts.append(text.hash(seed=1).to_numpy())
        return cls(np.concatenate(states), np.concatenate(texts), Ids.of(responses, "response_id"))

    def of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The state of each row; MISSING for NOWHERE."""
        return np.where(rows == NOWHERE, MISSING, self.state[rows] if len(self.state) else MISSING)


def add_reasons(links: pl.DataFrame, responses: ResponseStates) -> pl.DataFrame:
    """The rows of `links` (see `mipo.responses.requests.link`) with `reason`: null, or why the row is not a pair."""
    rows = [responses.ids.find(links[side]) for side in ("chosen_id", "rejected_id")]
    states, texts = [responses.of_rows(side) for side in rows], responses.text
    conditions = {
        NO_RESPONSE: (states[0] == MISSING) | (states[1] == MISSING),
        EMPTY_RESPONSE: (states[0] == EMPTY) | (states[1] == EMPTY),
        EQUAL_RESPONSES: texts[rows[0]] == texts[rows[1]] if len(texts) else np.zeros(links.height, dtype=bool),
    }
    whys = [pl.col("reason"), *(pl.when(pl.Series(met)).then(pl.lit(why)) for why, met in conditions.items())]
    return links.with_columns(reason=pl.coalesce(whys))


def write_with_reasons(
    links: Table, responses: ResponseStates, path: Path, *, batch_rows: int = BATCH_ROWS
) -> tuple[int, int, dict[str, int]]:
    """Writes all rows of `links` with their reasons; returns the rows, the pairs, and the other rows by reason."""
    rows, reasons = 0, Counter[str]()

    def batches() -> Iterator[pl.DataFrame]:
        nonlocal rows
        for batch in tables.batches(links, batch_rows):
            written = add_reasons(batch, responses)
            reasons.update(dropped(written))
            rows += written.height
            yield written

    tables.write(batches(), path)
    return rows, rows - reasons.total(), by_frequency(reasons)


def keep(rows: pl.DataFrame) -> pl.DataFrame:
    """The pairs: the rows without a reason, and without the column `reason`."""
    return rows.filter(pl.col("reason").is_null()).drop("reason")


def dropped(rows: pl.DataFrame) -> dict[str, int]:
    """How many rows have each `reason`, in the order of `by_frequency`."""
    return by_frequency(dict(rows["reason"].drop_nulls().value_counts().iter_rows()))
