"""The benchmark of the trainer runs, and holds both trainers' steps against what FLOPs allow."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "trainer.py"
# Padding of attention in two groups of 24 ± 2 tokens, beside a body of 32 columns.
PADDING = 1.15


def test_it_compares_steps_and_counts_flops(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--small", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(next(tmp_path.glob("*-trainer.json")).read_text())
    assert record["self_check"]
    assert [(point["prompt"], point["response"], point["negatives"]) for point in record["results"]] == [
        (24, 6, 1), (24, 6, 4),
    ]  # fmt: skip
    for point in record["results"]:
        trl, _, online, ready = point["rows"]
        assert done.stdout.count(f"| (24, 6) | {point['negatives']} |") == 4
        assert trl["flops"] > online["flops"] > ready["flops"]
        for row in (online, ready):
            assert 1 <= row["flops_over_ideal"] < PADDING
            assert row["allowed"] > 1.5
