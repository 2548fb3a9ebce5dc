"""Overlap: which prompts say the same as others, among themselves or in a held-out set. They must not pass unseen.

Knows prompts as tables, and compares by `mipo._native`. Knows nothing of counter-prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.prompts.equal import first_equal, normalised
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import contents

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")

EQUAL = "equals a held-out prompt"
OVERLAPS = "overlaps a held-out prompt"
NGRAM = 5  # characters; of a short prompt, one other word changes about ten of these
NOWHERE = 2**64 - 1  # what the native search answers for a text that no held-out text has anything in common with


def overlaps(prompts: pl.DataFrame, held_out: pl.DataFrame, *, words: int = 8, share: float = 0.5) -> pl.DataFrame:
    """The prompts that occur in the held-out set, a row each, with the held-out prompt that they have most in common
    with (the first of several).

    A prompt occurs there if it equals a held-out prompt up to Unicode form, case and white space, or if runs of `words`
    words that both have cover at least `share` of the held-out prompt's words. The defaults are those of Tülu 3
    (arXiv 2411.15124). Punctuation is no word; signs such as + and $ are. In scripts that put no spaces between words,
    such as Japanese, a character is half a word. A held-out prompt of fewer than `words` words has no such run: it
    occurs in a prompt that has the same words and no others.

    Of messages the user's count. Where both tables have a column context, only prompts with equal contexts are
    compared; leave it out of one table to compare prompts alone. Returns prompt_id, held_out_id (row numbers where the
    tables have no prompt_id), reason (`EQUAL` or `OVERLAPS`), share, prompt and held_out (the texts compared). Raises
    ValueError for words < 1, for a share outside (0, 1] and for a missing column.
    """
    if isinstance(words, bool) or not isinstance(words, int) or not 1 <= words < 2**31:
        raise InputError(f"words: expected a whole number from 1, came {words!r}")
    for name, table in (("prompts", prompts), ("held_out", held_out)):
        if "prompt" not in table.columns:
            raise InputError(f"{name}: no column 'prompt'; it has {', '.join(table.columns) or 'no columns'}")
    prompts, held_out = numbered(prompts), numbered(held_out)
    texts, tests = (contents(table["prompt"], role="user") for table in (prompts, held_out))
    groups, test_groups = _groups(prompts, held_out)
    place, shares, equal = _native.overlaps((normalised(texts), groups), (normalised(tests), test_groups), words, share)
    found = np.flatnonzero(place != NOWHERE)
    rows = pl.Series("held_out_id", place[found])
    return pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"].gather(found),
            "held_out_id": held_out["prompt_id"].gather(rows),
            "reason": pl.select(
                pl.when(pl.Series(equal[found])).then(pl.lit(EQUAL)).otherwise(pl.lit(OVERLAPS))
            ).to_series(),
            "share": pl.Series(shares[found]),
            "prompt": texts.gather(found),
            "held_out": tests.gather(rows),
        }
    )


def reasons(prompts: pl.DataFrame, found: pl.DataFrame) -> pl.Series:
    """For each prompt null, or the reason for which `overlaps` found it."""
    ids = numbered(prompts).select("prompt_id")
    return ids.join(found.select("prompt_id", "reason"), on="prompt_id", how="left", maintain_order="left")["reason"]


def clusters(texts: pl.Series, threshold: float) -> pl.Series:
    """For each text the first row of its cluster of near-duplicates, uint64.

    Two texts are near-duplicates if the sets of their runs of five characters have a Jaccard similarity of at least
    `threshold`, after Unicode form, case and white space are normalised; clusters are what chains of near-duplicates
    hold together, so two texts of one cluster may be less alike. Every pair that can reach the threshold is compared:
    exact, without a seed. Raises ValueError for a threshold outside (0, 1] and for a null.
    """
    return pl.Series(texts.name, _native.clusters(normalised(texts), NGRAM, threshold))


def _groups(*tables: pl.DataFrame) -> list[NDArray[np.uint64]]:
    """For each table a code a row, equal where contexts are; all equal where a table has no contexts."""
    if not all("context" in table.columns for table in tables):
        return [np.zeros(table.height, dtype=np.uint64) for table in tables]
    contexts = pl.concat([normalised(table["context"].cast(pl.String)) for table in tables])
    codes = first_equal(contexts.alias("context").to_frame(), ["context"]).to_numpy()
    return np.split(codes, [tables[0].height])
