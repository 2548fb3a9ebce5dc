"""The draw: which *other* prompt each rejected response answers. The one idea of the method.

Knows prompts, and draws with `mipo._native`. Knows nothing of models or responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from mipo import reasons
from mipo.errors import InputError
from mipo.io.lazy import _native, np, pl
from mipo.negatives.partial import with_parts
from mipo.prompts.equality import first_equal, normalised
from mipo.prompts.overlap import clusters, overlap_reasons, overlaps
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import contents, is_messages

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["random", "partial", "context", "dropped"]
NOBODY = 2**64 - 1  # the native draw's answer for a row without a counterpart


def counterparts(
    n: int, *, negatives: int = 1, seed: int = 0, start: int = 0, stop: int | None = None, balanced: bool = True
) -> NDArray[np.uint64]:
    """Counterparts of rows `start`…`stop` among `n` rows: [stop - start, negatives], uint64.

    Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation and s_k distinct non-zero shifts: no
    row is its own counterpart, the K of a row are distinct, every row is used exactly K times. A pure function of the
    arguments: any shard can be drawn alone, with the same result on any number of threads. O(1) memory beyond the
    result.

    With `balanced=False` each row draws its K alone, uniformly without replacement. Then rows are used K times only on
    average; all else holds. Several times cheaper for many negatives.
    Raises InputError for n < 2, negatives outside 1…n-1, start > stop or stop > n.
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
    """Draws `negatives` counter-prompts for each prompt: one row per prompt and negative, in the order of the prompts.

    Kinds: `random`, another row's prompt; `context`, the same prompt under another row's context; `dropped`, the prompt
    without its context; `partial`, the first sentences of the prompt. `match` names columns in which the counterpart
    equals its row (a task, a language), `differ` columns in which it differs (a user); null is a value like others.
    `near` is (column, tolerance): the counterpart's number in this column is at most `tolerance` away from the row's.
    In a column of texts or messages, such as the prompt itself, the number is the length in characters. A row whose
    number is null or not finite is near to nobody. For a relative tolerance, add a column of logarithms. A
    counterpart's prompt text (`random`) or context (`context`) always differs, also after Unicode, case and white space
    are normalised, and the counterparts of one row are distinct rows.

    Every row is used equally often where the conditions allow it: by shifts among the rows with equal `match` (in
    blocks of near numbers, so that nearer counterparts are likelier), and by exchanges where a shift leads to a
    forbidden row. The remaining rows draw uniformly from all rows that satisfy their conditions.

    `near_duplicates` is a Jaccard similarity, for example 0.8: rows linked by a chain of texts at least so similar
    never face each other (`mipo.prompts.overlap.clusters`). Prompts that occur in the table `held_out`, by
    `overlap_words` and `overlap_share` of `mipo.prompts.overlap.overlaps`, neither get a counterpart nor serve as one.

    Needs the column prompt, and context for the kinds `context` and `dropped`; without prompt_id the row number is
    used. Returns prompt_id, negative (0…K-1), kind, counterpart_id (the row drawn, or null), part (only for `partial`),
    and reason: null, or why this row has no counter-prompt. Raises InputError for settings that cannot be drawn.
    """
    match, differ = listed(match), listed(differ)
    frame = prompts.lazy().collect()
    check(frame, kind, negatives, seed, match, differ, near, near_duplicates)
    frame = numbered(frame)
    if held_out is not None:
        leaked = overlap_reasons(frame, overlaps(frame, held_out, words=overlap_words, share=overlap_share))
        draw_clean = partial(
            contrast, kind=kind, negatives=negatives, seed=seed, match=match, differ=differ,
            near=near, near_duplicates=near_duplicates,
        )  # fmt: skip
        return _draw_without(frame, _rows(frame, kind, negatives), leaked, draw_clean)
    sizes = None if near is None else sizes_of(frame[near[0]])
    return draw(frame, frame, sizes, kind, negatives, seed, match, differ, near, near_duplicates)


def listed(columns: Sequence[str]) -> list[str]:
    """The names of columns, each once; a single one may be given as text."""
    return [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))


def draw(
    frame: pl.DataFrame,
    values: pl.DataFrame,
    sizes: tuple[pl.Series, str] | None,
    kind: str,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
    near: tuple[str, float] | None,
    near_duplicates: float | None = None,
) -> pl.DataFrame:
    """The draw of `contrast`, after `check`, without held-out prompts.

    `frame` has prompt_id, prompt and context, `values` the columns of `match` and `differ`; `sizes` are those of the
    column of `near` (see `sizes_of`).
    """
    rows = _rows(frame, kind, negatives)
    if kind in ("random", "context"):
        unlike = frame["prompt" if kind == "random" else "context"]
        another, texts = f"another {unlike.name}", normalised(contents(unlike)).alias("text").to_frame()
        if near_duplicates is not None:
            another = f"a {unlike.name} that is no near-duplicate"
            texts = clusters(texts["text"], near_duplicates).to_frame()
        conditions = [another, *(f"the same {c}" for c in match), *(f"another {c}" for c in differ)]
        numbers, within = None, None
        if near is not None and sizes is not None:
            numbers, tolerance = _numbers(sizes[0]), float(near[1])
            within = numbers.to_numpy(), tolerance
            conditions.append(f"{near[0]} within {tolerance:g}{sizes[1]}")
        drawn = pl.Series(_drawn(texts, values, within, negatives, seed, match, differ).ravel())
        missing = drawn == NOBODY
        lacking = pl.lit(reasons.too_few_counterparts(negatives, conditions))
        if near is not None and numbers is not None:
            no_number = numbers.is_nan().gather(pl.int_range(len(drawn), eager=True) // negatives)
            lacking = pl.when(no_number).then(pl.lit(reasons.no_number(near[0]))).otherwise(lacking)
        return rows.with_columns(
            counterpart_id=pl.when(~missing).then(frame["prompt_id"].gather(drawn.set(missing, 0))),
            reason=pl.when(missing).then(lacking),
        )
    rows = rows.with_columns(pl.lit(None, dtype=pl.UInt64).alias("counterpart_id"))
    if kind == "dropped":
        return rows.with_columns(pl.lit(None, dtype=pl.String).alias("reason"))
    return with_parts(rows, frame, seed)


def _rows(frame: pl.DataFrame, kind: str, negatives: int) -> pl.DataFrame:
    """prompt_id, negative and kind of each row of the result."""
    return frame.select(pl.col("prompt_id").repeat_by(negatives).explode()).with_columns(
        negative=(pl.int_range(pl.len()) % negatives).cast(pl.UInt32), kind=pl.lit(kind)
    )


def _draw_without(
    frame: pl.DataFrame, rows: pl.DataFrame, leaked: pl.Series, draw_clean: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """Draws among the prompts without a reason in `leaked`; the rows of the others get this reason."""
    clean, negatives = frame.filter(leaked.is_null()), rows.height // frame.height
    if clean.height < negatives + 1:
        raise InputError(
            f"held_out: expected at least {negatives + 1} prompts outside it, got {clean.height} of {frame.height}; "
            "add prompts, or raise overlap_share"
        )
    drawn = rows.join(draw_clean(clean).drop("kind"), on=["prompt_id", "negative"], how="left", maintain_order="left")
    refused = leaked.gather(pl.int_range(rows.height, eager=True) // negatives)
    return drawn.with_columns(reason=pl.coalesce(refused, "reason"))


def check(
    frame: pl.DataFrame,
    kind: str,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
    near: Sequence[Any] | None,
    near_duplicates: float | None,
) -> None:
    """InputError for settings that cannot be drawn from the prompts in `frame`."""
    if kind not in get_args(Kind):
        raise InputError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    needed = ["prompt", *(["context"] if kind in ("context", "dropped") else [])]
    if near is not None and not (len(near) == 2 and isinstance(near[0], str) and _is_tolerance(near[1])):
        raise InputError(
            f"near: expected a column and a number of at least 0, for example ('prompt', 50), got {near!r}"
        )
    for column in [*needed, *match, *differ, *([] if near is None else near[:1])]:
        if column not in frame.columns:
            raise InputError(f"kind {kind!r} needs the column {column!r}; the prompts have {', '.join(frame.columns)}")
    for column in needed:
        if nulls := frame[column].null_count():
            first = frame[column].is_null().arg_true()[0] + 1
            raise InputError(f"column {column!r}: {nulls} null value(s), first in row {first}; drop or fill these rows")
    if frame.height < 2:
        raise InputError(f"a counter-prompt needs at least 2 prompts, got {frame.height}")
    if not 1 <= negatives < frame.height:
        raise InputError(f"negatives: expected 1 to {frame.height - 1} ({frame.height} prompts), got {negatives}")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: expected 0 to 2**64 - 1, got {seed}")
    check_kind(kind, negatives, match=match, differ=differ, near=near, near_duplicates=near_duplicates)


def check_kind(
    kind: str, negatives: int, *, match: Sequence[str], differ: Sequence[str], near: Any, near_duplicates: float | None
) -> None:
    """InputError for settings that do not apply to `kind`, because it draws no other row."""
    if kind not in ("dropped", "partial"):
        return
    if negatives > 1:
        raise InputError(
            f"negatives: expected 1 with kind {kind!r}, which has one counter-prompt per prompt, got {negatives}"
        )
    conditions = {"match": match, "differ": differ, "near": near, "near_duplicates": near_duplicates}
    for name, value in conditions.items():
        if value not in (None, [], ()):
            raise InputError(f"{name}: expected none with kind {kind!r}, which draws no other row; leave it out")


def _is_tolerance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _drawn(
    texts: pl.DataFrame,
    values: pl.DataFrame,
    within: tuple[NDArray[np.float64], float] | None,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
) -> NDArray[np.uint64]:
    """The counterparts of all rows [n, negatives], NOBODY where a row lacks them. `within` is numbers and tolerance."""
    if not match and not differ and within is None and texts["text"].n_unique() == texts.height:
        return counterparts(texts.height, negatives=negatives, seed=seed)
    equal = _codes(values, match) if match else np.zeros(texts.height, dtype=np.uint64)
    unequal = [_codes(texts, ["text"]), *(_codes(values, [column]) for column in differ)]
    drawn: NDArray[np.uint64] = _native.counterparts_within(equal, unequal, negatives, seed, within)
    return drawn


def sizes_of(column: pl.Series) -> tuple[pl.Series, str]:
    """What `near` compares in a column, and its unit: the lengths of texts or messages in characters, or the values."""
    if column.dtype == pl.String or is_messages(column):
        return contents(column).str.len_chars(), " characters"
    return column, ""


def _numbers(sizes: pl.Series) -> pl.Series:
    """The sizes as Float64; NaN for null and for a number that is not finite."""
    if not sizes.dtype.is_numeric():
        raise InputError(
            f"near: expected a column of numbers, texts or messages, got {sizes.name!r} of {sizes.dtype}; convert its "
            "values to numbers"
        )
    ends: list[Any] = [sizes.min(), sizes.max()] if sizes.dtype.is_integer() and sizes.count() else [0]
    if max(abs(end) for end in ends) > 2**53:
        raise InputError(f"near: expected whole numbers up to 2**53, got larger ones in {sizes.name!r}; scale them")
    numbers = sizes.cast(pl.Float64)
    return numbers.set(~numbers.is_finite().fill_null(False), float("nan"))


def _codes(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.uint64]:
    """One code per row, equal exactly where the rows' values in `columns` are equal (null equals null)."""
    return first_equal(frame, columns).to_numpy()
