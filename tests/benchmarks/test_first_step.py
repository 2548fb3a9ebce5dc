"""The benchmark of the first step runs, on the same batch for all. Never how fast."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "first_step.py"


def test_all_take_the_same_first_step(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--small", "--into", tmp_path], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean nothing" in done.stdout
    record = json.loads(next(tmp_path.glob("*-first-step.json")).read_text())
    assert record["self_check"]
    assert {name: [row["rows"] for row in rows] for name, rows in record["results"].items()} == {
        "TRL": [1_000], "mipo": [1_000], "mipo, reference kept": [1_000],
    }  # fmt: skip
