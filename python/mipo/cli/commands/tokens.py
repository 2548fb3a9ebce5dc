"""`mipo tokens`: a store of token ids from preference pairs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.console import print_rows
from mipo.cli.options import Address, Engine, ModelName, Output, mirrors
from mipo.cli.ray import check_engine, connected
from mipo.io import cluster, sources
from mipo.models.loading import load_tokenizer
from mipo.tokens.preparation import prepare


@mirrors(prepare, without=("progress", "perform"))
def command(
    pairs: Annotated[
        list[str | Path],
        Parameter(name="PAIRS", help="runs, or preference pairs (prompt, chosen, rejected): files or datasets"),
    ],
    /,
    *,
    tokenizer: ModelName,
    output: Output,
    engine: Engine = "local",
    address: Address = None,
    own_process: Annotated[bool, Parameter(parse=False)],
    **options: Any,
) -> None:
    """Writes a store of token ids, in shards from which a later call continues."""
    check_engine(engine, address)
    for source in pairs:
        sources.check(source)
    with _no_torch() if own_process else nullcontext():
        opened = load_tokenizer(str(tokenizer))
    with connected(engine, address):
        manifest = prepare(pairs, opened, output, perform=cluster.perform if engine == "ray" else None, **options)
    print_rows(output, manifest["rows_in"], manifest["dropped"])
    for reason in {shard["why"] for shard in manifest["shards"] if shard["encoder"] == "tokenizers"}:
        print(f"{output}: tokenized by tokenizers, which is slow, since {reason}")
    for source in dict.fromkeys(shard["source"] for shard in manifest["shards"]):
        _print_prompts(source, [shard for shard in manifest["shards"] if shard["source"] == source])
    if manifest["merged"]:
        print(f"{output}: in {manifest['merged']:,} groups prompt and response share a token, or more, as in TRL")


def _print_prompts(source: str, shards: list[dict[str, Any]]) -> None:
    """Prints what was taken for the prompt of a source, if that is not simply its column."""
    repeated = sum(shard.get("repeated", 0) for shard in shards)
    for note in {shard["note"] for shard in shards if shard.get("note")}:
        print(f"{source}: {note}")
    if repeated:
        print(
            f"{source}: in {repeated:,} rows chosen and rejected begin with the prompt, which so stands twice, as in "
            "TRL; if they hold the prompt already, leave the column prompt out"
        )


@contextmanager
def _no_torch() -> Iterator[None]:
    """Keeps transformers from loading torch, which takes as long as 100,000 pairs do and which nothing here needs."""
    if "torch" in sys.modules:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # the warning that torch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail
    try:
        yield
    finally:
        del sys.modules["torch"]
