"""Groups: preference pairs of text or chat messages become groups of token ids, as TRL tokenizes them.

Knows chat templates, and TRL's rule for the border between prompt and response, which is drawn on token ids. Knows
nothing of the source of the pairs, or of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from mipo import reasons
from mipo.errors import InputError
from mipo.io import columns, nested
from mipo.io.lazy import _native, np, pl
from mipo.tokenizer.chat import renderer
from mipo.tokenizer.encoder import Choice, fingerprint, open_encoder
from mipo.tokenizer.messages import is_messages, key
from mipo.tokenizer.table import TokenTable
from mipo.tokenizer.template import Renderer, RowError
from mipo.tokens.store import Groups, PairStore
from mipo.tokens.trl_reference import (
    KINDS,
    SIDES,
    arguments_in,
    repeated,
    rows_of,
    template_arguments,
    trl_ids,
    with_prompts,
)  # fmt: skip

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_ROWS = 16_384
# Groups of each batch that transformers tokenizes as well: one row in four thousand, for a few percent of the time.
CHECKED = 4


class GroupBuilder:
    """Turns preference pairs into groups of token ids, batch by batch.

    Each prompt and response is stored once; after 229,376 new ones the builder forgets which it has. `take` returns
    those added since its last call. `dropped` counts pairs by reason, `merged` counts groups whose border moved, and
    `repeated` counts pairs whose responses begin with the prompt that has a column of its own.
    """

    def __init__(self, tokenizer: Any, *, max_length: int | None = None, encoder: Choice = "auto") -> None:
        if getattr(tokenizer, "eos_token", None) is None:
            raise InputError(
                "tokenizer: expected an eos_token, got none, so no response could end; set tokenizer.eos_token"
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.encoder = open_encoder(tokenizer, encoder)
        self.dropped, self.merged, self.repeated = Counter[str](), 0, 0
        self._builder = _native.GroupBuilder(self.encoder)

    @cached_property
    def _renderer(self) -> Renderer:
        return renderer(self.tokenizer)

    def add(self, pairs: pl.DataFrame, *, before: int = 0) -> Groups:
        """The groups of a batch.

        The first row of the batch is row `before` + 1 of its source; errors name rows by that number. Consecutive rows
        with the same prompt_id, prompt, chosen and (where there is one) chosen_id become one group with several
        rejected responses. Raises InputError for rows that are not pairs, and for a row that the template refuses.
        """
        pairs = cast("pl.DataFrame", columns.read(pairs, KINDS, "pairs", before=before))
        stated = "prompt" in pairs.columns
        pairs = self._usable(with_prompts(pairs.with_columns(_row=pl.int_range(before, before + pairs.height))))
        if not pairs.height:
            return Groups.none()
        self.repeated += repeated(pairs) if stated else 0
        starts = _starts(pairs)
        sizes = np.diff(starts, append=pairs.height)
        limit = np.iinfo(np.int64).max if self.max_length is None else self.max_length
        verdicts, *rows, merged = self._push(self._builder, pairs, starts, int(limit))
        self.merged += merged
        why = {1: reasons.NO_TOKEN, 2: reasons.long_prompt(self.max_length), 3: reasons.long_group(self.max_length)}
        for verdict, reason in why.items():
            if count := int(sizes[verdicts == verdict].sum()):
                self.dropped[reason] += count
        self._check(pairs, starts)
        return Groups(_prompt_ids(pairs)[starts][verdicts == 0], *rows)

    def take(self) -> tuple[TokenTable, TokenTable]:
        """The prompts and responses stored since the last call; row numbers continue across calls."""
        return TokenTable((self._builder.take_prompts(),)), TokenTable((self._builder.take_responses(),))

    def pending(self) -> int:
        """Bytes of ids that `take` has not returned yet."""
        return self._builder.pending()

    def _usable(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The pairs that can be tokenized; drops the others by reason. Raises InputError for wrong columns."""
        if missing := [column for column in SIDES if column not in pairs.columns]:
            raise InputError(f"pairs: no column {missing[0]!r}; they have {', '.join(pairs.columns[:-1])}")
        reason = pl.coalesce(pl.when(pl.col(side).is_null()).then(pl.lit(reasons.null(side))) for side in SIDES)
        pairs = self._without(pairs, reason)
        if not pairs.height:
            return pairs
        kinds = {column: "messages" if is_messages(pairs[column]) else "text" for column in SIDES}
        if len(set(kinds.values())) > 1:
            raise InputError(_mixed(pairs, kinds))
        chat = kinds["prompt"] == "messages"
        if chat and not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                "pairs: expected text, got messages, and the tokenizer has no chat template; pass text or another "
                "tokenizer"
            )
        empty = pl.when(pl.col("prompt").list.len() == 0).then(pl.lit(reasons.NO_MESSAGE))
        return self._without(pairs, empty) if chat else pairs

    def _without(self, pairs: pl.DataFrame, reason: pl.Expr) -> pl.DataFrame:
        """The pairs whose `reason` is null; counts the others as dropped."""
        reasons = pairs.select(reason.alias("reason")).to_series()
        self.dropped.update(reasons.drop_nulls().to_list())
        return pairs.filter(reasons.is_null())

    def _push(self, builder: Any, pairs: pl.DataFrame, starts: NDArray[np.int64], limit: int | None) -> Any:
        """Verdicts, rows of prompt and chosen, offsets and rows of rejected, and the number of moved borders."""
        firsts = pairs[starts]
        truncated = [_flags(frame, f"{side}_truncated") for frame, side in ((firsts, "chosen"), (pairs, "rejected"))]
        offsets = np.append(starts, pairs.height)
        groups = (offsets, firsts["_row"].to_numpy().astype(np.uint64) + np.uint64(1), *truncated)
        if not is_messages(pairs["prompt"]):
            texts = (firsts["prompt"], firsts["chosen"], pairs["rejected"])
            return builder.push_text(texts, groups, end=self.tokenizer.eos_token, limit=limit)
        end_ids = _end_ids(self.tokenizer) if any(flags.any() for flags in truncated) else []
        if not arguments_in(pairs):
            chats = (firsts["prompt"], firsts["chosen"], pairs["rejected"])
            if (results := self._renderer.push(builder, chats, groups, end_ids=end_ids, limit=limit)) is not None:
                return results
        # One rendered prompt per group is enough: the rows of a group have equal prompts.
        texts = (self._render(firsts), self._render(firsts, "chosen"), self._render(pairs, "rejected"))
        return builder.push_rendered(texts, groups, end_ids=end_ids, limit=limit)

    def _render(self, pairs: pl.DataFrame, side: str | None = None) -> pl.Series:
        """The chat template's text of each prompt alone, or of the prompt followed by the response in `side`."""
        chats = pairs["prompt"] if side is None else _joined(pairs["prompt"], pairs[side])
        columns = arguments_in(pairs)
        arguments = [template_arguments(row) for row in rows_of(pairs.select(columns))] if columns else None
        try:
            return self._renderer.render(chats, add_generation_prompt=side is None, arguments=arguments)
        except RowError as error:
            raise InputError(f"row {pairs['_row'][error.row] + 1}: {error.message}") from error

    def _check(self, pairs: pl.DataFrame, starts: NDArray[np.int64]) -> None:
        """Compares a few groups with the ids of transformers; raises InputError where one differs."""
        whole = ~_flags(pairs, "rejected_truncated") & ~_flags(pairs, "chosen_truncated")
        rows = starts[whole[starts]]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(np.int64))] if len(rows) else rows
        sample = pairs[rows]
        builder = _native.GroupBuilder(self.encoder)
        _, prompt, chosen, _, rejected, _ = self._push(builder, sample, np.arange(sample.height), None)
        prompts, responses = TokenTable((builder.take_prompts(),)), TokenTable((builder.take_responses(),))
        for i, row in enumerate(rows_of(sample)):
            ids = [prompts[prompt[i]].tolist(), responses[chosen[i]].tolist(), responses[rejected[i]].tolist()]
            if ids != trl_ids(row, self.tokenizer):
                raise InputError(
                    f"row {row['_row'] + 1}: {self.encoder.name}'s token ids are not those of transformers; please "
                    'report this with the tokenizer, and tokenize with encoder="tokenizers"'
                )


def aligned(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in other batches: consecutive rows with one prompt_id are in one batch."""
    held: pl.DataFrame | None = None
    for batch in batches:
        if held is not None and _continues(held, batch):
            run = held["prompt_id"].rle_id()
            batch = nested.concat([held.filter(run == run[-1]), batch])
            held = held.filter(run != run[-1])
        if held is not None and held.height:
            yield held
        held = batch
    if held is not None:
        yield held


def _continues(held: pl.DataFrame, batch: pl.DataFrame) -> bool:
    """Whether the last prompt_id of a batch is the first of the next one; a null never is."""
    if not (held.height and batch.height and "prompt_id" in held.columns and "prompt_id" in batch.columns):
        return False
    last = held["prompt_id"][-1]
    return last is not None and bool(last == batch["prompt_id"][0])


def tokenize(
    pairs: pl.DataFrame, tokenizer: Any, *, max_length: int | None = None, encoder: Choice = "auto"
) -> tuple[PairStore, dict[str, int]]:
    """Tokenizes preference pairs (TRL's columns prompt, chosen, rejected) as TRL 1.16 does.

    The tokenizer's chat template renders messages; text is used as it is, with the eos_token after it. Consecutive rows
    with the same prompt_id, prompt, chosen and (where there is one) chosen_id become one group with several rejected
    responses. A response marked as truncated has no end of turn, because the model did not write one; all others have
    one. Without a prompt column, the prompt is what chosen and rejected begin with in common. `encoder` as in
    `mipo.encode`.

    Returns the store, and the dropped rows by reason: nulls, and groups with a response that ends after `max_length`
    tokens or has no token of its own. Raises InputError for rows that are not pairs, and for messages without a
    template.
    """
    if not pairs.height:
        raise InputError("pairs: expected at least one row to tokenize, got none")
    builder, pieces, before = GroupBuilder(tokenizer, max_length=max_length, encoder=encoder), [], 0
    for batch in aligned(pairs.iter_slices(BATCH_ROWS)):
        pieces.append(builder.add(batch, before=before))
        before += batch.height
    store = PairStore(*builder.take(), tuple(pieces), builder.merged, fingerprint(tokenizer))
    return store, dict(builder.dropped)


def encode_responses(
    composed: pl.Series, responses: pl.Series, tokenizer: Any, *, truncated: pl.Series
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt and of its response (text), split as in training; one row each, in order."""
    if is_messages(composed):
        turn = pl.struct(pl.lit("assistant").alias("role"), pl.col("content"))
        responses = responses.alias("content").to_frame().select(pl.concat_list(turn)).to_series()
    pairs = pl.DataFrame({"prompt": composed, "chosen": responses, "rejected": responses, "_row": range(len(composed))})
    truncated = truncated.fill_null(False)
    pairs = pairs.with_columns(truncated.alias("chosen_truncated"), truncated.alias("rejected_truncated"))
    builder = GroupBuilder(tokenizer)
    _, prompt, chosen, *_ = builder._push(builder._builder, pairs, np.arange(pairs.height), None)
    prompt_table, response_table = builder.take()
    return prompt_table.take(prompt), response_table.take(chosen)


def _mixed(pairs: pl.DataFrame, kinds: dict[str, str]) -> str:
    """What to do about text in some of the columns and messages in others."""
    if kinds != {"prompt": "text", "chosen": "messages", "rejected": "messages"}:
        return f"pairs: expected text or chat messages in all columns, got {kinds}"
    row = pairs.row(0, named=True)
    within = all(row[side] and row[side][0].get("content") == row["prompt"] for side in ("chosen", "rejected"))
    remedy = (
        "chosen and rejected begin with the prompt, so leave the column prompt out: what both begin with is the prompt"
        if within
        else "write prompt as messages [{role, content}, …], too"
    )
    return f"row {row['_row'] + 1}: prompt is text, and chosen and rejected are messages; {remedy}"


def _joined(prompts: pl.Series, responses: pl.Series) -> pl.Series:
    """The messages of each prompt followed by those of its response; a field that only one has is null in the other."""
    return pl.select(pl.concat_list(*nested.alike(prompts, responses))).to_series()


def _starts(pairs: pl.DataFrame) -> NDArray[np.int64]:
    """The rows at which a group starts."""
    ids = _prompt_ids(pairs)
    same = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    if len(same):
        for side in ("prompt", "chosen"):
            own, before = (key(pairs[side].gather(rows)) for rows in (same, same - 1))
            same = same[(own == before).to_numpy()]
        if "chosen_id" in pairs.columns:  # two samples may have the same text
            own, before = (pairs["chosen_id"].gather(rows) for rows in (same, same - 1))
            same = same[own.eq_missing(before).to_numpy()]
    starts = np.ones(pairs.height, dtype=bool)
    starts[same] = False
    return np.flatnonzero(starts)


def _prompt_ids(pairs: pl.DataFrame) -> NDArray[np.uint64]:
    """mipo's prompt_id; the row number where there is none, or where it is not a whole number and so not mipo's."""
    ids = pairs.get_column("prompt_id", default=None)
    if ids is None or not ids.dtype.is_integer() or ids.null_count() or (len(ids) and ids.min() < 0):
        ids = pairs["_row"]
    return np.asarray(ids.cast(pl.UInt64).to_numpy())


def _flags(pairs: pl.DataFrame, column: str) -> NDArray[np.bool_]:
    flags = pairs.get_column(column, default=pl.Series(column, [False]).new_from_index(0, pairs.height))
    return flags.fill_null(False).to_numpy()


def _end_ids(tokenizer: Any) -> list[int]:
    """The token that ends a turn, as a list of one id: from it on, a truncated response drops the template's text.

    It is the first special token that the template writes after an answer, which is not every model's eos_token.
    """
    turns = [{"role": role, "content": "mipo"} for role in ("user", "assistant")]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("mipo")[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = [i for i in ids if i in tokenizer.added_tokens_decoder]
    return [*special, tokenizer.eos_token_id][:1]
