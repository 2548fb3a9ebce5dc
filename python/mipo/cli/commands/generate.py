"""`mipo generate`: a model's responses to prompts and counter-prompts."""

from typing import Any

from mipo.cli.console import read_prompts, read_table
from mipo.cli.options import Counterparts, Model, Output, Prompts, keywords, mirrors
from mipo.models.loading import load_tokenizer
from mipo.prompts.compose import compose, is_chat
from mipo.prompts.rows import read
from mipo.responses.ask import ask, counter_prompts
from mipo.responses.generation import generate


@mirrors(read, generate, without=("tokenizer", "folder", "progress"))
def command(
    prompts: Prompts,
    /,
    *,
    model: Model,
    output: Output,
    counterparts: Counterparts | None = None,
    **options: Any,
) -> None:
    """Writes one response for each distinct prompt, in parts that a later call goes on from."""
    model, table = str(model), read_prompts(prompts, options)
    tokenizer = load_tokenizer(model, **keywords(load_tokenizer, options))
    chat = is_chat(tokenizer)
    composed = [compose(table["prompt"], table.get_column("context", default=None), chat=chat)]
    if counterparts is not None:
        composed.append(counter_prompts(table, read_table(counterparts), chat=chat))
    generate(ask(*composed), model, tokenizer=tokenizer, folder=output, **keywords(generate, options))
    print(f"responses in {output}")
