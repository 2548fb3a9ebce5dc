"""Tokens: texts become ids once, in Arrow buffers filled by Rust; a pair is three row numbers.

Knows tokenizers, chat templates and TRL's rule for the border of prompt and response, which is found on token ids.
Knows nothing of where the pairs came from, or of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import files
from mipo.lazy import lazy
from mipo.prompts import is_messages, key, plain, render

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")
    pa = lazy("pyarrow")


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of one text a row: row i is `ids[offsets[i]:offsets[i + 1]]`. Opened from disk it is memory-mapped.

    `offsets`: int64 [n + 1]; `ids`: uint32 [offsets[n]].
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.uint32]:
        """The ids of one row, a view."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)} rows")
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (self[row] for row in range(len(self)))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, [n]."""
        return np.diff(self.offsets)

    def to_arrow(self) -> pa.LargeListArray:
        """The rows as an Arrow list array on the same memory."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.ids))

    def save(self, path: str | Path) -> None:
        """Writes an Arrow IPC file with the one column `ids`."""
        _write(pa.table({"ids": self.to_arrow()}), Path(path))

    @classmethod
    def open(cls, path: str | Path) -> TokenTable:
        """Opens what `save` wrote, without reading the ids into memory; ValueError for another file."""
        table = _read(Path(path))
        if table.schema.names != ["ids"] or table.schema.types != [pa.large_list(pa.uint32())]:
            raise ValueError(f"{path}: no TokenTable, which has the one column ids of lists of uint32; make it again")
        column = table["ids"]
        # Only a chunk by itself stays in the file: combine_chunks copies even a single one.
        lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return cls(lists.offsets.to_numpy(), lists.values.to_numpy())


@dataclass(frozen=True, eq=False)
class PairStore:
    """Preference groups on token ids: each distinct prompt and response once, and `pairs` of row numbers.

    `pairs` has a row a group: prompt_id, prompt (row of `prompts`), chosen (row of `responses`) and rejected (a list of
    them), all uint64. `merged` groups have responses that begin before their prompt, tokenized alone, ends: there the
    common ids are the prompt, as TRL has it. `fingerprint` tells the tokenizer and template that made the ids.
    """

    prompts: TokenTable
    responses: TokenTable
    pairs: pl.DataFrame
    merged: int
    fingerprint: str

    def __len__(self) -> int:
        return self.pairs.height

    @property
    def negatives(self) -> int:
        """K: the most rejected responses that a group has."""
        return int(self.pairs["rejected"].list.len().max() or 0)  # type: ignore[arg-type]

    def rows(self, side: str) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
        """Prompt ids and response ids of every `chosen`, or of every `rejected`, response."""
        said = self.pairs.select("prompt", side)
        said = said.explode(side) if side == "rejected" else said
        return [self.prompts[row] for row in said["prompt"]], [self.responses[row] for row in said[side]]

    def to_trl(self) -> datasets.Dataset:
        """A `datasets.Dataset` with prompt_ids, chosen_ids, rejected_ids, as TRL's DPOTrainer tokenizes it.

        With one rejected response in every group rejected_ids is a list of ids; otherwise a list of such lists, which
        `mipo.trainer.MIPOTrainer` takes.
        """
        import datasets

        prompts, responses = self.prompts.to_arrow(), self.responses.to_arrow()
        flat = responses.take(pa.array(_flat(self.pairs["rejected"])))
        if self.negatives > 1:
            flat = pa.LargeListArray.from_arrays(pa.array(_offsets(self.pairs["rejected"])), flat)
        columns = {
            "prompt_ids": prompts.take(pa.array(self.pairs["prompt"].to_numpy())),
            "chosen_ids": responses.take(pa.array(self.pairs["chosen"].to_numpy())),
            "rejected_ids": flat,
        }
        return datasets.Dataset(pa.table(columns))

    def save(self, folder: str | Path) -> None:
        """Writes `prompts.arrow`, `responses.arrow` and, last, `pairs.arrow`: without it there is no store."""
        folder = Path(folder)
        (folder / "pairs.arrow").unlink(missing_ok=True)
        self.prompts.save(folder / "prompts.arrow")
        self.responses.save(folder / "responses.arrow")
        told = {"mipo.merged": str(self.merged), "mipo.fingerprint": self.fingerprint}
        table = self.pairs.to_arrow(compat_level=pl.CompatLevel.oldest())
        _write(table.replace_schema_metadata(told), folder / "pairs.arrow")

    @classmethod
    def open(cls, folder: str | Path) -> PairStore:
        """Opens what `save` wrote, memory-mapped; FileNotFoundError or ValueError for a folder with no whole store."""
        folder = Path(folder)
        table = _read(folder / "pairs.arrow")
        told = table.schema.metadata or {}
        if b"mipo.fingerprint" not in told:
            raise ValueError(f"{folder / 'pairs.arrow'}: belongs to no PairStore; make one with `mipo tokens`")
        pairs = pl.DataFrame(table)
        prompts, responses = (TokenTable.open(folder / f"{name}.arrow") for name in ("prompts", "responses"))
        said = pl.concat([pairs["chosen"], pl.Series(_flat(pairs["rejected"]))])
        used = {"prompts": pairs["prompt"], "responses": said}
        for (name, rows), found in zip(used.items(), (prompts, responses), strict=True):
            if len(rows) and rows.max() >= len(found):  # type: ignore[operator]
                raise ValueError(
                    f"{folder}: {name}.arrow is not of the same store as pairs.arrow; make the store again"
                )
        return cls(prompts, responses, pairs, int(told[b"mipo.merged"]), told[b"mipo.fingerprint"].decode())


def encode(texts: Any, tokenizer: Any, *, add_special_tokens: bool = True) -> TokenTable:
    """Token ids of each text, in Rust on all threads.

    `texts`: a polars Series, an Arrow or NumPy array, or a list of str. `tokenizer`: a Hugging Face fast tokenizer, a
    `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or of its folder; nothing is cut or padded. Raises
    TypeError or ValueError, with the row counted from 0, for what is no text.
    """
    if not hasattr(texts, "__arrow_c_stream__") and not hasattr(texts, "__arrow_c_array__"):
        texts = _strings(texts)
    return TokenTable(*_native.Encoder(_tokenizer_json(tokenizer)).encode(texts, add_special_tokens))


def encode_prompts(composed: pl.Series, tokenizer: Any) -> TokenTable:
    """Token ids of each composed prompt as the model sees it, with the generation prompt of its chat template."""
    return encode(render(composed, tokenizer), tokenizer, add_special_tokens=not is_messages(composed))


def encode_responses(
    composed: pl.Series, responses: pl.Series, tokenizer: Any, *, unfinished: pl.Series
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt and of its response (text), separated as in training; one row each, in order."""
    cut = unfinished.fill_null(False)
    prompts, joint = _encode_both(composed, composed, responses, cut, tokenizer)
    nothing = pl.Series([0], dtype=pl.UInt32).new_from_index(0, len(composed))
    split, own = _separate(prompts, joint, _joint_rows(nothing), _end(composed, cut, tokenizer))
    return _take(TokenTable(*split.prompts), own["prompt"]), _take(TokenTable(*split.responses), own["chosen"])


def tokenize(pairs: pl.DataFrame, tokenizer: Any, *, max_length: int | None = None) -> tuple[PairStore, dict[str, int]]:
    """Tokenizes preference pairs (TRL's columns prompt, chosen, rejected) as TRL 1.16 would.

    Messages are rendered by the tokenizer's chat template; text is taken as it is, with an end of text. Rows that share
    prompt_id, prompt and chosen, one after another, make one group with several rejected responses. A response that is
    marked truncated carries no end of turn, since the model made none; all others do. Returns the store and the dropped
    rows by reason: of groups with a response that ends after `max_length` tokens, or has no token of its own.
    Raises ValueError for pairs that are none, for null values, and for messages where there is no template.
    """
    groups = _groups(pairs, tokenizer)
    flat = groups.select("prompt", "rejected", "rejected_truncated").explode("rejected", "rejected_truncated")
    asked, said, cut = (
        pl.concat([groups[own], flat[other].alias(own)])
        for own, other in (("prompt", "prompt"), ("chosen", "rejected"), ("chosen_truncated", "rejected_truncated"))
    )
    prompts, joint = _encode_both(groups["prompt"], asked, said, cut, tokenizer)
    rows, end = _joint_rows(groups["rejected"].list.len()), _end(asked, cut, tokenizer)
    split, table = _separate(prompts, joint, rows, end)
    reasons = _reasons(split, table, max_length)
    if reasons.null_count() < len(reasons):
        split, table = _separate(prompts, joint, rows.filter(reasons.is_null()), end)
    made = PairStore(
        TokenTable(*split.prompts),
        TokenTable(*split.responses),
        groups.filter(reasons.is_null()).select("prompt_id").hstack(table),
        split.merged,
        fingerprint(tokenizer),
    )
    lost = pl.DataFrame([reasons, rows["rejected"].list.len()]).drop_nulls()
    return made, dict(lost.group_by("reason", maintain_order=True).sum().iter_rows())


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer and its chat template: equal exactly where the same texts become the same ids."""
    # What calls with padding or truncation left behind stands before the tokens, and changes no id here.
    made = _tokenizer_json(tokenizer)
    said = [getattr(tokenizer, name, None) for name in ("chat_template", "bos_token", "eos_token")]
    return hashlib.sha256(made[max(0, made.find(b'"added_tokens"')) :] + b"\0" + repr(said).encode()).hexdigest()


def _tokenizer_json(tokenizer: Any) -> bytes:
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer.json")
        return path.read_bytes()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise TypeError(
            "tokenizer: expected a Hugging Face fast tokenizer, a tokenizers.Tokenizer or a path of a tokenizer.json, "
            f"came {type(tokenizer).__name__}"
        )
    return str(backend.to_str()).encode()


def _groups(pairs: pl.DataFrame, tokenizer: Any) -> pl.DataFrame:
    """The pairs with the rejected responses (and whether they were cut off) of one prompt and chosen in lists."""
    _check(pairs, tokenizer)
    marks = [f"{side}_truncated" for side in ("chosen", "rejected")]
    pairs = pairs.with_columns(
        pairs.get_column(mark, default=pl.lit(False)).fill_null(False).alias(mark) for mark in marks
    )
    if "prompt_id" not in pairs.columns:
        pairs = pairs.with_columns(prompt_id=pl.int_range(pl.len()))
    pairs = pairs.with_columns(pl.col("prompt_id").cast(pl.UInt64))
    run = pl.struct("prompt_id", key(pairs["prompt"]).alias("p"), key(pairs["chosen"]).alias("c")).rle_id()
    kept = ("prompt_id", "prompt", "chosen", "chosen_truncated")
    grouped = pairs.group_by(run.alias("group"), maintain_order=True)
    return grouped.agg(pl.col(kept).first(), "rejected", "rejected_truncated")


def _check(pairs: pl.DataFrame, tokenizer: Any) -> None:
    columns = ("prompt", "chosen", "rejected")
    for column in columns:
        if column not in pairs.columns:
            raise ValueError(f"pairs: no column {column!r}; they have {', '.join(pairs.columns)}")
        if nulls := pairs[column].null_count():
            first = pairs[column].is_null().arg_true()[0] + 1
            raise ValueError(f"pairs: column {column!r}: {nulls} null value(s), first in row {first}; drop these rows")
    if not pairs.height:
        raise ValueError("pairs: no row is left to tokenize")
    kinds = {column: "messages" if is_messages(pairs[column]) else "text" for column in columns}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"pairs: expected text or messages in all columns, came {kinds}")
    if kinds["prompt"] == "messages" and not getattr(tokenizer, "chat_template", None):
        raise ValueError("pairs: they are messages, but the tokenizer has no chat template; give text, or another one")
    if getattr(tokenizer, "eos_token", None) is None:
        raise ValueError("tokenizer: has no eos_token, so no response could ever end; set one")


def _encode_both(
    prompts: pl.Series, asked: pl.Series, said: pl.Series, cut: pl.Series, tokenizer: Any
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt alone, and of each asked prompt with what was said to it, [len(asked)]."""
    texts = render(prompts, tokenizer) + _joint(asked, said, cut, tokenizer)
    table = encode(texts, tokenizer, add_special_tokens=not is_messages(prompts))
    n = len(prompts)
    return TokenTable(table.offsets[: n + 1], table.ids), TokenTable(table.offsets[n:], table.ids)


def _joint(asked: pl.Series, said: pl.Series, cut: pl.Series, tokenizer: Any) -> list[str]:
    """The text of each prompt with its response, as TRL tokenizes it; of text, what was cut off gets no end."""
    rows = zip(asked, said, cut, strict=True)
    if not is_messages(asked):
        end = tokenizer.eos_token
        return [prompt + text + ("" if short or text.endswith(end) else end) for prompt, text, short in rows]
    turns = ([*prompt, *([{"role": "assistant", "content": t}] if isinstance(t, str) else t)] for prompt, t, _ in rows)
    said_in_full = list(plain(turns))
    return list(tokenizer.apply_chat_template(said_in_full, tokenize=False)) if said_in_full else []


def _end(asked: pl.Series, cut: pl.Series, tokenizer: Any) -> dict[str, Any]:
    """What takes the end of turn, which a chat template adds, from responses that were cut off.

    It is the first special token that the template writes after an answer: with some models not the eos_token.
    """
    if not is_messages(asked) or not cut.any():
        return {}
    turns = [{"role": role, "content": "mipo"} for role in ("user", "assistant")]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("mipo")[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = [i for i in ids if i in tokenizer.added_tokens_decoder]
    return {"unfinished": cut.to_numpy(), "end_ids": [*special, tokenizer.eos_token_id][:1]}


def _joint_rows(sizes: pl.Series) -> pl.DataFrame:
    """Where each group's texts are among all prompts and all joint texts: the chosen ones, then all rejected ones."""
    n, offsets = len(sizes), np.concatenate([[0], np.cumsum(sizes.cast(pl.Int64).to_numpy())])
    every = pl.int_range(n, dtype=pl.UInt64, eager=True)
    rejected = _lists(offsets, np.arange(n, n + offsets[-1], dtype=np.uint64))
    return pl.DataFrame({"prompt": every, "chosen": every, "rejected": rejected})


def _separate(
    prompts: TokenTable, joint: TokenTable, rows: pl.DataFrame, end: dict[str, Any]
) -> tuple[_native.Split, pl.DataFrame]:
    """Prompts and responses, each once, and for `rows` of the joint table the rows there."""
    offsets = _offsets(rows["rejected"])
    split = _native.split(
        (prompts.offsets, prompts.ids),
        (joint.offsets, joint.ids),
        group_prompt=rows["prompt"].to_numpy(),
        group_chosen=rows["chosen"].to_numpy(),
        rejected_offsets=offsets,
        rejected=_flat(rows["rejected"]),
        **end,
    )
    rejected = _lists(offsets, split.rejected)
    return split, pl.DataFrame({"prompt": split.prompt, "chosen": split.chosen, "rejected": rejected})


def _reasons(split: _native.Split, table: pl.DataFrame, max_length: int | None) -> pl.Series:
    """Why each group of `table` is dropped; null where it is kept."""
    before, own = (pl.Series(TokenTable(*made).lengths()) for made in (split.prompts, split.responses))
    said = table.with_row_index("group").with_columns(said=pl.concat_list("chosen", "rejected")).explode("said")
    lengths = said.select("group", own.gather(said["said"]).alias("own"), before.gather(said["prompt"]).alias("before"))
    longest, shortest = (pl.col("before") + pl.col("own")).max(), pl.col("own").min()
    limit = np.inf if max_length is None else max_length
    reason = (
        pl.when(shortest == 0)
        .then(pl.lit("a response without a token of its own"))
        .when(longest > limit)
        .then(pl.lit(f"longer than {max_length} tokens"))
    )
    return lengths.group_by("group", maintain_order=True).agg(reason.alias("reason"))["reason"]


def _offsets(lists: pl.Series) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lists.list.len().cast(pl.Int64).to_numpy())])


def _flat(lists: pl.Series) -> NDArray[np.uint64]:
    values: NDArray[np.uint64] = lists.to_arrow().flatten().to_numpy()
    return values


def _lists(offsets: NDArray[np.int64], values: NDArray[np.uint64]) -> pl.Series:
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))


def _strings(texts: Any) -> pa.Array:
    """Texts as an Arrow array; TypeError or ValueError names the row of what is no text."""
    if isinstance(texts, str):
        raise TypeError("texts: expected several texts, came one; put it into a list")
    texts = texts if hasattr(texts, "__len__") else list(texts)
    try:
        return pa.array(texts, type=pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts: expected text in row {row}, came {type(text).__name__}") from None
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"texts: row {row} holds half of a surrogate pair, which is no character") from None
        raise


def _take(table: TokenTable, rows: pl.Series) -> TokenTable:
    lists = table.to_arrow().take(pa.array(rows.to_numpy()))
    return TokenTable(lists.offsets.to_numpy(), lists.values.to_numpy())


def _write(table: pa.Table, path: Path) -> None:
    with files.whole(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it was not written, or not to its end")
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Arrow file ({error}); make it again") from None
