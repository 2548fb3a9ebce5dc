"""The benchmark of the engines beside vLLM checks itself. Never how fast."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_contender_answers_or_is_named(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "throughput.py", "--small", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean nothing" in done.stdout
    (path,) = tmp_path.iterdir()
    *others, local = json.loads(path.read_text())["results"]
    assert [row["name"] for row in others] == ["LLM.generate", "vllm", "client", "server"]
    assert all("needs vLLM" in row["failure"] and f"| {row['name']} | needs" in done.stdout for row in others)
    (one,) = local["rounds"]
    assert 12 <= one["tokens"] <= 12 * 8
    assert one["seconds"] > 0
    assert one["core_seconds"] > 0
