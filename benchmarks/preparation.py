"""Preference pairs from a Parquet file to token ids that a trainer can read: by `mipo tokens`, and by TRL.

    python benchmarks/preparation.py trl PAIRS --tokenizer FOLDER [--ids FILE] [--fastokens]
    python benchmarks/preparation.py prepare PAIRS STORE --tokenizer FOLDER
    python benchmarks/preparation.py mipo STORE [--ids FILE]
    python benchmarks/preparation.py tokenizer FOLDER

Knows how to measure a process's time and memory, and how to call TRL. As a program it is one process that prepares with
TRL, opens our store, or only loads the tokenizer, and prints its measurements as a line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
PROCESSES = 2  # TRL's dataset_num_proc
EVERY = 0.02  # seconds between two looks at a process's memory

Row = dict[str, Any]


# What is run, from outside


def prepare_mipo(pairs: Path, tokenizer: Path, store: Path) -> Row:
    """What `mipo tokens` does, in a process of its own; its seconds are measured like TRL's."""
    seen = run([*ask("prepare", pairs, store), "--tokenizer", str(tokenizer)])
    return {**seen, "process_seconds": seen["seconds"], **seen.pop("printed")}


def prepare_trl(pairs: Path, tokenizer: Path, fastokens: Path | None, ids: Path | None = None) -> Row:
    """TRL in a process of its own, and with nothing in its cache; `fastokens` is a folder to import that from, or `.`.

    Its seconds are those of reading the file and of `_prepare_dataset`; Python's start, the imports and the tokenizer
    are only in process_seconds.
    """
    paths = [str(fastokens)] * (fastokens is not None) + [os.environ.get("PYTHONPATH", "")]
    extra = ["--fastokens"] * (fastokens is not None) + (["--ids", str(ids)] if ids else [])
    with tempfile.TemporaryDirectory(dir=pairs.parent) as cache:
        quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": cache}
        environment = {**os.environ, **quiet, "HF_DATASETS_CACHE": cache, "PYTHONPATH": os.pathsep.join(paths)}
        seen = run([*ask("trl", pairs), "--tokenizer", str(tokenizer), *extra], environment)
    return {**seen, "process_seconds": seen["seconds"], **seen.pop("printed")}


def ask(task: str, *arguments: str | Path) -> list[str]:
    """The command that runs a task of this file in a process of its own."""
    return [sys.executable, __file__, task, *map(str, arguments)]


def run(command: list[str], environment: dict[str, str] | None = None) -> Row:
    """Seconds, cpu_seconds and the peaks of a process and its children; printed: the JSON in its last line, if any.

    peak_bytes is the kernel's largest resident size of any one of the processes, mapped files included.
    anonymous_bytes is the largest sum of their own memory, sampled every 20 ms; memory that forked processes share
    counts in each. Raises RuntimeError with the last lines of a process that failed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started, anonymous = time.monotonic(), 0
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            anonymous = max(anonymous, _anonymous(child.pid))
            time.sleep(EVERY)
        seconds = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(ended[1])
        out.seek(0)
        err.seek(0)
        printed, logged = out.read().splitlines(), err.read().split()
    if child.returncode:
        raise RuntimeError(f"exit status {child.returncode}: {' '.join([*printed[-3:], *logged])[-400:]}")
    usage = ended[2]
    result = json.loads(printed[-1]) if printed and printed[-1].startswith("{") else {}
    return {
        "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024,
        "anonymous_bytes": anonymous, "printed": result,
    }  # fmt: skip


def _anonymous(process: int) -> int:
    """RssAnon of a process and its descendants; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        below = [Path(task, "children").read_text().split() for task in Path(f"/proc/{process}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")]
    return sum(own) + sum(_anonymous(int(child)) for children in below for child in children)


# One process


def trl(pairs: Path, tokenizer_folder: Path, use_fastokens: bool, ids: Path | None) -> Row:
    """TRL's own `_prepare_dataset`, on a stand-in for the trainer, from the file to its cache files."""
    versions = {name: metadata.version(name) for name in ("trl", "datasets", "transformers", "tokenizers")}
    if use_fastokens:
        import fastokens

        fastokens.patch_transformers()
    from datasets import load_dataset
    from trl import DPOTrainer

    from mipo.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(tokenizer_folder))
    backend = type(tokenizer.backend_tokenizer).__module__
    if use_fastokens != backend.startswith("fastokens"):
        raise RuntimeError(f"the tokenizer's engine is of {backend}, with fastokens {use_fastokens}")
    options: Any = SimpleNamespace(dataset_num_proc=PROCESSES, max_length=None, truncation_mode="keep_start")
    stand_in: Any = SimpleNamespace(_tokenizer=tokenizer)
    started = time.perf_counter()
    read = load_dataset("parquet", data_files=str(pairs), split="train")
    prepared = DPOTrainer._prepare_dataset(stand_in, read, tokenizer, options, "train")
    seconds = time.perf_counter() - started
    files = {file["filename"] for file in prepared.cache_files}
    written = sum(Path(file).stat().st_size for file in files)
    _write(prepared, ids)
    return {
        "seconds": seconds,
        "rows": len(prepared),
        "written_bytes": written,
        "versions": versions,
        "engine": backend,
    }


def prepare(pairs: Path, folder: Path, tokenizer_folder: Path) -> Row:
    """Our store, from the file to its own; the engine is opened before, like TRL's, and timed apart."""
    from mipo.models.loading import load_tokenizer
    from mipo.tokenizer.encoder import open_encoder
    from mipo.tokens.preparation import prepare

    tokenizer = load_tokenizer(str(tokenizer_folder))
    started = time.perf_counter()
    open_encoder(tokenizer)
    opened = time.perf_counter()
    manifest = prepare([pairs], tokenizer, folder, progress=None)
    ended = time.perf_counter()
    return {
        "seconds": ended - opened, "engine_seconds": opened - started, "rows": manifest["rows_in"],
        "encoder": manifest["shards"][0]["encoder"],
    }  # fmt: skip


def mipo(folder: Path, ids: Path | None) -> Row:
    """The contents of a store that `mipo tokens` wrote."""
    from mipo import PairStore

    PairStore.open(folder)  # imports are not the store's time
    started = time.perf_counter()
    store = PairStore.open(folder)
    seconds = time.perf_counter() - started
    if ids:
        _write(store.to_trl(), ids)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"open_seconds": seconds, "rows": len(store), "merged": store.merged, "written_bytes": written}


def tokenizer(folder: Path) -> Row:
    """Loads the tokenizer as `mipo tokens` does, and nothing else."""
    from mipo.models.loading import load_tokenizer

    return {"words": len(load_tokenizer(str(folder)))}


def _write(dataset: Any, path: Path | None) -> None:
    """Writes the ids of a dataset to a Parquet file, in one type for all libraries."""
    if path is None:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.schema({name: pa.large_list(pa.uint32()) for name in COLUMNS})
    # As the trainer reads them: the stored columns may be row numbers.
    rows = dataset[:]
    pq.write_table(pa.table({name: list(rows[name]) for name in COLUMNS}, schema=kind), path)


def differ(one: Path, other: Path) -> Row:
    """The number of rows in which two files of `_write` differ, and the first of them."""
    import polars as pl

    ours, theirs = (pl.read_parquet(path) for path in (one, other))
    if ours.height != theirs.height:
        return {"rows": ours.height, "differ": abs(ours.height - theirs.height), "first": None}
    unlike = [ours[name].ne_missing(theirs[name]) for name in COLUMNS]
    rows = (unlike[0] | unlike[1] | unlike[2]).arg_true()
    return {"rows": ours.height, "differ": len(rows), "first": rows[0] if len(rows) else None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("trl", "prepare", "mipo", "tokenizer", "differ"))
    parser.add_argument("path", type=Path, help="pairs, a store, a tokenizer's folder, or a file of ids")
    parser.add_argument("other", type=Path, nargs="?", help="differ: the other file of ids; prepare: the store")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--ids", type=Path, help="a Parquet file for the ids of all rows, not timed")
    parser.add_argument("--fastokens", action="store_true", help="after fastokens.patch_transformers()")
    args = parser.parse_args()
    result = {
        "trl": lambda: trl(args.path, args.tokenizer, args.fastokens, args.ids),
        "prepare": lambda: prepare(args.path, args.other, args.tokenizer),
        "mipo": lambda: mipo(args.path, args.ids),
        "tokenizer": lambda: tokenizer(args.path),
        "differ": lambda: differ(args.path, args.other),
    }[args.what]()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
