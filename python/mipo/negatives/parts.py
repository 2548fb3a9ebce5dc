"""Parts: the first sentences of a prompt, for counter-prompts of the kind `partial`.

Knows where sentences end. Knows nothing of how counterparts are drawn.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

ONE_SENTENCE = "one sentence: no part to keep"
# Where a sentence may end: at a stop (with closing quotes and brackets) before white space and another word; at a stop
# that needs no white space (full-width, Khmer, Burmese, Tibetan), unless its quotation closes there; at a new line.
_BORDER = re.compile(
    r"""[.!?…؟۔।॥։።]+["'”’»)\]]*(?=\s+["'“‘«(\[¿¡]*\w)|[。！？។။།]+(?=\s*[^\s。！？។။།」』）】”’])|(?<=\S)(?=[^\S\n]*\n\s*\S)"""
)
# The same stop does not end a sentence after an abbreviation, an initial ("J. Smith") or an item's number ("1. Add").
_NO_BORDER = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Rev|Mt|No|Nr|Fig|Eq|vs|etc|cf|al|approx|ca|e\.g|i\.e|a\.m|p\.m|[^\W\d_]"
    r"|Inc|Ltd|Corp|Co|Dept|Ave|Blvd|Capt|Sgt|Lt|Gov|Sen|Jan|Feb|Apr|Aug|Sept?|Oct|Nov|Dec|vol|pp|Sra|Mme|bzw|Abb|Ph\.D)"
    r"|(?:^|\n)[^\S\n]*\d+)\.$",
    re.IGNORECASE,
)
# Code between fences is one thing: a part of it says something else, or nothing. One without an end goes to the end.
_FENCED = re.compile(r"^[^\S\n]*(```+|~~~+)(?:.*?\n[^\S\n]*\1|.*)", re.MULTILINE | re.DOTALL)
_LOOK_BACK = 16  # characters, more than any abbreviation has


def part(text: str, *, seed: int, row: int) -> str | None:
    """The first sentences of `text`, not all, cut at a border drawn from (seed, row); None where there is no border."""
    fenced = [found.span() for found in _FENCED.finditer(text)]
    borders = [
        found.end()
        for found in _BORDER.finditer(text)
        if not _NO_BORDER.search(text[max(0, found.end() - _LOOK_BACK) : found.end()])
        and not any(start < found.end() < end for start, end in fenced)
    ]
    if not borders:
        return None
    drawn = hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest()
    return text[: borders[int.from_bytes(drawn, "big") % len(borders)]]


def with_parts(rows: pl.DataFrame, frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The rows of the prompts in `frame` with a part of each (of messages of the last one's), or why there is none."""
    prompts = frame["prompt"]
    texts = prompts.list.last().struct.field("content") if is_messages(prompts) else prompts
    cut = [part(text, seed=seed, row=row) for row, text in zip(frame["prompt_id"], texts, strict=True)]
    parts = pl.Series("part", cut, dtype=pl.String)
    return rows.with_columns(parts, reason=pl.when(parts.is_null()).then(pl.lit(ONE_SENTENCE)))


def with_text(prompts: pl.Series, texts: pl.Series, where: pl.Series) -> pl.Series:
    """The prompts, where told with `texts` in place of the last message's content, or of the whole text."""
    if not is_messages(prompts):
        return texts.zip_with(where, prompts)
    rows: list[Any] = [
        asked if not told or text is None else [*asked[:-1], {**asked[-1], "content": text}]
        for asked, text, told in zip(prompts, texts, where, strict=True)
    ]
    return pl.Series(prompts.name, rows, dtype=prompts.dtype)
