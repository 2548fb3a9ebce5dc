"""Equality: which prompts count as the same. Knows texts and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")


def first_equal(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """For each row the first row with equal values in `columns` (null equals null), uint64."""
    values = frame.select(pl.struct(columns).alias("values"), pl.int_range(pl.len(), dtype=pl.UInt64).alias("row"))
    return values.select(pl.col("row").first().over("values")).to_series()


def normalised(texts: pl.Series) -> pl.Series:
    """Texts that differ only in Unicode form, case or white space made equal; a null stays null."""
    # Of ASCII texts lower case is all there is to fold, which costs a tenth.
    wide = texts.str.len_bytes() != texts.str.len_chars()
    made = _mended(texts.str.to_lowercase(), wide, _folded(texts.filter(wide)))
    spaced = made.str.contains(r"\s\s|[^\S ]")
    return _mended(made, spaced, made.filter(spaced).str.replace_all(r"\s+", " ")).str.strip_chars()


def _mended(texts: pl.Series, where: pl.Series, mended: pl.Series) -> pl.Series:
    return texts.scatter(where.arg_true(), mended) if len(mended) else texts


def _folded(texts: pl.Series) -> pl.Series:
    """Upper case alone makes ß and ss equal, lower case alone the two small sigmas."""
    cased = texts.str.normalize("NFKC").str.to_lowercase().str.to_uppercase().str.to_lowercase()
    return cased.str.normalize("NFKC")
