"""Laws of tokens: a table holds its rows in any pieces, and equal texts become equal ids in any container."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.tokenizer.encoder import encode, fingerprint, tokenizer_json
from mipo.tokenizer.table import TokenTable

rows_of_ids = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=6)


def piece(rows: list[list[int]]) -> tuple[Any, Any]:
    flat = [i for row in rows for i in row]
    return np.cumsum([0, *map(len, rows)], dtype=np.int64), np.array(flat, dtype=np.uint32)


# Tables


@given(st.lists(rows_of_ids, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_a_table_holds_its_rows_in_any_pieces(tmp_path_factory: Any, pieces: Any, data: Any) -> None:
    rows = [row for piece in pieces for row in piece]
    saved = TokenTable(tuple(map(piece, pieces)))
    path = tmp_path_factory.mktemp("table") / "ids.arrow"
    saved.save(path)
    sample = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8) if rows else st.just([]))
    for table in (saved, TokenTable.open(path)):
        assert len(table) == len(rows)
        assert [ids.tolist() for ids in table] == rows
        assert [table[row].tolist() for row in range(len(rows))] == rows
        assert table.lengths().tolist() == [len(row) for row in rows]
        assert table.to_arrow().to_pylist() == rows
        assert [table.ids[a:b].tolist() for a, b in zip(table.offsets, table.offsets[1:], strict=False)] == rows
        assert (table.ids.dtype, table.offsets.dtype, table.lengths().dtype) == (np.uint32, np.int64, np.int64)
        assert [ids.tolist() for ids in table.take(np.array(sample, np.uint64))] == [rows[row] for row in sample]


def test_an_opened_table_stays_in_its_file(tmp_path: Path) -> None:
    ids = np.arange(1_000_000, dtype=np.uint32)
    TokenTable(((np.arange(0, 1_000_001, 10, dtype=np.int64), ids),)).save(tmp_path / "ids.arrow")
    before = pa.total_allocated_bytes()
    table = TokenTable.open(tmp_path / "ids.arrow")
    assert table[99_999].tolist() == list(range(999_990, 1_000_000))
    assert np.shares_memory(table[3], table.ids), "a row is a view"
    assert pa.total_allocated_bytes() - before < ids.nbytes / 10


def test_a_table_in_one_piece_is_not_copied() -> None:
    one = piece([[1, 2], [3]])
    table = TokenTable((one,))
    assert table.ids is one[1]
    assert table.offsets is one[0]
    assert np.shares_memory(table.to_arrow().chunk(0).values.to_numpy(), one[1])


@pytest.mark.parametrize("pieces", [[], [[]], [[[5, 6]]], [[[5]], []]])
def test_rows_outside_a_table_are_refused(pieces: Any) -> None:
    table = TokenTable(tuple(map(piece, pieces)))
    for row in (-1, len(table)):
        with pytest.raises(IndexError, match=f"row {row} of a table of {len(table)} rows"):
            table[row]


def test_a_table_may_be_a_part_of_larger_arrays() -> None:
    """Offsets need not start at 0, nor end where the ids end."""
    table = TokenTable(((np.array([1, 2, 4]), np.arange(6, dtype=np.uint32)), piece([[9]])))
    assert [ids.tolist() for ids in table] == [[1], [2, 3], [9]]
    assert [table.ids[a:b].tolist() for a, b in zip(table.offsets, table.offsets[1:], strict=False)] == [
        [1],
        [2, 3],
        [9],
    ]


# Texts and tokenizers


TEXTS = ["what ?", "", "soup . pizza", "日本語"]


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS, tuple(TEXTS), iter(TEXTS), pl.Series(TEXTS), pa.array(TEXTS), pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        np.array(TEXTS), np.array(TEXTS, dtype=object), np.array(TEXTS, dtype=np.dtypes.StringDType()),
    ],
    ids=["list", "tuple", "iterator", "polars", "arrow", "chunked", "numpy U", "numpy object", "numpy string"],
)  # fmt: skip
def test_texts_may_be_any_of_these(demo_tokenizer: Any, texts: Any) -> None:
    expected = demo_tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    table = encode(texts, demo_tokenizer, add_special_tokens=False)
    assert [ids.tolist() for ids in table] == expected
    assert (table.ids.dtype, table.offsets.dtype) == (np.uint32, np.int64)


def test_a_tokenizer_may_be_any_of_these(demo_tokenizer: Any) -> None:
    from mipo import demo

    folder = demo.HERE / "model"
    ways = [demo_tokenizer, demo_tokenizer.backend_tokenizer, folder, str(folder), folder / "tokenizer.json"]
    assert len({tuple(encode(TEXTS, way).ids.tolist()) for way in ways}) == 1


def test_texts_are_neither_truncated_nor_padded_despite_the_tokenizers_settings(demo_tokenizer: Any) -> None:
    demo_tokenizer(TEXTS, padding=True, truncation=True, max_length=1)
    assert encode(TEXTS, demo_tokenizer).lengths().tolist() == [2, 0, 3, 1]


def change(backend: Any, part: str) -> None:
    """Changes a part of a tokenizer so that it gives other ids."""
    from tokenizers import models, normalizers, pre_tokenizers, processors

    if part == "normalizer":
        backend.normalizer = normalizers.Lowercase()
    elif part == "pre_tokenizer":
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    elif part == "post_processor":
        backend.post_processor = processors.TemplateProcessing("$A <end>", "$A $B", [("<end>", 5)])
    elif part == "added_tokens":
        backend.add_tokens(["soup"])
    elif part == "vocabulary":
        words = [word for word, _ in sorted(backend.get_vocab().items(), key=lambda pair: pair[1])]
        vocabulary = {word: place for place, word in enumerate([*words[:6], *reversed(words[6:])])}
        backend.model = models.WordLevel(vocabulary, "<unk>")
    elif part == "merges":
        backend.model = bpe(("b", "c"), ("a", "b"))
    else:
        backend.model.unk_token = "."


def bpe(*merges: tuple[str, str]) -> Any:
    """A model of a few letters that merges these pairs and no others."""
    from tokenizers import models

    words = ["<pad>", "<unk>", "<system>", "<user>", "<assistant>", "<end>", "a", "b", "c", "ab", "bc"]
    return models.BPE({word: place for place, word in enumerate(words)}, list(merges), unk_token="<unk>")


@pytest.mark.parametrize(
    "part", ["normalizer", "pre_tokenizer", "post_processor", "added_tokens", "vocabulary", "unk_token", "merges"]
)
def test_a_tokenizer_that_was_changed_is_another_one(demo_tokenizer: Any, part: str) -> None:
    backend, texts = copy.deepcopy(demo_tokenizer.backend_tokenizer), ["WHAT ?", "soup.pizza", "pizza", "abc"]
    if part == "merges":
        backend.model = bpe(("a", "b"), ("b", "c"))
    backend.no_truncation()
    backend.no_padding()
    before = [ids.tolist() for ids in encode(texts, backend)]
    assert tokenizer_json(backend) is tokenizer_json(backend), "unchanged, it is serialized once"
    change(backend, part)
    after = [ids.tolist() for ids in encode(texts, backend)]
    assert after == [encoding.ids for encoding in backend.encode_batch(texts)]
    assert after != before


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("one text", TypeError, "expected several texts, got one"),
        (["a", 5], TypeError, "expected text in row 1, got int"),
        (np.array([1, 2]), TypeError, "expected text in row 0, got int64"),
        (["a", "b", "\ud83d"], ValueError, "row 2 has half of a surrogate pair"),
        (["a", None], ValueError, "null in row 1"),
        (pl.Series([1]), TypeError, "cast it to string"),
    ],
)
def test_rows_that_are_not_text_are_refused_with_their_number(
    demo_tokenizer: Any, texts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(texts, demo_tokenizer)


def test_objects_that_are_not_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a Hugging Face fast tokenizer, .* got int"):
        encode(["a"], 5)
    with pytest.raises(FileNotFoundError, match=r"no such tokenizer\.json"):
        encode(["a"], tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        encode(["a"], tmp_path)


def test_a_fingerprint_changes_with_the_ids_alone(demo_tokenizer: Any) -> None:
    from tokenizers import decoders

    first = fingerprint(demo_tokenizer)
    demo_tokenizer(TEXTS, padding=True, truncation=True, max_length=3)
    assert fingerprint(demo_tokenizer) == first, "padding and truncation are gone with the next call"
    other = copy.deepcopy(demo_tokenizer)
    assert fingerprint(other) == first
    other.backend_tokenizer.decoder = decoders.Fuse()
    assert fingerprint(other) == fingerprint(copy.deepcopy(other)), "the same for a copy"
    other = copy.deepcopy(demo_tokenizer)
    other.chat_template += " "
    assert fingerprint(other) != first
    other = copy.deepcopy(demo_tokenizer)
    other.eos_token = "<pad>"
    assert fingerprint(other) != first
    other = copy.deepcopy(demo_tokenizer)
    other.add_tokens(["holiday!"])
    assert fingerprint(other) != first
