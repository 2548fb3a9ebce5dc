"""The server engine: asks OpenAI-compatible servers, a request for each prompt, many at once.

Knows HTTP, and what the servers of the field want to be told so that they sample from the model's own distribution.
Knows nothing of what is kept of the answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from mipo import reasons
from mipo.errors import InputError, LibraryError, StoppedError, first_line
from mipo.responses.engines.contract import Answer, Work
from mipo.tokenizer.chat import render
from mipo.tokenizer.messages import is_messages, plain

if TYPE_CHECKING:
    import aiohttp

    from mipo.responses.sampling import Responses

# By `owned_by` in /v1/models: what switches off a server's own sampling defaults.
NEUTRAL: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"samplers": ["top_p", "temperature"], "repeat_penalty": 1.0},
}
# Servers that encode a text on request, which shows whether they serve this model: the name of the text, the options.
TOKENIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("prompt", {"add_special_tokens": False}),
    "llamacpp": ("content", {"add_special": False, "parse_special": True}),
}
ATTEMPTS = 8  # that a request has at a server that answers with errors
LONGEST_WAIT = 60.0  # seconds between two of them
FATAL = {401: "refuses the key", 403: "refuses the key", 404: "has no such model or address"}


class Server:
    """Answers by requests to servers that share the work."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings
        self._sites = list[_Site]()

    def name(self) -> str:
        """The engine, the models and servers."""
        self._find()
        kinds = sorted({f"{site.kind or 'unknown'} {site.version}".strip() for site in self._sites})
        return f"server, {', '.join(kinds)}, {self._sites[0].model}"

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        self._find()
        with asyncio.Runner() as runner:
            crowd = _Crowd(self._settings, self._sites, work)
            tasks = list[asyncio.Task[None]]()
            try:
                tasks = runner.run(crowd.start())
                while answered := runner.run(crowd.next()):
                    yield answered
            finally:
                runner.run(crowd.stop(tasks))

    def _find(self) -> None:
        """Asks each server which models it has."""
        if not self._sites:
            self._sites = asyncio.run(_sites(self._settings))


@dataclass(frozen=True)
class _Site:
    """A server: its base URL, the model there, its kind (`owned_by`) and version."""

    url: str
    model: str
    kind: str
    version: str


class _Gone(Exception):
    """A server that is away for longer than the settings' patience."""


class _Crowd:
    """Workers that ask the servers, and the answers that they bring."""

    def __init__(self, settings: Responses, sites: list[_Site], work: Work) -> None:
        self._settings, self._sites, self._work = settings, sites, work
        self._rows = deque(work.missing.tolist())
        self._left = len(self._rows)
        # Answers, each with a future that is set when it has been kept.
        self._done: asyncio.Queue[tuple[int, Answer, asyncio.Future[None]] | BaseException] = asyncio.Queue()
        self._taken = list[asyncio.Future[None]]()
        self._heard = dict.fromkeys((site.url for site in sites), time.monotonic())
        self._texts = render(work.prompts, work.model.tokenizer) if settings.send == "text" else None
        self._ends = work.model.end_ids

    async def start(self) -> list[asyncio.Task[None]]:
        """Starts the workers."""
        self._session = _session(self._settings)
        for site in self._sites:
            await self._check_tokenizer(site)
        count = min(self._settings.concurrency, self._left)
        return [asyncio.create_task(self._serve(site)) for _ in range(count) for site in self._sites]

    async def _check_tokenizer(self, site: _Site) -> None:
        """InputError for a server whose tokenizer gives the first prompt other ids: it serves another model."""
        if site.kind not in TOKENIZE or self._settings.send == "messages" or not is_messages(self._work.prompts):
            return
        name, options = TOKENIZE[site.kind]
        text = render(self._work.prompts[:1], self._work.model.tokenizer)[0]
        url = f"{site.url.removesuffix('/v1')}/tokenize"
        async with self._session.post(url, json={"model": site.model, name: text, **options}) as response:
            content = await response.read()
        try:
            theirs = json.loads(content)["tokens"]
        except (ValueError, LookupError, TypeError):
            return
        if theirs != self._work.ids[0].tolist():
            raise InputError(
                f"{site.url}: expected a server of {self._work.model.name}, got one of {site.model}, whose tokenizer "
                f"gives a prompt {len(theirs)} tokens other than its own {len(self._work.ids[0])}; serve the "
                "model of the recipe"
            )

    async def next(self) -> list[tuple[int, Answer]]:
        """The answers that have come, at least one; none after the last. Those of the call before are kept by now."""
        for kept in self._taken:
            kept.set_result(None)
        self._taken, answered = [], list[tuple[int, Answer]]()
        while self._left and (not answered or not self._done.empty()):
            came = await self._done.get()
            if isinstance(came, BaseException):
                if answered:  # these first, then the error
                    self._done.put_nowait(came)
                    break
                raise came
            self._left -= 1
            answered.append(came[:2])
            self._taken.append(came[2])
        return answered

    async def stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """Ends the workers."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _serve(self, site: _Site) -> None:
        """Asks a server for one prompt after another, the next one when the answer before has been kept."""
        while self._rows:
            row = self._rows.popleft()
            try:
                answer = await self._answer(site, row)
            except _Gone as error:
                self._rows.append(row)
                self._sites = [other for other in self._sites if other != site]
                if not self._sites:
                    message = f"{site.url}: {error}; start it and run the same command again to continue"
                    self._done.put_nowait(StoppedError(message))
                return
            except Exception as error:
                self._done.put_nowait(error)
                return
            kept = asyncio.get_running_loop().create_future()
            self._done.put_nowait((row, answer, kept))
            await kept

    async def _answer(self, site: _Site, row: int) -> Answer:
        """The answer of a server to one prompt, asked again after errors that may go away."""
        started, attempt, body = time.monotonic(), 0, self._body(site, row)
        while True:
            answer, wait = await self._request(site, body)
            seconds = time.monotonic() - started
            if answer and answer.failure is None:
                return replace(answer, seconds=round(seconds, 4))
            if answer and (answer.final or attempt + 1 >= ATTEMPTS):
                return replace(answer, seconds=round(seconds, 4))
            if answer:
                attempt += 1
            longest = min(LONGEST_WAIT, 0.5 * 2**attempt)
            await asyncio.sleep(wait if wait is not None else random.uniform(longest / 2, longest))

    async def _request(self, site: _Site, body: dict[str, Any]) -> tuple[Answer | None, float | None]:
        """One attempt: an answer or a failure, None without a connection; and for how long the server asks to wait.

        Raises _Gone for a server that has been away for too long.
        """
        import aiohttp

        path = "chat/completions" if "messages" in body else "completions"
        try:
            async with self._session.post(f"{site.url}/{path}", json=body, allow_redirects=False) as response:
                status, content = response.status, await response.read()
                wait = _retry_after(response.headers.get("Retry-After"))
        except TimeoutError:
            return Answer(failure=reasons.TIMED_OUT, detail=f"after {self._settings.timeout} s", final=False), None
        except (aiohttp.ClientError, OSError) as error:
            away = time.monotonic() - self._heard[site.url]
            if away > self._settings.patience:
                raise _Gone(f"no connection for {away:.0f} s ({type(error).__name__})") from None
            return None, None
        self._heard[site.url] = time.monotonic()
        if status in FATAL:
            raise StoppedError(f"{site.url}: {FATAL[status]} ({status}: {_message(content)})")
        if status == 200:
            return _read(content), None
        # 408, 409, 425 and 429 ask to come again; other 4xx say that the request itself is wrong.
        final = 400 <= status < 500 and status not in (408, 409, 425, 429)
        reason = reasons.REFUSED if final else reasons.SERVER_ERROR
        return Answer(failure=reason, detail=f"{status}: {_message(content)}", final=final), wait

    def _body(self, site: _Site, row: int) -> dict[str, Any]:
        sampling, send = self._work.sampling, self._settings.send
        body: dict[str, Any] = {
            "model": site.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "seed": int(self._work.seeds[row]),
            **NEUTRAL.get(site.kind, {}),
        }
        if site.kind == "vllm":
            body["stop_token_ids"] = self._ends
        if send == "messages":
            prompt = self._work.prompts[row]
            body["messages"] = (
                next(plain([prompt])) if is_messages(self._work.prompts) else [{"role": "user", "content": prompt}]
            )
        else:
            body["prompt"] = self._work.ids[row].tolist() if self._texts is None else self._texts[row]
            if self._texts is not None and site.kind == "vllm":
                body["add_special_tokens"] = not is_messages(self._work.prompts)
        return body


def _read(content: bytes) -> Answer:
    """The answer in the body of a response."""
    try:
        value = json.loads(content)
        choice = value["choices"][0]
        message = choice.get("message") or {}
        text = choice["text"] if "text" in choice else message["content"]
        usage, reason = value.get("usage") or {}, choice["finish_reason"]
        if reason == "content_filter":
            return Answer(failure=reasons.FILTERED)
        if reason not in ("stop", "length"):
            return Answer(failure=reasons.SERVER_ERROR, detail=f"finish_reason: {reason}", final=False)
        return Answer(
            text or "",
            response_tokens=int(usage.get("completion_tokens") or 0),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            finish_reason=reason,
            reasoning=message.get("reasoning_content") or message.get("reasoning"),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = content[:200].decode("utf-8", "replace")
        return Answer(failure=reasons.SERVER_ERROR, detail=f"expected a completion, got {shown!r}", final=False)


def _message(content: bytes) -> str:
    """What a server says of an error."""
    try:
        value = json.loads(content)
        error = value.get("error", value)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = content.decode("utf-8", "replace")
    return str(text)[:500]


def _retry_after(header: str | None) -> float | None:
    """The seconds that a server asks to wait; None where it does not say."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _session(settings: Responses) -> aiohttp.ClientSession:
    try:
        import aiohttp
    except ImportError:
        raise LibraryError("engine: server needs aiohttp; install mipo[server]") from None
    key = os.environ.get(settings.key_variable)
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=aiohttp.ClientTimeout(total=settings.timeout, sock_connect=10),
        connector=aiohttp.TCPConnector(limit=0),
        # With it, aiohttp looks for a proxy and a password in a thread, at every request.
        trust_env=bool(getproxies()),
    )


async def _sites(settings: Responses) -> list[_Site]:
    async with _session(settings) as session:
        return [await _site(session, settings, url.rstrip("/")) for url in settings.urls]


async def _site(session: aiohttp.ClientSession, settings: Responses, url: str) -> _Site:
    """A server with its model; StoppedError where none answers, InputError where the model is not clear."""
    import aiohttp

    try:
        async with session.get(f"{url}/models") as response:
            status, content = response.status, await response.read()
        async with session.get(f"{url.removesuffix('/v1')}/version") as response:
            about = await response.read() if response.status == 200 else b"{}"
    except (aiohttp.ClientError, OSError) as error:
        raise StoppedError(f"{url}: no server answers there ({first_line(error)}); start it, or mend urls") from None
    if status in FATAL:
        raise InputError(f"{url}: {FATAL[status]} ({status}: {_message(content)}); the key is read from "
                         f"{settings.key_variable}")  # fmt: skip
    try:
        models = {model["id"]: model.get("owned_by", "") for model in json.loads(content)["data"]}
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{url}/models: expected a list of models, got {_message(content)!r}; name the base URL, "
                         "for example http://localhost:8000/v1") from None  # fmt: skip
    name = settings.served_model
    if name is None and len(models) != 1:
        raise InputError(f"{url}: serves {len(models)} models ({', '.join(sorted(models)[:8])}); name one with "
                         "served_model")  # fmt: skip
    name = name or next(iter(models))
    try:
        version = str(json.loads(about).get("version", ""))
    except (ValueError, AttributeError):
        version = ""
    return _Site(url, name, models.get(name, ""), version)
