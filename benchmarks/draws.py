"""The draws that `contrast.py` times, one in a process: `python benchmarks/draws.py NAME n K seed` prints JSON.

A draw returns K columns of n counterparts. Knows the best way to use each library, and not the others. Timed is the
draw alone, after imports, inputs and a small warm-up; the peak is the memory that the draw adds, as Linux counts it
(VmHWM, reset before the draw).
"""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Columns = Sequence[Any]


def draw_balanced(n: int, k: int, seed: int) -> Columns:
    import mipo

    return list(mipo.counterparts(n, negatives=k, seed=seed).T)


def draw_independent(n: int, k: int, seed: int) -> Columns:
    import mipo

    return list(mipo.counterparts(n, negatives=k, seed=seed, balanced=False).T)


def permute(n: int, k: int, seed: int) -> Columns:
    """K permutations; rows that meet themselves or repeat are exchanged with others until none is left."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(n), list[Any]()
    for _ in range(k):
        drawn = rng.permutation(n)
        while True:
            bad = drawn == rows
            for column in columns:
                bad |= drawn == column
            rest = np.flatnonzero(bad)
            if not len(rest):
                break
            for row, other in zip(rest, rng.integers(n, size=len(rest)), strict=True):
                drawn[row], drawn[other] = drawn[other], drawn[row]
        columns.append(drawn)
    return columns


def draw_integers(n: int, k: int, seed: int) -> Columns:
    """K random rows each; rows that meet themselves or repeat are drawn again until none is left."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(n, k))
    todo = np.arange(n)
    while len(todo):
        part = drawn[todo]
        bad = (part == todo[:, None]).any(axis=1)
        if k > 1:
            part.sort(axis=1)
            bad |= (part[:, 1:] == part[:, :-1]).any(axis=1)
        todo = todo[bad]
        drawn[todo] = rng.integers(n, size=(len(todo), k))
    return list(drawn.T)


def choose(n: int, k: int, seed: int) -> Columns:
    """Python's own: `random.choice` until it gives another row, and a new one."""
    choice, rows = random.Random(seed).choice, range(n)
    drawn = []
    for row in rows:
        others: list[int] = []
        while len(others) < k:
            other = choice(rows)
            if other != row and other not in others:
                others.append(other)
        drawn.append(others)
    return list(zip(*drawn, strict=True))


def shuffle(n: int, k: int, seed: int) -> Columns:
    """Shuffled rows without repair: about one in n meets itself."""
    import polars as pl

    rows = pl.int_range(n, eager=True)
    return [rows.shuffle(seed + column) for column in range(k)]


def sample(n: int, k: int, seed: int) -> Columns:
    """Sampled rows without repair: about one in n meets itself."""
    import pandas as pd

    rows = pd.Series(np.arange(n))
    return [rows.sample(frac=1, random_state=seed + column).array for column in range(k)]


def order_by(n: int, k: int, seed: int) -> Columns:
    """Rows in random order without repair: about one in n meets itself."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SELECT setseed({seed % 1000 / 1000})")
    query = f"SELECT i FROM range({n}) t(i) ORDER BY random()"
    return [connection.execute(query).fetchnumpy()["i"] for _ in range(k)]


DRAWS: dict[str, Callable[[int, int, int], Columns]] = {
    "balanced": draw_balanced,
    "independent": draw_independent,
    "numpy permutation": permute,
    "numpy integers": draw_integers,
    "random.choice": choose,
    "polars shuffle": shuffle,
    "pandas sample": sample,
    "duckdb order by": order_by,
}


def groups(shape: str, n: int, seed: int) -> tuple[Any, Any]:
    """(match codes, differ codes) of n rows in random order.

    `questions`: each question is asked by three users, and a prompt must meet another user's of the same question.
    `tasks`: eight tasks, and users of whom most own a few rows and some own one in a hundred.
    """
    rng = np.random.default_rng(seed)
    if shape == "questions":
        # The last question gets the remaining one or two rows.
        place = rng.permutation(n).astype(np.uint64)
        last = np.uint64(max(n // 3 - 1, 0))
        return np.minimum(place // np.uint64(3), last), place % np.uint64(3) + np.uint64(3) * rng.integers(
            n // 3, size=n, dtype=np.uint64
        )
    users = (100_000 * rng.random(n) ** 3).astype(np.uint64)
    return rng.integers(8, size=n, dtype=np.uint64), users


def draw_within(match: Any, differ: Any, seed: int) -> Any:
    from mipo import _native

    return _native.counterparts_within(match, [differ], 1, seed)[:, 0]


def shuffle_over(match: Any, differ: Any, seed: int) -> Any:
    """The usual way, which respects `match` and ignores `differ`."""
    import polars as pl

    # With a seed as its argument, `shuffle` orders all groups of one size alike.
    pl.set_random_seed(seed)
    frame = pl.DataFrame({"match": match, "row": np.arange(len(match))})
    return frame.select(pl.col("row").shuffle().over("match")).to_series()


def redraw(match: Any, differ: Any, seed: int) -> Any:
    """A random row of the same group, drawn again while the user is the same; gives up after 200 rounds."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"match": match})
    size = rows.groupby("match", sort=False)["match"].transform("size").to_numpy()
    order = rows["match"].sort_values(kind="stable").index.to_numpy()
    codes = match[order]
    first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    start = np.empty(len(match), dtype=np.int64)
    start[order] = np.repeat(first, np.diff(np.r_[first, len(match)]))
    drawn, todo = np.full(len(match), -1), np.arange(len(match))
    for _ in range(200):
        if not len(todo):
            break
        tried = order[start[todo] + (rng.random(len(todo)) * size[todo]).astype(np.int64)]
        good = differ[tried] != differ[todo]
        drawn[todo[good]] = tried[good]
        todo = todo[~good]
    return drawn


GROUPED: dict[str, Callable[[Any, Any, int], Any]] = {
    "within": draw_within,
    "polars shuffle over": shuffle_over,
    "pandas redraw": redraw,
}


def broken(columns: Columns, n: int) -> float:
    """The share of rows that meet themselves or one row twice."""
    seen, bad = [np.arange(n)], np.zeros(n, dtype=bool)
    for column in columns:
        drawn = np.asarray(column).astype(np.int64, copy=False)
        for other in seen:
            bad |= drawn == other
        seen.append(drawn)
    return float(bad.mean())


def broken_in_groups(drawn: Any, match: Any, differ: Any) -> float:
    """The share of rows whose counterpart has another match code or the same differ code, or is missing."""
    drawn = np.array(drawn).astype(np.int64)
    absent = (drawn < 0) | (drawn >= len(match))
    drawn[absent] = 0
    return float((absent | (match[drawn] != match) | (differ[drawn] == differ)).mean())


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of `function`, with its seconds and its peak of bytes beyond those before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, begun, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    result = function()
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    return result, {**seconds, "peak_bytes": resident("VmHWM") - before}


def run(name: str, n: int, k: int, seed: int) -> dict[str, Any]:
    """The measurements of one draw; NAME:SHAPE for one in groups."""
    name, _, shape = name.partition(":")
    if shape:
        GROUPED[name](*groups(shape, 999, seed), seed)
        match, differ = groups(shape, n, seed)
        drawn, reading = measure(lambda: GROUPED[name](match, differ, seed))
        return {**reading, "broken": broken_in_groups(drawn, match, differ)}
    DRAWS[name](1_000, k, seed)
    columns, reading = measure(lambda: DRAWS[name](n, k, seed))
    # At the largest sizes Python's own numbers leave no memory for the check.
    return {**reading, "broken": broken(columns, n) if n * k <= 100_000_000 else None}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], *(int(word) for word in sys.argv[2:]))))
