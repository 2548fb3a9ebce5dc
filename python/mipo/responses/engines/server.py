"""The server engine: asks OpenAI-compatible servers, a request for each prompt, many at once.

Knows HTTP. Knows neither what a request holds (`mipo.responses.engines.completions`), nor what is kept of the answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.responses.engines.completions import Bodies, answer_in, failure_of, parsed
from mipo.responses.engines.contract import Answer, Work
from mipo.responses.engines.sites import FATAL, Site, find_sites, message_of, open_session
from mipo.tokenizer.chat import render
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    from mipo.responses.sampling import Responses

# Servers that encode a text on request, which shows whether they serve this model: the name of the text, the options.
TOKENIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("prompt", {"add_special_tokens": False}),
    "llamacpp": ("content", {"add_special": False, "parse_special": True}),
}
ATTEMPTS = 8  # that a request has at a server that answers with errors
LONGEST_WAIT = 60.0  # seconds between two of them


class Server:
    """Answers by requests to servers that share the work."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings
        self._sites = list[Site]()

    def name(self) -> str:
        """The engine, the kinds of server and the models there."""
        self._find()
        kinds = sorted({f"{site.kind or 'unknown'} {site.version}".strip() for site in self._sites})
        return f"server, {', '.join(kinds)}, {', '.join(sorted({site.model for site in self._sites}))}"

    def identity(self) -> dict[str, str]:
        """What decides the answers beside the model: its name there, if chosen, and who renders the messages."""
        named = {"served_model": self._settings.served_model} if self._settings.served_model else {}
        return named | ({"send": "messages"} if self._settings.send == "messages" else {})

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        self._find()
        with _loop() as run:
            crowd = _Crowd(self._settings, self._sites, work)
            try:
                run(crowd.start())
                while answered := run(crowd.next()):
                    yield answered
            finally:
                run(crowd.stop())

    def _find(self) -> None:
        """Asks each server which models it has."""
        if not self._sites:
            with _loop() as run:
                self._sites = run(find_sites(self._settings))


@contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in one event loop; in a thread where this one has a loop of its own, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield runner.run
        return
    with ThreadPoolExecutor(1) as thread:
        runner = asyncio.Runner()
        try:
            yield lambda coroutine: thread.submit(runner.run, coroutine).result()
        finally:
            thread.submit(runner.close).result()


class _Gone(Exception):
    """A server that is away for longer than the settings' patience."""


class _Crowd:
    """Workers that ask the servers, and the answers that they bring."""

    def __init__(self, settings: Responses, sites: list[Site], work: Work) -> None:
        self._settings, self._sites, self._work = settings, list(sites), work
        self._rows: asyncio.Queue[int] = asyncio.Queue()
        for row in work.missing.tolist():
            self._rows.put_nowait(row)
        self._left = len(work.missing)
        # Answers, each with a future that is set when it has been kept; None wakes up `next`.
        self._done: asyncio.Queue[tuple[int, Answer, asyncio.Future[None]] | None] = asyncio.Queue()
        self._taken = list[asyncio.Future[None]]()
        self._tasks = list[asyncio.Task[None]]()
        self._in_flight = 0
        self._error: Exception | None = None
        self._away_since = dict[str, float]()
        self._answering = set[str]()  # servers that have answered
        self._bodies = Bodies(work, settings.send)

    async def start(self) -> None:
        """Starts the workers."""
        self._session = open_session(self._settings)
        for site in self._sites:
            await self._check_tokenizer(site)
        count = min(self._settings.concurrency, self._left)
        self._tasks = [asyncio.create_task(self._serve(site)) for _ in range(count) for site in self._sites]

    async def _check_tokenizer(self, site: Site) -> None:
        """InputError for a server whose tokenizer gives the first prompt other ids: it serves another model."""
        import aiohttp

        if site.kind not in TOKENIZE or self._settings.send == "messages" or not is_messages(self._work.prompts):
            return
        name, options = TOKENIZE[site.kind]
        text = render(self._work.prompts[:1], self._work.model.tokenizer)[0]
        url = f"{site.url.removesuffix('/v1')}/tokenize"
        try:
            async with self._session.post(url, json={"model": site.model, name: text, **options}) as response:
                theirs = json.loads(await response.read())["tokens"]
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
            return
        own = self._work.ids[0].tolist()
        if theirs != own:
            raise InputError(
                f"{site.url}: expected a server of {self._work.model.name}, got one of {site.model}, which encodes a "
                f"prompt as other tokens ({len(theirs)}; the model's own: {len(own)}); serve the model of the recipe"
            )

    async def next(self) -> list[tuple[int, Answer]]:
        """The answers that have come, at least one; none after the last. Those of the call before are kept by now.

        After an error no prompt is asked any more, but what is in flight is waited for, since it is paid for.
        """
        for kept in self._taken:
            kept.set_result(None)
        self._taken, answered = [], list[tuple[int, Answer]]()
        while self._left and (not answered or not self._done.empty()):
            if self._error and not self._in_flight and self._done.empty():
                raise self._error
            if item := await self._done.get():
                self._left -= 1
                answered.append(item[:2])
                self._taken.append(item[2])
        return answered

    async def stop(self) -> None:
        """Ends the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _serve(self, site: Site) -> None:
        """Asks a server for one prompt after another, the next one when the answer before has been kept."""
        while not self._error:
            row = await self._rows.get()
            self._in_flight += 1
            try:
                answer = await self._answer(site, row)
            except _Gone as gone:
                self._rows.put_nowait(row)
                self._sites = [other for other in self._sites if other != site]
                if not self._sites:
                    error = f"{site.url}: {gone}; start it and run the same command again to continue"
                    self._error = self._error or StoppedError(error)
                return
            except Exception as error:
                self._error = self._error or error
                return
            finally:
                self._in_flight -= 1
                self._done.put_nowait(None)
            kept = asyncio.get_running_loop().create_future()
            self._done.put_nowait((row, answer, kept))
            await kept

    async def _answer(self, site: Site, row: int) -> Answer:
        """The answer of a server to one prompt, asked again after errors that may go away."""
        started, attempts, tries = time.monotonic(), 0, 0
        body = self._bodies.of(row, model=site.model, kind=site.kind)
        while True:
            answer, wait, counts = await self._request(site, body)
            seconds = time.monotonic() - started
            # A server that limits the rate is waited for as one that is away.
            attempts, tries = attempts + max(counts, int(seconds > self._settings.patience)), tries + 1
            if answer and (answer.failure is None or answer.final or attempts >= ATTEMPTS or self._error):
                return replace(answer, seconds=round(seconds, 4))
            if self._error:
                raise self._error
            longest = min(LONGEST_WAIT, 0.5 * 2 ** min(tries, 16))
            await asyncio.sleep(wait if wait else random.uniform(longest / 2, longest))

    async def _request(self, site: Site, body: dict[str, Any]) -> tuple[Answer | None, float | None, int]:
        """One attempt: an answer or a failure, None without a connection; for how long the server asks to wait; and as
        how many attempts it counts.

        Raises _Gone for a server that has been away for too long.
        """
        import aiohttp

        try:
            async with self._session.post(
                f"{site.url}/{self._bodies.path}", json=body, allow_redirects=False
            ) as response:
                status, content = response.status, await response.read()
                wait = _retry_after(response.headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            since = self._away_since.setdefault(site.url, time.monotonic())
            if (away := time.monotonic() - since) >= self._settings.patience:
                raise _Gone(f"no connection for {away:.0f} s ({type(error).__name__})") from None
            return None, None, 0
        except TimeoutError:
            detail = f"after {self._settings.timeout} s"
            return Answer(failure=reasons.TIMED_OUT, detail=detail, final=False), None, 1
        except (aiohttp.ClientError, OSError) as error:
            detail = f"the connection ended ({type(error).__name__})"
            return Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False), None, 1
        self._away_since.pop(site.url, None)
        if status == 200:
            self._answering.add(site.url)
            return answer_in(parsed(content)), None, 1
        message = message_of(content, self._settings)
        # 403 may also be said of one prompt, by a server that answers others.
        if status in FATAL and not (status == 403 and site.url in self._answering):
            raise StoppedError(f"{site.url}: {FATAL[status]} ({status}: {message})")
        answer = failure_of(status, message)
        return answer, wait, ATTEMPTS if answer.failure == reasons.REFUSED else int(status != 429)


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
