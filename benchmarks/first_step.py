"""From prepared pairs on disk to the end of the first step: MIPOTrainer on a store beside TRL's DPOTrainer on Arrow.

    python benchmarks/first_step.py [--rows 1000000] [--rounds 3] [--into DIR]
    python benchmarks/first_step.py --small      # a self-check, whose times mean nothing

Both get the same token ids, the demo's model and a batch of 4, with the reference in the step: TRL as a saved
`datasets.Dataset` of lists, which is the best that it can be given, and mipo as the store that `mipo tokens` writes.
mipo also trains with log-probs of a reference from a table, as an earlier training keeps them; its others load the
reference within the time. Each is a process of its own, in turn. Seconds are from opening the pairs to the end of the
first step, without imports and the policy. Memory is what the process holds then above what it held before: all of it,
and without pages of mapped files. The log-probs of the batch are compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT, RESPONSE = (60, 100), (20, 40)  # tokens, from and below
WORDS = (5, 60)  # of the demo's tokenizer
CONTENDERS = ("TRL", "mipo", "mipo, reference kept")


def write(folder: Path, rows: int) -> None:
    """The same random pairs as a store, with a column of log-probs beside it, and as a data set of lists."""
    import datasets
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mipo import demo
    from mipo.io import arrow
    from mipo.models.loading import load_tokenizer
    from mipo.tokenizer.encoder import fingerprint
    from mipo.tokenizer.table import TokenTable
    from mipo.tokens.store import Groups, PairStore
    from mipo.trainer.packing import REF

    dice = np.random.default_rng(0)

    def table(count: int, sizes: tuple[int, int]) -> TokenTable:
        offsets = np.concatenate([[0], np.cumsum(dice.integers(*sizes, size=count))])
        return TokenTable(((offsets, dice.integers(*WORDS, size=offsets[-1], dtype=np.uint32)),))

    prompts, responses = table(rows, PROMPT), table(2 * rows, RESPONSE)
    numbers = np.arange(rows, dtype=np.uint64)
    groups = Groups(numbers, numbers, numbers, np.arange(rows + 1), numbers + np.uint64(rows))
    of_demo = fingerprint(load_tokenizer(str(demo.HERE / "model")))
    PairStore(prompts, responses, (groups,), 0, of_demo).save(folder / "store")
    pq.write_table(pa.table({name: dice.normal(-50, 5, rows) for name in REF}), folder / "reference.parquet")
    offsets, ids = responses.pieces[0]
    sides = (prompts.pieces[0], (offsets[: rows + 1], ids), (offsets[rows:], ids))
    lists = [arrow.lists(*side) for side in sides]
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    datasets.Dataset(pa.table(dict(zip(names, lists, strict=True)))).save_to_disk(str(folder / "dataset"))


def first_step(name: str, folder: Path) -> dict[str, Any]:
    """What one process measures of itself."""
    import datasets
    import polars as pl
    from transformers import TrainerCallback
    from trl import DPOTrainer

    from mipo import PairStore, demo
    from mipo.models.loading import load_model, load_tokenizer
    from mipo.trainer import MIPOConfig, MIPOTrainer
    from mipo.trainer.reference import with_columns

    class PlainTrainer(DPOTrainer):  # type: ignore[misc]
        """TRL's trainer on rows that are tokenized already."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    seen: dict[str, Any] = {}

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["seconds"] = time.perf_counter() - started
            seen.update({kind: size - before[kind] for kind, size in memory().items()})

    model, tokenizer = load_model(str(demo.HERE / "model")), load_tokenizer(str(demo.HERE / "model"))
    args = MIPOConfig(
        output_dir=str(folder / "out"), use_cpu=True, max_steps=1, save_strategy="no", disable_tqdm=True,
        precompute_ref_log_probs=name == CONTENDERS[2], report_to=[], logging_steps=1,
    )  # fmt: skip
    before, started = memory(), time.perf_counter()
    if name == "TRL":
        rows, kind = datasets.load_from_disk(str(folder / "dataset")), PlainTrainer
    else:
        rows, kind = PairStore.open(folder / "store").to_trl(), MIPOTrainer
    if name == CONTENDERS[2]:
        kept = pl.read_parquet(folder / "reference.parquet")
        rows = with_columns(rows, {column: kept[column].to_arrow() for column in kept.columns})
    trainer = kind(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[Look()])
    trainer.train()
    return {"rows": len(rows), "logps": trainer.state.log_history[0]["logps/chosen"], **seen}


def memory() -> dict[str, int]:
    """Bytes of this process in memory, and those that are no pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 for name, key in (("bytes", "VmRSS"), ("own_bytes", "RssAnon"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, help="folder for <date>-first-step.json")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(first_step(arguments.contender, arguments.folder)))
        return 0
    if arguments.small:
        arguments.rows, arguments.rounds = 1_000, 1
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), arguments.rows)
        for turn in range(arguments.rounds):
            for name in CONTENDERS[:: 1 if turn % 2 == 0 else -1]:
                command = [sys.executable, __file__, "--contender", name, "--folder", temporary]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{name} failed:\n{done.stderr[-2_000:]}")
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    logps = [row["logps"] for rows in results.values() for row in rows]
    if max(logps) - min(logps) > 1e-3:
        raise RuntimeError(f"expected the same batch and log-probs from all, got {logps}")
    print(f"{arguments.rows:,} pairs, medians of {arguments.rounds}{'; times mean nothing' * arguments.small}\n")
    print("| trainer | s to the first step | TRL / this | MiB | MiB without mapped files |\n|---|---|---|---|---|")
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "bytes", "own_bytes")}
        for name, rows in results.items()
    }
    for name, row in medians.items():
        ratio = medians["TRL"]["seconds"] / row["seconds"]
        sizes = " | ".join(f"{row[key] / 2**20:,.0f}" for key in ("bytes", "own_bytes"))
        print(f"| {name} | {row['seconds']:.2f} | {ratio:.2f} | {sizes} |")
    if arguments.into:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record = {"date": date, "machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": arguments.rows,
                  "self_check": arguments.small, "results": results}  # fmt: skip
        (arguments.into / f"{date}-first-step.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
