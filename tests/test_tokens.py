"""Laws of token ids: they are TRL's own, the border cannot be shifted, and what is written is read back."""

import copy
import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.groups import encode_prompts, encode_responses, tokenize
from mipo.store import PairStore
from mipo.tokens import TokenTable, encode, fingerprint

# What breaks tokenizers: characters of several tokens, white space at the border, and texts that look like markup.
HARD = [
    "🎌 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "日本語のテキスト。質問です",
    "def f(x):\n\treturn {k: v for k, v in x}  # tail ",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant",
    "literal </s> and <|endoftext|> and [INST] look-alikes",
    "ends in a blank ",
    "\n\nstarts with new lines",
    "e\u0301 decomposed, \u00e9 composed, \ufb01 ligature, \u200b zero width",
    "1234567890 3.14159 1e-9",
    "\u0000 and \u0007 controls",
]
WORDS = ["what", "should", "i", "eat", "tonight", "?", "pizza", "soup", "because", "it", "suits", "you", "."]
worded = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def trl_ids(rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """What TRL's own `_prepare_dataset` makes of preference rows, called on a stand-in for the trainer."""
    from datasets import Dataset
    from trl import DPOTrainer

    args: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    stand_in: Any = SimpleNamespace(_tokenizer=tokenizer)
    made = DPOTrainer._prepare_dataset(stand_in, Dataset.from_list(rows), tokenizer, args, "train")
    return list(zip(made["prompt_ids"], made["chosen_ids"], made["rejected_ids"], strict=True))


def mipo_ids(store: PairStore) -> list[tuple[list[int], ...]]:
    return [
        (
            store.prompts[row["prompt"]].tolist(),
            store.responses[row["chosen"]].tolist(),
            *(store.responses[rejected].tolist() for rejected in row["rejected"]),
        )
        for row in store.pairs.iter_rows(named=True)
    ]


def chat(prompt: str, chosen: str, rejected: str, system: str | None = None) -> dict[str, Any]:
    before = [{"role": "system", "content": system}] if system is not None else []
    return {
        "prompt": [*before, {"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def text(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def store_of(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> PairStore:
    return tokenize(pl.DataFrame(rows, infer_schema_length=None), tokenizer, **options)[0]


# The ids are TRL's


@pytest.mark.parametrize("shape", [text, chat])
def test_ids_of_the_demo_are_those_of_trl(demo_tokenizer: Any, shape: Any) -> None:
    draw = random.Random(0)
    said = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(300)] + HARD
    rows = [shape(a, b, c) for a, b, c in zip(said, said[1:] + said[:1], said[2:] + said[:2], strict=True)]
    assert mipo_ids(store_of(rows, demo_tokenizer)) == trl_ids(rows, demo_tokenizer)


@pytest.fixture(scope="session")
def real_triples(rows_of: Any) -> list[tuple[str, str, str]]:
    """Prompts with a response of their own and one to another prompt."""
    math = [(row["question"], row["answer"]) for row in rows_of("math/gsm8k_train.jsonl")[:500]]
    asked = [row["prompt"] for row in rows_of("prompts/human_instructions.jsonl")]
    persona = ["".join(row["persona"]) for row in rows_of("personal/realpersonachat_users.jsonl.xz")]
    hard = [(a, b) for a in HARD for b in HARD if a != b]
    own = math + list(zip(asked, reversed(asked), strict=True)) + list(itertools.pairwise(persona)) + hard
    return [(prompt, chosen, own[(i * 7 + 1) % len(own)][1]) for i, (prompt, chosen) in enumerate(own)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gpt2", text), ("stories260K", text), ("qwen2.5", chat), ("smollm2", chat), ("smollm2", text)],
)
def test_ids_of_real_texts_are_those_of_trl(
    real_tokenizer: Any, real_triples: list[tuple[str, str, str]], name: str, shape: Any
) -> None:
    tokenizer = real_tokenizer(name)
    rows = [shape(*triple) for triple in real_triples]
    assert mipo_ids(store_of(rows, tokenizer)) == trl_ids(rows, tokenizer)


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2"])
def test_a_system_message_is_rendered_as_trl_does(real_tokenizer: Any, name: str) -> None:
    tokenizer = real_tokenizer(name)
    rows = [chat(a, b, "no", system=c) for a, b, c in zip(HARD, HARD[1:], HARD[2:], strict=False)]
    assert mipo_ids(store_of(rows, tokenizer)) == trl_ids(rows, tokenizer)


def test_a_token_across_the_border_moves_it_for_the_whole_group_as_in_trl(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("gpt2")
    rows = [text("Say it: ", "hello", "12"), text("She is un", "happy", "🎌"), text("a\n", "\nb", "c")]
    store = store_of(rows, tokenizer)
    assert mipo_ids(store) == trl_ids(rows, tokenizer)
    assert store.merged == sum(len(ids[0]) < len(tokenizer(row["prompt"])["input_ids"]) for ids, row in
                               zip(mipo_ids(store), rows, strict=True)) > 0  # fmt: skip


def test_null_fields_that_a_table_adds_are_not_shown_to_the_template(demo_tokenizer: Any) -> None:
    named = chat("what ?", "soup .", "pizza .")
    named["prompt"] = [{**named["prompt"][0], "name": "ann"}]
    plain = chat("what ?", "soup .", "pizza .")
    demo_tokenizer = copy.deepcopy(demo_tokenizer)
    demo_tokenizer.chat_template = demo_tokenizer.chat_template + "{% if messages[0].name is defined %} you{% endif %}"
    store = store_of([named, plain], demo_tokenizer)
    assert mipo_ids(store)[1] == mipo_ids(store_of([plain], demo_tokenizer))[0]
    assert mipo_ids(store)[0] != mipo_ids(store)[1]


# Groups


@given(st.lists(st.tuples(worded, worded, st.lists(worded, min_size=1, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_rows_of_one_prompt_and_chosen_are_one_group(demo_tokenizer: Any, groups: list[Any]) -> None:
    rows = [
        {"prompt_id": i, **chat(prompt, chosen, other)}
        for i, (prompt, chosen, rejected) in enumerate(groups)
        for other in rejected
    ]
    store = store_of(rows, demo_tokenizer)
    assert store.pairs["prompt_id"].to_list() == list(range(len(groups)))
    assert store.pairs["rejected"].list.len().to_list() == [len(rejected) for *_, rejected in groups]
    assert store.negatives == max(len(rejected) for *_, rejected in groups)
    flat = [(ids[0], ids[1], other) for ids in mipo_ids(store) for other in ids[2:]]
    assert flat == mipo_ids(
        store_of([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows], demo_tokenizer)
    )
    for table in (store.prompts, store.responses):
        assert len({tuple(ids.tolist()) for ids in table}) == len(table), "each distinct prompt and response once"


def test_rows_without_prompt_id_are_never_joined(demo_tokenizer: Any) -> None:
    store = store_of([chat("what ?", "soup .", "pizza .")] * 3, demo_tokenizer)
    assert (len(store), store.negatives, len(store.prompts), len(store.responses)) == (3, 1, 1, 2)


# The border


@given(prompt=worded, counter=worded, chosen=worded, tail=worded, middle=st.booleans())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("shape", [text, chat])
def test_a_rejected_response_that_quotes_its_own_prompt_cannot_shift_the_border(
    demo_tokenizer: Any, shape: Any, prompt: str, counter: str, chosen: str, tail: str, middle: bool
) -> None:
    """The pitfall of slicing strings by a prompt's length: here the rejected answer holds its whole counter-prompt."""
    quoted = f"{tail} {counter}" if middle else f"{counter} {tail}"
    separator = " " if shape is text else ""
    row = shape(prompt, separator + chosen, separator + quoted)
    prompt_ids, chosen_ids, rejected_ids = mipo_ids(store_of([row], demo_tokenizer))[0]
    vocabulary = demo_tokenizer.convert_tokens_to_ids
    assert chosen_ids == [*map(vocabulary, chosen.split()), demo_tokenizer.eos_token_id]
    assert rejected_ids == [*map(vocabulary, quoted.split()), demo_tokenizer.eos_token_id]
    assert prompt_ids == encode_prompts(pl.Series([row["prompt"]]), demo_tokenizer)[0].tolist()


def test_a_rejected_response_that_starts_with_its_own_rendered_prompt(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("qwen2.5")
    counter = [{"role": "user", "content": "Another, much longer question about something else entirely?"}]
    rendered = tokenizer.apply_chat_template(counter, tokenize=False, add_generation_prompt=True)
    rows = [chat("Short?", "Yes.", rendered + "An answer."), chat("Short?", "Yes.", "Short? No.")]
    for row, ids in zip(rows, mipo_ids(store_of(rows, tokenizer)), strict=True):
        assert ids[0] == tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert tokenizer.decode(ids[2]) == row["rejected"][0]["content"] + "<|im_end|>\n"


# The end of turn


@given(st.lists(st.tuples(worded, worded, worded, st.booleans(), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("shape", [text, chat])
def test_truncated_responses_have_no_end_of_turn_and_all_others_one(
    demo_tokenizer: Any, shape: Any, rows: list[tuple[str, str, str, bool, bool]]
) -> None:
    marks = ("chosen_truncated", "rejected_truncated")
    pairs = [{**shape(p, c, r), **dict(zip(marks, cut, strict=True))} for p, c, r, *cut in rows]
    for (*_, chosen_cut, rejected_cut), (_, chosen, rejected) in zip(
        rows, mipo_ids(store_of(pairs, demo_tokenizer)), strict=True
    ):
        assert chosen.count(demo_tokenizer.eos_token_id) == (not chosen_cut)
        assert rejected.count(demo_tokenizer.eos_token_id) == (not rejected_cut)


def test_the_line_break_after_qwens_end_of_turn_stays_with_finished_responses_alone(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("qwen2.5")
    row = {**chat("Hi", "whole", "half a"), "chosen_truncated": False, "rejected_truncated": True}
    _, chosen, rejected = mipo_ids(store_of([row], tokenizer))[0]
    assert (tokenizer.decode(chosen), tokenizer.decode(rejected)) == ("whole<|im_end|>\n", "half a")


def test_the_end_of_turn_is_the_templates_where_the_eos_token_is_another(real_tokenizer: Any) -> None:
    """Base models often end texts with <|endoftext|>, while their template closes turns with <|im_end|>."""
    tokenizer = copy.deepcopy(real_tokenizer("qwen2.5"))
    tokenizer.eos_token = "<|endoftext|>"
    row = {**chat("Hi", "whole", "half a"), "chosen_truncated": False, "rejected_truncated": True}
    _, chosen, rejected = mipo_ids(store_of([row], tokenizer))[0]
    assert (tokenizer.decode(chosen), tokenizer.decode(rejected)) == ("whole<|im_end|>\n", "half a")


@pytest.mark.parametrize("is_text", [True, False])
def test_single_responses_are_separated_as_in_pairs(demo_tokenizer: Any, is_text: bool) -> None:
    rows = [(text if is_text else chat)(p, c, " soup .") for p, c in [("what ?", " pizza ."), ("i eat", " it .")]]
    store = store_of(rows, demo_tokenizer)
    prompts, responses = encode_responses(
        pl.Series([row["prompt"] for row in rows]),
        pl.Series([" pizza .", " it ."]),
        demo_tokenizer,
        unfinished=pl.Series([False, None]),
    )
    assert [ids.tolist() for ids in prompts] == [ids[0] for ids in mipo_ids(store)]
    assert [ids.tolist() for ids in responses] == [ids[1] for ids in mipo_ids(store)]


# Drops


@given(
    st.lists(st.tuples(worded, worded, st.lists(worded, min_size=1, max_size=2)), min_size=1, max_size=6),
    st.integers(0, 24),
)
@settings(max_examples=50, deadline=None)
def test_what_is_too_long_is_dropped_by_name_and_leaves_nothing_behind(
    demo_tokenizer: Any, groups: list[Any], limit: int
) -> None:
    rows = [
        {"prompt_id": i, **chat(prompt, chosen, other)}
        for i, (prompt, chosen, rejected) in enumerate(groups)
        for other in rejected
    ]
    everything = mipo_ids(store_of(rows, demo_tokenizer))
    store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer, max_length=limit)
    fits = [ids for ids in everything if len(ids[0]) + max(map(len, ids[1:])) <= limit]
    assert mipo_ids(store) == fits
    assert len(rows) == sum(len(ids) - 2 for ids in fits) + sum(dropped.values())
    assert set(dropped) <= {f"longer than {limit} tokens", f"a prompt of {limit} tokens or more"}
    assert set(store.pairs["prompt"]) == set(range(len(store.prompts)))
    assert {*store.pairs["chosen"], *store.pairs["rejected"].explode()} - {None} == set(range(len(store.responses)))


def test_a_response_without_a_token_is_dropped_by_name(demo_tokenizer: Any) -> None:
    rows = [
        {**chat("what ?", "soup .", ""), "rejected_truncated": True},
        {**chat("what ?", "soup .", "pizza ."), "rejected_truncated": False},
    ]
    store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer)
    assert (len(store), dropped) == (1, {"a response without a token of its own": 1})


# Files


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_token_table_is_read_as_it_was_written(tmp_path_factory: Any, rows: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    table = TokenTable(offsets, np.array([i for row in rows for i in row], dtype=np.uint32))
    path = tmp_path_factory.mktemp("table") / "ids.arrow"
    table.save(path)
    found = TokenTable.open(path)
    assert len(found) == len(rows)
    assert [ids.tolist() for ids in found] == rows
    assert found.lengths().tolist() == [len(row) for row in rows]
    assert found.to_arrow().to_pylist() == rows


def test_an_opened_table_lies_in_its_file_and_not_in_memory(tmp_path: Path) -> None:
    ids = np.arange(1_000_000, dtype=np.uint32)
    TokenTable(np.arange(0, 1_000_001, 10, dtype=np.int64), ids).save(tmp_path / "ids.arrow")
    before = pa.total_allocated_bytes()
    found = TokenTable.open(tmp_path / "ids.arrow")
    assert found[99_999].tolist() == list(range(999_990, 1_000_000))
    assert np.shares_memory(found[3], found.ids), "a row is a view"
    assert pa.total_allocated_bytes() - before < ids.nbytes / 10


def test_rows_outside_a_table_are_refused() -> None:
    table = TokenTable(np.array([0, 2]), np.array([5, 6], dtype=np.uint32))
    for row in (-1, 1):
        with pytest.raises(IndexError, match=f"row {row} of a table of 1 rows"):
            table[row]


@pytest.fixture
def store(demo_tokenizer: Any) -> PairStore:
    rows = [
        {"prompt_id": i, **chat(f"{word} ?", "soup .", other)}
        for i, word in enumerate(WORDS[:3])
        for other in ("pizza .", "it .")
    ]
    return store_of(rows, demo_tokenizer)


def test_a_pair_store_is_read_as_it_was_written(store: PairStore, tmp_path: Path) -> None:
    store.save(tmp_path / "tokens")
    found = PairStore.open(tmp_path / "tokens")
    assert found.pairs.equals(store.pairs)
    assert found.pairs.schema == store.pairs.schema
    assert mipo_ids(found) == mipo_ids(store)
    assert (found.merged, found.fingerprint, len(found), found.negatives) == (0, store.fingerprint, 3, 2)
    assert found.rows("rejected")[1][1].tolist() == store.responses[store.pairs["rejected"][0][1]].tolist()
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "pairs.arrow", "prompts.arrow", "responses.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize("negatives", [1, 2])
def test_trl_gets_lists_of_ids(store: PairStore, tmp_path: Path, negatives: int) -> None:
    if negatives == 1:
        pairs = store.pairs.with_columns(pl.col("rejected").list.head(1))
        store = PairStore(store.prompts, store.responses, pairs, store.merged, store.fingerprint)
    store.save(tmp_path)
    dataset = PairStore.open(tmp_path).to_trl()
    assert dataset.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected[0] if negatives == 1 else rejected}
        for prompt, chosen, *rejected in mipo_ids(store)
    ]
    assert list(dataset) == rows
    assert type(dataset[0]["prompt_ids"][0]) is int


def test_a_store_that_was_not_written_to_its_end_is_refused(store: PairStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pairs\.arrow: no such file; it was not written, or not to its end"):
        PairStore.open(tmp_path)
    store.save(tmp_path)
    whole = (tmp_path / "responses.arrow").read_bytes()
    (tmp_path / "responses.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"responses\.arrow: not a whole Arrow file .*make it again"):
        PairStore.open(tmp_path)
    (tmp_path / "responses.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"responses\.arrow"):
        PairStore.open(tmp_path)


def test_a_store_saved_over_another_is_never_half_of_each(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path)
    full = OSError(28, "No space left on device")
    saved = TokenTable.save

    def save(table: TokenTable, path: Path) -> None:
        if path.name == "responses.arrow":
            raise full
        saved(table, path)

    monkeypatch.setattr(TokenTable, "save", save)
    with pytest.raises(OSError, match="No space left"):
        store.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pairs\.arrow"):
        PairStore.open(tmp_path)


def test_foreign_files_are_refused(store: PairStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    (tmp_path / "foreign.arrow").write_bytes(b"no arrow at all")
    with pytest.raises(ValueError, match="not a whole Arrow file"):
        TokenTable.open(tmp_path / "foreign.arrow")
    with pytest.raises(ValueError, match="no TokenTable"):
        TokenTable.open(tmp_path / "pairs.arrow")
    (tmp_path / "prompts.arrow").replace(tmp_path / "pairs.arrow")
    with pytest.raises(ValueError, match="belongs to no PairStore"):
        PairStore.open(tmp_path)
    store.save(tmp_path)
    TokenTable(np.array([0]), np.empty(0, dtype=np.uint32)).save(tmp_path / "responses.arrow")
    with pytest.raises(ValueError, match=r"responses\.arrow is not of the same store"):
        PairStore.open(tmp_path)


# Texts and tokenizers


TEXTS = ["what ?", "", "soup . pizza", "日本語"]


@pytest.mark.parametrize(
    "given",
    [
        TEXTS, tuple(TEXTS), iter(TEXTS), pl.Series(TEXTS), pa.array(TEXTS), pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        np.array(TEXTS), np.array(TEXTS, dtype=object), np.array(TEXTS, dtype=np.dtypes.StringDType()),
    ],
    ids=["list", "tuple", "iterator", "polars", "arrow", "chunked", "numpy U", "numpy object", "numpy string"],
)  # fmt: skip
def test_texts_may_come_in_any_of_these(demo_tokenizer: Any, given: Any) -> None:
    expected = demo_tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    found = encode(given, demo_tokenizer, add_special_tokens=False)
    assert [ids.tolist() for ids in found] == expected
    assert (found.ids.dtype, found.offsets.dtype) == (np.uint32, np.int64)


def test_a_tokenizer_may_come_in_any_of_these(demo_tokenizer: Any) -> None:
    from mipo import demo

    folder = demo.HERE / "model"
    ways = [demo_tokenizer, demo_tokenizer.backend_tokenizer, folder, str(folder), folder / "tokenizer.json"]
    assert len({tuple(encode(TEXTS, way).ids.tolist()) for way in ways}) == 1


def test_nothing_is_cut_or_padded_whatever_the_tokenizer_was_set_to(demo_tokenizer: Any) -> None:
    demo_tokenizer(TEXTS, padding=True, truncation=True, max_length=1)
    assert encode(TEXTS, demo_tokenizer).lengths().tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("one text", TypeError, "expected several texts, came one"),
        (["a", 5], TypeError, "expected text in row 1, came int"),
        (np.array([1, 2]), TypeError, "expected text in row 0, came int64"),
        (["a", "b", "\ud83d"], ValueError, "row 2 holds half of a surrogate pair"),
        (["a", None], ValueError, "null in row 1"),
        (pl.Series([1]), TypeError, "cast it to string"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(
    demo_tokenizer: Any, texts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(texts, demo_tokenizer)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a Hugging Face fast tokenizer, .* came int"):
        encode(["a"], 5)
    with pytest.raises(FileNotFoundError, match=r"no such tokenizer\.json"):
        encode(["a"], tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        encode(["a"], tmp_path)


def test_a_fingerprint_is_of_what_makes_the_ids(demo_tokenizer: Any) -> None:
    first = fingerprint(demo_tokenizer)
    demo_tokenizer(TEXTS, padding=True, truncation=True, max_length=3)
    assert fingerprint(demo_tokenizer) == first, "padding and truncation are gone with the next call"
    other = copy.deepcopy(demo_tokenizer)
    assert fingerprint(other) == first
    other.chat_template += " "
    assert fingerprint(other) != first
    other = copy.deepcopy(demo_tokenizer)
    other.eos_token = "<pad>"
    assert fingerprint(other) != first
    other = copy.deepcopy(demo_tokenizer)
    other.add_tokens(["holiday!"])
    assert fingerprint(other) != first


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([{"prompt": "a", "chosen": "b"}], "no column 'rejected'; they have prompt, chosen"),
        ([text("a", "b", "c"), {"prompt": "a", "chosen": None, "rejected": "c"}], "'chosen': 1 null .* first in row 2"),
        ([{**chat("a", "b", "c"), "chosen": "b"}], "text or messages in all columns"),
    ],
)
def test_broken_pairs_are_refused(demo_tokenizer: Any, pairs: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store_of(pairs, demo_tokenizer)


def test_no_pairs_no_template_and_no_end_are_refused(demo_tokenizer: Any) -> None:
    pairs = pl.DataFrame([chat("a", "b", "c")])
    with pytest.raises(ValueError, match="no row is left"):
        tokenize(pairs.clear(), demo_tokenizer)
    plain = copy.deepcopy(demo_tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        tokenize(pairs, plain)
    plain.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        tokenize(pl.DataFrame([text("a", "b", "c")]), plain)
