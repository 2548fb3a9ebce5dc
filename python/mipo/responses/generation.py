"""Generation: an answer to each distinct prompt, asked of an engine once, and kept as it comes.

Knows engines by their contract, and what is kept on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, NotThereError, StoppedError
from mipo.io import outputs, records, tables
from mipo.io.lazy import np, pl
from mipo.models.model import Model
from mipo.responses import reasoning as thinking
from mipo.responses.answers import FILE, Answers, keys_of
from mipo.responses.engines.contract import Answer, Engine, Work
from mipo.responses.engines.local import Local
from mipo.responses.sampling import Reasoning, Sampling
from mipo.tokenizer.chat import encode_prompts, render
from mipo.tokenizer.table import TokenTable
from mipo.tokenizer.template import RowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART_ROWS = 65_536  # rows in a file of responses


def generate(
    prompts: pl.DataFrame,
    model: Model,
    *,
    folder: Path | None = None,
    database: Path | None = None,
    engine: Engine | None = None,
    reuse: Path | None = None,
    temperature: float = 0.1,
    top_p: float = 0.9,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 64,
    reasoning: Reasoning = "drop",
    max_failures: float = 0.1,
    progress: str = "generate",
) -> pl.DataFrame:
    """One sampled response for each row of `prompts` (those of `Requests`); temperature 0 is greedy.

    Equal prompts have one answer, unless a column sample tells them apart.

    Returns `prompts` with response (text without special tokens), response_tokens (with the end of turn), truncated
    (cut off after `max_new_tokens` tokens: as a part of a pair it has no end of turn, see `mipo.tokens.groups`), and,
    where there is no response, failure (a reason) and detail (what the engine said of it). `reasoning` says what
    becomes of a text between `<think>` and `</think>`: drop, keep (a column reasoning) or part (of the response).

    Samples from the model's own distribution under temperature and top_p: a repetition penalty or top_k in its
    generation config is ignored, its end tokens are used. `engine` answers (default: the model, in this process).

    With `folder`, the responses are written there as `part-*.parquet`, and the answers are kept in `database` (default:
    `answers.sqlite` in the folder) as they come. A later call asks only what has no answer there, or in the folder
    `reuse` (of responses, or of a run); other settings or prompts add to it. The local engine gives the same responses
    for the same arguments on the same machine; another batch size or device rounds differently. Raises StoppedError
    when more than the share `max_failures` of the prompts has failed; what was answered is kept.
    """
    if not prompts.height:
        raise InputError("no prompt to answer; give at least one row")
    sampling = records.read(
        Sampling,
        {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "batch_size": batch_size},
    )
    engine = engine or Local()
    if reuse and not (reuse / FILE).exists():
        raise NotThereError(f"{reuse}: no {FILE} there; name a folder of responses, or of a run, that has one")
    settings = settings_of(model, sampling, seed, engine, is_split=reasoning != "part")
    with ExitStack() as stack:
        if folder:
            stack.enter_context(outputs.claim(folder, "responses"))
            database = database or folder / FILE
        answers = stack.enter_context(Answers.open(database, settings))
        keys = keys_of(prompts)
        if damaged := answers.discard_damaged(keys):
            print(f"{database}: {damaged} answers were damaged, and are asked for again")
        if reuse:
            answers.copy_from(reuse / FILE)
        _ask(prompts, keys, model, engine, answers, sampling, seed, reasoning, max_failures, progress)
        kept = answers.frame(keys)
    if reasoning != "keep":
        kept = kept.drop("reasoning")
    responses = prompts.hstack(kept)
    if folder:
        _write(responses, folder)
    return responses


def settings_of(model: Model, sampling: Sampling, seed: int, engine: Engine, *, is_split: bool) -> dict[str, Any]:
    """What an answer depends on beside its prompt."""
    hot = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
    return {
        "model": model.identity,
        "tokenizer": model.tokenizer_fingerprint,
        "max_new_tokens": sampling.max_new_tokens,
        **(hot if sampling.temperature else {"temperature": 0}),
        "reasoning_is_split": is_split,
        **engine.identity(),
    }


def failures(responses: pl.DataFrame) -> dict[str, int]:
    """How many prompts have no response, by reason."""
    return reasons.by_frequency(Counter(responses["failure"].drop_nulls().to_list()))


def _ask(
    prompts: pl.DataFrame, keys: NDArray[np.uint64], model: Model, engine: Engine, answers: Answers,
    sampling: Sampling, seed: int, reasoning: Reasoning, max_failures: float, progress: str,
) -> None:  # fmt: skip
    """Asks the engine what has no answer, and keeps each answer as it comes."""
    missing = answers.missing(keys)
    failed = Counter[str]()
    with _Bar(prompts.height, len(missing), progress) as bar:
        if not len(missing):
            return
        name = engine.name()
        ids, too_long = _encode(prompts, model, sampling.max_new_tokens)
        reason = reasons.too_long_for_context(model.room(sampling.max_new_tokens))
        long = [(row, Answer(failure=reason)) for row in np.intersect1d(missing, too_long).tolist()]
        answers.add([(keys[row].tobytes(), answer) for row, answer in long], name)
        bar.advance([answer for _, answer in long])
        failed.update(reason for _ in too_long)
        _check_failures(failed, Answer(failure=reason), prompts.height, max_failures)
        rows = np.setdiff1d(np.arange(prompts.height), too_long)
        missing = np.intersect1d(missing, rows)
        if not len(missing):
            return
        seeds = (keys[:, 0] ^ np.uint64(seed)) & np.uint64(2**31 - 1)
        work = Work(
            prompts["prompt"], ids, rows, missing, seeds.astype(np.int64), model, sampling, seed,
            keys, answers.digest, answers.folder,
        )  # fmt: skip
        # A template may open the reasoning, and then it does so for every prompt.
        prompt_end = str(render(prompts["prompt"][:1], model.tokenizer)[0])[-32:]
        asked = engine.answers(work)
        with closing(asked):  # type: ignore[type-var]
            for batch in asked:
                if reasoning != "part":
                    batch = [(row, thinking.split(answer, prompt_end=prompt_end)) for row, answer in batch]
                answers.add([(keys[row].tobytes(), answer) for row, answer in batch], name)
                bar.advance([answer for _, answer in batch])
                if new := [answer for _, answer in batch if answer.failure]:
                    failed.update(str(answer.failure) for answer in new)
                    _check_failures(failed, new[-1], prompts.height, max_failures)


def _check_failures(failed: Counter[str], last: Answer, rows: int, max_failures: float) -> None:
    if failed.total() > max_failures * rows:
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in failed.most_common())
        raise StoppedError(
            f"generate: {failed.total():,} of {rows:,} prompts failed, more than max_failures allows ({max_failures}): "
            f"{counts}; the last: {last.detail or last.failure}. What was answered is kept: mend the cause, or allow "
            "more with max_failures, and run the same command again to continue"
        )


def _encode(prompts: pl.DataFrame, model: Model, new: int) -> tuple[TokenTable, NDArray[np.int64]]:
    """The ids of each prompt, and the rows that leave no room for `new` tokens."""
    try:
        ids = encode_prompts(prompts["prompt"], model.tokenizer)
    except RowError as error:
        raise InputError(f"response_id {prompts['response_id'][error.row]}: {error.message}") from error
    room = model.room(new)
    too_long = np.flatnonzero(ids.lengths() > room) if room is not None else np.zeros(0, dtype=np.int64)
    return ids, too_long


def _write(responses: pl.DataFrame, folder: Path) -> None:
    """Writes the responses in parts, and removes those of an earlier, longer table."""
    parts = [responses[start : start + PART_ROWS] for start in range(0, responses.height, PART_ROWS)]
    paths = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        tables.write([part], path)
    for path in set(folder.glob("part-*.parquet")) - set(paths):
        outputs.remove(path)


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
