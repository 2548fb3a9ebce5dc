"""Near-duplicates and the leakage guard against other libraries, on varied real prompts.

    python benchmarks/overlap.py [--rows 100000] [--threshold 0.8] [--data DATA] [--into benchmarks/results]
    python benchmarks/overlap.py --small        # a self-check of the results, not of the speed

Same texts, same sets of character 5-grams, same threshold for all. Contenders: every pair in Python (the truth, for few
rows), mipo, datasketch (MinHash and LSH, with and without verification), rensa (the same in Rust). Each runs in a
process of its own, after a call on two texts, and reports seconds, seconds of all cores, and the peak memory that it
adds. Agreement is on pairs of rows in one cluster. The peers' n-grams are made in Python, as by their users; a row of
its own has the seconds for that.
"""

import argparse
import collections
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import lzma
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mipo.prompts.overlap import NGRAM, clusters, overlaps

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # the default of --data
SOURCES = {"short": ("prompts/clinc150.jsonl.xz", "text"), "long": ("math/gsm8k_train.jsonl", "question")}
PERMUTATIONS = 128
MOST_FOR_ALL_PAIRS = 3_000
WORDS, SHARE = 8, 0.5


def prompts(data: Path, source: str, rows: int, seed: int = 0) -> list[str]:
    """Real prompts, each with some copies in which up to three of ten words are from other prompts."""
    name, column = SOURCES[source]
    reading = lzma.open if name.endswith(".xz") else open
    with reading(data / name, "rt", encoding="utf-8") as lines:
        real = [" ".join(json.loads(line)[column].lower().split()) for line in lines]
    random.Random(0).shuffle(real)
    chance, real = random.Random(seed), real[: max(rows // 4, 1)]
    words = [word for text in real for word in text.split()]
    varied = []
    for _ in range(rows):
        copy = chance.choice(real).split()
        for _ in range(int(chance.random() * 0.3 * len(copy))):
            copy[chance.randrange(len(copy))] = chance.choice(words)
        varied.append(" ".join(copy))
    return varied


# Near-duplicates: each contender returns the number of a cluster for each text


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The first row of each row's cluster, from the pairs that are linked."""
    parents = list(range(count))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    for pair in pairs:
        low, high = sorted(map(root, pair))
        parents[high] = low
    return [root(row) for row in range(count)]


def sets_of(texts: Sequence[str]) -> list[set[str]]:
    return [{text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)} or {text} for text in texts]


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def by_mipo(texts: list[str], threshold: float) -> list[int]:
    return clusters(pl.Series(texts), threshold).to_list()


def by_all_pairs(texts: list[str], threshold: float) -> list[int]:
    sets = sets_of(texts)
    pairs = itertools.combinations(range(len(texts)), 2)
    return joined(len(texts), ((i, j) for i, j in pairs if jaccard(sets[i], sets[j]) >= threshold))


def _by_datasketch(texts: list[str], threshold: float, verified: bool) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    sets, index = sets_of(texts), MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    hashes = MinHash.bulk([[gram.encode() for gram in grams] for grams in sets], num_perm=PERMUTATIONS)
    for row, minhash in enumerate(hashes):
        index.insert(row, minhash)
    pairs = ((row, other) for row, minhash in enumerate(hashes) for other in index.query(minhash) if other < row)
    return joined(len(texts), (p for p in pairs if not verified or jaccard(sets[p[0]], sets[p[1]]) >= threshold))


def by_datasketch(texts: list[str], threshold: float) -> list[int]:
    return _by_datasketch(texts, threshold, verified=False)


def by_datasketch_verified(texts: list[str], threshold: float) -> list[int]:
    return _by_datasketch(texts, threshold, verified=True)


def by_rensa(texts: list[str], threshold: float) -> list[int]:
    from rensa import RMinHash, RMinHashLSH

    # datasketch's optimum of bands and rows, so that both look for the same similarity.
    bands = {0.9: 5, 0.8: 9, 0.7: 14, 0.6: 19, 0.5: 25}[round(threshold, 1)]
    rows = {0.9: 25, 0.8: 13, 0.7: 9, 0.6: 6, 0.5: 5}[round(threshold, 1)]
    hashes = RMinHash.from_token_sets(sets_of(texts), bands * rows, 0)
    index = RMinHashLSH(threshold, bands * rows, bands)
    index.insert_many(hashes)
    neighbours = enumerate(index.query_all(hashes))
    return joined(len(texts), ((row, other) for row, others in neighbours for other in others if other < row))


def ngrams_alone(texts: list[str], threshold: float) -> list[int]:
    sets_of(texts)
    return []


CONTENDERS: dict[str, tuple[Callable[[list[str], float], list[int]], str | None]] = {
    "mipo": (by_mipo, None),
    "all pairs": (by_all_pairs, None),
    "datasketch": (by_datasketch, "datasketch"),
    "datasketch, verified": (by_datasketch_verified, "datasketch"),
    "rensa": (by_rensa, "rensa"),
    "n-grams in Python alone": (ngrams_alone, None),
}

# The leakage guard: each contender returns the held-out row of each text that occurs, by the same rule


def guard_mipo(texts: list[str], tests: list[str]) -> dict[int, int]:
    leaks = overlaps(pl.DataFrame({"prompt": texts}), pl.DataFrame({"prompt": tests}), words=WORDS, share=SHARE)
    return dict(leaks.select("prompt_id", "held_out_id").iter_rows())


def guard_python(texts: list[str], tests: list[str]) -> dict[int, int]:
    """An index of the held-out n-grams as a dict, for texts of plain English words."""
    split = re.compile(r"[a-z0-9]+(?:['.,][a-z0-9]+)*|[+*/=<>^%&|~$#@]|-(?=[0-9])").findall
    index, held = collections.defaultdict(list), [split(test) for test in tests]
    for row, words in enumerate(held):
        for start in range(len(words) - WORDS + 1):
            index[tuple(words[start : start + WORDS])].append((row, start))
    equal = {test: row for row, test in reversed(list(enumerate(tests)))}
    whole = {tuple(words): row for row, words in reversed(list(enumerate(held))) if 0 < len(words) < WORDS}
    leaks = {}
    for row, text in enumerate(texts):
        words, covered = split(text), collections.defaultdict(set)
        for start in range(len(words) - WORDS + 1):
            for test, place in index.get(tuple(words[start : start + WORDS]), ()):
                covered[test].update(range(place, place + WORDS))
        best = max(covered, key=lambda test: (len(covered[test]) / len(held[test]), -test), default=None)
        if text in equal:
            leaks[row] = equal[text]
        elif tuple(words) in whole:
            leaks[row] = whole[tuple(words)]
        elif best is not None and len(covered[best]) >= SHARE * len(held[best]):
            leaks[row] = best
    return leaks


GUARDS = {"mipo": guard_mipo, "n-grams in a dict": guard_python}


def agreement(result: Sequence[int], truth: Sequence[int]) -> dict[str, float | None]:
    """Recall and precision of the pairs of rows that are in one cluster."""

    def pairs(*columns: Sequence[int]) -> int:
        return sum(size * (size - 1) // 2 for size in collections.Counter(zip(*columns, strict=True)).values())

    right = pairs(result, truth)
    totals = {"recall": pairs(truth), "precision": pairs(result)}
    return {name: right / total if total else None for name, total in totals.items()}


def measure(contender: Callable[..., Any], *inputs: Any) -> dict[str, Any]:
    """Seconds, peak MiB beyond those before, and the result."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    result = contender(*inputs)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "cpu_seconds": used, "extra_mib": peak, "result": result}


def alone(kind: str, name: str, inputs: Path) -> dict[str, Any]:
    """The measurement in a process of its own."""
    command = [sys.executable, __file__, "--alone", kind, name, str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def compare(kind: str, inputs: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.json"
        path.write_text(json.dumps(inputs))
        return {name: alone(kind, name, path) for name in names}


def near_duplicates(data: Path, source: str, rows: int, threshold: float, *, peers: bool = True) -> dict[str, Any]:
    """All contenders on the same rows; agreement with all pairs, or with mipo for many rows."""
    missing = {name: package for name, (_, package) in CONTENDERS.items() if package and not installed(package)}
    names = [name for name in CONTENDERS if name not in missing and (peers or name == "mipo")]
    if rows > MOST_FOR_ALL_PAIRS:
        names = [name for name in names if name != "all pairs"]
    readings = compare("near", {"texts": prompts(data, source, rows), "threshold": threshold}, names)
    reference = "all pairs" if "all pairs" in readings else "mipo"
    truth = readings[reference]["result"]
    table = []
    for name, reading in readings.items():
        result = reading.pop("result")
        ratio = {"times_ours": reading["cpu_seconds"] / readings["mipo"]["cpu_seconds"]}
        more = {**agreement(result, truth), "clusters": len(set(result))} if result else {}
        table.append({"name": name, **reading, **ratio, **more})
    facts = {"task": "near-duplicates", "source": source, "rows": rows, "threshold": threshold}
    return {**facts, "truth": reference, "table": table, "left_out": missing}


def guard(data: Path, source: str, rows: int, tests: int) -> dict[str, Any]:
    """Varied prompts, and a held-out set varied with another seed."""
    inputs = {"texts": prompts(data, source, rows), "tests": prompts(data, source, tests, seed=1)}
    readings = compare("guard", inputs, GUARDS)
    truth = readings["n-grams in a dict"]["result"]
    table = []
    for name, reading in readings.items():
        result = reading.pop("result")
        same = sum(result.get(row) == truth.get(row) for row in result.keys() | truth.keys())
        ratio = {"times_ours": reading["cpu_seconds"] / readings["mipo"]["cpu_seconds"]}
        table.append({"name": name, **reading, **ratio, "occur": len(result), "agree": same})
    return {"task": "guard", "source": source, "rows": rows, "held_out": tests, "table": table, "left_out": {}}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def render(result: dict[str, Any]) -> str:
    facts = ", ".join(
        f"{name} {result[name]}" for name in ("source", "rows", "threshold", "held_out") if name in result
    )
    columns = list(dict.fromkeys(name for row in result["table"] for name in row))
    lines = [f"## {result['task']}: {facts}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in result["table"]:
        cells = [row.get(name) for name in columns]
        texts = ["" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else f"{cell}" for cell in cells]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(
        [*lines, *(f"- left out: {name}: {why} is not installed" for name, why in result["left_out"].items())]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="600 rows: a self-check, whose times mean nothing")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows for mipo alone")
    parser.add_argument("--peer-rows", type=int, default=20_000, help="rows for all contenders")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with the files that SOURCES names")
    parser.add_argument("--into", type=Path, help="folder for <date>-overlap.json")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        kind, name, path = args.alone
        inputs = json.loads(Path(path).read_text())
        contender = CONTENDERS[name][0] if kind == "near" else GUARDS[name]
        contender(*(value[:2] if isinstance(value, list) else value for value in inputs.values()))
        print(json.dumps(measure(contender, *inputs.values())))
        return 0
    results = []
    for task in tasks(args):
        results.append(task())
        print(render(results[-1]), "\n", flush=True)
    if args.into:
        record = {"made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", **machine(), "results": results}
        args.into.mkdir(parents=True, exist_ok=True)
        path = args.into / f"{record['made']}-overlap.json"
        path.write_text(json.dumps({"self_check": args.small, **record}, indent=1) + "\n")
        print(f"wrote {path}")
    return 0


def tasks(args: argparse.Namespace) -> list[Callable[[], dict[str, Any]]]:
    data, t = args.data, args.threshold
    if args.small:
        return [lambda: near_duplicates(data, "short", 600, t), lambda: guard(data, "long", 600, 200)]
    return [
        lambda: near_duplicates(data, "short", MOST_FOR_ALL_PAIRS, t),
        lambda: near_duplicates(data, "long", MOST_FOR_ALL_PAIRS, t),
        lambda: near_duplicates(data, "short", args.peer_rows, t),
        lambda: near_duplicates(data, "long", args.peer_rows, t),
        lambda: near_duplicates(data, "short", args.rows, t, peers=False),
        lambda: near_duplicates(data, "long", args.rows // 10, t, peers=False),
        lambda: guard(data, "long", args.rows // 10, 2_000),
        lambda: guard(data, "short", args.rows, 2_000),
    ]


def machine() -> dict[str, Any]:
    packages = ("polars", "datasketch", "rensa")
    versions = {name: importlib.metadata.version(name) for name in packages if installed(name)}
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return {"machine": platform.machine(), "cores": cores, "load_at_the_end": busy, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
