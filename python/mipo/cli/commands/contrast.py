"""`mipo contrast`: the counter-prompts, drawn here or on Ray."""

from collections.abc import Mapping
from typing import Any

from mipo.cli.console import print_rows, read_held_out, read_prompts
from mipo.cli.options import Address, Engine, HeldOut, HeldOutSplit, Output, Prompts, keywords, mirrors
from mipo.cli.ray import check_engine, connected
from mipo.errors import InputError
from mipo.io import cluster, outputs, tables
from mipo.negatives import draw, on_ray
from mipo.pairing.filter import dropped
from mipo.prompts.rows import read


@mirrors(read, draw.contrast)
def command(
    prompts: Prompts,
    /,
    *,
    output: Output,
    held_out: HeldOut | None = None,
    held_out_split: HeldOutSplit = None,
    engine: Engine = "local",
    address: Address = None,
    **options: Any,
) -> None:
    """Writes the counter-prompts."""
    check_engine(engine, address)
    tables.check_name(output)
    outputs.check_file(output)
    settings = keywords(draw.contrast, options | ({} if held_out is None else {"held_out": held_out}))
    if engine == "ray":
        _check_on_ray(settings)
    table = read_prompts(prompts, options)
    if held_out is not None:
        settings["held_out"] = read_held_out(held_out, held_out_split, options)
    with connected(engine, address):
        if engine == "ray":
            drawn = cluster.gather(on_ray.contrast(cluster.spread(table), **settings))
        else:
            drawn = draw.contrast(table, **settings)
    tables.write([drawn], output)
    print_rows(output, drawn.height, dropped(drawn))


def _check_on_ray(settings: Mapping[str, Any]) -> None:
    unknown = settings.keys() - keywords(on_ray.contrast, settings).keys()
    if unknown:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unknown))
        raise InputError(f"--engine ray has no {names}; leave it out, or draw with --engine local")
