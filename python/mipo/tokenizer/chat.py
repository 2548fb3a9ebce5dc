"""Prompts as a model sees them: the one door from composed prompts to text, and from there to token ids."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy
from mipo.tokenizer.encoder import encode
from mipo.tokenizer.messages import is_messages
from mipo.tokenizer.table import TokenTable
from mipo.tokenizer.template import Renderer, open_template

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

_opened: dict[tuple[str, str], Renderer] = {}  # by template and special tokens: to open one costs up to a second
MOST_OPENED = 8


def is_chat(tokenizer: Any) -> bool:
    """Whether prompts are rendered through the tokenizer's chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def renderer(tokenizer: Any) -> Renderer:
    """The chat template of a tokenizer, opened once; InputError where it has none."""
    known = (str(getattr(tokenizer, "chat_template", None)), repr(getattr(tokenizer, "special_tokens_map", None)))
    if known not in _opened:
        if len(_opened) == MOST_OPENED:
            _opened.clear()
        _opened[known] = open_template(tokenizer)
    return replace(_opened[known], tokenizer=tokenizer)


def render(composed: pl.Series, tokenizer: Any) -> pl.Series:
    """The text that is tokenized for each composed prompt: the chat template with a generation prompt, or the text."""
    if not is_messages(composed) or not len(composed):
        return composed.cast(pl.String) if not len(composed) else composed
    return renderer(tokenizer).render(composed, add_generation_prompt=True)


def encode_prompts(composed: pl.Series, tokenizer: Any) -> TokenTable:
    """Token ids of each composed prompt as the model sees it, in generation and in training alike."""
    return encode(render(composed, tokenizer), tokenizer, add_special_tokens=not is_messages(composed))
