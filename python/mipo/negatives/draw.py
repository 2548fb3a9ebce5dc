"""Contrast: which *other* prompt each rejected response answers. The method's one idea.

Knows prompts, and draws by `mipo._native`. Knows nothing of models or responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.negatives.parts import with_parts
from mipo.prompts.equal import first_equal, normalised
from mipo.prompts.overlap import clusters, overlaps, reasons
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import contents, is_messages

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")

Kind = Literal["random", "partial", "context", "dropped"]
NOBODY = 2**64 - 1  # what the native draw answers for a row that no counterpart satisfies


def counterparts(
    n: int, *, negatives: int = 1, seed: int = 0, start: int = 0, stop: int | None = None, balanced: bool = True
) -> NDArray[np.uint64]:
    """Counterparts of rows `start`…`stop` among `n` rows: [stop - start, negatives], uint64.

    Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation and s_k distinct non-zero shifts: no
    row is its own counterpart, the K of a row are distinct, every row is used exactly K times. A pure function of the
    arguments: any shard by itself, the same on any number of threads. O(1) memory beyond the result, which is NumPy's.

    Not `balanced`, each row draws its K by itself, uniformly without replacement: all else holds, but rows are used K
    times on average only. Several times cheaper for many negatives.
    Raises ValueError for n < 2, negatives outside 1…n-1, start > stop or stop > n.
    """
    end = n if stop is None else stop
    drawn: NDArray[np.uint64] = _native.counterparts(n, negatives, seed, start, end, balanced)
    return drawn


def contrast(
    prompts: pl.DataFrame | pl.LazyFrame,
    *,
    kind: Kind = "random",
    negatives: int = 1,
    seed: int = 0,
    match: Sequence[str] = (),
    differ: Sequence[str] = (),
    near: tuple[str, float] | None = None,
    near_duplicates: float | None = None,
    held_out: pl.DataFrame | None = None,
    overlap_words: int = 8,
    overlap_share: float = 0.5,
) -> pl.DataFrame:
    """Draws `negatives` counter-prompts for each prompt; one row a prompt and negative, in the order of the prompts.

    Kinds: `random`, another row's prompt; `context`, the same prompt under another row's context; `dropped`, the prompt
    without its context; `partial`, the first sentences of the prompt. `match` names columns in which the counterpart
    equals its row (a task, a language), `differ` columns in which it differs (a user); null is a value like others.
    `near` is (column, tolerance): the counterpart's number in this column is at most `tolerance` away from the row's. A
    column of texts or messages, such as the prompt itself, stands for their lengths in characters. A row whose number
    is null or not finite is near to nobody. For a share instead of a difference, bring a column of logarithms. A
    counterpart's prompt text (`random`) or context (`context`) always differs, also after Unicode, case and white space
    are normalised, and the counterparts of one row are distinct rows.

    Every row is used equally often where the conditions allow it: by shifts within the rows of equal `match` (within
    blocks of near numbers, so that nearer counterparts are likelier), and by exchanges where a shift meets a row that
    it may not. Other rows draw uniformly from all rows that satisfy their conditions.

    `near_duplicates` is a Jaccard similarity, for example 0.8: rows that chains of texts at least so alike hold
    together never face each other (`mipo.prompts.overlap.clusters`). Prompts that occur in the table `held_out`, by
    `overlap_words` and `overlap_share` of `mipo.prompts.overlap.overlaps`, get no counterpart and are none.

    Takes the columns prompt, and context where the kind needs it; prompt_id is the row number where it is missing.
    Returns prompt_id, negative (0…K-1), kind, counterpart_id (the row drawn; null where none is), part (of kind
    `partial`), and reason: null, or why this row has no counter-prompt. Raises ValueError for what cannot be drawn.
    """
    match, differ = ([name] if isinstance(name, str) else list(name) for name in (match, differ))
    frame = prompts.lazy().collect()
    _check(frame, kind, negatives, seed, match, differ, near, near_duplicates)
    frame = numbered(frame)
    rows = frame.select(pl.col("prompt_id").repeat_by(negatives).explode()).with_columns(
        negative=(pl.int_range(pl.len()) % negatives).cast(pl.UInt32), kind=pl.lit(kind)
    )
    if held_out is not None:
        leaked = reasons(frame, overlaps(frame, held_out, words=overlap_words, share=overlap_share))
        draw = partial(
            contrast, kind=kind, negatives=negatives, seed=seed, match=match, differ=differ,
            near=near, near_duplicates=near_duplicates,
        )  # fmt: skip
        return _draw_without(frame, rows, leaked, draw)
    if kind in ("random", "context"):
        unlike = "prompt" if kind == "random" else "context"
        return _draw(frame, rows, unlike, negatives, seed, match, differ, near, near_duplicates)
    rows = rows.with_columns(pl.lit(None, dtype=pl.UInt64).alias("counterpart_id"))
    if kind == "dropped":
        return rows.with_columns(pl.lit(None, dtype=pl.String).alias("reason"))
    return with_parts(rows, frame, seed)


def _draw_without(
    frame: pl.DataFrame, rows: pl.DataFrame, leaked: pl.Series, draw: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """What is drawn among the prompts without a reason in `leaked`, and between them the others with theirs."""
    clean, negatives = frame.filter(leaked.is_null()), rows.height // frame.height
    if clean.height < negatives + 1:
        raise InputError(
            f"held_out: {frame.height - clean.height} of {frame.height} prompts occur in it, so {clean.height} are "
            f"left, at least {negatives + 1} needed; bring more prompts, or allow more in common by overlap_share"
        )
    drawn = rows.join(draw(clean).drop("kind"), on=["prompt_id", "negative"], how="left", maintain_order="left")
    refused = leaked.gather(pl.int_range(rows.height, eager=True) // negatives)
    return drawn.with_columns(reason=pl.coalesce(refused, "reason"))


def _check(
    frame: pl.DataFrame,
    kind: str,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
    near: Sequence[Any] | None,
    near_duplicates: float | None,
) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"kind: expected one of {', '.join(get_args(Kind))}, came {kind!r}")
    needed = ["prompt", *(["context"] if kind in ("context", "dropped") else [])]
    if near is not None and not (len(near) == 2 and isinstance(near[0], str) and _is_tolerance(near[1])):
        raise InputError(f"near: expected a column and a number of at least 0, as ('prompt', 50), came {near!r}")
    for column in [*needed, *match, *differ, *([] if near is None else near[:1])]:
        if column not in frame.columns:
            raise InputError(f"kind {kind!r} needs the column {column!r}; the prompts have {', '.join(frame.columns)}")
    for column in needed:
        if nulls := frame[column].null_count():
            first = frame[column].is_null().arg_true()[0] + 1
            raise InputError(f"column {column!r}: {nulls} null value(s), first in row {first}; drop or fill these rows")
    if frame.height < 2:
        raise InputError(f"a counter-prompt needs at least 2 prompts, came {frame.height}")
    if not 1 <= negatives < frame.height:
        raise InputError(f"negatives: expected 1 to {frame.height - 1} ({frame.height} prompts), came {negatives}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: expected 0 to 2**64 - 1, came {seed}")
    check_kind(kind, negatives, match=match, differ=differ, near=near, near_duplicates=near_duplicates)


def check_kind(
    kind: str, negatives: int, *, match: Sequence[str], differ: Sequence[str], near: Any, near_duplicates: float | None
) -> None:
    """Raises ValueError for what means nothing with a kind that draws no other row, whatever the prompts are."""
    if kind not in ("dropped", "partial"):
        return
    if negatives > 1:
        raise InputError(
            f"negatives: expected 1 with kind {kind!r}, which has one counter-prompt a prompt, got {negatives}"
        )
    conditions = {"match": match, "differ": differ, "near": near, "near_duplicates": near_duplicates}
    for name, value in conditions.items():
        if value not in (None, [], ()):
            raise InputError(f"{name}: expected none with kind {kind!r}, which draws no other row; leave it out")


def _is_tolerance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _draw(
    frame: pl.DataFrame,
    rows: pl.DataFrame,
    unlike: str,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
    near: tuple[str, float] | None,
    near_duplicates: float | None,
) -> pl.DataFrame:
    another, texts = f"another {unlike}", normalised(contents(frame[unlike])).alias("text").to_frame()
    if near_duplicates is not None:
        another, texts = f"a {unlike} that is no near-duplicate", clusters(texts["text"], near_duplicates).to_frame()
    numbers, tolerance = (None, 0.0) if near is None else (_numbers(frame[near[0]]), float(near[1]))
    if not match and not differ and numbers is None and texts["text"].n_unique() == frame.height:
        drawn = counterparts(frame.height, negatives=negatives, seed=seed)
    else:
        unequal = [_codes(texts, ["text"]), *(_codes(frame, [column]) for column in differ)]
        within = None if numbers is None else (numbers.to_numpy(), tolerance)
        drawn = _native.counterparts_within(_codes(frame, match), unequal, negatives, seed, within)
    row = pl.Series(drawn.ravel())
    found = row != NOBODY
    ids = frame["prompt_id"].gather(row.set(~found, 0))
    conditions = [another, *(f"the same {c}" for c in match), *(f"another {c}" for c in differ)]
    if near is not None:
        conditions.append(f"{near[0]} within {tolerance:g}{'' if frame[near[0]].dtype.is_numeric() else ' characters'}")
    lacking = pl.lit(f"fewer than {negatives} row{'s' * (negatives > 1)} with {', '.join(conditions)}")
    if near is not None and numbers is not None:
        nothing = numbers.is_nan().gather(pl.int_range(len(row), eager=True) // negatives)
        lacking = pl.when(nothing).then(pl.lit(f"no number in {near[0]}")).otherwise(lacking)
    return rows.with_columns(
        counterpart_id=pl.when(found).then(ids),
        reason=pl.when(~found).then(lacking),
    )


def _numbers(column: pl.Series) -> pl.Series:
    """What `near` compares: the numbers of a column or the lengths of its texts, Float64; NaN for what is no number."""
    if column.dtype == pl.String or is_messages(column):
        column = contents(column).str.len_chars()
    if not column.dtype.is_numeric():
        raise InputError(
            f"near: expected a column of numbers, texts or messages, came {column.name!r} of {column.dtype}; "
            f"bring its values as numbers"
        )
    ends: list[Any] = [column.min(), column.max()] if column.dtype.is_integer() and column.count() else [0]
    if max(abs(end) for end in ends) > 2**53:
        raise InputError(f"near: expected whole numbers up to 2**53, came larger ones in {column.name!r}; scale them")
    numbers = column.cast(pl.Float64)
    return numbers.set(~numbers.is_finite().fill_null(False), float("nan"))


def _codes(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.uint64]:
    """One code a row, equal exactly where the row's values in `columns` are equal (null equals null)."""
    return first_equal(frame, columns).to_numpy() if columns else np.zeros(frame.height, dtype=np.uint64)
