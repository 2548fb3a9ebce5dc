"""The python of an environment whose vLLM answers with the ids of the prompt. Knows the worker's format alone."""

from __future__ import annotations

import stat
import sys
from pathlib import Path


def vllm_that_ends(folder: Path, *, at: int | None) -> str:
    """The path of one whose vLLM ends when it is asked row `at` (-1: no row), or before it is asked (None)."""
    path = folder / "python"
    path.write_text(
        f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    print("vllm 0.0")
elif {at} is None:
    sys.exit("RuntimeError: no memory")
else:
    setup, *_ = sys.stdin.readline(), sys.stderr.write("ValueError: a bad token")
    for line in sys.stdin:
        request = json.loads(line)
        if request["row"] == {at}:
            os._exit(3)
        how = {{"response_tokens": 1, "prompt_tokens": len(request["ids"]), "finish_reason": "stop", "seconds": 0}}
        print(json.dumps([{{"row": request["row"], "text": str(request["ids"]), **how}}]), flush=True)
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
