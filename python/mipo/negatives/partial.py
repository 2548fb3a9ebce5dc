"""Parts: the first sentences of a prompt, for counter-prompts of the kind `partial`.

Knows where a sentence ends. Knows nothing of how counterparts are drawn.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from mipo.io.lazy import pl
from mipo.reasons import ONE_SENTENCE
from mipo.tokenizer.messages import is_messages

# A sentence may end at a stop (with closing quotes and brackets) before white space and another word; at a stop that
# needs no white space (full-width, Khmer, Burmese, Tibetan), unless a quotation closes there; and at a new line.
_BORDER = re.compile(
    r"""[.!?…؟۔।॥։።]+["'”’»)\]]*(?=\s+["'“‘«(\[¿¡]*\w)|[。！？។။།]+(?=\s*[^\s。！？។။།」』）】”’])|(?<=\S)(?=[^\S\n]*\n\s*\S)"""
)
# A stop does not end a sentence after an abbreviation, an initial ("J. Smith") or an item's number ("1. Add").
_NO_BORDER = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Rev|Mt|No|Nr|Fig|Eq|vs|etc|cf|al|approx|ca|e\.g|i\.e|a\.m|p\.m|[^\W\d_]"
    r"|Inc|Ltd|Corp|Co|Dept|Ave|Blvd|Capt|Sgt|Lt|Gov|Sen|Jan|Feb|Apr|Aug|Sept?|Oct|Nov|Dec|vol|pp|Sra|Mme|bzw|Abb|Ph\.D)"
    r"|(?:^|\n)[^\S\n]*\d+)\.$",
    re.IGNORECASE,
)
# Code between fences is never cut. A fence without an end extends to the end of the text.
_FENCED = re.compile(r"^[^\S\n]*(```+|~~~+)(?:.*?\n[^\S\n]*\1|.*)", re.MULTILINE | re.DOTALL)
_LOOK_BACK = 16  # characters: more than the longest abbreviation


def part(text: str, *, seed: int, row: int) -> str | None:
    """The first sentences of `text`, cut at a border drawn from (seed, row); None for a text of one sentence."""
    fences = [match.span() for match in _FENCED.finditer(text)]
    borders = [
        border
        for border in (match.end() for match in _BORDER.finditer(text))
        if not _NO_BORDER.search(text[max(0, border - _LOOK_BACK) : border])
        and not any(start < border < end for start, end in fences)
    ]
    if not borders:
        return None
    drawn = hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest()
    return text[: borders[int.from_bytes(drawn, "big") % len(borders)]]


def with_parts(rows: pl.DataFrame, frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The rows with a part of each prompt in `frame`, or the reason why there is none. Of a chat it is a part of the
    last message.
    """
    prompts = frame["prompt"]
    texts = prompts.list.last().struct.field("content") if is_messages(prompts) else prompts
    values = [part(text, seed=seed, row=row) for row, text in zip(frame["prompt_id"], texts, strict=True)]
    parts = pl.Series("part", values, dtype=pl.String)
    return rows.with_columns(parts, reason=pl.when(parts.is_null()).then(pl.lit(ONE_SENTENCE)))


def with_text(prompts: pl.Series, texts: pl.Series, where: pl.Series) -> pl.Series:
    """The prompts; where `where` is true, `texts` replace the text, or the content of the last message."""
    if not is_messages(prompts):
        return texts.zip_with(where, prompts)
    rows: list[Any] = [
        [*prompt[:-1], {**prompt[-1], "content": text}] if replaced and text is not None else prompt
        for prompt, text, replaced in zip(prompts, texts, where, strict=True)
    ]
    return pl.Series(prompts.name, rows, dtype=prompts.dtype)
