"""The benchmark of the draw checks itself: what it draws, what it names, what it writes. Never how fast."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ("polars", "pandas", "duckdb")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the benchmark prints and writes at tiny sizes."""
    into = tmp_path_factory.mktemp("results")
    command = [sys.executable, ROOT / "benchmarks" / "contrast.py", "--small", "--rounds", "1", "--into", into]
    paths = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (record,) = into.glob("*-contrast.json")
    return done.stdout, json.loads(record.read_text())


def test_a_self_check_says_that_its_ratios_mean_nothing(run: tuple[str, dict[str, Any]]) -> None:
    printed, record = run
    assert "mean nothing" in printed
    assert {target["verdict"] for target in record["targets"]} == {"not measured"}


def test_every_peer_is_there_or_named(run: tuple[str, dict[str, Any]]) -> None:
    record = run[1]
    names = {row["name"].split()[0] for row in record["draws"] + record["groups"]}
    for peer in PEERS:
        assert (peer in names) == (find_spec(peer) is not None)
        assert (peer in names) != any(name.startswith(peer) for name in record["left_out"])
    assert {"balanced", "independent", "numpy", "random.choice"} <= names


def test_our_draws_break_no_rule(run: tuple[str, dict[str, Any]]) -> None:
    record = run[1]
    ours = [row for row in record["draws"] if row["name"] in ("balanced", "independent")]
    ours += [row for row in record["groups"] if row["name"].startswith("within")]
    assert len(ours) == 10
    assert {row["broken"] for row in ours} == {0}


def test_shards_of_two_sizes_agree(run: tuple[str, dict[str, Any]]) -> None:
    shards = run[1]["shards"]
    assert shards["checksums_agree"]
    assert shards["every_row_is_used_once"]
    assert len({row["shard"] for row in shards["runs"]}) == 2


def test_a_balanced_draw_lowers_the_variance_where_prompts_differ(run: tuple[str, dict[str, Any]]) -> None:
    for row in run[1]["marginal"]:
        if row["columns"] >= 2:
            assert row["balanced"] < row["independent"]
