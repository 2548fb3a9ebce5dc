"""The client of servers beside the openai client: requests a second and a core, and memory, against a loopback handler.

    python benchmarks/server.py [--rows 20000] [--flat 1000000] [--peers PYTHON] [--into benchmarks/results]
    python benchmarks/server.py --small        # a self-check, whose times mean nothing

The handler answers at once, with the same completion, from a process of its own. mipo is charged for everything that
`mipo generate` does with batches of prompts: composing, rendering, ids, requests, the database of answers and the
parts. The peers ask with 64 requests in flight, read the text, and keep it in a list: the openai client as it comes,
and with its aiohttp transport and without its models. Each contender runs in a process of its own, and is compared by
requests a second of its processor time.
PYTHON has `openai[aiohttp]`. `--flat` is the rows of a second measurement, of mipo's memory alone.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IN_FLIGHT = 64
BODY = json.dumps(
    {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "loopback",
        "choices": [{"index": 0, "text": " An answer of some words.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47},
    }
).encode()  # fmt: skip
MODELS = json.dumps({"object": "list", "data": [{"id": "loopback", "owned_by": "benchmark"}]}).encode()


class Handler(asyncio.Protocol):
    """Reads requests of any content, and answers each at once."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            body = MODELS if head.startswith(b"get /v1/models") else BODY
            start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(start + body)


async def serve() -> None:
    """Runs the handler, and prints its port."""
    server = await asyncio.get_running_loop().create_server(Handler, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def ask_with_mipo(url: str, rows: int) -> int:
    """What `mipo generate` does with the server engine: from batches of prompts into a folder."""
    import polars as pl

    from mipo import demo
    from mipo.io.rowfile import READ_ROWS
    from mipo.models.model import Model
    from mipo.responses.engines.choice import choose
    from mipo.responses.generation import generate_to
    from mipo.responses.sampling import Sampling
    from mipo.responses.stored_requests import open_requests

    starts = range(0, rows, READ_ROWS)
    numbers = (pl.int_range(start, min(start + READ_ROWS, rows), eager=True) for start in starts)
    prompts = (pl.select(prompt=pl.format("what should number {} eat tonight ?", some)) for some in numbers)
    engine, sampling = choose(engine="server", urls=(url,), concurrency=IN_FLIGHT), Sampling(max_new_tokens=16)
    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder), Model(str(demo.HERE / "model"))
        with open_requests(prompts, chat=True, folder=place) as requests:
            asked, failed = generate_to(place / "out", requests, model, sampling, engine=engine)
    return asked - sum(failed.values())


def ask_with_openai(url: str, rows: int, *, fast: bool) -> int:
    """The openai client with a fixed number of requests in flight."""
    import openai

    async def ask() -> int:
        options = {"http_client": openai.DefaultAioHttpClient()} if fast else {}
        texts = []
        async with openai.AsyncOpenAI(api_key="none", base_url=url, **options) as client:
            left = iter(range(rows))

            async def work() -> None:
                for row in left:
                    body = {"model": "loopback", "prompt": [row, *range(100, 140)], "max_tokens": 16, "seed": row}
                    if fast:
                        answer = await client.post("/completions", body=body, cast_to=object)
                        texts.append(answer["choices"][0]["text"])
                    else:
                        completion = await client.completions.create(**body)
                        texts.append(completion.choices[0].text)

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return len(texts)

    return asyncio.run(ask())


CONTENDERS = {
    "mipo": ask_with_mipo,
    "openai": lambda url, rows: ask_with_openai(url, rows, fast=False),
    "openai, aiohttp": lambda url, rows: ask_with_openai(url, rows, fast=True),
}


def contend(name: str, url: str, rows: int) -> None:
    """Runs one contender in this process, and prints its figures."""
    CONTENDERS[name](url, min(rows, 64))  # imports and connections
    started, used = time.perf_counter(), time.process_time()
    answers = CONTENDERS[name](url, rows)
    figures = {
        "rows": rows,
        "answers": answers,
        "seconds": round(time.perf_counter() - started, 2),
        "core_seconds": round(time.process_time() - used, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(figures), flush=True)


def measured(python: str, name: str, url: str, rows: int) -> dict[str, Any]:
    """The figures of one contender, or why there are none."""
    command = [python, __file__, "--contend", name, "--url", url, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"name": name, "failure": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--flat", type=int, default=0)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    elif arguments.contend:
        contend(arguments.contend, arguments.url, arguments.rows)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Runs the contenders one after another against one handler, and prints and writes the table."""
    rows = 200 if arguments.small else arguments.rows
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        pythons = {name: sys.executable if name == "mipo" else arguments.peers for name in CONTENDERS}
        results = [measured(python, name, url, rows) for name, python in pythons.items()]
        flat = measured(sys.executable, "mipo", url, arguments.flat) if arguments.flat else None
        server.terminate()
    ours = results[0]
    print(f"\n{rows:,} requests, {IN_FLIGHT} in flight" + (": a self-check, the times mean nothing" * arguments.small))
    print("| client | requests a second | of a core's second | mipo is | peak |\n|---|---|---|---|---|")
    for result in results:
        if "failure" in result:
            print(f"| {result['name']} | {result['failure']} | | | |")
            continue
        rate, core = rows / result["seconds"], rows / result["core_seconds"]
        ratio = result["core_seconds"] / ours["core_seconds"]
        peak = f"{result['peak_bytes'] / 2**20:,.0f} MiB"
        print(f"| {result['name']} | {rate:,.0f} | {core:,.0f} | {ratio:.1f}x | {peak} |")
    if flat:
        more = flat["peak_bytes"] - ours["peak_bytes"]
        print(f"memory at {flat['rows']:,} rows: {more / 2**20:,.0f} MiB more than at {rows:,}")
    if arguments.into:
        date = datetime.date.today().isoformat()
        record = {
            "date": date, "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "python": platform.python_version(), "self_check": arguments.small, "results": results, "flat": flat,
        }  # fmt: skip
        path = arguments.into / f"{date}-server.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
