"""Answers: what judging needs to know of the responses, in memory for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mipo.io import tables
from mipo.io.keys import NOWHERE, Ids
from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mipo.io.tables import Table
else:
    np = lazy("numpy")
    pl = lazy("polars")

MISSING, EMPTY, THERE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Answers:
    """The state of each response, and 64 bits of its text without outer white space; 9 bytes per response, 33 with ids.

    Texts are compared pair by pair, so the chance that two different ones count as equal is 2⁻⁶⁴ per pair.
    """

    state: NDArray[np.uint8]
    text: NDArray[np.uint64]
    ids: Ids

    @classmethod
    def of(cls, responses: Table, batch_rows: int) -> Answers:
        """Reads the column response, and response_id (else the row number); other columns are not read."""
        tables.check_columns(responses, ("prompt", "response"), "responses")
        states, texts = [], []
        for batch in tables.batches(responses.select("response"), batch_rows):
            text = batch["response"].str.strip_chars()
            state = pl.when(text.is_null()).then(MISSING).when(text == "").then(EMPTY).otherwise(THERE)
            states.append(pl.select(state.cast(pl.UInt8)).to_series().to_numpy())
            texts.append(text.hash(seed=1).to_numpy())
        return cls(np.concatenate(states), np.concatenate(texts), Ids.of(responses, "response_id"))

    def state_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The state of each row; MISSING for NOWHERE."""
        return np.where(rows == NOWHERE, MISSING, self.state[rows] if len(self.state) else MISSING)
