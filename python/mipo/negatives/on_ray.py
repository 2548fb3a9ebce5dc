"""The draw for a `ray.data.Dataset`: the same bytes as on one machine.

The blocks stay where they are: there the texts are normalised, hashed and cut into parts. Only this is gathered: 128
bits per row of the text, as much of each text in a column of `match` or `differ`, and the numbers of `near`. Which rows
may face each other depends on all rows, so the calling machine draws, once, with the code of `mipo.contrast`. That asks
of texts only which are equal, so the draw is the same. Knows Ray and blocks. Knows nothing of how counterparts are
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mipo.io.cluster import blocks_of
from mipo.io.lazy import pa, pl, ray
from mipo.io.tables import digests, from_arrow, to_arrow
from mipo.negatives.draw import Kind, check, draw, listed, sizes_of
from mipo.negatives.partial import with_parts
from mipo.prompts.equality import normalised
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import contents


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
    """As `mipo.contrast`, for the rows of a dataset in the order of its blocks: the same counterparts.

    Has no near_duplicates and held_out, which need all texts in one place.
    The result has a block for each block of `dataset`, which is read once and held by Ray. The calling machine holds
    about 50 bytes per row, and 50 more for each column of texts among `match` and `differ`.
    """
    match, differ = listed(match), listed(differ)
    blocks = blocks_of(dataset)
    columns = list(dict.fromkeys([*match, *differ]))
    coded = ray.get([ray.remote(_code).remote(block, columns, near and near[0]) for block in blocks])
    frames, values, sizes, units = zip(*coded, strict=True)
    frame = _together(frames)
    check(frame, kind, negatives, seed, match, differ, near, None)
    size = None if near is None else (_together(sizes)[near[0]], max(units))
    drawn = draw(numbered(frame), _together(values), size, kind, negatives, seed, match, differ, near)
    results, start = [], 0
    for block, height in zip(blocks, (table.num_rows for table in frames), strict=True):
        piece = to_arrow(drawn[start : start + height * negatives])
        results.append(ray.remote(_cut).remote(block, piece, seed) if kind == "partial" else ray.put(piece))
        start += height * negatives
    return ray.data.from_arrow_refs(results)


def _together(tables: Sequence[pa.Table]) -> pl.DataFrame:
    return pl.concat([from_arrow(table) for table in tables], how="vertical_relaxed")


def _code(block: pa.Table, columns: Sequence[str], near: str | None) -> tuple[pa.Table, pa.Table, pa.Table, str]:
    """All that the draw asks of a block: its columns with digests of prompts and contexts, and nulls for all others;
    the columns of `match` and `differ`, texts as digests; the sizes of `near`, and their unit.
    """
    frame = from_arrow(block)
    coded = {name: pl.Series(name, [None], dtype=pl.Null).new_from_index(0, frame.height) for name in frame.columns}
    coded |= {name: digests(normalised(contents(frame[name]))) for name in ("prompt", "context") if name in coded}
    coded |= {name: frame[name] for name in ("prompt_id",) if name in coded}
    values = [frame[name] for name in columns if name in coded]
    values = [digests(column) if column.dtype == pl.String else column for column in values]
    sizes, unit = sizes_of(frame[near]) if near in coded else (pl.Series(), "")
    tables: list[list[Any]] = [list(coded.values()), values, [sizes]]
    first, second, third = (to_arrow(pl.DataFrame(table)) for table in tables)
    return first, second, third, unit


def _cut(block: pa.Table, drawn: pa.Table, seed: int) -> pa.Table:
    """The drawn rows of a block with the parts of its prompts."""
    rows, frame = from_arrow(drawn), from_arrow(block)
    return to_arrow(with_parts(rows, frame.with_columns(rows["prompt_id"]), seed))
