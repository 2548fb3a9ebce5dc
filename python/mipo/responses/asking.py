"""Asking: what has no answer is asked of an engine, and each answer is kept as it comes.

Knows engines by their contract, and the database of answers. Knows nothing of tables that are written.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

from mipo import reasons
from mipo.errors import InputError, StoppedError
from mipo.io.lazy import np
from mipo.io.rowfile import READ_ROWS
from mipo.responses import reasoning as thinking
from mipo.responses.answers import Answers
from mipo.responses.engines.contract import Answer, Engine, Work
from mipo.responses.sampling import Reasoning, Sampling
from mipo.tokenizer.chat import encode_prompts, render
from mipo.tokenizer.template import RowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.rowfile import Rows
    from mipo.models.model import Model


def ask(
    requests: Rows, keys: NDArray[np.uint64], model: Model, engine: Engine, answers: Answers, sampling: Sampling, *,
    seed: int, reasoning: Reasoning, max_failures: float, progress: str,
) -> None:  # fmt: skip
    """Asks the engine what has no answer, and keeps each answer as it comes.

    `requests` has response_id and prompt of each row, `keys` [n, 2] its key. Before anything is asked, InputError names
    a prompt that cannot be rendered. Raises StoppedError when more than the share `max_failures` has failed.
    """
    missing = answers.missing(keys)
    with _Bar(len(keys), len(missing), progress) as bar:
        if not len(missing):
            return
        name, failed = engine.name(), _Failures(len(keys), max_failures)
        lengths, room = _lengths(requests, len(keys), model), model.room(sampling.max_new_tokens)
        fits = lengths <= room if room is not None else np.ones(len(keys), dtype=bool)
        too_long = Answer(failure=reasons.too_long_for_context(room))
        long = missing[~fits[missing]].tolist()
        answers.add([(keys[row].tobytes(), too_long) for row in long], name)
        bar.advance([too_long] * len(long))
        failed.add([too_long] * int((~fits).sum()))
        missing = missing[fits[missing]]
        if not len(missing):
            return
        rows = missing if len(missing) == fits.sum() else np.flatnonzero(fits)
        work = Work(
            requests, rows, missing, lengths, keys, model, sampling, seed, answers.digest, answers.folder
        )  # fmt: skip
        # A template may open the reasoning, and then it does so for every prompt.
        prompt_end = str(render(requests.take(np.zeros(1, np.int64))["prompt"], model.tokenizer)[0])[-32:]
        asked = engine.answers(work)
        with closing(asked):  # type: ignore[type-var]
            for batch in asked:
                if reasoning != "part":
                    batch = [(row, thinking.split(answer, prompt_end=prompt_end)) for row, answer in batch]
                answers.add([(keys[row].tobytes(), answer) for row, answer in batch], name)
                bar.advance([answer for _, answer in batch])
                failed.add([answer for _, answer in batch if answer.failure])


def _lengths(requests: Rows, rows: int, model: Model) -> NDArray[np.uint32]:
    """The tokens of each prompt; InputError for one that cannot be rendered."""
    lengths = np.empty(rows, dtype=np.uint32)
    for start in range(0, rows, READ_ROWS):
        frame = requests.take(np.arange(start, min(start + READ_ROWS, rows)))
        try:
            lengths[start : start + READ_ROWS] = encode_prompts(frame["prompt"], model.tokenizer).lengths()
        except RowError as error:
            raise InputError(f"response_id {frame['response_id'][error.row]}: {error.message}") from error
    return lengths


class _Failures:
    """Counts failures, and stops where there are more than the share `most` of all `rows`."""

    def __init__(self, rows: int, most: float) -> None:
        self._rows, self._most = rows, most
        self._counts = Counter[str]()

    def add(self, answers: list[Answer]) -> None:
        """Counts these failures; StoppedError where they are too many with those before."""
        if not answers:
            return
        self._counts.update(str(answer.failure) for answer in answers)
        if self._counts.total() <= self._most * self._rows:
            return
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in self._counts.most_common())
        raise StoppedError(
            f"generate: {self._counts.total():,} of {self._rows:,} prompts failed, more than max_failures allows "
            f"({self._most}): {counts}; the last: {answers[-1].detail or answers[-1].failure}. What was answered is "
            "kept: mend the cause, or allow more with max_failures, and run the same command again to continue"
        )


class _Bar:
    """The progress bar: answers, tokens per second, failures."""

    def __init__(self, total: int, missing: int, name: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=total - missing, desc=name, unit="row", delay=0.5)
        self._tokens = self._failed = 0
        self._started = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, answers: list[Answer]) -> None:
        """Counts answers. Where a model was loaded for them, the time begins when it is there."""
        if not answers and not self._tokens:
            self._started = time.monotonic()
        self._tokens += sum(answer.response_tokens for answer in answers)
        self._failed += sum(answer.failure is not None for answer in answers)
        seconds = max(time.monotonic() - self._started, 0.1)
        failed = f", {self._failed:,} failed" if self._failed else ""
        self._bar.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s{failed}", refresh=False)
        self._bar.update(len(answers))
