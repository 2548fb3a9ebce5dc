"""The engines beside plain vLLM: tokens a second of equal answers to equal prompts, start and end charged to nobody.

    python benchmarks/throughput.py --vllm PYTHON --model FOLDER --prompts FILE [--rows 1000] [--rounds 5] [--into DIR]
    python benchmarks/throughput.py --small      # a self-check on the demo's model, whose times mean nothing

PYTHON is that of an environment with vLLM; FILE is JSON Lines with a column `prompt`. The prompts are shared out to the
rounds, so that none is computed twice by a vLLM that stays. In each round all contenders take turns:

- `LLM.generate`: vLLM alone, given all token ids at once, and its texts are kept in memory. What the engines are
  measured by.
- `vllm` and `server`: mipo's engines with all that `generate` does: ids, the database of answers, the parts.
- `client`: a loop that asks the same server for the same ids, with as many requests in flight, and keeps the texts in
  memory. What it loses is the server's.
- `local`: mipo's engine without vLLM.

Every vLLM has the same options and no prefix cache. Answers are greedy. On a busy machine the seconds of a core, of all
processes of a contender, say more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from mipo.models.model import Model

HERE = Path(__file__).resolve().parent
OPTIONS = {
    "max_model_len": 1024, "enforce_eager": True, "gpu_memory_utilization": 0.3, "enable_prefix_caching": False,
    "enable_chunked_prefill": False, "max_num_batched_tokens": 4096, "max_num_seqs": 64,
}  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count()),
}  # fmt: skip


def plain(setup: dict[str, Any]) -> None:
    """`LLM.generate`, in vLLM's environment: loads the model, and prints seconds and tokens."""
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(**setup["options"])
    prompts = [{"prompt_token_ids": ids} for ids in setup["ids"]]
    started, used = time.perf_counter(), time.process_time() + of_children()
    outputs = llm.generate(prompts, SamplingParams(**setup["sampling"]), use_tqdm=False)
    seconds, cores = time.perf_counter() - started, time.process_time() + of_children() - used
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps({"seconds": seconds, "core_seconds": cores, "tokens": tokens}), file=printed, flush=True)


def of_children() -> float:
    """The seconds of a core that the processes below this one have used, of those that run."""
    import psutil

    used = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used


class Clocked:
    """An engine, and how long it has taken to load a model and to end, and what its processes have used in between."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.loading, self.ending, self.used = engine, 0.0, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def answers(self, work: Any) -> Iterator[Any]:
        started, used, left = time.perf_counter(), of_children(), len(work.missing)
        for batch in self._engine.answers(work):
            if not batch:
                self.loading, used = time.perf_counter() - started, of_children()
            left -= len(batch)
            if not left:
                self.used = of_children() - used
            yield batch
            before = time.perf_counter()
        self.ending = time.perf_counter() - before


class Contest:
    """What all contenders get, and how each answers some prompts."""

    def __init__(self, arguments: argparse.Namespace, model: Model, url: str | None) -> None:
        self._arguments, self._model, self._url = arguments, model, url
        self._new = 8 if arguments.small else arguments.max_new_tokens

    def generate(self, prompts: pl.DataFrame, **settings: Any) -> dict[str, float]:
        """By an engine of mipo, into a folder."""
        from mipo.responses.engines.choice import choose
        from mipo.responses.generation import generate

        engine = Clocked(choose(**settings))
        engine.name()
        options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": self._new, "max_failures": 0.0}
        with tempfile.TemporaryDirectory() as folder:
            started, used = time.perf_counter(), time.process_time()
            responses = generate(prompts, self._model, folder=Path(folder), engine=engine, **options)
            seconds = time.perf_counter() - started - engine.loading - engine.ending
            cores = time.process_time() - used + engine.used
        return {"seconds": seconds, "core_seconds": cores, "tokens": int(responses["response_tokens"].sum())}

    def ask_local(self, prompts: pl.DataFrame) -> dict[str, float]:
        return self.generate(prompts)

    def ask_vllm(self, prompts: pl.DataFrame) -> dict[str, float]:
        settings = {"python": self._arguments.vllm, "dtype": self._arguments.dtype, "engine_options": OPTIONS}
        return self.generate(prompts, engine="vllm", **settings)

    def ask_server(self, prompts: pl.DataFrame) -> dict[str, float]:
        return self.generate(prompts, engine="server", urls=(self._url,), concurrency=self._arguments.concurrency)

    def ask_plain(self, prompts: pl.DataFrame) -> dict[str, float]:
        options = {**OPTIONS, "model": self._model.name, "dtype": self._arguments.dtype}
        setup = json.dumps({"options": options, "sampling": self.sampling, "ids": self.ids(prompts)})
        command = [self._arguments.vllm, __file__, "--plain"]
        done = subprocess.run(command, input=setup, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        return json.loads(done.stdout.splitlines()[-1])

    def ask_by_client(self, prompts: pl.DataFrame) -> dict[str, float]:
        import aiohttp

        async def ask() -> int:
            left, texts, tokens = iter(ids), [], 0
            connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

                async def work() -> None:
                    nonlocal tokens
                    for prompt in left:
                        body = {"model": self._model.name, "prompt": prompt, **self.sampling}
                        async with session.post(f"{self._url}/completions", json=body) as response:
                            answer = await response.json()
                        texts.append(answer["choices"][0]["text"])
                        tokens += answer["usage"]["completion_tokens"]

                await asyncio.gather(*(work() for _ in range(self._arguments.concurrency)))
            return tokens

        ids = self.ids(prompts)
        started, used = time.perf_counter(), time.process_time() + of_children()
        tokens = asyncio.run(ask())
        cores = time.process_time() + of_children() - used
        return {"seconds": time.perf_counter() - started, "core_seconds": cores, "tokens": tokens}

    @property
    def sampling(self) -> dict[str, Any]:
        return {"temperature": 0.0, "max_tokens": self._new, "stop_token_ids": self._model.end_ids}

    def ids(self, prompts: pl.DataFrame) -> list[list[int]]:
        from mipo.tokenizer.chat import encode_prompts

        return [row.tolist() for row in encode_prompts(prompts["prompt"], self._model.tokenizer)]


CONTENDERS = {
    "LLM.generate": Contest.ask_plain, "vllm": Contest.ask_vllm, "client": Contest.ask_by_client,
    "server": Contest.ask_server, "local": Contest.ask_local,
}  # fmt: skip


@contextmanager
def serving(arguments: argparse.Namespace) -> Iterator[str | None]:
    """The base URL of a vLLM server; None without vLLM."""
    if not arguments.vllm:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        f"--{'no-' * (value is False)}{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f"={value}")
        for name, value in OPTIONS.items()
    ]
    command = [arguments.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", arguments.model, *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, f"--dtype={arguments.dtype}", f"--port={port}", "--disable-uvicorn-access-log"], stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server ended: {log.read()[-2000:]}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def read(arguments: argparse.Namespace) -> pl.DataFrame:
    """The prompts, as chats."""
    import polars as pl

    from mipo.responses.requests import compose_requests

    if arguments.small:
        table = pl.DataFrame({"prompt": [f"what should number {n} eat {'tonight ' * (n % 7)}?" for n in range(12)]})
    else:
        names = {"question": "prompt", "instruction": "prompt"}
        table = pl.read_ndjson(arguments.prompts, infer_schema_length=None).rename(names, strict=False)
        table = table.select("prompt").unique(maintain_order=True).head(arguments.rows)
    return compose_requests(table, chat=True).prompts


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and tokens of each contender in each round, or why there are none."""
    from mipo.models.model import Model

    prompts, model = read(arguments), Model(arguments.model)
    results: list[dict[str, Any]] = [{"name": name, "rounds": []} for name in arguments.contenders]
    size = -(-len(prompts) // arguments.rounds)
    with serving(arguments) as url:
        contest = Contest(arguments, model, url)
        contest.ids(prompts)
        assert model.identity  # reads the weights
        if "local" in arguments.contenders:
            contest.generate(prompts[:1])  # loads the model
        for number in range(arguments.rounds):
            for result in results if number % 2 == 0 else results[::-1]:
                if result["name"] != "local" and not arguments.vllm:
                    result["failure"] = "needs vLLM: name its python with --vllm"
                    continue
                answered = CONTENDERS[result["name"]](contest, prompts[number * size : (number + 1) * size])
                result["rounds"].append(answered)
                rate = answered["tokens"] / answered["seconds"]
                print(f"round {number}, {result['name']}: {answered['seconds']:.1f} s, {rate:.1f} tokens/s", flush=True)
    return results


def main() -> None:
    """The command line."""
    if sys.argv[1:] == ["--plain"]:  # in vLLM's environment, which has nothing of mipo
        sys.path[:] = [path for path in sys.path if path != str(HERE)]  # the files beside are no modules of vLLM's
        plain(json.loads(sys.stdin.read()))
        return
    from mipo import demo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="python of an environment that has vLLM")
    parser.add_argument("--model", default=str(demo.HERE / "model"))
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--concurrency", type=int, default=256, help="requests in flight to the server")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--into", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.rounds = 1
    os.environ |= ENVIRONMENT
    report(arguments, measure(arguments))


def report(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Prints and writes the table. A ratio is the median over the rounds, since other work beside comes and goes."""
    base = next((result["rounds"] for result in results if result["name"] == "LLM.generate"), [])
    print("a self-check, the times mean nothing" * arguments.small)
    print("| engine | tokens | tokens a second | of LLM.generate's | of a core's second | of LLM.generate's |")
    print("|---|---|---|---|---|---|")
    for result in results:
        if "failure" in result:
            print(f"| {result['name']} | {result['failure']} | | | | |")
            continue
        tokens, cells = sum(one["tokens"] for one in result["rounds"]), ""
        for unit in ("seconds", "core_seconds"):
            pairs = zip(result["rounds"], base, strict=False)
            ratios = [one["tokens"] / one[unit] * two[unit] / two["tokens"] for one, two in pairs]
            shown = f"{statistics.median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})" if ratios else ""
            cells += f" {tokens / sum(one[unit] for one in result['rounds']):.1f} | {shown} |"
        print(f"| {result['name']} | {tokens:,} |{cells}")
    if arguments.into:
        date = datetime.date.today().isoformat()
        record = {
            "date": date, "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "model": Path(arguments.model).name, "rows": arguments.rows, "max_new_tokens": arguments.max_new_tokens,
            "dtype": arguments.dtype, "concurrency": arguments.concurrency, "options": OPTIONS,
            "self_check": arguments.small, "results": results,
        }  # fmt: skip
        path = arguments.into / f"{date}-throughput.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
