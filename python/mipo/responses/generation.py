"""Generation: an answer to each distinct prompt, asked of an engine once, and kept as it comes.

Knows engines by their contract, and what is kept on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError
from mipo.io import outputs, records, tables
from mipo.io.lazy import np, pl
from mipo.io.rowfile import READ_ROWS, open_rows
from mipo.models.model import Model
from mipo.responses.answers import FILE, Answers, keys_of, reused
from mipo.responses.asking import ask
from mipo.responses.engines.contract import Engine
from mipo.responses.engines.local import Local
from mipo.responses.sampling import Reasoning, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.rowfile import Rows
    from mipo.responses.stored_requests import StoredRequests

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
    sampling = records.read(
        Sampling,
        {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "batch_size": batch_size},
    )
    with open_rows(prompts, prompts.height) as rows:
        parts = _parts(
            rows, prompts.height, model, sampling, folder=folder, database=database, engine=engine, reuse=reuse,
            seed=seed, reasoning=reasoning, max_failures=max_failures, progress=progress,
        )  # fmt: skip
        return pl.concat(parts)


def generate_to(
    folder: Path, requests: StoredRequests, model: Model, sampling: Sampling, *, database: Path | None = None,
    engine: Engine | None = None, reuse: Path | None = None, seed: int = 0, reasoning: Reasoning = "drop",
    max_failures: float = 0.1, progress: str = "generate",
) -> tuple[int, dict[str, int]]:  # fmt: skip
    """`generate` for requests on disk, whose responses are in `folder` alone: how many, and the failures by reason.

    Holds the texts of `PART_ROWS` rows at most, and beside the requests up to 40 bytes of each of all (see `Work`).
    """
    failed = Counter[str]()
    parts = _parts(
        requests, requests.rows, model, sampling, folder=folder, database=database, engine=engine, reuse=reuse,
        seed=seed, reasoning=reasoning, max_failures=max_failures, progress=progress,
    )  # fmt: skip
    for part in parts:
        failed.update(part["failure"].drop_nulls().to_list())
    return requests.rows, reasons.by_frequency(failed)


def check(folder: Path | None, database: Path | None, reuse: Path | None) -> Path | None:
    """Raises what `generate` would raise for these paths, for a caller who composes prompts first; see `reused`."""
    if folder:
        outputs.check_folder(folder, "responses")
    return reused(reuse, database)


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


def _parts(
    requests: Rows, rows: int, model: Model, sampling: Sampling, *, folder: Path | None, database: Path | None,
    engine: Engine | None, reuse: Path | None, seed: int, reasoning: Reasoning, max_failures: float, progress: str,
) -> Iterator[pl.DataFrame]:  # fmt: skip
    """Asks what has no answer, then yields the responses, `PART_ROWS` at a time, which are written into `folder`."""
    if not rows:
        raise InputError("no prompt to answer; give at least one row")
    engine = engine or Local()
    database = database or (folder and folder / FILE)
    other = check(folder, database, reuse)
    settings = settings_of(model, sampling, seed, engine, is_split=reasoning != "part")
    with ExitStack() as stack:
        if folder:
            stack.enter_context(outputs.claim(folder, "responses"))
        answers = stack.enter_context(Answers.open(database, settings))
        keys = _keys(requests, rows)
        if other:
            answers.copy_from(other)
        if damaged := answers.discard_damaged(keys):
            print(f"{database or reuse}: {damaged} answers were damaged, and are asked for again")
        ask(
            requests, keys, model, engine, answers, sampling, seed=seed, reasoning=reasoning, max_failures=max_failures,
            progress=progress,
        )  # fmt: skip
        paths = list[Path]()
        for start in range(0, rows, PART_ROWS):
            kept = answers.frame(keys[start : start + PART_ROWS])
            kept = kept if reasoning == "keep" else kept.drop("reasoning")
            part = requests.take(np.arange(start, start + kept.height)).hstack(kept)
            if folder:
                paths.append(folder / f"part-{len(paths):05d}.parquet")
                tables.write([part], paths[-1])
            yield part
        if folder:
            for path in set(folder.glob("part-*.parquet")) - set(paths):
                outputs.remove(path)  # of an earlier, longer table


def _keys(requests: Rows, rows: int) -> NDArray[np.uint64]:
    """The key of each row, uint64 [n, 2]."""
    keys = np.empty((rows, 2), dtype=np.uint64)
    for start in range(0, rows, READ_ROWS):
        stop = min(start + READ_ROWS, rows)
        keys[start:stop] = keys_of(requests.take(np.arange(start, stop)))
    return keys
