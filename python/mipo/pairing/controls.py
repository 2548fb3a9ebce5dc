"""Controls: pairs that should teach nothing. What they move, the method did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
else:
    np = lazy("numpy")
    pl = lazy("polars")


def shuffle(pairs: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The control: which answer is called chosen is left to chance. What it moves, MIPO did not.

    Of a prompt's chosen and K rejected responses each is as likely to be chosen afterwards. With one negative that is:
    chosen and rejected are swapped in exactly half of the rows (rounded down), drawn by the seed. Rows with a `reason`
    are no pairs, and stay as they are.
    """
    if "reason" in pairs.columns:
        rows = pairs.with_row_index("row")
        kept = shuffle(rows.filter(pl.col("reason").is_null()).drop("reason"), seed=seed)
        kept = kept.with_columns(pl.lit(None, pl.String).alias("reason"))
        return pl.concat([kept, rows.filter(pl.col("reason").is_not_null())]).sort("row").drop("row")
    with_row = _swaps(pairs["prompt_id"].rle_id().alias("group"), seed)
    swapped, here = with_row.is_not_null(), with_row == pl.int_range(pairs.height, eager=True)
    shuffled = []
    for side in (column.removeprefix("chosen") for column in pairs.columns if column.startswith("chosen")):
        chosen, rejected = pairs[f"chosen{side}"], pairs[f"rejected{side}"]
        shuffled.append(rejected.gather(with_row).alias(chosen.name).zip_with(swapped, chosen))
        shuffled.append(chosen.alias(rejected.name).zip_with(here.fill_null(False), rejected))
    return pairs.with_columns(shuffled)


def _swaps(group: pl.Series, seed: int) -> pl.Series:
    """For each row, with the rejected response of which row its group's chosen one is swapped; null where it is not.

    Of groups of K rows the share K / (K + 1) is swapped. `group` numbers runs of rows, from 0.
    """
    groups, rng = group.n_unique(), np.random.default_rng(seed)
    k, place = pl.len().over("group"), pl.int_range(pl.len()).over("group")
    frame = group.to_frame().with_columns(
        order=pl.Series(rng.permutation(groups)).gather(group),
        row=pl.int_range(pl.len()) - place + pl.Series(rng.integers(2**32, size=groups)).gather(group) % k,
    )
    return frame.select(pl.when((pl.col("order") + 1) * (k + 1) <= groups * k).then("row")).to_series()
