"""`mipo generate`: a model's responses to prompts and counter-prompts."""

from contextlib import nullcontext
from typing import Any

from mipo.cli.console import batches_of_prompts, batches_of_table
from mipo.cli.options import Counterparts, ModelName, Output, Prompts, TrustRemoteCode, keywords, mirrors
from mipo.io import outputs, records
from mipo.io.rowfile import READ_ROWS
from mipo.models.model import Model
from mipo.pairing.join import COUNTERPARTS
from mipo.prompts.rows import read
from mipo.responses.answers import FILE
from mipo.responses.engines.choice import choose
from mipo.responses.generation import check, generate, generate_to
from mipo.responses.requests import DRAWN
from mipo.responses.sampling import Sampling
from mipo.responses.stored_requests import open_requests


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
    check(output, output / FILE, options.get("reuse"))
    opened = Model(str(model), trust_remote_code=trust_remote_code, dtype=options.get("dtype", "auto"))
    drawn = batches_of_table(counterparts, READ_ROWS, COUNTERPARTS, DRAWN) if counterparts is not None else ()
    chosen = choose(**keywords(choose, options))
    sampling = records.read(Sampling, {name: options[name] for name in Sampling.__struct_fields__ if name in options})
    settings = {**keywords(generate_to, options), "engine": chosen}
    texts = batches_of_prompts(prompts, READ_ROWS, options)
    with (
        # A folder that another process works in is refused before the prompts are composed; a new one is made after.
        outputs.claim(output, "responses") if output.exists() else nullcontext(),
        open_requests(texts, drawn, chat=opened.is_chat, folder=output.parent) as requests,
    ):
        rows, failed = generate_to(output, requests, opened, sampling, **settings)
    for reason, count in failed.items():
        print(f"{reason}: {count:,} of {rows:,} prompts")
    print(f"responses in {output}")
