"""The batch engine: requests in files, for a batch runner that works while mipo does not.

A call writes what nobody has been asked yet, and stops; the next call takes the results, and asks again what failed.
What has been taken is in the database; for the rest the files are the state: what is deleted is asked, or taken, anew.
Knows prompts and answers. What a file looks like is in `mipo.responses.engines.batch_files`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.io.keys import NOWHERE, Index
from mipo.io.lazy import np
from mipo.responses.engines.batch_files import BatchFiles, Name, Result
from mipo.responses.engines.completions import Bodies, answer_in, failure_of, identity, message_in
from mipo.responses.engines.contract import Answer, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.responses.sampling import Responses

ATTEMPTS = 3  # that a request has before its failure stays one
AT_ONCE = 512  # results that are looked up, and kept, together
# `vllm run-batch` knows chats alone. With this template, if it may use it, a chat is our own text, token by token.
TEMPLATE = "{{ messages[0]['content'] }}"


class Batch:
    """Answers from the results of batch files."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings
        self._send = settings.sent

    def name(self) -> str:
        """The engine, who reads its files, and the model there."""
        return ", ".join(filter(None, ("batch", self._settings.batch_for, self._settings.served_model)))

    def identity(self) -> dict[str, str]:
        """What decides the answers beside the model."""
        return identity(self._settings.served_model, self._send)

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """Those answers to missing rows that have come (see `mipo.responses.engines.contract`).

        Raises StoppedError, which says what to do, while some have not.
        """
        if work.folder is None:
            raise InputError("engine: batch keeps requests and results in files; name a folder for the responses")
        if work.model.in_memory and not self._settings.served_model:
            raise InputError("engine: batch names the model in its requests, got one in memory; name it: served_model")
        files = BatchFiles(work.folder / "batch", work.settings)
        ledger = _Ledger(work, files, is_exact=self._send != "messages")
        yield from ledger.answers()
        failed = ledger.failures()
        for line in ledger.notices():
            print(line)
        if failed:
            yield failed
        waiting, rows = ledger.waiting(), ledger.unasked()
        paths = files.write(self._requests(work, ledger, rows), most=self._settings.requests_per_file)
        what = ["wrote nothing new"]
        if paths:
            names = " to ".join(sorted({paths[0].name, paths[-1].name}))
            what = [f"wrote {_count(len(rows), 'request')} into {_count(len(paths), 'file')} ({names})"]
        if len(waiting):
            before = _count(ledger.files_of(waiting), "file")
            what.append(f"{_count(len(waiting), 'request')} in {before} of earlier calls still without a result")
        if len(rows) or len(waiting):
            raise StoppedError(f"batch: {'; '.join(what)}. {self._next_step(work, files)}")

    def _requests(self, work: Work, ledger: _Ledger, rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The requests for these rows, each the next attempt."""
        bodies = Bodies(work, self._send)
        model, kind = self._settings.served_model or work.model.name, self._settings.batch_for
        for row, own in bodies.prompts(rows):
            body, path = bodies.of(own, model=model, kind=kind), bodies.path
            if kind == "vllm" and "prompt" in body:
                body |= {"messages": [{"role": "user", "content": body.pop("prompt")}], "chat_template": TEMPLATE}
                path = "chat/completions"
            name = Name(work.settings, work.keys[row].tobytes(), ledger.attempts(row) + 1)
            yield {"custom_id": str(name), "method": "POST", "url": f"/v1/{path}", "body": body}

    def _next_step(self, work: Work, files: BatchFiles) -> str:
        """What the user does now."""
        results = shlex.quote(str(files.results))
        if self._settings.batch_for == "hosted":
            path = "chat/completions" if self._send == "messages" else "completions"
            return (
                f"Upload each of {files.pattern} to the batch API (endpoint /v1/{path}), put what it gives back, its "
                f"file of errors too, into {results}, under any name, and run the same command again"
            )
        model, served = shlex.quote(work.model.name), self._settings.served_model
        options = f" --served-model-name {shlex.quote(served)}" if served else ""
        options += " --trust-request-chat-template" if self._send == "text" else ""
        return (
            "Let vLLM answer each file, and then run the same command again:\n"
            f"  for f in {shlex.quote(str(files.requests))}/{files.pattern.name}; do\n"
            f'    r={results}/"${{f##*/}}"; [ -e "$r" ] ||\n'
            f'      {{ vllm run-batch -i "$f" -o "$r.part" --model {model}{options} && mv "$r.part" "$r"; }}\n'
            "  done"
        )


class _Ledger:
    """What was asked and what came back, by row."""

    def __init__(self, work: Work, files: BatchFiles, *, is_exact: bool) -> None:
        self._work, self._files, self._is_exact = work, files, is_exact
        self._index, rows = Index(work.keys), len(work.keys)
        self._open = np.zeros(rows, dtype=bool)  # asked for, and without an answer
        self._open[work.missing] = True
        self._digests = np.zeros(rows, dtype=np.int64)  # of the answers that have come
        self._asked, self._tried = np.zeros((2, rows), dtype=np.int16)  # the last attempt in a file; that has failed
        self._file = np.zeros(rows, dtype=np.int32)  # which has the last attempt
        self._failed = dict[int, Answer]()
        self._problems, self._broken = dict[str, str](), Counter[str]()  # by file: its first broken line, how many
        self._ignored = Counter[str]()
        for number, names in enumerate(files.asked()):
            places = self._find(names)
            for row, name in zip(places.tolist(), names, strict=True):
                if row != NOWHERE and name.attempt > self._asked[row]:
                    self._asked[row], self._file[row] = name.attempt, number

    def answers(self) -> Iterator[list[tuple[int, Answer]]]:
        """The answers in the files of results, each row's first one."""
        results = self._files.read()
        while batch := list(islice(results, AT_ONCE)):
            named = [(result, result.name) for result in batch if self._is_ours(result) and result.name]
            rows = self._find([name for _, name in named]).tolist()
            answered = [
                (row, answer)
                for row, (result, name) in zip(rows, named, strict=True)
                if (answer := self._take(row, name, result))
            ]
            if answered:
                yield answered

    def failures(self) -> list[tuple[int, Answer]]:
        """The failures that stay: refusals, and those of the last attempt. Call it after `answers`."""
        rows = [row for row in self._failed if self._open[row] and self._tried[row] >= self._asked[row]]
        stay = [row for row in rows if not _may_go_away(self._failed[row]) or self._tried[row] >= ATTEMPTS]
        self._open[stay] = False
        if stay:
            last = self._failed[stay[-1]]
            what = f"{_count(len(stay), 'request')} failed; the last: {last.detail or last.failure}"
            print(f"{self._files.results}: {what}; delete the results, and run them again, if that may go away")
        return [(row, self._failed[row]) for row in stay]

    def waiting(self) -> NDArray[np.int64]:
        """The rows that are in a file and have no result."""
        return np.flatnonzero(self._open & (self._asked > self._tried))

    def unasked(self) -> NDArray[np.int64]:
        """The rows that are to be asked now, for the first time or again."""
        return np.flatnonzero(self._open & (self._asked <= self._tried))

    def attempts(self, row: int) -> int:
        """How many attempts a row has had."""
        return int(self._tried[row])

    def files_of(self, rows: NDArray[np.int64]) -> int:
        """In how many files the last attempts of these rows are."""
        return len(np.unique(self._file[rows]))

    def notices(self) -> list[str]:
        """What the user should know of the results: broken lines, and what was ignored."""
        more = {
            file: f" ({_count(count - 1, 'more line')} of this file)"
            for file, count in self._broken.items()
            if count > 1
        }
        lines = [f"{problem}{more.get(file, '')}" for file, problem in self._problems.items()]
        return lines + [
            f"{self._files.results}: ignored {_count(n, 'result')} {what}"
            for what, n in sorted(self._ignored.items())
            if n
        ]

    def _find(self, names: list[Name]) -> NDArray[np.int64]:
        return self._index.find(np.frombuffer(b"".join(name.prompt for name in names), np.uint64).reshape(-1, 2))

    def _is_ours(self, result: Result) -> bool:
        """Whether a result is one of these settings; counts what it is otherwise."""
        if result.problem:
            file = result.place.rpartition(":")[0]
            self._problems.setdefault(file, f"{result.place}: {result.problem}")
            self._broken[file] += 1
        elif result.name is None:
            self._ignored["whose custom_id is not mipo's"] += 1
        elif result.name.settings != self._work.settings:
            self._ignored["of other settings, or of another model"] += 1
        else:
            return True
        return False

    def _take(self, row: int, name: Name, result: Result) -> Answer | None:
        """The answer in a result; None where it is none, or not the first."""
        if row == NOWHERE:
            self._ignored["of other prompts"] += 1
            return None
        if not self._open[row] and not self._digests[row]:
            return None  # kept by an earlier call
        answer = _answer(result.value)
        if answer.failure:
            if name.attempt >= self._tried[row]:
                self._tried[row], self._failed[row] = name.attempt, answer
            return None
        digest = hash((answer.response, answer.finish_reason)) or 1
        if self._digests[row]:
            self._ignored["that differs from an earlier one of the same request"] += int(digest != self._digests[row])
            return None
        self._check_prompt(row, answer, result.place)
        self._digests[row], self._open[row] = digest, False
        return answer

    def _check_prompt(self, row: int, answer: Answer, place: str) -> None:
        """InputError for a result of another prompt than the one that was sent."""
        own = int(self._work.lengths[row])
        if self._is_exact and answer.prompt_tokens and answer.prompt_tokens != own:
            raise InputError(
                f"{place}: expected an answer to a prompt of {own} tokens, got one to {answer.prompt_tokens}; the "
                f"runner had another model or template than {self._work.model.name}: delete this file and run it again"
            )


def _answer(value: dict[str, Any]) -> Answer:
    """The answer in a line of results, of OpenAI's format or of `vllm run-batch`."""
    response, error = value.get("response"), value.get("error")
    if not isinstance(response, dict):  # the batch expired or was cancelled, or the runner failed
        detail = f"no response: {message_in(error)}"[:500]
        return Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False)
    status, body = response.get("status_code", 200), response.get("body")
    if status != 200 or (error and not body):
        return failure_of(status if isinstance(status, int) else 500, message_in(body or error)[:500])
    return answer_in(body)


def _may_go_away(answer: Answer) -> bool:
    return not answer.final and answer.failure != reasons.REFUSED


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
