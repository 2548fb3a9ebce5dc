"""Equality: which prompts count as equal. Knows texts and rows."""

from __future__ import annotations

from collections.abc import Sequence

from mipo.io.lazy import pl


def first_equal(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """For each row the first row with equal values in `columns` (null equals null, and NaN is null), uint64."""
    frame = frame.with_columns(pl.selectors.float().fill_nan(None))
    values = frame.select(pl.struct(columns).alias("values"), pl.int_range(pl.len(), dtype=pl.UInt64).alias("row"))
    return values.select(pl.col("row").first().over("values")).to_series()


def normalised(texts: pl.Series) -> pl.Series:
    """The texts, equal where they differ only in Unicode form, case or white space; null stays null."""
    # ASCII texts need only lower case, which costs a tenth of folding.
    wide = texts.str.len_bytes() != texts.str.len_chars()
    texts = _replaced(texts.str.to_lowercase(), wide, _folded(texts.filter(wide)))
    spaced = texts.str.contains(r"\s\s|[^\S ]")
    return _replaced(texts, spaced, texts.filter(spaced).str.replace_all(r"\s+", " ")).str.strip_chars()


def _replaced(texts: pl.Series, where: pl.Series, values: pl.Series) -> pl.Series:
    return texts.scatter(where.arg_true(), values) if len(values) else texts


def _folded(texts: pl.Series) -> pl.Series:
    """Texts without case. Only upper case makes ß and ss equal, only lower case the two small sigmas."""
    cased = texts.str.normalize("NFKC").str.to_lowercase().str.to_uppercase().str.to_lowercase()
    return cased.str.normalize("NFKC")
