"""The join: makes pairs of tables of prompts, counterparts and responses that did not come from one run.

In such tables only the text of its prompt tells what a response answers. Within a run no join is needed:
`mipo.responses.requests.link` has the row numbers. Knows tables, also larger than memory. Knows nothing of token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import columns, tables
from mipo.io.columns import Kind
from mipo.io.keys import NOWHERE, Ids, Index, keys_of
from mipo.io.lazy import np, pl
from mipo.io.rowfile import open_rows
from mipo.pairing.filter import BATCH_ROWS, KINDS, ResponseStates, add_reasons, dropped, keep
from mipo.pairing.texts import texts_of, with_texts
from mipo.reasons import by_frequency
from mipo.responses.requests import check_known, compose_counter, compose_own
from mipo.tokenizer.messages import is_messages, key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.tables import Table

COUNTERPARTS: dict[str, Kind] = {
    "prompt_id": "id", "counterpart_id": "id", "kind": "text", "part": "text", "reason": "text",
}  # fmt: skip

DRAWN = ("prompt_id", "counterpart_id", "negative", "kind", "reason")


def pairs(prompts: Table, counterparts: Table, responses: Table) -> pl.DataFrame:
    """Preference pairs: one row for each counterpart that has both responses, if they differ.

    `prompts` are as `mipo.prompts.rows.read` returns them, and `counterparts` as `mipo.contrast` drew them from these.
    `responses` has the columns prompt (the whole prompt that the model was asked: text or messages), response, and
    optionally response_id (else the row number) and truncated, or a server's finish_reason. Returns prompt_id,
    negative, kind, chosen_id and rejected_id (their response_id), prompt, chosen, rejected (text, or messages where the
    responses' prompts are messages: TRL's standard and conversational formats), chosen_truncated, rejected_truncated.
    Raises InputError for a missing column and for two responses to one prompt. LazyFrames are read in batches, and only
    the result is held in memory; `join` writes it to a file instead.
    """
    return pl.concat(texts for _, texts in _stream(prompts, counterparts, responses, BATCH_ROWS, None))


def join(
    prompts: Table, counterparts: Table, responses: Table, path: Path, *, batch_rows: int = BATCH_ROWS
) -> tuple[int, int, dict[str, int]]:
    """Writes the `pairs` of tables of any size, and returns rows in, rows out and rows dropped by reason.

    Holds `batch_rows` rows of the tables in memory, and up to 100 bytes per row for keys and row numbers. The texts of
    larger tables are kept in temporary files beside `path`.
    """
    rows_in, rows_out, reasons = 0, 0, Counter[str]()

    def batches() -> Iterator[pl.DataFrame]:
        nonlocal rows_in, rows_out
        for links, texts in _stream(prompts, counterparts, responses, batch_rows, path.parent):
            reasons.update(dropped(links))
            rows_in, rows_out = rows_in + links.height, rows_out + texts.height
            yield texts

    tables.write(batches(), path)
    assert rows_in == rows_out + reasons.total(), f"{rows_in} counterparts, {rows_out} pairs, dropped {reasons}"
    return rows_in, rows_out, by_frequency(reasons)


def links_of(
    prompts: Table,
    counterparts: Table,
    responses: Table,
    states: ResponseStates,
    *,
    batch_rows: int = BATCH_ROWS,
    folder: Path | None = None,
) -> Iterator[pl.DataFrame]:
    """All rows of `counterparts`, in batches, as links with `reason`: see `mipo.pairing.filter.add_reasons`.

    `states` are those of the `responses`, which are looked up by 128 bits of their prompts. For kinds other than
    `random`, which need counter-prompts to be composed, the prompts of a large table are kept in a temporary file in
    `folder` (default: the system's temporary folder).
    """
    chat = isinstance(responses.lazy().collect_schema()["prompt"], pl.List)
    ids = Ids.of(prompts, "prompt_id")
    prompts = prompts.select(name for name in prompts.lazy().collect_schema() if name in ("prompt", "context"))
    index = _ResponseIndex(responses, batch_rows)
    own = np.concatenate([index.find(composed) for composed in _composed(prompts, batch_rows, chat)])
    with open_rows(prompts, batch_rows, folder=folder) as texts:
        for batch in tables.batches(counterparts, batch_rows):
            rows, others = (_prompt_rows(ids, batch[name]) for name in ("prompt_id", "counterpart_id"))
            rejected = np.where(others == NOWHERE, NOWHERE, own[others])
            composed = ((batch["kind"] != "random") & batch["reason"].is_null()).to_numpy()
            if composed.any():
                own_texts, other_texts = texts.take(rows[composed]), texts.take(others[composed])
                counter = compose_counter(own_texts, other_texts, batch.filter(composed), chat=chat)
                rejected[composed] = index.find(counter)
            yield add_reasons(_linked(batch, own[rows], rejected, states.ids), states)


def _stream(
    prompts: Table, counterparts: Table, responses: Table, batch_rows: int, folder: Path | None
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The links, and the pairs among them with their texts, batch by batch."""
    if batch_rows < 1:
        raise InputError(f"batch_rows: expected at least 1, got {batch_rows}")
    responses = columns.read(responses, KINDS, "responses")
    tables.check_columns(counterparts, DRAWN, "counterparts")
    counterparts = columns.read(counterparts, COUNTERPARTS, "counterparts")
    _check_repeated(counterparts, batch_rows)
    states = ResponseStates.of(responses, batch_rows)
    links = links_of(prompts, counterparts, responses, states, batch_rows=batch_rows, folder=folder)
    with open_rows(texts_of(responses), batch_rows, folder=folder) as texts:
        for batch in links:
            yield batch, with_texts(keep(batch), states.ids, texts)


def _check_repeated(counterparts: Table, batch_rows: int) -> None:
    """InputError for a counterpart that stands twice, since its pairs would, too; rows with a reason have none."""
    names = [name for name in counterparts.lazy().collect_schema() if name in COUNTERPARTS]
    numbered = counterparts.select(names).with_row_index("row").filter(pl.col("reason").is_null())
    keys, rows = list[Any](), list[Any]()
    for batch in tables.batches(numbered, batch_rows):
        keys.append(keys_of(batch.drop("row", "reason").to_struct("key")))
        rows.append(batch["row"].to_numpy())
    if len(repeated := Index(np.concatenate(keys)).repeated()):
        row = np.concatenate(rows)[repeated[0]]
        raise InputError(
            f"counterparts: {len(repeated)} rows are there more than once, the first is row {row + 1}; give each "
            "counterpart of a prompt once"
        )


def _prompt_rows(ids: Ids, wanted: pl.Series) -> NDArray[np.int64]:
    """The rows of the prompts with these ids; NOWHERE for null, InputError for an unknown id."""
    rows = ids.find(wanted)
    check_known(wanted, pl.Series(rows != NOWHERE))
    return rows


def _composed(prompts: Table, batch_rows: int, chat: bool) -> Iterator[pl.Series]:
    """The prompts as their own responses answer them, in batches."""
    for batch in tables.batches(prompts, batch_rows):
        if is_messages(batch["prompt"]) and not chat:
            raise InputError("responses: expected chat messages in the column 'prompt', like the prompts; got text")
        yield compose_own(batch, chat=chat)


class _ResponseIndex:
    """The rows of responses by the keys of their prompts."""

    def __init__(self, responses: Table, batch_rows: int) -> None:
        keys, nulls = list[Any](), list[Any]()
        for batch in tables.batches(responses.select("prompt"), batch_rows):
            keys.append(keys_of(key(batch["prompt"])))
            nulls.append(batch["prompt"].is_null().to_numpy())
        present = ~np.concatenate(nulls)
        self._rows = None if present.all() else np.flatnonzero(present)
        self._index = Index(np.concatenate(keys) if self._rows is None else np.concatenate(keys)[self._rows])
        if len(repeated := self._table_rows(self._index.repeated())):
            raise InputError(
                f"responses: {len(repeated)} rows share their prompts, the first is row {repeated[0] + 1}; give one "
                "response per prompt"
            )

    def find(self, prompts: pl.Series) -> NDArray[np.int64]:
        """The row of the response to each composed prompt, `NOWHERE` where there is none."""
        rows = self._index.find(keys_of(key(prompts)))
        present = rows != NOWHERE
        rows[present] = self._table_rows(rows[present])
        return rows

    def _table_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the table for rows of the index, which leaves out those without a prompt."""
        return rows if self._rows is None else self._rows[rows]


def _linked(
    counterparts: pl.DataFrame, chosen: NDArray[np.int64], rejected: NDArray[np.int64], ids: Ids
) -> pl.DataFrame:
    """Rows of responses as links (see `mipo.responses.requests.link`)."""
    chosen_id, rejected_id = (ids.of_rows(rows) for rows in (chosen, rejected))
    return counterparts.select(
        pl.col("prompt_id").cast(pl.UInt64), "negative", "kind",
        chosen_id.alias("asked_id"), chosen_id.alias("chosen_id"), rejected_id.alias("rejected_id"), "reason",
    )  # fmt: skip
