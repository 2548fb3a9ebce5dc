"""A small OpenAI-compatible server of the demo's model, which makes the mistakes that it is told to make.

The answers are the model's own, greedy, and so are the log-probs of a prompt's tokens, as vLLM gives them. Knows HTTP,
and nothing of mipo's client.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web


@dataclass
class DemoServer:
    """`fault(number, body)` names what goes wrong with a request: a fault below, an HTTP status, or nothing."""

    model: Any
    tokenizer: Any
    fault: Callable[[int, dict[str, Any]], Any] = lambda number, body: None
    key: str | None = None
    kind: str = "tests"
    models: tuple[str, ...] = ("demo",)
    scores: bool = True  # or ignores `prompt_logprobs`, as servers do that do not know it
    context: int | None = None
    url: str = ""
    runner: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)  # whole answers by prompt

    def fail_first(self, times: int, fault: Any) -> Counter[str]:
        """Makes the first requests for each prompt fail; returns how often each has been asked for."""
        tries = Counter[str]()

        def fail(number: int, body: dict[str, Any]) -> Any:
            tries[json.dumps(body["prompt"])] += 1
            return fault if tries[json.dumps(body["prompt"])] <= times else None

        self.fault = fail
        return tries

    async def list_models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        more: dict[str, Any] = {"owned_by": self.kind, "max_model_len": self.context}
        if self.kind == "transformers":  # which says this of a folder
            more = {"owned_by": "local", "status": {"value": "loaded"}}
        return web.json_response({"data": [{"id": name, **more} for name in self.models]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        fault = self.fault(len(self.bodies), body)
        match fault:
            case (int(status), headers):
                return web.json_response({"error": {"message": f"said {status}"}}, status=status, headers=headers)
            case int(status):
                return web.json_response({"error": {"message": f"said {status}"}}, status=status)
            case "drop":
                assert request.transport
                request.transport.abort()
                return web.Response()
            case "leave":  # takes no connection from now on
                assert request.transport
                for site in list(self.runner.sites):
                    await site.stop()
                request.transport.abort()
                return web.Response()
            case "slow":
                await asyncio.sleep(60)
            case "late":
                await asyncio.sleep(0.7)
        if self.context and len(body.get("prompt", ())) + 1 > self.context:
            message = f"This model's maximum context length is {self.context} tokens."
            return web.json_response({"error": {"message": message}}, status=400)
        is_chat = "messages" in body
        text, count, reason = self.answer(body)
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choices = [] if fault == "empty" else [{"index": 0, "finish_reason": reason, **choice}]
        if self.scores and choices and body.get("prompt_logprobs") is not None:
            choices[0]["prompt_logprobs"] = self.prompt_logprobs(body["prompt"], fault)
        answer = json.dumps({"choices": choices, "usage": {"completion_tokens": count, "prompt_tokens": 1}})
        if fault == "half":
            answer = answer[: len(answer) // 2]
        if fault in (None, "late"):
            self.answered[json.dumps(body.get("prompt") or body["messages"])] += 1
        return web.Response(text=answer, content_type="application/json")

    def answer(self, body: dict[str, Any]) -> tuple[str, int, str]:
        ids = body.get("prompt")
        if isinstance(ids, str):
            ids = self.tokenizer(ids, add_special_tokens=False)["input_ids"]
        elif ids is None:
            ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
        with torch.inference_mode():
            out = self.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=body["max_tokens"])
        new = out[0, len(ids) :].tolist()
        reason = "stop" if new[-1] == self.tokenizer.eos_token_id else "length"
        return self.tokenizer.decode(new, skip_special_tokens=True), len(new), reason

    def prompt_logprobs(self, ids: list[int], fault: Any) -> list[Any]:
        """The log-prob of each token but the first; of `--logprobs-mode raw_logits` where the fault says so."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        values = logits if fault == "logits" else logits.log_softmax(-1)
        entries: list[Any] = [None]
        for at, token in enumerate(ids[1:]):
            rank = int((logits[at] > logits[at, token]).sum()) + 1
            entry = {"logprob": float(values[at, token]), "rank": rank, "decoded_token": self.tokenizer.decode([token])}
            entries.append({str(token): entry})
        return entries[:-1] if fault == "short" else entries

    async def end(self) -> None:
        await self.runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[DemoServer]:
        """The server in a thread of its own, on a free port."""
        loop = asyncio.new_event_loop()
        app = web.Application()
        app.add_routes([web.get("/v1/models", self.list_models)])
        app.add_routes([web.post("/tokenize", self.tokenize)])
        app.add_routes([web.post(f"/v1/{path}", self.complete) for path in ("completions", "chat/completions")])
        self.runner = runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

        async def start() -> str:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

        self.url = loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self.end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
