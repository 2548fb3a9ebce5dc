"""Chat: composed prompts as text and token ids, for generation, evaluation and previews.

Training renders and encodes a prompt together with its responses (`mipo.tokens.groups`), by the same `renderer` and
encoder; a test holds that both give a prompt the same ids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mipo.io.lazy import pl
from mipo.tokenizer.encoder import encode
from mipo.tokenizer.messages import is_messages
from mipo.tokenizer.table import TokenTable
from mipo.tokenizer.template import Renderer, open_template

_opened: dict[tuple[str, str], Renderer] = {}  # by template and special tokens: opening one takes up to a second
MOST_OPENED = 8


def is_chat(tokenizer: Any) -> bool:
    """Whether prompts are rendered through the tokenizer's chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def renderer(tokenizer: Any) -> Renderer:
    """The chat template of a tokenizer, opened once; raises InputError where it has none."""
    key = (str(getattr(tokenizer, "chat_template", None)), repr(getattr(tokenizer, "special_tokens_map", None)))
    if key not in _opened:
        if len(_opened) == MOST_OPENED:
            _opened.clear()
        _opened[key] = open_template(tokenizer)
    return replace(_opened[key], tokenizer=tokenizer)


def render(composed: pl.Series, tokenizer: Any) -> pl.Series:
    """The text to tokenize of each composed prompt: messages through the chat template, with a generation prompt."""
    if not len(composed):
        return composed.cast(pl.String)
    if not is_messages(composed):
        return composed
    return renderer(tokenizer).render(composed, add_generation_prompt=True)


def encode_prompts(composed: pl.Series, tokenizer: Any) -> TokenTable:
    """Token ids of each composed prompt, those that training gives it."""
    return encode_rendered(render(composed, tokenizer), composed, tokenizer)


def encode_rendered(texts: pl.Series, composed: pl.Series, tokenizer: Any) -> TokenTable:
    """The same, where the `texts` of the composed prompts are there already (see `render`)."""
    return encode(texts, tokenizer, add_special_tokens=not is_messages(composed))
