"""A command that is killed at any point goes on to the same bytes; tests/support/kill_commands.py tries more points."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "kill_commands.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program forks")
def test_train_and_generate_go_on_after_a_kill(tmp_path):
    call = [sys.executable, str(PROGRAM), "--points", "3", "--folder", str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has none of its parent's threads
    ended = subprocess.run(call, capture_output=True, text=True, check=False, env=one_thread)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2_000:]
    lines = ended.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["train", "generate"]
    assert all("the same bytes" in line for line in lines)
