"""Cluster: the draw of counter-prompts for a `ray.data.Dataset`, the same bytes as on one machine; and other work.

Where the texts are, their blocks are normalised, hashed and cut into parts. Gathered are 128 bits a row of the text,
as much of each text in a column of `match` or `differ`, and the numbers of `near`: who may face whom depends on all
rows. Drawn once, by `mipo.contrast`, on the machine that calls; which rows are equal is all that it asks of texts, so
the draw is the same. Knows Ray and blocks. Knows nothing of how counterparts are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mipo.io.cluster import blocks_of, frame_of, remote
from mipo.io.lazy import lazy
from mipo.io.tables import digests
from mipo.negatives.draw import Kind
from mipo.negatives.draw import contrast as draw
from mipo.negatives.parts import with_parts
from mipo.prompts.equal import normalised
from mipo.tokenizer.messages import contents, is_messages

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import ray
else:
    pl = lazy("polars")
    ray = lazy("ray")

# Ends of names of the columns that stand for another one: its values as they are, and the lengths of its texts. From
# Unicode's private area, so that they are found again in what the draw says of a column.
AS_IT_IS, LENGTHS = "\ue000", "\ue001"


def contrast(
    dataset: ray.data.Dataset,
    *,
    kind: Kind = "random",
    negatives: int = 1,
    seed: int = 0,
    match: Sequence[str] = (),
    differ: Sequence[str] = (),
    near: tuple[str, float] | None = None,
) -> ray.data.Dataset:
    """As `mipo.contrast`, of a dataset: its rows as they lie in the blocks, the same counterparts in the same order.

    Without near_duplicates and held_out, which need all texts in one place.
    The result has a block for each block of `dataset`, which is read once and held by Ray. The calling machine holds
    about 50 bytes a row, and 50 more for each column of texts among `match` and `differ`.
    """
    match, differ = ([name] if isinstance(name, str) else list(name) for name in (match, differ))
    blocks = blocks_of(dataset)
    asked = [*match, *differ]
    coded = [frame_of(table) for table in ray.get([remote(_code).remote(block, asked, near) for block in blocks])]
    frame = pl.concat(coded, how="vertical_relaxed")
    how: dict[str, Any] = {"kind": kind, "negatives": negatives, "seed": seed, "match": match, "differ": differ}
    how |= {} if near is None else {"near": near}
    given = [name for name in frame.columns if not name.endswith((AS_IT_IS, LENGTHS))]
    if not {*asked, *([] if near is None else near[:1])} <= set(given):
        draw(frame.select(given), **how)
        raise AssertionError("a draw by columns that are not there")
    how |= {"match": [name + AS_IT_IS for name in match], "differ": [name + AS_IT_IS for name in differ]}
    if near is not None:
        how["near"] = (next(n for n in (near[0] + LENGTHS, near[0] + AS_IT_IS) if n in frame.columns), *near[1:])
    told = pl.col("reason").str.replace(f"{LENGTHS}( within .*)$", "$1 characters")
    drawn = draw(frame, **how).with_columns(told.str.replace_all(f"[{AS_IT_IS}{LENGTHS}]", ""))
    made, start = [], 0
    for block, rows in zip(blocks, (table.height * negatives for table in coded), strict=True):
        piece = drawn[start : start + rows].to_arrow(compat_level=pl.CompatLevel.oldest())
        made.append(remote(_cut).remote(block, piece, seed) if kind == "partial" else ray.put(piece))
        start += rows
    return ray.data.from_arrow_refs(made)


def _code(block: pa.Table, asked: Sequence[str], near: tuple[str, float] | None) -> pa.Table:
    """The block with nothing of its texts but which are equal: digests, and nulls where a column says nothing."""
    frame = frame_of(block)
    coded = [pl.Series(name, [None], dtype=pl.Null).new_from_index(0, frame.height) for name in frame.columns]
    code = {column.name: column for column in coded}
    code |= {name: digests(normalised(contents(frame[name]))) for name in ("prompt", "context") if name in code}
    code |= {name: frame[name] for name in ("prompt_id",) if name in code}
    for name in (name for name in frame.columns if name in asked or (near is not None and name == near[0])):
        column, words = frame[name], frame.schema[name] == pl.String
        code[name + AS_IT_IS] = (digests(column) if words else column).alias(name + AS_IT_IS)
        if near is not None and name == near[0] and (words or is_messages(column)):
            code[name + LENGTHS] = contents(column).str.len_chars().alias(name + LENGTHS)
    return pl.DataFrame(list(code.values())).to_arrow(compat_level=pl.CompatLevel.oldest())


def _cut(block: pa.Table, drawn: pa.Table, seed: int) -> pa.Table:
    """The drawn rows of a block with the parts of its prompts."""
    rows, frame = frame_of(drawn), frame_of(block)
    cut = with_parts(rows, frame.with_columns(rows["prompt_id"]), seed)
    return cut.to_arrow(compat_level=pl.CompatLevel.oldest())
