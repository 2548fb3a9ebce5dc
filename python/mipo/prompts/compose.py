"""Composition: how a prompt and a user's context become what a model is asked.

Knows chat messages. Knows nothing of counter-prompts or responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.tokenizer.messages import fields_of, is_messages

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

CONTEXT_BORDER = "\n\n"  # between a user's context and the prompt, where the prompt is plain text


def compose(prompt: pl.Series, context: pl.Series | None, *, chat: bool) -> pl.Series:
    """What the model is asked: the context, where there is one, and then the prompt; nothing else is added.

    With `chat` a list of messages (the context is the system message), otherwise text (the context, a blank line, the
    prompt). A prompt of messages stays messages, so it needs `chat`. A null prompt stays null.
    """
    if is_messages(prompt) and not chat:
        raise InputError("the prompts are chat messages, but the model has no chat template; give prompts as text")
    frame = pl.DataFrame({"prompt": prompt})
    if chat and not is_messages(prompt):
        user = pl.concat_list(pl.struct(pl.lit("user").alias("role"), pl.col("prompt").alias("content")))
        frame = frame.select(pl.when(pl.col("prompt").is_not_null()).then(user).alias("prompt"))
    if context is None:
        return frame["prompt"]
    frame = frame.with_columns(context.cast(pl.String).alias("context"))
    given, asked = pl.col("context").is_not_null() & pl.col("prompt").is_not_null(), pl.col("prompt")
    if chat:
        before = pl.concat_list(_system_message(frame.schema["prompt"]), asked)
    else:
        before = pl.concat_str("context", asked, separator=CONTEXT_BORDER)
    return frame.select(pl.when(given).then(before).otherwise(asked).alias("prompt"))["prompt"]


def _system_message(kind: pl.DataType) -> pl.Expr:
    """The context as a message with the fields of the others, in their order: polars joins structs by position."""
    said = {"role": pl.lit("system"), "content": pl.col("context")}
    return pl.struct(said.get(name, pl.lit(None, part)).alias(name) for name, part in fields_of(kind).items())
