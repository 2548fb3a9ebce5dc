"""Overlap: which prompts say the same as others, among themselves or in a held-out set.

Knows prompts as tables, and compares them with `mipo._native`. Knows nothing of counter-prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io import tables
from mipo.io.lazy import _native, np, pl
from mipo.prompts.equality import first_equal, normalised
from mipo.prompts.rows import numbered
from mipo.reasons import EQUALS_HELD_OUT, OVERLAPS_HELD_OUT
from mipo.tokenizer.messages import contents

if TYPE_CHECKING:
    from numpy.typing import NDArray

NGRAM = 5  # characters; another word in a short prompt changes about ten of these runs
NOWHERE = 2**64 - 1  # the native search's answer for a text that has nothing in common with any held-out text


def overlaps(prompts: pl.DataFrame, held_out: pl.DataFrame, *, words: int = 8, share: float = 0.5) -> pl.DataFrame:
    """The prompts that occur in the held-out set: a row for each, with the held-out prompt that shares most with it
    (the first of several).

    A prompt occurs there if it equals a held-out prompt up to Unicode form, case and white space, or if their common
    runs of `words` words cover at least `share` of the held-out prompt's words. The defaults are those of Tülu 3
    (arXiv 2411.15124). Punctuation is not a word; signs such as + and $ are. In scripts without spaces between words,
    such as Japanese, a character is half a word. A held-out prompt of fewer than `words` words has no such run: it
    occurs only in a prompt with the same words and no others.

    In chats, only the user's messages count. Where both tables have a column context, only prompts with equal contexts
    are compared; leave it out of one table to compare prompts alone. Returns prompt_id, held_out_id (row numbers where
    the tables have no prompt_id), reason (`mipo.reasons`), share, prompt and held_out (the texts compared).
    Raises InputError for words < 1, a share outside (0, 1] and a missing column.
    """
    if isinstance(words, bool) or not isinstance(words, int) or not 1 <= words < 2**31:
        raise InputError(f"words: expected a whole number from 1, got {words!r}")
    tables.check_columns(prompts, ["prompt"], "prompts")
    tables.check_columns(held_out, ["prompt"], "held_out")
    prompts, held_out = numbered(prompts), numbered(held_out)
    texts, tests = (contents(table["prompt"], role="user") for table in (prompts, held_out))
    groups, test_groups = _groups(prompts, held_out)
    place, shares, equal = _native.overlaps((normalised(texts), groups), (normalised(tests), test_groups), words, share)
    rows = np.flatnonzero(place != NOWHERE)
    test_rows = pl.Series(place[rows])
    reason = pl.when(pl.Series(equal[rows])).then(pl.lit(EQUALS_HELD_OUT)).otherwise(pl.lit(OVERLAPS_HELD_OUT))
    return pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"].gather(rows),
            "held_out_id": held_out["prompt_id"].gather(test_rows),
            "reason": pl.select(reason).to_series(),
            "share": pl.Series(shares[rows]),
            "prompt": texts.gather(rows),
            "held_out": tests.gather(test_rows),
        }
    )


def overlap_reasons(prompts: pl.DataFrame, overlapping: pl.DataFrame) -> pl.Series:
    """For each prompt its reason in the table that `overlaps` returned, null if it is not there."""
    ids, known = numbered(prompts).select("prompt_id"), overlapping.select("prompt_id", "reason")
    return ids.join(known, on="prompt_id", how="left", maintain_order="left")["reason"]


def clusters(texts: pl.Series, threshold: float) -> pl.Series:
    """For each text the first row of its cluster of near-duplicates, uint64.

    Two texts are near-duplicates if the sets of their runs of five characters have a Jaccard similarity of at least
    `threshold`, after Unicode form, case and white space are normalised. A cluster is a chain of near-duplicates, so
    two of its texts may be less alike. Every pair that can reach the threshold is compared: exact, without a seed.
    Raises InputError for a threshold outside (0, 1] and for a null.
    """
    return pl.Series(texts.name, _native.clusters(normalised(texts), NGRAM, threshold))


def _groups(*frames: pl.DataFrame) -> list[NDArray[np.uint64]]:
    """For each frame one code per row, equal for equal contexts; all zero where a frame has no contexts."""
    if not all("context" in frame.columns for frame in frames):
        return [np.zeros(frame.height, dtype=np.uint64) for frame in frames]
    contexts = pl.concat([normalised(frame["context"].cast(pl.String)) for frame in frames])
    codes = first_equal(contexts.alias("context").to_frame(), ["context"]).to_numpy()
    return np.split(codes, [frames[0].height])
