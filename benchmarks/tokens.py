"""Texts to ids, and preference pairs to a store for the trainer, against tokenizers, fastokens, gigatoken and TRL.

    python benchmarks/tokens.py --peers PEERS     everything, about half an hour on two cores; 12 GiB, 20 GB of disk
    python benchmarks/tokens.py --small           made-up rows, in a minute: a self-check whose ratios mean nothing

PEERS is a separate environment for peers that are not in the lock; without it they are named and left out:

    uv venv PEERS && uv pip install --python PEERS fastokens gigatoken awkward pyarrow numpy tokenizers

Encoding: each engine is a process that holds the texts in its best form. All take turns, one at a time, from either
end; the first call of a process is cold, the next ones are warm, and the median of all rounds counts. The slow engine,
tokenizers, gets a part of the rows, which give its speed. The time to open the tokenizer, reported apart, includes a
first text of one letter. Preparing: `mipo.tokens.preparation.prepare`, which is `mipo tokens`, against TRL's
`_prepare_dataset` with two processes, from the same Parquet file, each with its tokenizer loaded; also after
`fastokens.patch_transformers()`. Start, imports and tokenizers count only in the seconds of the process. Our engine is
opened before the clock starts, like TRL's; against plain TRL, which opens none, opening counts. TRL runs on the first
number of pairs; its time for the others is extrapolated from its time per row beyond the sample, unless `--long`. First
of all, ids are compared. `texts.py` has the texts, `engines.py` and `preparation.py` the calls of each contender.
"""

import argparse
import datetime
import importlib.util
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import engines
import numpy as np
import preparation
import texts
import verdicts

HERE = Path(__file__).resolve().parent
CORES = 2
TRL, PATCHED = "trl", "trl, fastokens"
WARM = 2  # warm calls after each cold one

Row = dict[str, Any]


class Child:
    """An engine in a process of its own, which waits for commands."""

    def __init__(self, python: str, name: str, tokenizer: Path, texts: Path, rows: int | None) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- it lives as long as the process
        command = [python, str(HERE / "engines.py"), name, "--tokenizer", str(tokenizer), "--texts", str(texts)]
        self.process = subprocess.Popen(
            command + (["--rows", str(rows)] if rows else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=dict(os.environ) if python == sys.executable else foreign(),
        )
        self.opened = self._answer()

    def tell(self, word: str) -> Row:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Row:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            lines = [line.strip() for line in self.log if line.strip(" ^\n")]
            self.close()
            raise RuntimeError(" ".join(lines[-3:])[-200:] or f"exit status {self.process.returncode}")
        answer: Row = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, made-up rows: a self-check")
    parser.add_argument("--into", type=Path, default=HERE / "results", help="folder of the result file")
    parser.add_argument("--peers", type=Path, help="a virtual environment with fastokens and gigatoken")
    parser.add_argument(
        "--shared", type=Path, default=HERE.parents[1] / "shared", help="a folder with data/ and tokenizers/"
    )
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder; needs 20 GB")
    parser.add_argument("--parts", nargs="*", default=["encode", "prepare"], choices=["encode", "prepare"])
    parser.add_argument("--tokenizers", nargs="*", default=["qwen2.5"], help="pairs are prepared with the first")
    parser.add_argument("--rows", type=int, default=1_000_000, help="prompts to encode")
    parser.add_argument("--slow-rows", type=int, default=50_000, help="of these, the ones that tokenizers encodes")
    parser.add_argument("--pairs", type=int, nargs="*", default=[200_000, 1_000_000], help="pairs to prepare")
    parser.add_argument("--shapes", nargs="*", default=list(texts.SHAPES), choices=texts.SHAPES)
    parser.add_argument("--sample", type=int, default=4_000, help="rows whose ids are compared before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", nargs="*", default=[], help="peers that take every number of pairs, once: trl, …")
    args = parser.parse_args(arguments)
    if args.small:
        small = {"tokenizers": ["demo"], "rows": 400, "slow_rows": 100, "pairs": [150, 300], "sample": 150, "rounds": 1}
        vars(args).update(small, shared=None)
    elif not (args.shared / "data").is_dir():
        parser.error(f"{args.shared}: expected a folder with data and tokenizers; give --shared, or --small")
    # All children inherit the affinity, and thread pools follow it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process compiles everything that it imports
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    record: Row = {"made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "small": args.small}
    record |= {"machine": machine(), "encode": [], "prepare": [], "left_out": {}}
    with tempfile.TemporaryDirectory(prefix="mipo-tokens-", dir=args.folder) as name:
        folder = Path(name)
        record["texts"] = make_texts(args, folder)
        for tokenizer in args.tokenizers:
            unpack(args.shared, tokenizer, folder / tokenizer)
            if "encode" in args.parts:
                record["encode"].append(encode(args, folder, tokenizer, record["left_out"]))
        if "prepare" in args.parts:
            record["tokenizer_alone"] = tokenizer_alone(folder / args.tokenizers[0], args.rounds)
            record["prepare"] = prepare(args, folder, record["left_out"])
    record["targets"] = verdicts.judge(record)
    print(verdicts.render(record))
    args.into.mkdir(parents=True, exist_ok=True)
    path = args.into / f"{record['made'][:10]}-tokens.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    return 0


def machine() -> Row:
    """What a reader needs to know to repeat the measurement."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    packages = ("tokenizers", "transformers", "trl", "datasets", "torch", "polars", "pyarrow", "numpy", "fastokens")
    return {
        "processor": named[0].partition(": ")[2] if named else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        **{name: metadata.version(name) for name in packages if importlib.util.find_spec(name)},
    }


def make_texts(args: argparse.Namespace, folder: Path) -> Row:
    """All texts and pairs, made in a process of their own: a child's peak includes its parent's memory."""
    command = [sys.executable, str(HERE / "texts.py"), str(folder), "--rows", str(args.rows)]
    command += ["--sample", str(args.sample), *(["--data", str(args.shared / "data")] if args.shared else [])]
    if "prepare" in args.parts:
        command += ["--pairs", *map(str, args.pairs)]
    facts: Row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return facts


def unpack(shared: Path | None, name: str, folder: Path) -> None:
    """The tokenizer's files, without truncation or padding, which only some engines apply."""
    source = shared / "tokenizers" / name if shared else HERE.parent / "python" / "mipo" / "demo" / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".xz"):
            data = path.read_bytes()
            packed = path.suffix == ".xz"
            (folder / path.name.removesuffix(".xz")).write_bytes(lzma.decompress(data) if packed else data)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": None, "padding": None}))


# Encoding


def encode(args: argparse.Namespace, folder: Path, tokenizer: str, left_out: dict[str, str]) -> Row:
    """All engines with one tokenizer: their ids are compared, then they are timed cold and warm, in turn."""
    readings: dict[str, Row] = {name: {"name": name} for name in engines.ENGINES}
    pythons = {name: python for name in readings if (python := interpreter(name, args.peers))}
    for name in readings.keys() - pythons.keys():
        readings[name]["failure"] = left_out[name] = f"not installed{'' if args.peers else '; give --peers'}"
    compare_ids(args, folder, tokenizer, readings, pythons)
    for turn in range(args.rounds):
        alive: dict[str, Child] = {}
        for name, row in readings.items():
            if "failure" not in row:
                rows = min(args.slow_rows, args.rows) if name == "tokenizers" else None
                alive[name] = Child(pythons[name], name, folder / tokenizer, folder / "texts.arrow", rows)
                opened = alive[name].opened
                row.setdefault("load", []).append(opened.pop("load_seconds"))
                row |= opened
        for call in range(1 + WARM):
            for name in list(alive) if (turn + call) % 2 == 0 else list(alive)[::-1]:
                seen = alive[name].tell("go")
                readings[name].setdefault("warm" if call else "cold", []).append(seen["seconds"])
                readings[name].setdefault("cpu", []).append(seen["cpu_seconds"])
                if not turn and not call:
                    readings[name] |= alive[name].tell("check")
                speed = readings[name]["bytes"] / seen["seconds"] / 1e6
                print(f"{tokenizer}, {name}, call {call + 1}: {speed:.1f} MB/s", flush=True)
        for child in alive.values():
            child.close()
    for row in readings.values():
        for kind in ("cold", "warm") if "cold" in row else ():
            row[f"{kind}_mb_s"] = row["bytes"] / statistics.median(row[kind]) / 1e6
        # The slow engine has not seen all rows, and is compared on the sample.
        same = "checksum" in row and row["rows"] == readings["mipo"].get("rows")
        row["all_as_ours"] = row["checksum"] == readings["mipo"]["checksum"] if same else None
    return {
        "tokenizer": tokenizer,
        "rows": args.rows,
        "sample": min(args.sample, args.rows),
        "engines": [*readings.values()],
    }


def interpreter(name: str, peers: Path | None) -> str | None:
    """The Python that has this engine: ours, or the peers'; None if neither has it."""
    ours = importlib.util.find_spec(name) is not None
    if ours and (peers is None or name in ("mipo", "tokenizers")):
        return sys.executable
    python = peers / "bin" / "python" if peers else None
    return str(python) if python and place(python, name) else sys.executable if ours else None


def place(python: Path, name: str) -> Path | None:
    """The folder of a package of another interpreter."""
    code = f"import importlib.util as u; print((u.find_spec({name!r}) or exit(1)).origin)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=foreign())
    return Path(done.stdout.strip()).parent if done.returncode == 0 else None


def foreign() -> dict[str, str]:
    """The environment of another interpreter, which must not import our packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def compare_ids(
    args: argparse.Namespace, folder: Path, tokenizer: str, readings: dict[str, Row], pythons: dict[str, str]
) -> None:
    """The number of sample rows in which each engine's ids differ from those of tokenizers, or its failure."""
    ids: dict[str, list[bytes]] = {}
    for name, python in pythons.items():
        file = folder / f"{name}.npz"
        try:
            child = Child(python, name, folder / tokenizer, folder / "texts.arrow", args.sample)
            child.tell("go")
            child.tell(str(file))
            child.close()
        except RuntimeError as error:
            if name == "mipo":
                raise
            readings[name]["failure"] = str(error)
            continue
        with np.load(file) as arrays:
            ids[name] = [part.tobytes() for part in np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])]
    for name, rows in ids.items():
        truth = ids.get("tokenizers", rows)
        readings[name]["wrong"] = sum(a != b for a, b in zip(rows, truth, strict=True))


# Preparing


def tokenizer_alone(folder: Path, rounds: int) -> Row:
    """The median process that only loads the tokenizer: the part of `mipo tokens` without pairs."""
    runs = [preparation.run(preparation.ask("tokenizer", folder)) for _ in range(rounds)]
    return {name: statistics.median(run[name] for run in runs) for name in verdicts.FIGURES}


def prepare(args: argparse.Namespace, folder: Path, left_out: dict[str, str]) -> list[Row]:
    """A row for each shape and number of pairs: all contenders, in turn from either end."""
    tokenizer = folder / args.tokenizers[0]
    patch = find_fastokens(args.peers, folder)
    ways: dict[str, Callable[..., Row]] = {
        "mipo": lambda pairs: preparation.prepare_mipo(pairs, tokenizer, fresh(folder / "store")),
        TRL: lambda pairs, **extra: preparation.prepare_trl(pairs, tokenizer, None, **extra),
        PATCHED: lambda pairs, **extra: preparation.prepare_trl(pairs, tokenizer, patch, **extra),
    }
    if patch is None:
        del ways[PATCHED]
        left_out[PATCHED] = "fastokens is not installed; give --peers"
    rows = []
    for shape in args.shapes:
        if shape == "chat" and "chat_template" not in "".join(path.name for path in folder.glob(f"{tokenizer.name}/*")):
            left_out["chat"] = f"{tokenizer.name} has no chat template"
            continue
        wrong, checked = compare_pairs(folder / f"pairs-{shape}-{args.sample}.parquet", ways, left_out)
        for size in args.pairs:
            # A self-check need not prepare a sample of that size again.
            seen = {name: [run] for name, run in checked.items()} if size == args.sample else {}
            for turn in range(0 if seen else args.rounds):
                for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                    # Minutes a million pairs: once, and only if asked for.
                    if name == "mipo" or size == args.pairs[0] or (name in args.long and turn == 0):
                        seen.setdefault(name, []).append(ways[name](folder / f"pairs-{shape}-{size}.parquet"))
                        print(f"{shape}, {size:,} pairs, {name}: {seen[name][-1]['seconds']:.2f} s", flush=True)
            store = preparation.run(preparation.ask("mipo", folder / "store"))["printed"]
            rows.append({"shape": shape, "pairs": size, "sample": args.sample, "store": store, "contenders": []})
            for name, runs in seen.items():
                figures = {figure: statistics.median(run[figure] for run in runs) for figure in verdicts.FIGURES}
                extra = {"sample_seconds": checked[name]["seconds"]}
                extra |= {key: runs[0][key] for key in ("process_seconds", "written_bytes") if key in runs[0]}
                if "engine_seconds" in runs[0]:
                    extra["engine_seconds"] = statistics.median(run["engine_seconds"] for run in runs)
                rows[-1]["contenders"].append(
                    {"name": name, "runs": [run["seconds"] for run in runs], **figures, **extra, "wrong": wrong[name]}
                )
    return rows


def find_fastokens(peers: Path | None, folder: Path) -> Path | None:
    """A folder that adds only fastokens of the peers to our environment; `.` if our environment has it."""
    if importlib.util.find_spec("fastokens"):
        return Path(".")
    origin = place(peers / "bin" / "python", "fastokens") if peers else None
    if origin is None:
        return None
    (folder / "fastokens-alone").mkdir()
    (folder / "fastokens-alone" / "fastokens").symlink_to(origin)
    return folder / "fastokens-alone"


def compare_pairs(
    pairs: Path, ways: dict[str, Callable[..., Row]], left_out: dict[str, str]
) -> tuple[dict[str, int], dict[str, Row]]:
    """In how many rows each contender's ids are not those of TRL, and what each took.

    A peer of TRL that fails is named and taken out of `ways`.
    """
    files = {name: pairs.with_name(f"{place}.ids.parquet") for place, name in enumerate(ways)}
    runs = {"mipo": ways["mipo"](pairs)}
    preparation.run([*preparation.ask("mipo", pairs.parent / "store"), "--ids", str(files["mipo"])])
    runs[TRL] = ways[TRL](pairs, ids=files[TRL])
    if PATCHED in ways:
        try:
            runs[PATCHED] = ways[PATCHED](pairs, ids=files[PATCHED])
        except RuntimeError as error:
            left_out[PATCHED] = str(error)[-150:]
            del ways[PATCHED]
    wrong: dict[str, int] = {TRL: 0}
    for name in runs.keys() - {TRL}:
        command = preparation.ask("differ", files[name], files[TRL])
        wrong[name] = preparation.run(command)["printed"]["differ"]
    return wrong, runs


def fresh(folder: Path) -> Path:
    """The folder, removed: `prepare` would continue an existing store."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
