"""Composition: joins a prompt and a user's context into the prompt that a model is asked.

Knows chat messages. Knows nothing of counter-prompts or responses.
"""

from __future__ import annotations

from mipo.errors import InputError
from mipo.io.lazy import pl
from mipo.tokenizer.messages import fields_of, is_messages

CONTEXT_BORDER = "\n\n"  # between a user's context and a plain-text prompt


def compose(prompt: pl.Series, context: pl.Series | None, *, chat: bool) -> pl.Series:
    """What the model is asked: the context, if there is one, and then the prompt. Nothing else is added.

    With `chat` a list of messages (the context is the system message), otherwise text (the context, a blank line, the
    prompt). A null prompt stays null. Raises InputError for prompts that are messages without `chat`.
    """
    if is_messages(prompt) and not chat:
        raise InputError("the prompts are chat messages, but the model has no chat template; give prompts as text")
    frame = pl.DataFrame({"prompt": prompt})
    if chat and not is_messages(prompt):
        frame = frame.select(pl.when(pl.col("prompt").is_not_null()).then(message("user", "prompt")).alias("prompt"))
    if context is None:
        return frame["prompt"]
    frame = frame.with_columns(context.cast(pl.String).alias("context"))
    if chat:
        joined = pl.concat_list(_system_message(frame.schema["prompt"]), "prompt")
    else:
        joined = pl.concat_str("context", "prompt", separator=CONTEXT_BORDER)
    both = pl.col("context").is_not_null() & pl.col("prompt").is_not_null()
    return frame.select(pl.when(both).then(joined).otherwise("prompt").alias("prompt"))["prompt"]


def message(role: str, column: str) -> pl.Expr:
    """A column of text as a column of lists of one message."""
    return pl.concat_list(pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content")))


def _system_message(kind: pl.DataType) -> pl.Expr:
    """The context as a message with the fields of the others, in their order: polars joins structs by position."""
    values = {"role": pl.lit("system"), "content": pl.col("context")}
    return pl.struct(values.get(name, pl.lit(None, dtype)).alias(name) for name, dtype in fields_of(kind).items())
