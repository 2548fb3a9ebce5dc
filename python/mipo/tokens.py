"""Tokens: texts become ids once, in Arrow buffers filled by Rust; a pair is three row numbers.

Knows tokenizers, chat templates and TRL's rule for the border of prompt and response, which is found on token ids.
Knows nothing of where the pairs came from, or of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import _native, files
from mipo.lazy import lazy
from mipo.prompts import is_chat, key, render

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray
else:
    np = lazy("numpy")
    pl = lazy("polars")
    pa = lazy("pyarrow")


@dataclass(frozen=True)
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

    def save(self, path: Path) -> None:
        """Writes an Arrow IPC file with the one column `ids`."""
        _write(pa.table({"ids": self.to_arrow()}), path)

    @classmethod
    def open(cls, path: Path) -> TokenTable:
        """Opens what `save` wrote, without reading the ids into memory."""
        column = _read(path)["ids"].combine_chunks()
        lists = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return cls(lists.offsets.to_numpy(), lists.values.to_numpy())


@dataclass(frozen=True)
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
        flat = (
            self.pairs.select("prompt", side).explode(side) if side == "rejected" else self.pairs.select("prompt", side)
        )
        return [self.prompts[row] for row in flat["prompt"]], [self.responses[row] for row in flat[side]]

    def to_trl(self) -> datasets.Dataset:
        """A `datasets.Dataset` with prompt_ids, chosen_ids, rejected_ids, as TRL's DPOTrainer tokenizes it.

        With one rejected response in every group rejected_ids is a list of ids; otherwise a list of such lists, which
        `mipo.trainer.MIPOTrainer` takes.
        """
        import datasets

        prompts, responses = self.prompts.to_arrow(), self.responses.to_arrow()
        flat = responses.take(pa.array(self.pairs["rejected"].explode().to_numpy()))
        if self.negatives > 1:
            flat = pa.LargeListArray.from_arrays(pa.array(_offsets(self.pairs["rejected"])), flat)
        columns = {
            "prompt_ids": prompts.take(pa.array(self.pairs["prompt"].to_numpy())),
            "chosen_ids": responses.take(pa.array(self.pairs["chosen"].to_numpy())),
            "rejected_ids": flat,
        }
        return datasets.Dataset(pa.table(columns))

    def save(self, folder: Path) -> None:
        """Writes `prompts.arrow`, `responses.arrow` and, last, `pairs.arrow`."""
        self.prompts.save(folder / "prompts.arrow")
        self.responses.save(folder / "responses.arrow")
        told = {"mipo.merged": str(self.merged), "mipo.fingerprint": self.fingerprint}
        _write(
            self.pairs.to_arrow(compat_level=pl.CompatLevel.oldest()).replace_schema_metadata(told),
            folder / "pairs.arrow",
        )

    @classmethod
    def open(cls, folder: str | Path) -> PairStore:
        """Opens what `save` wrote, memory-mapped; ValueError for a folder that holds no store."""
        folder = Path(folder)
        pairs = _read(folder / "pairs.arrow")
        told = pairs.schema.metadata or {}
        if b"mipo.fingerprint" not in told:
            raise ValueError(f"{folder}: no PairStore; make one with `mipo tokens`")
        frame = pl.from_arrow(pairs)
        assert isinstance(frame, pl.DataFrame)
        tables = (TokenTable.open(folder / name) for name in ("prompts.arrow", "responses.arrow"))
        return cls(*tables, frame, int(told[b"mipo.merged"]), told[b"mipo.fingerprint"].decode())


def encode(texts: Any, tokenizer: Any, *, add_special_tokens: bool = True) -> TokenTable:
    """Token ids of each text, in Rust on all threads.

    `texts`: a polars Series, an Arrow or NumPy array, or a list of str. `tokenizer`: a Hugging Face fast tokenizer, a
    `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or of its folder; nothing is cut or padded. Raises
    TypeError or ValueError, with the row, for what is no text.
    """
    if not hasattr(texts, "__arrow_c_stream__") and not hasattr(texts, "__arrow_c_array__"):
        texts = pa.array(texts, type=pa.large_string())
    return TokenTable(*_native.Encoder(_tokenizer_json(tokenizer)).encode(texts, add_special_tokens))


def encode_prompts(composed: pl.Series, tokenizer: Any) -> TokenTable:
    """Token ids of each composed prompt as the model sees it, with the generation prompt of its chat template."""
    return encode(_strings(render(composed, tokenizer)), tokenizer, add_special_tokens=not is_chat(tokenizer))


def encode_responses(
    composed: pl.Series, responses: pl.Series, tokenizer: Any, *, unfinished: pl.Series
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt and of its response (text), separated as in training; one row each, in order."""
    joint = encode(
        _strings(_joint(composed, responses, unfinished, tokenizer)),
        tokenizer,
        add_special_tokens=not is_chat(tokenizer),
    )
    every = np.arange(len(composed), dtype=np.uint64)
    none = {"rejected_offsets": np.zeros(len(composed) + 1, dtype=np.int64), "rejected": np.empty(0, dtype=np.uint64)}
    split = _native.split(
        _pair(encode_prompts(composed, tokenizer)), _pair(joint), group_prompt=every, group_chosen=every, **none,
        **_cut(unfinished, tokenizer),
    )  # fmt: skip
    return _take(TokenTable(*split.prompts), split.prompt), _take(TokenTable(*split.responses), split.chosen)


def tokenize(pairs: pl.DataFrame, tokenizer: Any, *, max_length: int | None = None) -> tuple[PairStore, dict[str, int]]:
    """Tokenizes preference pairs (TRL's columns prompt, chosen, rejected; text or messages) as TRL 1.16 would.

    Rows that share prompt_id and chosen, one after another, make one group with several rejected responses. A response
    that is marked truncated carries no end of turn, since the model made none; all others do. Returns the store and the
    dropped rows by reason: groups of which a response ends after `max_length` tokens.
    """
    groups = _groups(pairs, is_chat(tokenizer))
    chosen, cut = groups["chosen"], groups["chosen_truncated"]
    flat = groups.select("prompt", "rejected", "rejected_truncated").explode("rejected", "rejected_truncated")
    texts = [*_joint(groups["prompt"], chosen, cut, tokenizer)]
    texts += _joint(flat["prompt"], flat["rejected"], flat["rejected_truncated"], tokenizer)
    special = not is_chat(tokenizer)
    offsets = _offsets(groups["rejected"])
    prompts = encode_prompts(groups["prompt"], tokenizer)
    split = _native.split(
        _pair(prompts),
        _pair(encode(_strings(texts), tokenizer, add_special_tokens=special)),
        group_prompt=np.arange(len(groups), dtype=np.uint64),
        group_chosen=np.arange(len(groups), dtype=np.uint64),
        rejected_offsets=offsets,
        rejected=np.arange(len(groups), len(texts), dtype=np.uint64),
        **_cut(pl.concat([cut, flat["rejected_truncated"].alias(cut.name)]), tokenizer),
    )
    if len(split.empty):
        raise ValueError(
            f"{len(split.empty)} responses have no token of their own after their prompt; drop these pairs"
        )
    table = groups.select("prompt_id").with_columns(
        pl.Series("prompt", split.prompt),
        pl.Series("chosen", split.chosen),
        _lists("rejected", offsets, split.rejected),
    )
    store = PairStore(
        TokenTable(*split.prompts), TokenTable(*split.responses), table, split.merged, fingerprint(tokenizer)
    )
    return _within(store, max_length)


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer and its chat template: equal exactly where the same texts become the same ids."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(_tokenizer_json(tokenizer) + b"\0" + repr(template).encode()).hexdigest()


def _tokenizer_json(tokenizer: Any) -> bytes:
    if isinstance(tokenizer, (str, Path)):
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


def _groups(pairs: pl.DataFrame, chat: bool) -> pl.DataFrame:
    for column in ("prompt", "chosen", "rejected"):
        if column not in pairs.columns:
            raise ValueError(f"pairs: no column {column!r}; they have {', '.join(pairs.columns)}")
        if isinstance(pairs.schema[column], pl.List) != chat:
            what = (
                ("text", "has a chat template: give messages")
                if chat
                else ("messages", "has no chat template: give text")
            )
            raise ValueError(f"pairs: column {column!r} is {what[0]}, but the tokenizer {what[1]}")
    if not pairs.height:
        raise ValueError("pairs: no row is left to tokenize")
    sides = [f"{side}_truncated" for side in ("chosen", "rejected") if f"{side}_truncated" not in pairs.columns]
    pairs = pairs.with_columns(pl.lit(False).alias(side) for side in sides)
    if "prompt_id" not in pairs.columns:
        pairs = pairs.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    run = pl.struct("prompt_id", key(pairs["chosen"]).alias("c")).rle_id().alias("group")
    kept = ("prompt_id", "prompt", "chosen", "chosen_truncated")
    return pairs.group_by(run, maintain_order=True).agg(pl.col(kept).first(), "rejected", "rejected_truncated")


def _joint(composed: pl.Series, responses: pl.Series, unfinished: pl.Series, tokenizer: Any) -> list[str]:
    """The text of each prompt with its response, as TRL tokenizes it."""
    end = tokenizer.eos_token
    texts = []
    for asked, said, cut in zip(composed, responses, unfinished, strict=True):
        if isinstance(asked, str):
            texts.append(asked + said + ("" if cut or said.endswith(end) else end))
        else:
            turn = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
            texts.append(tokenizer.apply_chat_template([*asked, *turn], tokenize=False))
    return texts


def _cut(unfinished: pl.Series, tokenizer: Any) -> dict[str, Any]:
    """What takes the end of turn, which a chat template adds, from responses that were cut off."""
    if not is_chat(tokenizer):
        return {}
    return {"unfinished": unfinished.fill_null(False).to_numpy(), "end_ids": [tokenizer.eos_token_id]}


def _within(store: PairStore, max_length: int | None) -> tuple[PairStore, dict[str, int]]:
    if max_length is None:
        return store, {}
    prompts, responses, pairs = store.prompts.lengths(), store.responses.lengths(), store.pairs
    rejected = responses[pairs["rejected"].explode().to_numpy()]
    longest = np.maximum(
        responses[pairs["chosen"].to_numpy()], np.maximum.reduceat(rejected, _offsets(pairs["rejected"])[:-1])
    )
    fits = prompts[pairs["prompt"].to_numpy()] + longest <= max_length
    lost = pairs.filter(~fits)["rejected"].list.len().sum()
    kept = PairStore(store.prompts, store.responses, pairs.filter(fits), store.merged, store.fingerprint)
    return kept, {f"longer than {max_length} tokens": int(lost)} if lost else {}


def _offsets(lists: pl.Series) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lists.list.len().cast(pl.Int64).to_numpy())])


def _lists(name: str, offsets: NDArray[np.int64], values: NDArray[np.uint64]) -> pl.Series:
    return pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))


def _strings(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, type=pa.large_string())


def _pair(table: TokenTable) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    return table.offsets, table.ids


def _take(table: TokenTable, rows: NDArray[np.uint64]) -> TokenTable:
    lists = table.to_arrow().take(pa.array(rows))
    return TokenTable(lists.offsets.to_numpy(), lists.values.to_numpy())


def _write(table: pa.Table, path: Path) -> None:
    with files.whole(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Arrow file ({error}); make it again") from None
