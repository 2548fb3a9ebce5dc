"""The draw of the counter-prompts against what one would write with NumPy, Python, polars, pandas or DuckDB.

    python benchmarks/contrast.py             everything, about twenty minutes on two cores; needs 24 GiB
    python benchmarks/contrast.py --small     everything tiny, in seconds: a self-check whose ratios mean nothing

Each draw runs in a process of its own, contenders in turn within a round, and the median of the rounds counts. Prints
tables and the targets as met or not, and writes results/<date>-contrast.json. A library that is not
installed, and a draw that takes too long or too much memory, are named and left out.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import draws
import marginal

HERE = Path(__file__).resolve().parent
NEEDS = {"polars": "polars", "pandas": "pandas", "duckdb": "duckdb"}
SLOW = 180.0  # seconds, after which a draw is stopped and left out
LARGE = 100_000_000
# Draws that need Python objects or gigabytes per million rows: they would not fit, or never end, at the largest size.
SMALL_ONLY = ("random.choice", "duckdb order by")

# Targets: (claim, the peer, our draw, K, the least ratio of the peer's time to ours).
TARGETS = (
    ("balanced, numpy with repair", "numpy permutation", "balanced", 1, 5.0),
    ("balanced, polars shuffle", "polars shuffle", "balanced", 1, 5.0),
    ("independent, numpy with repair", "numpy permutation", "independent", 4, 20.0),
)
GROUPS_TARGET = 3.0
# Bytes beyond the output that a draw may hold: threads' stacks and the allocator's slack.
SPARE = 32 << 20

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes: a self-check")
    parser.add_argument("--into", type=Path, default=HERE / "results", help="folder of the result file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; one less at the largest size")
    parser.add_argument("--sizes", type=int, nargs="*", help="rows; the targets are judged at the last")
    parser.add_argument(
        "--draws", nargs="*", default=list(draws.DRAWS), choices=list(draws.DRAWS), help="which of them"
    )
    args = parser.parse_args(arguments)
    sizes = args.sizes or ([1_000, 10_000] if args.small else [10**6, 10**7, LARGE])
    record: Row = {"made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "small": args.small}
    record |= {"machine": machine(), "draws": [], "groups": []}
    record["left_out"] = {name: "not asked for" for name in draws.DRAWS if name not in args.draws}
    for n in sizes:
        rounds = max(1, args.rounds - (n == LARGE))
        for k in (1, 4):
            record["draws"] += time_all(args.draws, n, k, rounds, record["left_out"])
    for shape in ("questions", "tasks"):
        names = [f"{name}:{shape}" for name in draws.GROUPED]
        record["groups"] += time_all(names, min(sizes[-1], 10**7), 1, args.rounds, record["left_out"])
    record["shards"] = shards(100_000 if args.small else 10**9)
    record["marginal"] = marginal.measure(**({"prompts": 64, "seeds": 20} if args.small else {}))
    record["targets"] = judge(record, sizes[-1])
    if args.small:
        record["targets"] = [target | {"number": None, "verdict": "not measured"} for target in record["targets"]]
    print(render(record))
    args.into.mkdir(parents=True, exist_ok=True)
    path = args.into / f"{record['made'][:10]}-contrast.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    return 0


def machine() -> Row:
    """What a reader needs to know to repeat the measurement."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("numpy", "polars", "pandas", "duckdb")
    commit = subprocess.run(
        ["git", "-C", HERE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": named[0].partition(": ")[2] if named else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        **{name: metadata.version(name) for name in packages if importlib.util.find_spec(name)},
    }


def time_all(names: list[str], n: int, k: int, rounds: int, left_out: dict[str, str]) -> list[Row]:
    """A row for each contender: medians over the rounds, in each of which all run once, in turn from either end."""
    seen: dict[str, list[Row]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else names[::-1]:
            if reason := why_not(name, n, k, left_out):
                left_out[reason[0]] = reason[1]
                continue
            try:
                seen[name].append(run_one(name, n, k, turn))
            except RuntimeError as error:
                left_out[f"{name}, n = {n:,}, K = {k}"] = str(error)
    rows = []
    for name, readings in seen.items():
        if readings:
            row = {
                key: statistics.median(one[key] for one in readings) for key in ("seconds", "cpu_seconds", "peak_bytes")
            }
            shares = [one["broken"] for one in readings if one["broken"] is not None]
            rows.append(
                {"name": name, "n": n, "k": k, "rounds": len(readings), **row, "broken": max(shares, default=None)}
            )
            print(f"{name}, n = {n:,}, K = {k}: {row['seconds'] / n * 1e9:.2f} ns a row", flush=True)
    return rows


def why_not(name: str, n: int, k: int, left_out: dict[str, str]) -> tuple[str, str] | None:
    package = NEEDS.get(name.split()[0])
    if package and importlib.util.find_spec(package) is None:
        return name, f"{package} is not installed"
    here = f"{name}, n = {n:,}, K = {k}"
    if n >= LARGE and name in SMALL_ONLY:
        return here, "its time or memory, as measured at a tenth of the size, is beyond this benchmark's"
    return (here, left_out[here]) if here in left_out else None


def run_one(name: str, n: int, k: int, seed: int) -> Row:
    command = [sys.executable, str(HERE / "draws.py"), name, str(n), str(k), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SLOW)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {SLOW:.0f} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"exit status {done.returncode}: {last[0]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def shards(n: int) -> Row:
    """All counterparts of n rows, shard by shard, in two splits, each in a process of its own."""
    runs = []
    for size in (n // 100, n // 30):
        code = f"import json, contrast; print(json.dumps(contrast.walk({n}, {size})))"
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
        print(f"{n:,} rows in shards of {size:,}: {runs[-1]['seconds']:.1f} s", flush=True)
    agree = runs[0]["checksum"] == runs[1]["checksum"]
    whole = all(run["sum"] == n * (n - 1) // 2 % 2**64 for run in runs)
    return {"n": n, "runs": runs, "checksums_agree": agree, "every_row_is_used_once": whole}


def walk(n: int, size: int) -> Row:
    """Sums over all shards: of the counterparts, which must be that of all rows, and weighted by place."""
    import numpy as np

    import mipo

    def sums() -> tuple[int, int]:
        total, checksum = 0, 0
        for start in range(0, n, size):
            drawn = mipo.counterparts(n, seed=1, start=start, stop=min(start + size, n))[:, 0]
            total += int(drawn.sum())
            weights = np.arange(2 * start + 1, 2 * (start + len(drawn)), 2, dtype=np.uint64)
            weights *= drawn
            checksum += int(weights.sum())
        return total % 2**64, checksum % 2**64

    mipo.counterparts(1_000)
    (total, checksum), seen = draws.measure(sums)
    return {"shard": size, "sum": total, "checksum": checksum, **seen}


def judge(record: Row, n: int) -> list[Row]:
    """The targets, each with the number behind it and whether it is met."""
    rows = {(row["name"], row["n"], row["k"]): row for row in record["draws"]}
    verdicts = []
    for claim, peer, ours, k, least in TARGETS:
        one, other = rows.get((ours, n, k)), rows.get((peer, n, k))
        ratio = other["seconds"] / one["seconds"] if one and other else None
        verdicts.append(verdict(f"{claim}, n = {n:,}, K = {k}: at least {least:g} times as fast", ratio, least))
    one = rows.get(("balanced", n, 1))
    spare = (SPARE - (one["peak_bytes"] - 8 * n)) / SPARE if one else None
    verdicts.append(verdict(f"nothing held beyond the output ({SPARE >> 20} MiB to spare), n = {n:,}", spare, 0))
    for shape in ("questions", "tasks"):
        seen = {row["name"]: row for row in record["groups"]}
        ours, pandas, polars = (
            seen.get(f"{name}:{shape}") for name in ("within", "pandas redraw", "polars shuffle over")
        )
        ratio = pandas["seconds"] / ours["seconds"] if ours and pandas else None
        verdicts.append(verdict(f"{shape}: at least {GROUPS_TARGET:g} times pandas with redraw", ratio, GROUPS_TARGET))
        right = None if ours is None else float(ours["broken"] == 0)
        verdicts.append(verdict(f"{shape}: right on every row", right, 1))
        if polars:
            verdicts[-1]["beside"] = f"polars shuffle over breaks the rule on {polars['broken']:.1%} of the rows"
    split = record["shards"]
    verdicts.append(verdict(f"{split['n']:,} rows by shards: two splits agree", float(split["checksums_agree"]), 1))
    return verdicts


def verdict(target: str, number: float | None, least: float) -> Row:
    word = "not measured" if number is None else "met" if number >= least else "NOT met"
    return {"target": target, "number": number, "verdict": word}


def render(record: Row) -> str:
    """Tables and targets, in Markdown."""
    lines = ["", ", ".join(f"{name} {value}" for name, value in record["machine"].items()), ""]
    lines += ["**Tiny sizes: a self-check. The ratios mean nothing.**", ""] * record["small"]
    lines += [
        "| draw | n | K | ns a row | CPU ns | x balanced or within | peak MiB | rows broken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["draws"] + record["groups"]:
        reference = f"within:{row['name'].partition(':')[2]}" if ":" in row["name"] else "balanced"
        ours = next(
            (
                o
                for o in record["draws"] + record["groups"]
                if (o["name"], o["n"], o["k"]) == (reference, row["n"], row["k"])
            ),
            None,
        )
        ratio = f"{row['seconds'] / ours['seconds']:.2f}" if ours else "-"
        bad = "-" if row["broken"] is None else f"{row['broken']:.2g}"
        lines.append(
            f"| {row['name']} | {row['n']:,} | {row['k']} | {row['seconds'] / row['n'] * 1e9:.2f} | "
            f"{row['cpu_seconds'] / row['n'] * 1e9:.2f} | {ratio} | {row['peak_bytes'] / 2**20:,.0f} | {bad} |"
        )
    lines.append("")
    for run in record["shards"]["runs"]:
        summary = (
            f"- {record['shards']['n']:,} rows in shards of {run['shard']:,}: {run['seconds']:.1f} s with the checksum"
        )
        lines.append(f"{summary}, peak {run['peak_bytes'] / 2**20:,.0f} MiB")
    lines += [f"- {line}" for line in marginal.say(record["marginal"])]
    lines += [f"- left out: {name}: {reason}" for name, reason in record["left_out"].items()]
    for target in record["targets"]:
        number = "" if target["number"] is None else f" ({target['number']:.2f})"
        beside = f"; {target['beside']}" if "beside" in target else ""
        lines.append(f"- target, {target['target']}: {target['verdict']}{number}{beside}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
