"""The benchmark of the server engine checks itself. Never how fast."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_client_gets_every_answer_or_is_named(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "server.py", "--small", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean nothing" in done.stdout
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert [row["name"] for row in record["results"]] == ["mipo", "openai", "openai, aiohttp"]
    assert record["results"][0]["answers"] == 200
    for row in record["results"]:
        assert f"| {row['name']} |" in done.stdout
        assert ("failure" in row) != (row.get("answers") == 200)
