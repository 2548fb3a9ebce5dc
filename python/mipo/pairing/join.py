"""The join: prompts, counterparts and responses of other people's tables become pairs.

Such tables say which prompt a response answers by the prompt's text. What mipo asked itself needs no join: there
`mipo.responses.ask.link` has the row numbers. Knows tables, also such as do not fit in memory. Knows nothing of token
ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import tables
from mipo.io.keys import NOWHERE, Ids, Index, keys_of
from mipo.io.lazy import lazy
from mipo.io.rowfile import open_rows
from mipo.pairing.answers import Answers
from mipo.pairing.judge import BATCH_ROWS, by_frequency, dropped, judge, keep
from mipo.pairing.texts import texts_of, with_texts
from mipo.responses.ask import compose_counter, compose_own
from mipo.tokenizer.messages import is_messages, key

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from mipo.io.tables import Table
else:
    np = lazy("numpy")
    pl = lazy("polars")


def pairs(prompts: Table, counterparts: Table, responses: Table) -> pl.DataFrame:
    """Preference pairs: one row for each counterpart that has both its responses, and they differ.

    `prompts` as `mipo.prompts.rows.read` gives them, `counterparts` as `mipo.contrast` drew them from these,
    `responses` with the columns prompt (the whole prompt as the model was asked: text or messages) and response, and
    where known response_id (else the row number) and truncated. Returns prompt_id, negative, kind, chosen_id and
    rejected_id (their response_id), prompt, chosen, rejected (text, or messages where the responses' prompts are
    messages: TRL's standard and conversational formats), chosen_truncated, rejected_truncated. Raises InputError for a
    missing column and for two responses to one prompt. Of LazyFrames nothing is held but the result; `join` writes
    that to a file instead.
    """
    return pl.concat(texts for _, texts in _stream(prompts, counterparts, responses, BATCH_ROWS, None))


def join(
    prompts: Table, counterparts: Table, responses: Table, path: Path, *, batch_rows: int = BATCH_ROWS
) -> tuple[int, int, dict[str, int]]:
    """Writes the `pairs` of tables of any size, and returns rows in, rows out and rows dropped by reason.

    Memory is that of `batch_rows` rows of the tables, and up to 100 bytes a row for keys and row numbers. Texts of
    larger tables lie in temporary files beside `path` meanwhile.
    """
    rows_in, rows_out, lost = 0, 0, Counter[str]()

    def kept() -> Iterator[pl.DataFrame]:
        nonlocal rows_in, rows_out
        for judged, texts in _stream(prompts, counterparts, responses, batch_rows, path.parent):
            lost.update(dropped(judged))
            rows_in, rows_out = rows_in + judged.height, rows_out + texts.height
            yield texts

    tables.write(kept(), path)
    assert rows_in == rows_out + lost.total(), f"{rows_in} counterparts, {rows_out} pairs, dropped {lost}"
    return rows_in, rows_out, by_frequency(lost)


def judge_tables(
    prompts: Table,
    counterparts: Table,
    responses: Table,
    *,
    batch_rows: int = BATCH_ROWS,
    folder: Path | None = None,
) -> Iterator[pl.DataFrame]:
    """All rows of `counterparts`, in batches, as pairs of row numbers with `reason`: see `mipo.pairing.judge.judge`.

    Who answers whom is found by 128 bits of each prompt. Of a large table with counter-prompts that have to be composed
    (other kinds than `random`) the prompts lie in a temporary file under `folder` (default: the system's) meanwhile.
    """
    yield from _judged(prompts, counterparts, responses, _answers(responses, batch_rows), batch_rows, folder)


def _answers(responses: Table, batch_rows: int) -> Answers:
    if batch_rows < 1:
        raise InputError(f"batch_rows: expected at least 1, got {batch_rows}")
    return Answers.of(responses, batch_rows)


def _judged(
    prompts: Table, counterparts: Table, responses: Table, answers: Answers, batch_rows: int, folder: Path | None
) -> Iterator[pl.DataFrame]:
    chat = isinstance(responses.lazy().collect_schema()["prompt"], pl.List)
    ids = Ids.of(prompts, "prompt_id")
    prompts = prompts.select(name for name in prompts.lazy().collect_schema() if name in ("prompt", "context"))
    rows_of = _Responses(responses, batch_rows, chat)
    own = np.concatenate([rows_of.to(composed) for composed in _composed(prompts, batch_rows, chat)])
    with open_rows(prompts, batch_rows, folder=folder) as texts:
        for batch in tables.batches(counterparts, batch_rows):
            rows, others = (_found(ids, batch[name]) for name in ("prompt_id", "counterpart_id"))
            rejected = np.where(others == NOWHERE, NOWHERE, own[others])
            composed = ((batch["kind"] != "random") & batch["reason"].is_null()).to_numpy()
            if composed.any():
                own_texts, other_texts = texts.take(rows[composed]), texts.take(others[composed])
                counter = compose_counter(own_texts, other_texts, batch.filter(composed), chat=chat)
                rejected[composed] = rows_of.to(counter)
            yield judge(_linked(batch, own[rows], rejected, answers.ids), answers)


def _stream(
    prompts: Table, counterparts: Table, responses: Table, batch_rows: int, folder: Path | None
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Judged rows, and the texts of those that are pairs, batch by batch."""
    answers = _answers(responses, batch_rows)
    with open_rows(texts_of(responses), batch_rows, folder=folder) as texts:
        for judged in _judged(prompts, counterparts, responses, answers, batch_rows, folder):
            yield judged, with_texts(keep(judged), answers.ids, texts)


def _found(ids: Ids, wanted: pl.Series) -> NDArray[np.int64]:
    """The rows of prompts; NOWHERE for null alone."""
    rows = ids.find(wanted)
    lost = (rows == NOWHERE) & wanted.is_not_null().to_numpy()
    if lost.any():
        raise InputError(
            f"{wanted.name} {wanted.filter(lost)[0]}: not among the prompts; give the prompts that the counterparts "
            "are of"
        )
    return rows


def _composed(prompts: Table, batch_rows: int, chat: bool) -> Iterator[pl.Series]:
    """What each prompt's own response answers, in batches."""
    for batch in tables.batches(prompts, batch_rows):
        if is_messages(batch["prompt"]) and not chat:
            raise InputError(
                "responses: expected prompts that are chat messages, as those of the prompts are; got text"
            )
        yield compose_own(batch, chat=chat)


class _Responses:
    """For keys of prompts the rows of their responses."""

    def __init__(self, responses: Table, batch_rows: int, chat: bool) -> None:
        keys, nulls = list[Any](), list[Any]()
        for batch in tables.batches(responses.select("prompt"), batch_rows):
            keys.append(keys_of(key(batch["prompt"])))
            nulls.append(batch["prompt"].is_null().to_numpy())
        there = ~np.concatenate(nulls)
        self._rows = None if there.all() else np.flatnonzero(there)
        self._index = Index(np.concatenate(keys) if self._rows is None else np.concatenate(keys)[self._rows])
        if len(twice := self._of(self._index.repeated())):
            raise InputError(
                f"responses: {len(twice)} rows share their prompts, the first is row {twice[0] + 1}; give one response "
                "a prompt"
            )

    def to(self, prompts: pl.Series) -> NDArray[np.int64]:
        """The row of the response to each composed prompt, `NOWHERE` where there is none."""
        places = self._index.find(keys_of(key(prompts)))
        there = places != NOWHERE
        places[there] = self._of(places[there])
        return places

    def _of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the table, of which those without a prompt are left out here."""
        return places if self._rows is None else self._rows[places]


def _linked(
    counterparts: pl.DataFrame, chosen: NDArray[np.int64], rejected: NDArray[np.int64], ids: Ids
) -> pl.DataFrame:
    """Rows of responses as links, see `mipo.responses.ask.link`."""
    chosen_id, rejected_id = (ids.of_rows(rows) for rows in (chosen, rejected))
    return counterparts.select(
        pl.col("prompt_id").cast(pl.UInt64), "negative", "kind",
        chosen_id.alias("asked_id"), chosen_id.alias("chosen_id"), rejected_id.alias("rejected_id"), "reason",
    )  # fmt: skip
