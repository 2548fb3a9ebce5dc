"""The benchmark of the local engine checks itself. Never how fast."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "generation.py"


def test_the_loops_of_generate_give_mipo_s_answers(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--small", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean nothing" in done.stdout
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["self_check"]
    assert [row["name"] for row in record["results"]] == ["mipo", "generate", "generate, sorted"]
    assert [row["differing"] for row in record["results"]] == [0, 0, 0]
