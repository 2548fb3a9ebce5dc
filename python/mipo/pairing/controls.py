"""Controls: pairs that should teach nothing. A change that they cause, too, is not the method's."""

from __future__ import annotations

from mipo.io.lazy import np, pl


def shuffle(pairs: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The pairs with chance deciding which response is called chosen.

    Each of the chosen response and the K rejected ones of a group becomes the chosen one with equal chance. With one
    negative, chosen and rejected are swapped in exactly half of the rows (rounded down), drawn by the seed. Rows with a
    `reason` are not pairs, and stay as they are.
    """
    if "reason" in pairs.columns:
        rows = pairs.with_row_index("row")
        shuffled = shuffle(rows.filter(pl.col("reason").is_null()).drop("reason"), seed=seed)
        shuffled = shuffled.with_columns(pl.lit(None, pl.String).alias("reason"))
        return pl.concat([shuffled, rows.filter(pl.col("reason").is_not_null())]).sort("row").drop("row")
    # A sample is a group of its own.
    names = [name for name in ("prompt_id", "chosen_id") if name in pairs.columns]
    partner = _swaps(pairs.select(names).to_struct("group").rle_id(), seed)
    swapped, here = partner.is_not_null(), partner == pl.int_range(pairs.height, eager=True)
    columns = []
    for suffix in (column.removeprefix("chosen") for column in pairs.columns if column.startswith("chosen")):
        chosen, rejected = pairs[f"chosen{suffix}"], pairs[f"rejected{suffix}"]
        columns.append(rejected.gather(partner).alias(chosen.name).zip_with(swapped, chosen))
        columns.append(chosen.alias(rejected.name).zip_with(here.fill_null(False), rejected))
    return pairs.with_columns(columns)


def _swaps(group: pl.Series, seed: int) -> pl.Series:
    """For each row, the row whose rejected response is swapped with the chosen one of their group; null without a swap.

    A share K / (K + 1) of the groups of K rows is swapped. `group` numbers runs of rows, from 0.
    """
    groups, rng = group.n_unique(), np.random.default_rng(seed)
    k, place = pl.len().over("group"), pl.int_range(pl.len()).over("group")
    frame = group.to_frame().with_columns(
        order=pl.Series(rng.permutation(groups)).gather(group),
        row=pl.int_range(pl.len()) - place + pl.Series(rng.integers(2**32, size=groups)).gather(group) % k,
    )
    return frame.select(pl.when((pl.col("order") + 1) * (k + 1) <= groups * k).then("row")).to_series()
