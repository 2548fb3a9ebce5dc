"""`mipo overlap`: the prompts that occur in a held-out set."""

from typing import Any

from mipo.cli.console import print_rows, read_held_out, read_prompts
from mipo.cli.options import HeldOut, HeldOutSplit, Output, Prompts, keywords, mirrors
from mipo.io import outputs, tables
from mipo.pairing.filter import dropped
from mipo.prompts.overlap import overlaps
from mipo.prompts.rows import read

SHOWN = 3  # overlaps that are printed; the file has all of them


@mirrors(read, overlaps)
def command(
    prompts: Prompts, /, *, held_out: HeldOut, held_out_split: HeldOutSplit = None, output: Output, **options: Any
) -> None:
    """Writes the overlaps, and prints the first of them with their held-out prompts."""
    tables.check_name(output)
    outputs.check_file(output)
    table = read_prompts(prompts, options)
    tests = read_held_out(held_out, held_out_split, options)
    overlapping = overlaps(table, tests, **keywords(overlaps, options))
    tables.write([overlapping], output)
    for row in overlapping.head(SHOWN).iter_rows(named=True):
        print(f"── prompt {row['prompt_id']} {row['reason']}, {row['held_out_id']} ({row['share']:.0%})")
        print(f"{row['prompt']}\n── held out\n{row['held_out']}\n")
    print_rows(output, table.height, dropped(overlapping))
