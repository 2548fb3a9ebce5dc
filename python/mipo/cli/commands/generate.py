"""`mipo generate`: a model's responses to prompts and counter-prompts."""

from typing import Any

from mipo.cli.console import read_prompts, scan_table
from mipo.cli.options import Counterparts, ModelName, Output, Prompts, TrustRemoteCode, keywords, mirrors
from mipo.models.model import Model
from mipo.pairing.join import COUNTERPARTS
from mipo.prompts.rows import read
from mipo.responses.engines.choice import choose
from mipo.responses.generation import failures, generate
from mipo.responses.requests import compose_requests


@mirrors(read, choose, generate, without=("folder", "database", "progress"))
def command(
    prompts: Prompts,
    /,
    *,
    model: ModelName,
    output: Output,
    counterparts: Counterparts | None = None,
    trust_remote_code: TrustRemoteCode = False,
    **options: Any,
) -> None:
    """Writes one response to each distinct prompt. Each answer is kept as it comes, and a later call continues."""
    opened = Model(str(model), trust_remote_code=trust_remote_code, dtype=options.get("dtype", "auto"))
    drawn = scan_table(counterparts, COUNTERPARTS).lazy().collect() if counterparts is not None else None
    requests = compose_requests(read_prompts(prompts, options), drawn, chat=opened.is_chat)
    chosen = choose(**keywords(choose, options))
    responses = generate(requests.prompts, opened, folder=output, **{**keywords(generate, options), "engine": chosen})
    for reason, count in failures(responses).items():
        print(f"{reason}: {count:,} of {responses.height:,} prompts")
    print(f"responses in {output}")
