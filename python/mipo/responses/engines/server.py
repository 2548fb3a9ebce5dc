"""The server engine: asks OpenAI-compatible servers, a request for each prompt, many at once.

Knows HTTP. Knows neither what a request holds (`mipo.responses.engines.completions` and `prompt_logprobs`), nor what is
kept of what comes back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.io.lazy import np
from mipo.responses.engines.completions import Bodies, answer_in, failure_of, identity, parsed
from mipo.responses.engines.contract import Answer, Scoring, Work
from mipo.responses.engines.prompt_logprobs import ScoreBodies
from mipo.responses.engines.sites import FATAL, Site, check_tokenizer, find_sites, message_of, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.models.model import Model
    from mipo.responses.sampling import Responses

JSON = {"Content-Type": "application/json"}
ATTEMPTS = 8  # that a request has at a server that answers with errors
LONGEST_WAIT = 60.0  # seconds between two of them

T = TypeVar("T", Answer, float)  # what is asked for: an answer, or a log-prob
Prompt = tuple[int, dict[str, Any]]  # the row, and the part of the body that no other has


class Server:
    """Answers and scores by requests to servers that share the work."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings
        self._sites = list[Site]()

    def name(self) -> str:
        """The engine, the kinds of server and the models there."""
        self._find()
        kinds = sorted({f"{site.kind or 'unknown'} {site.version}".strip() for site in self._sites})
        return f"server, {', '.join(kinds)}, {', '.join(sorted({site.model for site in self._sites}))}"

    def identity(self) -> dict[str, str]:
        """What decides the answers beside the model."""
        return identity(self._settings.served_model, self._settings.sent)

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        self._find()
        for site in self._sites:
            if site.kind == "transformers" and self._settings.sent == "ids":
                raise InputError(f"{site.url}: transformers serve takes no token ids; set send: messages")
        if self._settings.sent != "messages" and work.is_messages:
            first = work.block(np.zeros(1, np.int64))
            with _loop() as run:
                run(check_tokenizer(self._settings, self._sites, work.model, first.texts[0], first.ids[0].tolist()))
        bodies = Bodies(work, self._settings.sent)
        crowd = _Crowd(self._settings, self._sites, bodies, work.missing, lambda row, value: answer_in(value))
        yield from _asked(crowd)

    def check_scoring(self, model: Model) -> None:
        """InputError for a server that does not score, or of another model. Each is asked for one log-prob."""
        self._find()
        text = "42 = 6 · 7, ¿no?"
        own = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        with _loop() as run:
            run(check_tokenizer(self._settings, self._sites, model, text, own))
        end = np.array(model.end_ids[:1], dtype=np.uint32)
        bodies = ScoreBodies(Scoring([end], [end], np.zeros(1, np.int64), model))
        for site in self._sites:
            crowd = _Crowd(self._settings, [site], bodies, np.zeros(1, np.int64), bodies.score)
            for _, score in chain.from_iterable(_asked(crowd)):
                if isinstance(score, Answer):
                    raise InputError(
                        f"{site.url}: expected a server that scores responses, as vLLM does (prompt_logprobs), got one "
                        f"that does not ({score.detail}); serve the model with vLLM, or measure it with the engine "
                        "local or vllm"
                    )

    def longest(self, model: Model) -> int | None:
        """One token less than the smallest context: vLLM cannot score without a new token."""
        self._find()
        contexts = [context for site in self._sites if (context := site.context or model.context_length)]
        return min(contexts) - 1 if contexts else None

    def scores(self, asked: Scoring) -> Iterator[list[tuple[int, float | Answer]]]:
        """The log-prob of each asked row (see `mipo.responses.engines.contract`)."""
        self._find()
        bodies = ScoreBodies(asked)
        yield from _asked(_Crowd(self._settings, self._sites, bodies, asked.rows, bodies.score))

    def precision(self, model: Model) -> dict[str, object]:
        """The servers' name for the model: nobody says which dtype it has."""
        return {"engine": self.name()}

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


def _asked(crowd: _Crowd[T]) -> Iterator[list[tuple[int, T | Answer]]]:
    """What a crowd brings."""
    with _loop() as run:
        try:
            run(crowd.start())
            while answered := run(crowd.next()):
                yield answered
        finally:
            run(crowd.stop())


class _Gone(Exception):
    """A server that is away for longer than the settings' patience."""


class _Crowd(Generic[T]):
    """Workers that ask the servers for some rows, and what they bring: what `read` makes of a body, or a failure."""

    def __init__(
        self, settings: Responses, sites: list[Site], bodies: Bodies | ScoreBodies, rows: NDArray[np.int64],
        read: Callable[[int, object], T | Answer],
    ) -> None:  # fmt: skip
        self._settings, self._sites, self._bodies = settings, list(sites), bodies
        self._read: Callable[[int, object], T | Answer] = read
        self._prompts, self._left = bodies.prompts(rows), len(rows)
        self._returned: asyncio.Queue[Prompt] = asyncio.Queue()  # by workers whose server is gone
        # Answers, each with a future that is set when it has been kept; None wakes up `next`.
        self._done: asyncio.Queue[tuple[int, T | Answer, asyncio.Future[None]] | None] = asyncio.Queue()
        self._taken = list[asyncio.Future[None]]()
        self._tasks = list[asyncio.Task[None]]()
        self._in_flight = 0
        self._error: Exception | None = None
        self._away_since = dict[str, float]()
        self._answering = set[str]()  # servers that have answered

    async def start(self) -> None:
        """Starts the workers."""
        self._session = open_session(self._settings)
        count = min(self._settings.concurrency, self._left)
        self._tasks = [asyncio.create_task(self._serve(site)) for _ in range(count) for site in self._sites]

    async def next(self) -> list[tuple[int, T | Answer]]:
        """The answers that have come, at least one; none after the last. Those of the call before are kept by now.

        After an error no prompt is asked any more, but what is in flight is waited for, since it is paid for.
        """
        for kept in self._taken:
            kept.set_result(None)
        self._taken, answered = [], list[tuple[int, T | Answer]]()
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
        try:
            while not self._error:
                prompt = await self._take()
                self._in_flight += 1
                try:
                    answer = await self._answer(site, *prompt)
                except _Gone as gone:
                    self._returned.put_nowait(prompt)
                    self._sites = [other for other in self._sites if other != site]
                    if not self._sites:
                        raise StoppedError(
                            f"{site.url}: {gone}; start it and run the same command again to continue"
                        ) from None
                    return
                finally:
                    self._in_flight -= 1
                kept = asyncio.get_running_loop().create_future()
                self._done.put_nowait((prompt[0], answer, kept))
                await kept
        except Exception as error:  # of a server, or of reading the next prompt
            self._error = self._error or error
        finally:
            self._done.put_nowait(None)

    async def _take(self) -> Prompt:
        """The next prompt; waits where all are asked, since one may be returned."""
        if self._returned.empty() and (prompt := next(self._prompts, None)):
            return prompt
        return await self._returned.get()

    async def _answer(self, site: Site, row: int, own: dict[str, Any]) -> T | Answer:
        """The answer of a server to one prompt, asked again after errors that may go away."""
        started, attempts, tries = time.monotonic(), 0, 0
        body = self._bodies.of(own, model=site.model, kind=site.kind)
        while True:
            answer, wait, counts = await self._request(site, row, body)
            if isinstance(answer, float):
                return answer
            seconds = time.monotonic() - started
            # A server that limits the rate is waited for as one that is away.
            attempts, tries = attempts + max(counts, int(seconds > self._settings.patience)), tries + 1
            if answer and (answer.failure is None or answer.final or attempts >= ATTEMPTS or self._error):
                return replace(answer, seconds=round(seconds, 4))
            if self._error:
                raise self._error
            longest = min(LONGEST_WAIT, 0.5 * 2 ** min(tries, 16))
            await asyncio.sleep(wait if wait else random.uniform(longest / 2, longest))

    async def _request(self, site: Site, row: int, body: dict[str, Any]) -> tuple[T | Answer | None, float | None, int]:
        """One attempt: an answer or a failure, None without a connection; for how long the server asks to wait; and as
        how many attempts it counts.

        Raises _Gone for a server that has been away for too long.
        """
        import aiohttp

        try:
            data = msgspec.json.encode(body)  # a fifth of the time that aiohttp's own JSON takes
            async with self._session.post(
                f"{site.url}/{self._bodies.path}", data=data, headers=JSON, allow_redirects=False
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
            return self._read(row, parsed(content)), None, 1
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
