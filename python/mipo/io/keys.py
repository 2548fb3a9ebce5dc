"""Keys: looks up rows by an id, or by 128 bits of a value, in tables whose texts would not fit in memory.

The chance that two of 10⁹ different values share a key is below 10⁻²⁰. Knows nothing of what the values mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import np, pl
from mipo.io.tables import height

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.tables import Table

NOWHERE = -1  # the row of a missing id or key


def keys_of(values: pl.Series) -> NDArray[np.uint64]:
    """The key of each value, uint64 [n, 2]; equal values have equal keys, in this process and version of polars."""
    return np.stack([values.hash(seed=seed).to_numpy() for seed in (1, 2)], axis=1)


class Index:
    """Rows by their keys, in 24 bytes per row."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._low, self._high = (keys[self._order, half] for half in (0, 1))
        if (self._same_low() & ~self._same_high()).any():  # two keys share their first half, once in 10⁵ tables of 10⁷
            self._order = np.lexsort((keys[:, 1], keys[:, 0]))
            self._low, self._high = (keys[self._order, half] for half in (0, 1))

    def find(self, wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For each key of `wanted` [m, 2] the first row with it, `NOWHERE` where no row has it."""
        rows = np.full(len(wanted), NOWHERE, dtype=np.int64)
        if not len(self._low):
            return rows
        order = np.argsort(wanted[:, 0])  # sorted, neighbouring searches read the same memory
        low, high = wanted[order, 0], wanted[order, 1]
        places = np.searchsorted(self._low, low)
        there = self._at(places, low)
        while (later := there & (self._high[np.minimum(places, len(self._low) - 1)] != high)).any():
            places = places + later
            there = self._at(places, low)
        rows[order[there]] = self._order[places[there]]
        return rows

    def repeated(self) -> NDArray[np.int64]:
        """The rows that share their key with another row, in order."""
        same = np.append(self._same_low() & self._same_high(), False)[: len(self._order)]
        return np.sort(self._order[same | np.roll(same, 1)])

    def _at(self, places: NDArray[np.int64], low: NDArray[np.uint64]) -> NDArray[np.bool_]:
        inside = places < len(self._low)
        inside[inside] = self._low[places[inside]] == low[inside]
        return inside

    def _same_low(self) -> NDArray[np.bool_]:
        return np.asarray(self._low[1:] == self._low[:-1])

    def _same_high(self) -> NDArray[np.bool_]:
        return np.asarray(self._high[1:] == self._high[:-1])


def check_ids(ids: pl.Series) -> pl.Series:
    """The ids as uint64; InputError unless they are distinct whole numbers from 0."""
    if not ids.dtype.is_integer() or ids.null_count() or (ids < 0).any() or ids.n_unique() < len(ids):
        raise InputError(
            f"{ids.name}: expected {len(ids)} distinct whole numbers from 0, got {ids.dtype}: {ids[:3].to_list()} …"
        )
    return ids.cast(pl.UInt64)


@dataclass(frozen=True, eq=False)
class Ids:
    """Rows by their ids. Holds nothing where ids are row numbers, otherwise 24 bytes per row."""

    rows: int
    values: NDArray[np.uint64] | None = None
    order: NDArray[np.int64] | None = None
    in_order: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, table: Table, column: str) -> Ids:
        """The ids in a column of a table (see `check_ids`), or its row numbers where it has no such column."""
        if column not in table.lazy().collect_schema():
            return cls(height(table))
        values = check_ids(table.lazy().select(column).collect().to_series()).to_numpy()
        if np.array_equal(values, np.arange(len(values), dtype=np.uint64)):
            return cls(len(values))
        order = np.argsort(values, kind="stable")
        return cls(len(values), values, order, values[order])

    def find(self, ids: pl.Series) -> NDArray[np.int64]:
        """The row of each id; `NOWHERE` for null and for an unknown id."""
        wanted = ids.cast(pl.UInt64).fill_null(2**64 - 1).to_numpy()
        if self.order is None or self.in_order is None or not self.rows:
            return np.where(wanted < self.rows, wanted.astype(np.int64), NOWHERE)
        places = np.minimum(np.searchsorted(self.in_order, wanted), self.rows - 1)
        return np.where(self.in_order[places] == wanted, self.order[places], NOWHERE)

    def of_rows(self, rows: NDArray[np.int64]) -> pl.Series:
        """The id of each row, uint64; null for `NOWHERE`."""
        safe = np.maximum(rows, 0)
        ids = safe.astype(np.uint64) if self.values is None or not self.rows else self.values[safe]
        return pl.Series(ids, dtype=pl.UInt64).set(pl.Series(rows == NOWHERE), None)
