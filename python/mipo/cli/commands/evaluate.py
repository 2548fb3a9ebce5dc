"""`mipo evaluate`: a model's information interval and other figures, on prompts."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.console import read_prompts
from mipo.cli.options import ModelName, Prompts, TrustRemoteCode, keywords, mirrors
from mipo.evaluation.measurement import evaluate
from mipo.evaluation.rule import Rule
from mipo.io import files, outputs, records
from mipo.models.model import Model
from mipo.prompts.rows import read
from mipo.responses.engines.choice import choose
from mipo.tokens.store import PairStore


@mirrors(read, choose, evaluate, without=("responses", "rule", "reuse", "progress"))
def command(
    prompts: Prompts,
    /,
    *,
    model: ModelName,
    held_out: Annotated[Path | None, Parameter(help="tokenized pairs whose log-probs are measured")] = None,
    answer: Annotated[str | None, Parameter(help="column with the right answer")] = None,
    pattern: Annotated[
        str | None, Parameter(help="regular expression with a group `answer` that a response must match")
    ] = None,
    output: Annotated[Path | None, Parameter(help="a JSON file")] = None,
    trust_remote_code: TrustRemoteCode = False,
    **options: Any,
) -> None:
    """Prints each figure with its interval, and writes them to `output`. The engine answers, and scores the answers."""
    if output is not None:
        outputs.check_file(output)
    judged = {name: value for name, value in (("answer", answer), ("pattern", pattern)) if value is not None}
    rule = records.read(Rule, judged) if judged else None
    store = PairStore.open(held_out) if held_out is not None else None
    measured = Model(str(model), trust_remote_code=trust_remote_code, dtype=options.get("dtype", "auto"))
    settings = {**keywords(evaluate, options), "engine": choose(**keywords(choose, options))}
    figures, _ = evaluate(measured, read_prompts(prompts, options), store, rule=rule, **settings)
    for name, figure in figures.items():
        print(f"{name:16} {figure['value']:9.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]")
    if output is not None:
        files.write_json(output, figures)
