"""`mipo evaluate`: a model's information interval, and what else is measured, on prompts."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.console import read_prompts
from mipo.cli.options import Model, Prompts, keywords, mirrors
from mipo.evaluation.measurement import evaluate
from mipo.io import files
from mipo.models.loading import load_tokenizer
from mipo.prompts.rows import read
from mipo.tokens.store import PairStore


@mirrors(read, evaluate, without=("answers", "rule", "progress"))
def command(
    prompts: Prompts,
    /,
    *,
    model: Model,
    held_out: Annotated[Path | None, Parameter(help="tokenized pairs whose log-probs are measured")] = None,
    answer: Annotated[str | None, Parameter(help="column with the right answer")] = None,
    pattern: Annotated[
        str | None, Parameter(help="regular expression with a group `answer` that a response must match")
    ] = None,
    output: Annotated[Path | None, Parameter(help="a JSON file")] = None,
    **options: Any,
) -> None:
    """Prints each figure with its interval, and writes them to `output`."""
    rule = {name: value for name, value in (("answer", answer), ("pattern", pattern)) if value}
    store = PairStore.open(held_out) if held_out is not None else None
    model = str(model)
    tokenizer = load_tokenizer(model, **keywords(load_tokenizer, options))
    table = read_prompts(prompts, options)
    figures, _ = evaluate(model, tokenizer, table, store, rule=rule or None, **keywords(evaluate, options))
    for name, figure in figures.items():
        print(f"{name:16} {figure['value']:9.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]")
    if output is not None:
        files.write_json(output, figures)
