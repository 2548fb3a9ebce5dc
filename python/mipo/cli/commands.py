"""The command line: one command a room, whose options are the keyword arguments of the room's function.

Knows argument parsing and how an error looks. Loads a room only when its command is called.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mipo.cli.console import (
    prompts_on_disk,
    read_held_out,
    read_prompts,
    read_table,
    say,
    scan_table,
    tell,
    write_table,
)
from mipo.cli.options import HELP, add_options, given
from mipo.errors import InputError, MipoError

# Set before torch loads, where the user did not: threads that wait must sleep, since waiting awake takes the core from
# whatever else runs (256 answers of the demo's model beside another job: 9 s, or 0.7; 2026-11-24). And TRL would report
# each training to its authors.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_TELEMETRY": "1"}
SHOWN = 3  # overlaps that `mipo overlap` prints; all of them are in the file


def _run(args: argparse.Namespace) -> None:
    from mipo.run import preview, walk

    if args.dry_run:
        print(preview.dry_run(args.recipe, seed=args.seed))
    else:
        walk.run_recipe(args.recipe, **given(args, walk.run_recipe))


def _demo(args: argparse.Namespace) -> None:
    from mipo.demo import run_demo

    run_demo(**given(args, run_demo))


def _overlap(args: argparse.Namespace) -> None:
    from mipo.io import tables
    from mipo.pairing.judge import dropped
    from mipo.prompts.overlap import overlaps

    tables.check_name(args.output)
    prompts = read_prompts(args)
    found = overlaps(prompts, read_held_out(args), **given(args, overlaps))
    write_table(found, args.output)
    for row in found.head(SHOWN).iter_rows(named=True):
        print(f"── prompt {row['prompt_id']} {row['reason']}, {row['held_out_id']} ({row['share']:.0%})")
        print(f"{row['prompt']}\n── held out\n{row['held_out']}\n")
    tell(dropped(found).items(), prompts.height, args.output)


def _contrast(args: argparse.Namespace) -> None:
    from mipo import contrast
    from mipo.io import cluster, tables
    from mipo.negatives import on_ray
    from mipo.pairing.judge import dropped

    if args.address and args.engine != "ray":
        raise InputError("--address is that of a Ray cluster; give --engine ray with it")
    tables.check_name(args.output)
    prompts, how = read_prompts(args), given(args, contrast)
    how["held_out"] = read_held_out(args) if args.held_out else None
    if args.engine == "ray":
        ours, usual = inspect.signature(on_ray.contrast).parameters, inspect.signature(contrast).parameters
        for name in [name for name in how if name not in ours]:
            if repr(how.pop(name)) != repr(usual[name].default):
                raise InputError(f"--engine ray knows no --{name.replace('_', '-')}; leave it out, or draw with local")
        with cluster.connected(args.address):
            drawn = cluster.gather(on_ray.contrast(cluster.spread(prompts), **how))
    else:
        drawn = contrast(prompts, **how)
    write_table(drawn, args.output)
    tell(dropped(drawn).items(), drawn.height, args.output)


def _generate(args: argparse.Namespace) -> None:
    from mipo.models.model import Model
    from mipo.responses.ask import ask
    from mipo.responses.generation import generate

    model = Model(args.model, trust_remote_code=args.trust_remote_code)
    counterparts = read_table(args.counterparts) if args.counterparts else None
    asked = ask(read_prompts(args), counterparts, chat=model.is_chat)
    generate(asked.prompts, model, folder=args.output, **given(args, generate))
    print(f"responses in {args.output}")


def _pairs(args: argparse.Namespace) -> None:
    from mipo.pairing.join import join

    with prompts_on_disk(args) as prompts:
        tables = (prompts, scan_table(args.counterparts), scan_table(args.responses))
        rows, _, lost = join(*tables, args.output, **given(args, join))
    tell(lost.items(), rows, args.output)


def _tokens(args: argparse.Namespace) -> None:
    from mipo.io import sources
    from mipo.models.loading import load_tokenizer
    from mipo.tokens.preparation import prepare

    for source in args.pairs:
        sources.check(source)

    with _no_torch() if args.own_process else nullcontext():
        tokenizer = load_tokenizer(args.tokenizer)
    with _ray(args) as each:
        told = prepare(args.pairs, tokenizer, args.output, each=each, **given(args, prepare))
    tell(told["dropped"].items(), told["rows_in"], args.output)
    for why in {shard["why"] for shard in told["shards"] if shard["encoder"] == "tokenizers"}:
        print(f"{args.output}: tokenized by tokenizers, which is slow, since {why}")
    if told["merged"]:
        print(f"{args.output}: in {told['merged']:,} groups prompt and response share a token, or more, as in TRL")


@contextmanager
def _no_torch() -> Iterator[None]:
    """transformers loads torch, which takes as long as to tokenize 100,000 pairs; here nothing needs it."""
    if "torch" in sys.modules:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        yield
    finally:
        del sys.modules["torch"]


@contextmanager
def _ray(args: argparse.Namespace) -> Iterator[Any]:
    """What does the work on Ray, or None for this machine."""
    if args.engine != "ray":
        if args.address:
            raise InputError("--address is that of a Ray cluster; give --engine ray with it")
        yield None
        return
    from mipo.io import cluster

    with cluster.connected(args.address):
        yield cluster.perform


def _train(args: argparse.Namespace) -> None:
    from trl import TrlParser

    from mipo.io import files
    from mipo.models.loading import load_tokenizer
    from mipo.tokens.store import PairStore
    from mipo.trainer.config import MIPOConfig
    from mipo.trainer.training import train

    (config,) = TrlParser(MIPOConfig).parse_args_and_config(
        args=["--output_dir", str(args.output.with_name(f"{args.output.name}-checkpoints")), *args.rest]
    )
    lora = {"r": args.lora_r, "target_modules": "all-linear"} if args.lora_r else None
    tokenizer = load_tokenizer(args.model, trust_remote_code=config.trust_remote_code)
    store = PairStore.open(args.tokens)
    log = train(store, args.model, tokenizer, args.output, args=config, lora=lora)
    if int(os.environ.get("RANK", "0")) == 0:
        files.write_json(args.output / "training.json", log)
        print(f"model in {args.output}")


def _evaluate(args: argparse.Namespace) -> None:
    from mipo.evaluation.measurement import evaluate
    from mipo.io import files
    from mipo.models.model import Model
    from mipo.tokens.store import PairStore

    rule = {k: v for k, v in (("answer", args.answer), ("pattern", args.pattern)) if v}
    held_out = PairStore.open(args.held_out) if args.held_out else None
    how = {n: value for n, value in given(args, evaluate).items() if n not in ("answers", "held_out", "rule")}
    model = Model(args.model, trust_remote_code=args.trust_remote_code)
    side, _ = evaluate(model, read_prompts(args), held_out, rule=rule or None, **how)
    for name, figure in side.items():
        print(f"{name:16} {figure['value']:9.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]")
    if args.output:
        files.write_json(args.output, side)


def _report(args: argparse.Namespace) -> None:
    from mipo.report import page

    how = given(args, page.write)
    written = page.write(args.run, **how)
    print(f"{page.table(args.run, beside=how['beside'])}\n\nreport: {written}")


def _export(args: argparse.Namespace) -> None:
    from mipo.pairing.export import export
    from mipo.pairing.stored import StoredPairs

    export(StoredPairs.find(args.pairs) or scan_table(args.pairs), args.output, **given(args, export))
    print(f"pairs in {args.output}")


def _doctor(args: argparse.Namespace) -> None:
    from mipo.cli.doctor import examine

    print(examine())


# name: (what it does, its work, the functions whose keyword arguments are its options, its own arguments)
Command = tuple[str, Callable[[argparse.Namespace], None], tuple[str, ...], tuple[tuple[str, dict[str, Any]], ...]]
SOURCE = ("prompts", {"help": "JSONL, Parquet or CSV file, or a Hugging Face dataset"})
OUTPUT = ("--output", {"type": Path, "required": True, "help": HELP["output"]})
HELD_OUT = ("--held-out", {"help": "a file of prompts, with the same columns, that must not be trained on"})
WHERE = "where the work is done: here, or on Ray"
ENGINE = (
    ("--engine", {"choices": ("local", "ray"), "default": "local", "help": WHERE}),
    ("--address", {"help": "a Ray cluster's, as auto or ray://HOST:10001; without it one is started on this machine"}),
)
COUNTERPARTS = ("--counterparts", {"type": Path, "help": "what `mipo contrast` wrote"})
MODEL = (
    ("--model", {"required": True, "help": "a folder or a hub name"}),
    ("--trust-remote-code", {"action": "store_true", "help": HELP["trust_remote_code"]}),
)
COMMANDS: dict[str, Command] = {
    "run": (
        "from a recipe to a trained model and a report",
        _run,
        ("mipo.run.walk:run_recipe",),
        (
            ("recipe", {"help": "a YAML file"}),
            ("--dry-run", {"action": "store_true", "help": "show three pairs and stop"}),
        ),
    ),
    "demo": (
        "the whole way on a tiny model, on this machine, in about two minutes",
        _demo,
        ("mipo.demo:run_demo",),
        (),
    ),
    "overlap": (
        "find the prompts that occur in a held-out set",
        _overlap,
        ("mipo.prompts.rows:read", "mipo.prompts.overlap:overlaps"),
        (SOURCE, (HELD_OUT[0], {**HELD_OUT[1], "required": True}), OUTPUT),
    ),
    "contrast": (
        "draw the counter-prompts",
        _contrast,
        ("mipo.prompts.rows:read", "mipo.negatives.draw:contrast"),
        (SOURCE, HELD_OUT, OUTPUT, *ENGINE),
    ),
    "generate": (
        "let a model answer prompts and counter-prompts",
        _generate,
        ("mipo.prompts.rows:read", "mipo.responses.generation:generate"),
        (SOURCE, *MODEL, COUNTERPARTS, OUTPUT),
    ),
    "pairs": (
        "join prompts, counterparts and responses to preference pairs",
        _pairs,
        ("mipo.prompts.rows:read", "mipo.pairing.join:join"),
        (
            SOURCE,
            (COUNTERPARTS[0], {**COUNTERPARTS[1], "required": True}),
            ("--responses", {"type": Path, "required": True, "help": "what `mipo generate` wrote"}),
            OUTPUT,
        ),
    ),
    "tokens": (
        "tokenize pairs as TRL would",
        _tokens,
        ("mipo.tokens.preparation:prepare",),
        (
            (
                "pairs",
                {"nargs": "+", "help": "runs, or preference pairs (prompt, chosen, rejected): files or datasets"},
            ),
            ("--tokenizer", {"required": True, "help": "a model's folder or hub name"}),
            OUTPUT,
            *ENGINE,
        ),
    ),
    "train": (
        "train on tokenized pairs; takes every flag of trl.DPOConfig",
        _train,
        (),
        (
            ("--model", {"required": True, "help": "a folder or a hub name"}),
            ("--tokens", {"type": Path, "required": True, "help": "what `mipo tokens` wrote"}),
            ("--lora-r", {"type": int, "help": "train a LoRA adapter of this rank on all linear layers"}),
            OUTPUT,
        ),
    ),
    "evaluate": (
        "measure the information interval of a model on prompts",
        _evaluate,
        ("mipo.prompts.rows:read", "mipo.evaluation.measurement:evaluate"),
        (
            SOURCE,
            *MODEL,
            ("--held-out", {"type": Path, "help": "tokenized pairs whose log-probs are measured"}),
            ("--answer", {"help": "column with the right answer"}),
            ("--pattern", {"help": "regular expression with a group `answer` that a response must match"}),
            ("--output", {"type": Path, "help": "a JSON file"}),
        ),
    ),
    "report": (
        "write a run's page anew and print its table",
        _report,
        ("mipo.report.page:write",),
        (("run", {"type": Path, "help": "a run folder"}),),
    ),
    "export": (
        "write pairs for another trainer",
        _export,
        ("mipo.pairing.export:export",),
        (("pairs", {"type": Path, "help": "a run's folder, or a file of pairs"}), OUTPUT),
    ),
    "doctor": ("what is installed, and which paths will be taken", _doctor, (), ()),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one line on standard error about what is wrong."""
    own = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    args = _parse(arguments)
    args.own_process = own
    try:
        args.work(args)
    except (MipoError, ModuleNotFoundError) as error:
        if os.environ.get("MIPO_TRACEBACK"):
            raise
        print(f"mipo {arguments[0]}: error: {say(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        print(f"mipo {arguments[0]}: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nmipo {arguments[0]}: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mipo", description="Mutual Information Preference Optimization.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, (about, work, functions, own) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        command.set_defaults(work=work)
        if name == asked:
            add_options(command, functions, own)
    if asked == "train":
        args, args_rest = parser.parse_known_args(arguments)
        args.rest = args_rest
    else:
        args = parser.parse_args(arguments)
    if args.version:
        from importlib.metadata import version

        print(f"mipo {version('mipo')}")
        raise SystemExit(0)
    if args.command is None:
        parser.print_help()
        raise SystemExit(2)
    return args
