"""The benchmark of pairs checks itself: every contender runs and writes the same rows. Never how fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_contender_runs_and_writes_the_same_pairs(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "pairs.py", "--small", "--folder", tmp_path, "--into", tmp_path]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["self_check"]
    (point,) = record["points"]
    readings = [reading for kind in ("draw", "pairs", "store", "export") for reading in point[kind]]
    assert not [reading for reading in readings if "failure" in reading]
    assert [reading["same_rows"] for reading in point["pairs"][2:]] == [True] * 3
    assert point["rows_that_break_the_rule"]["draw"] == 0
