"""Ten million prompts with text, to counterparts.parquet, to pairs, to tokens: time and peak memory beside polars.

    python benchmarks/pairs.py --data DATA --folder /tmp/pairs [--rows 10_000_000] [--into benchmarks/results]
    python benchmarks/pairs.py --small

`pairs` are row numbers with a reason, from prompts and responses that are texts; `store` makes token ids of them, and
`export` JSON lines. `pairs_text` joins texts instead, as the polars contenders do. Inputs: prompts of real data whose
numbers are varied, `task` and `user`, and a response to each. Drawn: other prompts of the same task from other users.
Each contender is a process of its own; its wall time and largest resident memory are the kernel's. One that exceeds
`--limit` GiB is stopped, and half the rows are tried. The polars contenders get our counterparts, so all write the same
pairs, which is checked row by row.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESPONSES = "responses/part-00000.parquet"
SMALL = [
    f"{name}: how many {unit} are {n} and 7 of them?" for n in range(9) for name, unit in zip("abc", "xyz", strict=True)
]
BASES = (("math/gsm8k_train.jsonl", "question"), ("prompts/human_instructions.jsonl", "prompt"))
BASES += (("math/svamp_700.jsonl", "Question"), ("personal/prism_opening_prompts.jsonl", "prompt"))
USERS = 3000
CHUNK = 500_000  # rows that are made at a time
SLICE = 1_000_000  # rows that are compared at a time
GIB = 2**30
SPARED = 2  # GiB that are left to the rest of the machine
EVERY = 0.05  # seconds between two looks at a contender's memory


# What is compared: each runs in a process of its own, in the folder with prompts.parquet and responses.


def draw() -> None:
    """`mipo contrast`, as called on the command line."""
    from mipo.cli import main as mipo_main

    constraints = ["--match", "task", "--differ", "user", "--seed", "1", "--negatives", os.environ["NEGATIVES"]]
    assert mipo_main(["contrast", "prompts.parquet", *constraints, "--output", "counterparts.parquet"]) == 0


def draw_polars() -> None:
    """Polars' usual way: a shuffle within each task. It ignores the user, and a row may meet itself."""
    import polars as pl

    frame = pl.read_parquet("prompts.parquet")
    drawn = frame.select("prompt_id", pl.col("prompt_id").shuffle(seed=1).over("task").alias("counterpart_id"))
    drawn.write_parquet("counterparts-polars.parquet")


def pairs(batch_rows: int | None) -> None:
    """`mipo.pairing.join.links_of`, from files to a file: pairs as row numbers, and reasons for the other rows."""
    from mipo.io import tables
    from mipo.pairing.filter import BATCH_ROWS, ResponseStates
    from mipo.pairing.join import links_of

    *others, responses = _tables()
    rows = batch_rows or BATCH_ROWS
    links = links_of(*others, responses, ResponseStates.of(responses, rows), batch_rows=rows)
    tables.write(links, Path("pairs.parquet"))


def pairs_text(batch_rows: int | None) -> None:
    """`mipo.pairing.join.join`, from files to a file of texts."""
    from mipo.pairing.join import join

    print(join(*_tables(), Path("pairs-text.parquet"), **({"batch_rows": batch_rows} if batch_rows else {})))


def _tables() -> list[Any]:
    import polars as pl

    return [pl.scan_parquet(name) for name in ("prompts.parquet", "counterparts.parquet", RESPONSES)]


def pairs_in_memory() -> None:
    """`mipo.pairs` on frames, and its result written."""

    import mipo

    tables = [table.collect() for table in _tables()]
    mipo.pairs(*tables).write_parquet("pairs-in-memory.parquet", compression="zstd")


def join_polars(prompts: Any, counterparts: Any, responses: Any) -> Any:
    """The straightforward way: one join for the counter-prompt and one for each response, of frames or LazyFrames."""
    import polars as pl

    prompts = prompts.select("prompt_id", "prompt")
    counter = prompts.rename({"prompt_id": "counterpart_id", "prompt": "counter"})
    chosen = responses.select("prompt", pl.col("response").alias("chosen"))
    rejected = responses.select(pl.col("prompt").alias("counter"), pl.col("response").alias("rejected"))
    joined = counterparts.join(prompts, on="prompt_id", how="left", maintain_order="left")
    joined = joined.join(counter, on="counterpart_id", how="left", maintain_order="left")
    joined = joined.join(chosen, on="prompt", how="left", maintain_order="left")
    joined = joined.join(rejected, on="counter", how="left", maintain_order="left")
    there = pl.col("chosen").is_not_null() & pl.col("rejected").is_not_null() & (pl.col("chosen") != pl.col("rejected"))
    return joined.filter(there).select("prompt_id", "prompt", "chosen", "rejected")


def pairs_polars() -> None:
    tables = [table.collect() for table in _tables()]
    join_polars(*tables).write_parquet("pairs-polars.parquet", compression="zstd")


def pairs_polars_streaming() -> None:
    join_polars(*_tables()).sink_parquet("pairs-polars-streaming.parquet", compression="zstd")


def export() -> None:
    """`mipo export` of the pairs, which are row numbers, as JSON lines."""
    from mipo.cli import main as mipo_main

    assert mipo_main(["export", "pairs.parquet", "--output", "pairs.jsonl"]) == 0


def store() -> None:
    """`mipo tokens` of the same pairs: token ids, with no file of texts in between."""
    from mipo.cli import main as mipo_main

    assert mipo_main(["tokens", ".", "--tokenizer", os.environ["TOKENIZER"], "--output", "tokens"]) == 0


def export_polars() -> None:
    import polars as pl

    pl.read_parquet("pairs-text.parquet").select("prompt", "chosen", "rejected").write_ndjson("pairs-polars.jsonl")


CONTENDERS = {
    "draw": (draw, draw_polars),
    "pairs": (pairs, pairs_text, pairs_in_memory, pairs_polars, pairs_polars_streaming),
    "store": (store,),
    "export": (export, export_polars),
}


# Inputs


def make(folder: Path, number: str, data: str = "") -> dict[str, float]:
    """Writes prompts.parquet (prompt_id, prompt, task, user) and responses (prompt, response); GiB of each."""
    import polars as pl

    from mipo.io import tables

    rows, bases = int(number), _bases(Path(data) if data else None)
    answers = bases.get_column("answer").drop_nulls()

    def varied(start: int) -> pl.DataFrame:
        row = pl.int_range(start, min(rows, start + CHUNK), dtype=pl.UInt64, eager=True)
        base = bases[row % bases.height]
        number, user = (row // bases.height + 2).cast(pl.String), (row * 7919 % USERS).cast(pl.String)
        answer = answers.gather(row * 31 % len(answers))
        return base.select(
            row.alias("prompt_id"),
            (pl.col("before") + number + pl.col("after")).alias("prompt"),
            "task",
            ("user " + user).alias("user"),
            (answer + "\nThat makes " + row.cast(pl.String) + ".").alias("response"),
        )

    def parts(*columns: str) -> Iterator[pl.DataFrame]:
        return (varied(start).select(columns) for start in range(0, rows, CHUNK))

    tables.write(parts("prompt_id", "prompt", "task", "user"), folder / "prompts.parquet")
    # As an engine returns them: in no order.
    order = (frame.sample(fraction=1, shuffle=True, seed=2) for frame in parts("prompt", "response"))
    (folder / "responses").mkdir()
    tables.write(order, folder / RESPONSES)
    sizes = {"prompts": folder / "prompts.parquet", "responses": folder / RESPONSES}
    return {name: round(path.stat().st_size / GIB, 3) for name, path in sizes.items()}


def _bases(data: Path | None) -> Any:
    """The parts of prompts: text before and after the varied number, the task, and an answer where known."""
    import polars as pl

    tables = [pl.DataFrame({"text": SMALL, "answer": [f"{len(s)}." for s in SMALL], "task": "sums"})]
    for name, column in BASES if data else ():
        table = pl.read_ndjson(data / name)
        answer = pl.col("answer") if name.startswith("math/gsm8k") else pl.lit(None, pl.String)
        tables.append(table.select(pl.col(column).alias("text"), answer.alias("answer"), pl.lit(name).alias("task")))
    text, number = pl.col("text"), r"(?s)^(.*?)\d+(.*)$"
    cut = pl.concat(tables).with_columns(
        before=text.str.extract(number, 1).fill_null(text + " ("), after=text.str.extract(number, 2).fill_null(")")
    )
    return cut.unique(["before", "after"], keep="first", maintain_order=True)


# Measurement


def measure(name: str, folder: Path, limit: float, batch_rows: int | None) -> dict[str, Any]:
    """Runs one contender: seconds, peak_gib, largest spilled_gib on disk; or its failure."""
    batch = ["--batch-rows", str(batch_rows)] if batch_rows else []
    started = time.monotonic()
    log = folder / f"{name}.log"
    with log.open("w") as output:
        child = subprocess.Popen([*_call(name, folder), *batch], stdout=output, stderr=output)
    spilled, stopped = 0, None
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        if stopped is None and _resident(child.pid) > limit * GIB:
            stopped = f"stopped at {limit:g} GiB"
            child.kill()
        elif stopped is None and _available() < SPARED * GIB:
            stopped = f"stopped at {_resident(child.pid) / GIB:.1f} GiB: the machine has no more"
            child.kill()
        spilled = max(spilled, _spilled(folder))
        time.sleep(EVERY)
    child.returncode = os.waitstatus_to_exitcode(status)
    if stopped:
        return {"name": name, "failure": stopped}
    if child.returncode:
        return {"name": name, "failure": " ".join(log.read_text().split())[-300:] or f"exit {child.returncode}"}
    seconds, peak = time.monotonic() - started, usage.ru_maxrss * 1024
    return {
        "name": name, "seconds": round(seconds, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gib": round(peak / GIB, 3), "spilled_gib": round(spilled / GIB, 3),
    }  # fmt: skip


def _call(name: str, folder: Path) -> list[str]:
    return [sys.executable, __file__, "--child", name, "--folder", str(folder)]


def ask(folder: Path, name: str, *arguments: str) -> Any:
    """The result of `make`, `same` or `judge` in a process of its own: a child's peak includes its parent's memory."""
    command = [*_call(name, folder), *(["--arguments", *arguments] if arguments else [])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def _available() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _spilled(folder: Path) -> int:
    total = 0
    for path in folder.glob(".rows.*.tmp/**/*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def same(folder: Path, ours: str, theirs: str) -> bool:
    """Whether two files hold the same prompt_id, prompt, chosen and rejected, row by row."""
    import polars as pl

    columns = ["prompt_id", "prompt", "chosen", "rejected"]
    one, other = (pl.scan_parquet(folder / name).select(columns) for name in (ours, theirs))
    rows = [table.select(pl.len()).collect().item() for table in (one, other)]
    return rows[0] == rows[1] and all(
        one.slice(at, SLICE).collect().equals(other.slice(at, SLICE).collect()) for at in range(0, rows[0], SLICE)
    )


def judge(folder: Path) -> dict[str, int]:
    """The number of rows in which each draw breaks the rule."""
    import polars as pl

    frame = pl.read_parquet(folder / "prompts.parquet", columns=["prompt_id", "task", "user"])
    broken = {}
    for name, file in (("draw", "counterparts"), ("draw_polars", "counterparts-polars")):
        drawn = pl.read_parquet(folder / f"{file}.parquet", columns=["prompt_id", "counterpart_id"]).drop_nulls()
        own, other = (frame[drawn[column]] for column in ("prompt_id", "counterpart_id"))
        broken[name] = int(((other["task"] != own["task"]) | (other["user"] == own["user"])).sum())
    return broken


QUESTIONS: dict[str, Any] = {"make": make, "same": same, "judge": judge}


def benchmark(
    rows: int, folder: Path, data: Path | None, limit: float, batch_rows: int | None, only: list[str] | None
) -> dict[str, Any]:
    """All contenders on `rows` rows, each compared with the first of its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"rows": rows, "files_gib": ask(folder, "make", str(rows), *([str(data)] if data else []))}
    for kind, contenders in CONTENDERS.items():
        readings: list[dict[str, Any]] = []
        for contender in contenders:
            if only and contender.__name__ not in only:
                continue
            readings.append(measure(contender.__name__, folder, limit, batch_rows))
            path = folder / f"{contender.__name__.replace('_', '-')}.parquet"
            if kind == "pairs" and contender not in (pairs, pairs_text) and "failure" not in readings[-1]:
                readings[-1]["same_rows"] = ask(folder, "same", "pairs-text.parquet", path.name)
                path.unlink()
            print(_line(readings[-1], readings[0]), flush=True)
        if readings:
            result[kind] = readings
    if not only and all("failure" not in reading for reading in result["draw"]):
        result["rows_that_break_the_rule"] = ask(folder, "judge")
        print(f"rows that break the rule: {result['rows_that_break_the_rule']}")
    return result


def _line(reading: dict[str, Any], ours: dict[str, Any]) -> str:
    if "failure" in reading:
        return f"{reading['name']:24} {reading['failure']}"
    ratio = ""
    if "failure" not in ours:
        times, memory = (reading[figure] / ours[figure] for figure in ("seconds", "peak_gib"))
        ratio = (
            f"  x ours: time {times:.2f}, core {reading['cpu_seconds'] / ours['cpu_seconds']:.2f}, memory {memory:.2f}"
        )
    spilled = f"  on disk {reading['spilled_gib']:.2f} GiB" if reading["spilled_gib"] else ""
    warning = "" if reading.get("same_rows", True) else "  OTHER ROWS"
    took = f"{reading['seconds']:8.2f} s {reading['cpu_seconds']:8.2f} s of a core {reading['peak_gib']:7.2f} GiB"
    return f"{reading['name']:24} {took}{ratio}{spilled}{warning}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--data", type=Path, help="a folder with the files that BASES names; without it a few made-up texts"
    )
    parser.add_argument("--folder", type=Path, help="an empty folder with 40 GB of room")
    parser.add_argument("--limit", type=float, default=14, help="GiB at which a contender is stopped")
    parser.add_argument("--negatives", type=int, default=1, help="K, counter-prompts of each prompt")
    parser.add_argument("--tokenizer", default="python/mipo/demo/model", help="a model's folder, for the token ids")
    names = [one.__name__ for kind in CONTENDERS.values() for one in kind]
    parser.add_argument("--only", nargs="*", choices=names, help="contenders, such as draw pairs store; no others run")
    parser.add_argument("--batch-rows", type=int, help="passed to mipo.pairing.join.join")
    parser.add_argument("--into", type=Path, help="folder for <date>-pairs.json")
    parser.add_argument("--small", action="store_true", help="a self-check of seconds; its times mean nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child in QUESTIONS:
        print(json.dumps(QUESTIONS[arguments.child](arguments.folder, *arguments.arguments)))
        return 0
    if arguments.child:
        os.chdir(arguments.folder)
        contender = {one.__name__: one for kind in CONTENDERS.values() for one in kind}[arguments.child]
        contender(arguments.batch_rows) if contender in (pairs, pairs_text) else contender()
        return 0
    os.environ |= {"NEGATIVES": str(arguments.negatives), "TOKENIZER": str(Path(arguments.tokenizer).absolute())}
    rows, batch_rows = (3000, 500) if arguments.small else (arguments.rows, arguments.batch_rows)
    settings = (arguments.data, arguments.limit, batch_rows, arguments.only)
    with tempfile.TemporaryDirectory(prefix="mipo-pairs-", dir=arguments.folder) as name:
        points = [benchmark(rows, Path(name) / str(rows), *settings)]
        while rows > 1000 and any("failure" in one for one in points[-1].get("pairs", [])):
            shutil.rmtree(Path(name) / str(rows))
            rows //= 2
            print(f"again with {rows:,} rows")
            points.append(
                benchmark(rows, Path(name) / str(rows), arguments.data, arguments.limit, batch_rows, arguments.only)
            )
    now = datetime.datetime.now(datetime.UTC)
    record = {"made": now.isoformat(timespec="seconds"), "self_check": arguments.small, "machine": _machine()}
    text = json.dumps(record | {"batch_rows": batch_rows, "negatives": arguments.negatives, "points": points}, indent=1)
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        name = f"{now:%Y-%m-%d}-pairs" + (f"-k{arguments.negatives}" if arguments.negatives > 1 else "")
        (arguments.into / f"{name}.json").write_text(text + "\n")
    wrong = [one for point in points for one in point.get("pairs", []) if not one.get("same_rows", True)]
    return 1 if wrong or any("failure" in one for one in points[-1].get("pairs", [])) else 0


def _machine() -> dict[str, Any]:
    from importlib import metadata

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    facts = {"cores": os.cpu_count(), "memory_gib": round(memory, 1), "processor": platform.machine()}
    return facts | {"commit": commit, "python": platform.python_version(), "polars": metadata.version("polars")}


if __name__ == "__main__":
    sys.exit(main())
