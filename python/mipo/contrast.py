"""Contrast: which *other* prompt each rejected response answers. The method's one idea.

Knows prompts, and draws by `mipo._native`. Knows nothing of models or responses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from mipo import _native
from mipo.lazy import lazy
from mipo.prompts import compose

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray
else:
    np = lazy("numpy")
    pl = lazy("polars")

Kind = Literal["random", "partial", "context", "dropped"]
NOBODY = 2**64 - 1  # what the native draw answers for a row that no counterpart satisfies

# A sentence ends at a stop and white space (no stop that an abbreviation or a decimal has), a new line, or a full-width
# stop, which needs no white space.
_ABBREVIATIONS = "".join(rf"(?<!\b{a}\.)" for a in ("Mr", "Mrs", "Ms", "Dr", "St", "No", "vs", "etc", r"e\.g", r"i\.e"))
_SENTENCE_BORDER = re.compile(rf"(?<=[.!?…]){_ABBREVIATIONS}\s+(?=\S)|\s*\n\s*(?=\S)|(?<=[。！？])(?=\S)")


def counterparts(
    n: int, *, negatives: int = 1, seed: int = 0, start: int = 0, stop: int | None = None
) -> NDArray[np.uint64]:
    """Counterparts of rows `start`…`stop` among `n` rows: [stop - start, negatives], uint64.

    Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation and s_k distinct non-zero shifts: no
    row is its own counterpart, the K of a row are distinct, every row is used exactly K times. A pure function of the
    arguments: any shard by itself, the same on any number of threads. O(1) memory beyond the result.
    Raises ValueError for n < 2, negatives outside 1…n-1, start > stop or stop > n.
    """
    drawn: NDArray[np.uint64] = _native.counterparts(n, negatives, seed, start, n if stop is None else stop)
    return drawn


def contrast(
    prompts: pl.DataFrame | pl.LazyFrame,
    *,
    kind: Kind = "random",
    negatives: int = 1,
    seed: int = 0,
    match: Sequence[str] = (),
    differ: Sequence[str] = (),
) -> pl.DataFrame:
    """Draws `negatives` counter-prompts for each prompt; one row a prompt and negative, in the order of the prompts.

    Kinds: `random`, another row's prompt; `context`, the same prompt under another row's context; `dropped`, the prompt
    without its context; `partial`, the first sentences of the prompt. `match` names columns in which the counterpart
    equals its row (a task, a language), `differ` columns in which it differs (a user). A counterpart's prompt text
    (`random`) or context (`context`) always differs, also after Unicode, case and white space are normalised.

    Takes the columns prompt, and context where the kind needs it; prompt_id is the row number where it is missing.
    Returns prompt_id, negative (0…K-1), kind, counterpart_id (the row drawn; null where none is), part (of kind
    `partial`), and reason: null, or why this row has no counter-prompt. Raises ValueError for what cannot be drawn.
    """
    frame = prompts.lazy().collect()
    _check(frame, kind, negatives, match, differ)
    if "prompt_id" not in frame.columns:
        frame = frame.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    rows = frame.select(pl.col("prompt_id").repeat_by(negatives).explode()).with_columns(
        negative=(pl.int_range(pl.len(), dtype=pl.UInt32) % negatives), kind=pl.lit(kind)
    )
    if kind in ("random", "context"):
        return _draw(frame, rows, "prompt" if kind == "random" else "context", negatives, seed, match, differ)
    nobody = pl.lit(None, dtype=pl.UInt64).alias("counterpart_id")
    if kind == "dropped":
        return rows.with_columns(nobody, reason=pl.lit(None, dtype=pl.String))
    parts = [
        part(text, seed=seed, row=row)
        for row, text in zip(frame["prompt_id"], _last_texts(frame["prompt"]), strict=True)
    ]
    missing = pl.when(pl.col("part").is_null()).then(pl.lit("one sentence: no part to keep"))
    return rows.with_columns(nobody, part=pl.Series(parts, dtype=pl.String)).with_columns(
        reason=missing.otherwise(None)
    )


def counter_prompts(prompts: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each rejected response answers: the composed counter-prompt of each row of `counterparts`, null without."""
    own = counterparts.select("prompt_id").join(prompts, on="prompt_id", how="left", maintain_order="left")
    other = counterparts.select(prompt_id="counterpart_id").join(
        prompts, on="prompt_id", how="left", maintain_order="left"
    )
    kind = counterparts["kind"][0] if counterparts.height else "random"
    context = {"random": other, "context": other, "partial": own}.get(kind, own.drop("context", strict=False))
    prompt = (other if kind == "random" else own)["prompt"]
    if kind == "partial":
        prompt = _with_text(prompt, counterparts["part"])
    asked = compose(prompt, context["context"] if "context" in context.columns else None, chat=chat)
    known = counterparts["reason"].is_null() & own["prompt"].is_not_null()
    return pl.select(pl.when(known).then(asked).otherwise(None).alias("counter_prompt")).to_series()


def part(text: str, *, seed: int, row: int) -> str | None:
    """The first sentences of `text`, not all, cut at a border drawn from (seed, row); None where there is no border."""
    borders = [found.start() for found in _SENTENCE_BORDER.finditer(text)]
    borders = [b for b in borders if text[:b].strip()]
    if not borders:
        return None
    drawn = np.random.default_rng((seed, row)).integers(len(borders))
    return text[: borders[drawn]]


def _check(frame: pl.DataFrame, kind: str, negatives: int, match: Sequence[str], differ: Sequence[str]) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, came {kind!r}")
    wanted = ["prompt", *(["context"] if kind in ("context", "dropped") else []), *match, *differ]
    for column in wanted:
        if column not in frame.columns:
            raise ValueError(f"kind {kind!r} needs the column {column!r}; the prompts have {', '.join(frame.columns)}")
    for column in ("prompt", "context") if "context" in wanted else ("prompt",):
        if nulls := frame[column].null_count():
            first = frame[column].is_null().arg_true()[0] + 1
            raise ValueError(f"column {column!r}: {nulls} null value(s), first in row {first}; drop or fill these rows")
    if frame.height < 2:
        raise ValueError(f"a counter-prompt needs at least 2 prompts, came {frame.height}")
    if not 1 <= negatives < frame.height:
        raise ValueError(f"negatives: expected 1 to {frame.height - 1} ({frame.height} prompts), came {negatives}")
    if kind in ("dropped", "partial"):
        if negatives > 1:
            raise ValueError(f"kind {kind!r} has one counter-prompt a prompt, came negatives={negatives}; use 1")
        if match or differ:
            raise ValueError(f"kind {kind!r} draws no other row, so match and differ mean nothing; leave them out")


def _draw(
    frame: pl.DataFrame,
    rows: pl.DataFrame,
    unlike: str,
    negatives: int,
    seed: int,
    match: Sequence[str],
    differ: Sequence[str],
) -> pl.DataFrame:
    texts = frame.select(_normalised(_texts(frame[unlike])).alias("text"))["text"]
    if not match and not differ and texts.n_unique() == len(texts):
        drawn = counterparts(frame.height, negatives=negatives, seed=seed)
    else:
        unequal = [_codes(texts.to_frame()), *(_codes(frame.select(column)) for column in differ)]
        alike = _codes(frame.select(match)) if match else np.zeros(frame.height, dtype=np.uint64)
        drawn = _native.counterparts_within(alike, unequal, negatives, seed)
    chosen = pl.Series("row", drawn.ravel())
    ids = frame["prompt_id"].cast(pl.UInt64)
    found = chosen != NOBODY
    conditions = ", ".join([f"another {unlike}", *(f"same {c}" for c in match), *(f"different {c}" for c in differ)])
    return rows.with_columns(
        pl.select(
            pl.when(found)
            .then(ids.gather(chosen.zip_with(found, pl.zeros(len(chosen), pl.UInt64, eager=True))))
            .otherwise(None)
        )
        .to_series()
        .alias("counterpart_id"),
        reason=pl.select(
            pl.when(found).then(None).otherwise(pl.lit(f"fewer than {negatives} rows with {conditions}"))
        ).to_series(),
    )


def _normalised(texts: pl.Series) -> pl.Series:
    return texts.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def _codes(columns: pl.DataFrame) -> NDArray[np.uint64]:
    """One code a row, equal exactly where the row's values are equal (null equals null)."""
    codes = columns.with_row_index("row").join(
        columns.unique(maintain_order=True).with_row_index("code"),
        on=columns.columns,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    return codes["code"].cast(pl.UInt64).to_numpy()


def _texts(prompts: pl.Series) -> pl.Series:
    """The text of each prompt; of messages all contents, one after another."""
    if isinstance(prompts.dtype, pl.List):
        return prompts.list.eval(pl.element().struct.field("content")).list.join("\n")
    return prompts


def _last_texts(prompts: pl.Series) -> pl.Series:
    """The text of which kind `partial` keeps a part: the last message's content, or the whole text."""
    if isinstance(prompts.dtype, pl.List):
        return prompts.list.last().struct.field("content")
    return prompts


def _with_text(prompts: pl.Series, texts: pl.Series) -> pl.Series:
    """The prompts with `texts` in place of the last message's content, or of the whole text."""
    if not isinstance(prompts.dtype, pl.List):
        return texts
    rows: list[Any] = [
        None if text is None else [*asked[:-1], {**asked[-1], "content": text}]
        for asked, text in zip(prompts, texts, strict=True)
    ]
    return pl.Series(prompts.name, rows, dtype=prompts.dtype)
