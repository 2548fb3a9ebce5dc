"""One engine that encodes texts, in a process of its own, which reads commands from its input, a line each.

    python benchmarks/engines.py mipo --tokenizer FOLDER --texts texts.arrow [--rows N]

Answers with a line of JSON: first what it loaded, then to each line of its input. `go` encodes all texts, `check` sums
up the ids of the last `go`, and any other line is a file to write these ids to. The engine may be one of an interpreter
that has no mipo. Each gets the texts in its best form, which is not timed, and may return the ids in
a form of its own; only `check` asks for them as flat arrays.
"""

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Engine(NamedTuple):
    """How to call an engine: texts in its own form, its result, and lengths and ids of the result."""

    take: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    flat: Callable[[Any], tuple[Any, Any]]


def open_mipo(folder: Path) -> Engine:
    """Arrow in, a `TokenTable` out; with a tokenizer of transformers, which most people have."""
    import mipo
    from mipo.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    return Engine(
        lambda texts: texts,
        lambda texts: mipo.encode(texts, tokenizer, add_special_tokens=False),
        lambda table: (table.lengths(), table.ids[: table.lengths().sum()]),
    )


def open_tokenizers(folder: Path) -> Engine:
    """A list of str in, a list of `Encoding` out; making an array of it is not timed."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Engine(
        lambda texts: texts.to_pylist(),
        lambda texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
        lambda rows: (
            np.array([len(row.ids) for row in rows]),
            np.concatenate([np.empty(0, np.uint32), *(np.array(row.ids, np.uint32) for row in rows)]),
        ),
    )


def open_fastokens(folder: Path) -> Engine:
    """A list of str in, flat ids and offsets out."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str((folder / "tokenizer.json").read_text())
    return Engine(
        lambda texts: texts.to_pylist(),
        tokenizer.encode_batch_flat,
        lambda result: (np.diff(np.frombuffer(result[1], np.uint64)), np.frombuffer(result[0], np.uint32)),
    )


def open_gigatoken(folder: Path) -> Engine:
    """Arrow in and out, by way of awkward."""
    import awkward as ak
    from gigatoken.gigatoken_rs import load_hf_json

    tokenizer = load_hf_json((folder / "tokenizer.json").read_bytes())
    return Engine(
        ak.from_arrow,
        tokenizer.encode_batch,
        lambda result: (ak.to_numpy(ak.num(result)), ak.to_numpy(ak.flatten(result))),
    )


ENGINES = {"mipo": open_mipo, "tokenizers": open_tokenizers, "fastokens": open_fastokens, "gigatoken": open_gigatoken}
PACKAGES = {"mipo": ("polars", "transformers"), "gigatoken": ("gigatoken", "awkward")}


def load(path: Path, rows: int | None) -> pa.Array:
    """The first texts of the file as one array in memory."""
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["text"]
    return pa.concat_arrays(column.slice(0, rows).chunks)


def flat(engine: Engine, result: Any) -> tuple[Any, Any]:
    """Lengths and ids of an engine's result, in one dtype for all engines."""
    lengths, ids = engine.flat(result)
    return np.ascontiguousarray(lengths, np.int64), np.ascontiguousarray(ids).astype(np.uint32, copy=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ENGINES))
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with tokenizer.json")
    parser.add_argument("--texts", type=Path, required=True, help="an Arrow file with the column text")
    parser.add_argument("--rows", type=int, help="number of texts, from the first on")
    args = parser.parse_args()
    # What an engine prints goes to the log, so that standard output has only answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    texts = load(args.texts, args.rows)
    rows, size = len(texts), int(pc.sum(pc.binary_length(texts)).as_py() or 0)
    started = time.perf_counter()
    engine = ENGINES[args.name](args.tokenizer)
    # One letter, so that everything that the first text opens, threads too, counts as loading.
    engine.encode(engine.take(pa.array(["a"], pa.large_string())))
    seconds = time.perf_counter() - started
    texts = engine.take(texts)
    versions = {name: metadata.version(name) for name in PACKAGES.get(args.name, (args.name,))}
    answer(rows=rows, bytes=size, load_seconds=seconds, versions=versions, python=sys.version.split()[0])
    result = None
    for line in sys.stdin:
        word = line.strip()
        if word == "go":
            result = None
            started, used = time.perf_counter(), time.process_time()
            result = engine.encode(texts)
            answer(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - used)
            continue
        lengths, ids = flat(engine, result)
        if word == "check":
            answer(tokens=len(ids), checksum=zlib.crc32(ids, zlib.crc32(lengths)))
        else:
            np.savez(word, lengths=lengths, ids=ids)
            answer(tokens=len(ids))
    return 0


if __name__ == "__main__":
    sys.exit(main())
