"""`mipo contrast`: the counter-prompts, drawn here or on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mipo.cli.console import print_rows, read_prompts
from mipo.cli.engine import connected
from mipo.cli.options import Address, Engine, HeldOut, Output, Prompts, keywords, mirrors
from mipo.errors import InputError
from mipo.io import cluster, tables
from mipo.negatives import draw, on_ray
from mipo.pairing.judge import dropped
from mipo.prompts.rows import read

if TYPE_CHECKING:
    import polars as pl


@mirrors(read, draw.contrast)
def command(
    prompts: Prompts,
    /,
    *,
    output: Output,
    held_out: HeldOut | None = None,
    engine: Engine = "local",
    address: Address = None,
    **options: Any,
) -> None:
    """Writes the counter-prompts."""
    tables.check_name(output)
    with connected(engine, address):
        table, settings = read_prompts(prompts, options), keywords(draw.contrast, options)
        if held_out is not None:
            settings["held_out"] = read(held_out, **keywords(read, options)).frame
        drawn = draw.contrast(table, **settings) if engine == "local" else _on_ray(table, settings)
    tables.write_frame(drawn, output)
    print_rows(output, drawn.height, dropped(drawn))


def _on_ray(table: pl.DataFrame, settings: Mapping[str, Any]) -> pl.DataFrame:
    for name in settings.keys() - keywords(on_ray.contrast, settings).keys():
        raise InputError(f"--engine ray has no --{name.replace('_', '-')}; leave it out, or draw with --engine local")
    return cluster.gather(on_ray.contrast(cluster.spread(table), **settings))
