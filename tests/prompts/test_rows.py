"""Laws of prompts: rows in are rows out and drops by name, no prompt is edited, errors say where input is broken."""

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mipo.io import hub, sources
from mipo.io.streams import open_stream
from mipo.prompts.compose import compose
from mipo.prompts.rows import drop, numbered, read, read_batches
from mipo.prompts.split import hold_out
from mipo.tokenizer import messages
from mipo.tokenizer.chat import render
from mipo.tokenizer.messages import key

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
roles = st.sampled_from(["system", "user", "assistant"])
conversations = st.lists(st.fixed_dictionaries({"role": roles | texts, "content": texts}), min_size=1, max_size=3)
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


# Laws of reading


@given(
    st.lists(
        st.tuples(
            st.none() | texts | st.sampled_from(["", " \n\u3000", "007", "1e3", "true", '{"a": 1}', "[1]", "null"]),
            st.none() | texts | st.sampled_from(["", "\t", "5.10"]),
        ),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_kept_as_it_was_or_dropped_by_name(
    folder: Path, rows: list[tuple[str | None, str | None]]
) -> None:
    def reason(prompt: str | None, context: str | None) -> str | None:
        if not (prompt or "").strip(WHITE):
            return "empty prompt"
        if context is None:
            return "null context"
        return None if context.strip(WHITE) else "empty context"

    expected = [row for row in rows if reason(*row) is None]
    assume(len(expected) >= 2)
    path = write(folder / "law.jsonl", [{"q": prompt, "c": context} for prompt, context in rows])
    prompts = read(path, prompt="q", context="c")
    assert prompts.frame.select("prompt", "context").rows() == expected
    assert prompts.frame["prompt_id"].to_list() == list(range(len(expected)))
    assert prompts.rows_in == len(rows) == prompts.frame.height + sum(prompts.dropped.values())
    reasons = [reason(*row) for row in rows]
    assert prompts.dropped == {name: reasons.count(name) for name in dict.fromkeys(reasons) if name}
    assert prompts.first == {name: reasons.index(name) + 1 for name in prompts.dropped}
    assert prompts.rows.to_list() == [row for row, name in enumerate(reasons, start=1) if name is None]


# White space as Unicode has it, and not as Python's str.strip(), which adds four separators.
WHITE = "".join(chr(c) for c in range(0x3001) if chr(c).isspace() and not 0x1C <= c <= 0x1F)


@given(st.lists(conversations, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_messages_are_kept_as_they_were(folder: Path, rows: list[list[dict[str, str]]]) -> None:
    chats = [[*before, {"role": "user", "content": f"{i} ?"}] for i, before in enumerate(rows)]
    prompts = read(write(folder / "messages.jsonl", [{"prompt": one} for one in chats]))
    assert prompts.frame["prompt"].to_list() == chats


def test_drops_name_rows_of_the_source_also_when_they_come_one_after_another(folder: Path) -> None:
    path = write(folder / "drops.jsonl", [{"prompt": p} for p in ("", "a", " ", "long", "b", "long", "c")])
    prompts = read(path)
    assert (prompts.dropped, prompts.first) == ({"empty prompt": 2}, {"empty prompt": 1})
    fewer = drop(prompts, "too long", prompts.frame["prompt"] == "long")
    assert fewer.frame.rows() == [(0, "a"), (1, "b"), (2, "c")]
    assert (fewer.dropped, fewer.first) == ({"empty prompt": 2, "too long": 2}, {"empty prompt": 1, "too long": 4})
    again = drop(fewer, "too long", fewer.frame["prompt"] == "c")
    assert (again.dropped["too long"], again.first["too long"], again.rows_in) == (3, 4, 7)
    assert again.rows.to_list() == [2, 5]


# What a prompt becomes


@given(st.lists(st.tuples(texts, st.none() | texts), max_size=8))
@settings(max_examples=100, deadline=None)
def test_composing_as_text_puts_the_context_before_the_prompt_and_edits_neither(rows: list[Any]) -> None:
    frame = pl.DataFrame(rows, schema={"prompt": pl.String, "context": pl.String}, orient="row")
    composed = compose(frame["prompt"], frame["context"], chat=False)
    assert composed.to_list() == [p if c is None else f"{c}\n\n{p}" for p, c in rows]
    assert compose(frame["prompt"], None, chat=False).to_list() == [p for p, _ in rows]


@given(st.lists(st.tuples(texts, st.none() | texts), max_size=8))
@settings(max_examples=100, deadline=None)
def test_composing_as_chat_makes_the_context_the_system_message_and_edits_neither(rows: list[Any]) -> None:
    frame = pl.DataFrame(rows, schema={"prompt": pl.String, "context": pl.String}, orient="row")
    composed = compose(frame["prompt"], frame["context"], chat=True)
    assert composed.to_list() == [
        [*([] if c is None else [{"role": "system", "content": c}]), {"role": "user", "content": p}] for p, c in rows
    ]
    assert compose(frame["prompt"], None, chat=True).to_list() == [[{"role": "user", "content": p}] for p, _ in rows]


@given(st.lists(st.tuples(conversations, st.none() | texts), min_size=1, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_composing_messages_whatever_the_order_of_their_fields(rows: list[Any], turned: bool, named: bool) -> None:
    extra = {"name": "ann"} if named else {}
    chats = [[dict(sorted({**turn, **extra}.items(), reverse=turned)) for turn in turns] for turns, _ in rows]
    contexts = pl.Series([context for _, context in rows], dtype=pl.String)
    composed = compose(pl.Series(chats), contexts, chat=True)
    expected = [
        [*([] if c is None else [{"role": "system", "content": c}]), *turns]
        for turns, (_, c) in zip(chats, rows, strict=True)
    ]
    assert list(messages.plain(composed)) == expected


@given(texts)
@settings(max_examples=60, deadline=None)
def test_rendering_leaves_the_prompt_verbatim(demo_tokenizer: Any, prompt: str) -> None:
    rendered = render(compose(pl.Series([prompt]), pl.Series(["a context"]), chat=True), demo_tokenizer)
    assert rendered.to_list() == [f"<system> a context <end> <user> {prompt} <end> <assistant>"]
    assert render(compose(pl.Series([prompt]), None, chat=False), demo_tokenizer).to_list() == [prompt]


def test_a_null_prompt_stays_null() -> None:
    for chat in (False, True):
        composed = compose(pl.Series(["a", None]), pl.Series(["c", "c"]), chat=chat)
        assert composed.is_null().to_list() == [False, True]


def test_messages_need_a_template() -> None:
    with pytest.raises(ValueError, match="no chat template; give prompts as text"):
        compose(pl.Series([[{"role": "user", "content": "a"}]]), None, chat=False)


# Keys

SEPARATORS = st.text(st.sampled_from('ab\x1e\x1f\n"{}:,\\\0'), max_size=5)
close = st.lists(st.fixed_dictionaries({"role": SEPARATORS, "content": SEPARATORS}), min_size=1, max_size=3)


@given(st.lists(close | conversations, min_size=2, max_size=12))
@settings(max_examples=200, deadline=None)
def test_keys_are_equal_exactly_where_prompts_are(rows: list[Any]) -> None:
    keys = key(pl.Series(rows, dtype=MESSAGES)).to_list()
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (keys[i] == keys[j]) == (one == other)


def test_keys_do_not_depend_on_how_the_table_holds_the_messages() -> None:
    plain = pl.Series([[{"role": "user", "content": "x"}]])
    wide = pl.Series([[{"content": "x", "name": name, "role": "user"}] for name in ("n", None)])
    assert key(wide)[1] == key(plain)[0]
    assert key(wide)[0] != key(plain)[0]
    assert key(pl.Series([None, [{"role": "user", "content": "x"}]]))[0] is None
    assert key(pl.Series(["a", None])).to_list() == ["a", None]
    separated = [[{"role": "a\x1fb", "content": "c"}], [{"role": "a", "content": "b\x1fc"}]]
    assert key(pl.Series(separated)).n_unique() == 2


# Holding out


@given(st.data(), st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_both_sides_together_are_all_rows_and_no_user_is_on_both(data: st.DataObject, seed: int, by_user: bool) -> None:
    users = data.draw(st.lists(st.none() | st.sampled_from("abcdefgh"), min_size=4, max_size=30))
    rows = data.draw(st.integers(2, len(users) - 2))
    frame = numbered(pl.DataFrame({"prompt": [f"p{i}" for i in range(len(users))], "user": users}))
    by = "user" if by_user else None
    sizes = sorted(users.count(user) for user in set(users))
    assume(not by_user or (sizes[0] <= rows and (sizes[0] > 1 or (len(sizes) > 1 and sizes[1] < rows))))
    train, test = hold_out(frame, rows, seed=seed, by=by)
    assert sorted([*train["prompt"], *test["prompt"]]) == sorted(frame["prompt"])
    assert 2 <= test.height <= rows
    assert by or test.height == rows
    assert not by or not set(train["user"]) & set(test["user"])
    for side in (train, test):
        assert side["prompt_id"].to_list() == list(range(side.height))
        assert side["prompt"].to_list() == sorted(side["prompt"], key=lambda p: int(p[1:])), (
            "in the order of the source"
        )
    again = hold_out(frame, rows, seed=seed, by=by)
    assert train.equals(again[0])
    assert test.equals(again[1])


def test_another_seed_holds_out_other_rows() -> None:
    frame = numbered(pl.DataFrame({"prompt": [str(i) for i in range(100)]}))
    assert len({tuple(hold_out(frame, 10, seed=seed)[1]["prompt"]) for seed in range(20)}) == 20


def test_holding_out_needs_rows_and_a_column() -> None:
    frame = numbered(pl.DataFrame({"prompt": list("abcd"), "user": list("xxxx")}))
    with pytest.raises(ValueError, match="expected at least 2 rows, and at least 2 left for training, got 3 of 4"):
        hold_out(frame, 3, seed=0)
    with pytest.raises(ValueError, match="no column 'who'; the prompts have prompt, user, prompt_id"):
        hold_out(frame, 2, seed=0, by="who")
    with pytest.raises(ValueError, match="of 1 values of 'user' no two rows fit in 2"):
        hold_out(frame, 2, seed=0, by="user")


# Formats

ROWS = [{"prompt": "What is 2 + 2?", "label": "007"}, {"prompt": "日本語 🎌", "label": "x"}]


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "p.parquet", "p.csv", "p.v1.jsonl"])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_every_format_and_packing_reads_the_same(tmp_path: Path, name: str, packing: str) -> None:
    path, frame = tmp_path / name, pl.DataFrame(ROWS)
    writer = {".parquet": frame.write_parquet, ".csv": frame.write_csv}.get(path.suffix, frame.write_ndjson)
    writer(path)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(packing)
    if pack:
        packed = path.with_name(name + packing)
        packed.write_bytes(pack(path.read_bytes()))
        path.unlink()
        path = packed
    assert read(path).frame.drop("prompt_id").to_dicts() == ROWS


def test_csv_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'\xef\xbb\xbfq,n\r\n007,1.50\r\n"two\nlines, ""quoted""",true\r\n2020-01-01,\r\n')
    prompts = read(path, prompt="q").frame
    assert prompts["prompt"].to_list() == ["007", 'two\nlines, "quoted"', "2020-01-01"]
    assert prompts["n"].to_list() == ["1.50", "true", None]


def test_blank_lines_byte_order_marks_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n\n')
    prompts = read(path)
    assert (prompts.frame["prompt"].to_list(), prompts.rows_in) == (["a", "b"], 2)


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([*ROWS, {"prompt": "left out", "label": "y"}]).select([1, 0])
    dataset.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one").frame["prompt"].to_list() == [ROWS[1]["prompt"], ROWS[0]["prompt"]]
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0, 0, 1])}).save_to_disk(str(tmp_path / "several"))
    assert read(tmp_path / "several").frame.height == 2
    assert read(tmp_path / "several", split="test").frame.height == 3
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        read(tmp_path / "several", split="dev")
    with pytest.raises(ValueError, match="one: no split 'dev'; it was saved as one split, train"):
        read(tmp_path / "one", split="dev")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: expected data files \(Parquet, JSON Lines or CSV\), got none"):
        read(tmp_path / "none")


def test_categories_are_text(tmp_path: Path) -> None:
    pl.DataFrame({"prompt": pl.Series(["a", "b"], dtype=pl.Categorical)}).write_parquet(tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet").frame["prompt"].dtype == pl.String


def test_other_columns_come_along_and_none_is_taken_for_a_context_unasked(tmp_path: Path) -> None:
    rows = [{"prompt": "old", "q": f"{i} ?", "context": None, "prompt_id": "x", "user": i} for i in range(2)]
    prompts = read(write(tmp_path / "p.jsonl", rows), prompt="q").frame
    assert prompts.columns == ["prompt_id", "prompt", "source_prompt", "source_context", "source_prompt_id", "user"]
    assert prompts["prompt"].to_list() == ["0 ?", "1 ?"]


@pytest.mark.parametrize(
    "name", ["gsm8k", "openai/gsm8k", "allenai/llama-3.1-tulu-3-8b-preference-mixture", "prompts", "data/prompts"]
)
def test_what_may_be_a_dataset_on_the_hub(name: str) -> None:
    assert hub.is_name(name)
    assert not any(hub.is_name(wrong) for wrong in (f"./{name}", f"/{name}", f"{name}.jsonl", f"{name}.csv.gz"))


def test_real_prompts_are_read_as_they_are(shared: Path, rows_of: Any) -> None:
    for name, column in [("prompts/t0_prompts.jsonl.xz", "prompt"), ("math/gsm8k_train.jsonl", "question")]:
        prompts = read(shared / "data" / name, prompt=column)
        assert prompts.frame["prompt"].to_list() == [row[column] for row in rows_of(name)]


# Broken input


def test_files_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"p\.jsonl: no such file"):
        read(tmp_path / "p.jsonl")
    for name in ("p.jsonl", "p.csv", "p.parquet", "p.jsonl.gz", "p.csv.xz"):
        pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
        for content in (b"", pack(b""), *([pack(b"\n \n")] if "parquet" not in name else [])):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name}: (the file is empty|broken)"):
                read(tmp_path / name)
    (tmp_path / "p.txt").write_text("a")
    with pytest.raises(ValueError, match=r"expected a file named \.jsonl, \.ndjson, \.parquet, \.csv"):
        read(tmp_path / "p.txt")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
def test_no_row_one_row_and_too_few_left(tmp_path: Path, name: str) -> None:
    def composed(values: list[str]) -> Path:
        frame = pl.DataFrame({"prompt": values}, schema={"prompt": pl.String})
        writer = {".parquet": frame.write_parquet, ".csv": frame.write_csv}.get(Path(name).suffix, frame.write_ndjson)
        writer(tmp_path / name)
        return tmp_path / name

    with pytest.raises(ValueError, match=rf"{name}: 1 row; a counter-prompt needs at least 2 prompts"):
        read(composed(["a"]))
    if name != "p.jsonl":
        with pytest.raises(ValueError, match=rf"{name}: 0 rows"):
            read(composed([]))
    with pytest.raises(ValueError, match=rf"{name}: 1 row of 3 left, at least 2 needed: .*'empty prompt': 2"):
        read(composed(["a", " ", " "]))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"question": "a", "user": 1}] * 2)
    with pytest.raises(ValueError, match=r"p\.jsonl: no column 'prompt'; it has question, user"):
        read(path)
    with pytest.raises(ValueError, match="no column 'who'; it has question, user"):
        read(path, prompt="question", context="who")
    with pytest.raises(ValueError, match="the same column, 'question'"):
        read(path, prompt="question", context="question")


GOOD = '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": "b\xff"}\n', "row 2: not valid UTF-8 .byte 0xff."),
        (b'\n{"prompt": "a"}\n\n{"prompt": "b\xc3"}\n', r"row 2 \(line 4\): not valid UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "row 2: not valid JSON .Expecting"),
        (b'{"prompt": "a"}\n{"prompt": "b"} {"prompt": "c"}\n', "row 2: not valid JSON .Extra data"),
        (b'{"prompt":\n"a"}\n', "row 1: not valid JSON"),
        (b'{"prompt": "a"}\n["b"]\n', "row 2: expected a JSON object, got a list"),
        (b'{"prompt": "a"}\nnull\n', "row 2: expected a JSON object, got null"),
        (b'[{"prompt": "a"}, {"prompt": "b"}]', "row 1: expected a JSON object, got a list"),
        (b'{"prompt": "a"}\n{"prompt": "tab\t"}\n', "row 2: not valid JSON .Invalid control character"),
        (
            b'{"prompt": "a"}\n{"prompt": 5.10}\n',
            "row 2: column 'prompt': expected text or a list of messages .*, got a number: 5.1",
        ),
        (
            b'{"prompt": 5}\n{"prompt": "a"}\n',
            "row 1: column 'prompt': expected text or a list of messages .*, got a number: 5",
        ),
        (b'{"prompt": "a"}\n{"prompt": true}\n', "row 2: .* got a truth value: true"),
        (b'{"prompt": "a"}\n{"prompt": ["b"]}\n', r"row 2: .* got a list: \[.b.\]"),
        (b'{"prompt": "a"}\n{"prompt": {"b": 1}}\n', r"row 2: .* got an object: \{.b.: 1\}"),
        (b'{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n', "row 2: .* got a list"),
        (
            b'{"prompt": 1}\n{"prompt": 2}\n',
            "row 1: column 'prompt': expected text or a list of messages .* got a number: 1; write it as text",
        ),
        (
            b'{"prompt": {"role": "user"}}\n{"prompt": {"role": "user"}}\n',
            "row 1: column 'prompt': expected .*, got an object: .*; wrap it in a list",
        ),
    ],
)
def test_broken_json_lines_are_refused_with_their_row(tmp_path: Path, lines: bytes, message: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(lines)
    with pytest.raises(
        ValueError, match=rf"p\.jsonl: .*{message}" if "row" not in message else rf"p\.jsonl: {message}"
    ):
        read(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "p.jsonl.gz")


@pytest.mark.parametrize(
    "half",
    [
        b'{"prompt": "\\ud83d", "context": "c"}',
        b'{"prompt": "b", "context": "c \\udc4d\\ud83d"}',
        b'{"prompt": [{"role": "user", "content": "b\\ud83d"}], "context": "c", "n": NaN}',
    ],
)
def test_a_prompt_with_half_of_a_surrogate_pair_is_dropped_by_name_and_the_others_are_kept(
    tmp_path: Path, half: bytes
) -> None:
    """No table holds it, and no server is told it; a whole pair is a character like others."""
    chats = half.startswith(b'{"prompt": [')
    rows = [{"prompt": [{"role": "user", "content": text}] if chats else text} for text in ("a", "\U0001f44d", "", "d")]
    lines = [json.dumps({**row, "context": "c"}).encode() for row in rows]
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([*lines[:2], half, *lines[2:]]))
    prompts = read(tmp_path / "p.jsonl", context="context")
    assert prompts.frame["prompt"].to_list() == [rows[0]["prompt"], rows[1]["prompt"], rows[3]["prompt"]]
    assert prompts.rows.to_list() == [1, 2, 5]
    assert prompts.dropped == {"half of a surrogate pair, which is not a character": 1, "empty prompt": 1}
    assert prompts.first == {"half of a surrogate pair, which is not a character": 3, "empty prompt": 4}
    assert prompts.rows_in == 5
    assert set(prompts.frame.columns) <= {"prompt_id", "prompt", "context", "n"}


@pytest.mark.parametrize("broken", [b'{"prompt": "x"', b'{"prompt": "\xff"}', b'{"prompt": 3}'])
def test_a_broken_row_deep_in_a_large_file(tmp_path: Path, broken: bytes) -> None:
    lines = [b'{"prompt": "the prompt number %d, with some text"}' % i for i in range(50_000)]
    lines[40_000] = broken
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"p\.jsonl: row 40001: "):
        read(tmp_path / "p.jsonl")


@pytest.mark.parametrize("value", [7, True, ["a"]])
def test_a_context_is_text(tmp_path: Path, value: Any) -> None:
    rows = [{"prompt": "a", "who": "x"}, {"prompt": "b", "who": value}]
    with pytest.raises(ValueError, match=r"p\.jsonl: row 2: column 'who': expected text, got"):
        read(write(tmp_path / "p.jsonl", rows), context="who")
    with pytest.raises(ValueError, match=r"p\.jsonl: row 1: column 'who': expected text, got"):
        read(write(tmp_path / "p.jsonl", [{"prompt": "a", "who": value}] * 2), context="who")


def test_text_that_looks_like_something_else_is_text(tmp_path: Path) -> None:
    texts = ["007", "5.10", "1e9", "-1", "true", "[]", '["a"]', '{"a": 1}', "[INST] hi", "null", "\0", "2020-01-01"]
    prompts = read(write(tmp_path / "p.jsonl", [{"prompt": text, "who": text} for text in texts]), context="who").frame
    assert prompts["prompt"].to_list() == texts
    assert prompts["context"].to_list() == texts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"prompt,n\na,1\nb\xff,2\n", "line 3: not valid UTF-8 .byte 0xff."),
        (b"prompt,n\na,1\nb,2,3\n", "not a readable csv file"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, lines: bytes, message: str) -> None:
    (tmp_path / "p.csv").write_bytes(lines)
    with pytest.raises(ValueError, match=rf"p\.csv: {message}"):
        read(tmp_path / "p.csv")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 7), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_of_parquet_files_are_read_from_anywhere_to_anywhere(
    tmp_path_factory: Any, sizes: list[int], group: int, rows: int, data: Any
) -> None:
    folder, numbers = tmp_path_factory.mktemp("parts"), iter(range(sum(sizes)))
    for part, size in enumerate(sizes):
        own = [next(numbers) for _ in range(size)]
        frame = pl.DataFrame({"n": pl.Series(own, dtype=pl.Int64), "said": [{"a": [str(n)]} for n in own]})
        frame = frame.cast({"said": pl.Struct({"a": pl.List(pl.String)})})
        frame.write_parquet(folder / f"{part}.parquet", row_group_size=group)
    whole = sources.scan(folder).lazy().collect()
    start = data.draw(st.integers(0, sum(sizes)))
    stop = data.draw(st.none() | st.integers(start, sum(sizes) + 1))
    batches = list(open_stream(folder).batches(rows, start=start, stop=stop))
    assert pl.concat([whole.clear(), *batches]).equals(whole[start:stop])
    assert all(0 < batch.height <= rows for batch in batches)
    assert open_stream(folder).rows == whole.height


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 13), st.none() | st.integers(0, 13), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_rows_of_jsonl_are_read_from_anywhere_to_anywhere_blank_lines_aside(
    tmp_path_factory: Any, lines: list[bool], start: int, stop: int | None, rows: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "p.jsonl"
    places = [place for place, full in enumerate(lines) if full]
    path.write_text("\n" + "".join(f'{{"n": {place}}}\n' if full else " \n" for place, full in enumerate(lines)))
    batches = list(open_stream(path).batches(rows, start=start, stop=stop))
    assert [n for batch in batches for n in batch["n"]] == places[start:stop]
    assert open_stream(path).rows == len(places)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    batches = list(open_stream(path).batches(rows, start=start, stop=stop))
    assert [n for batch in batches for n in batch["n"]] == places[start:stop], "a byte order mark is nothing"
    assert open_stream(path).rows == len(places)
    path.write_bytes(path.read_bytes() + b"{broken\n")
    with pytest.raises(ValueError, match=rf"p\.jsonl: row {len(places) + 1} \(line {len(lines) + 2}\): not valid JSON"):
        list(open_stream(path).batches(rows, start=min(start, len(places))))


def test_a_broken_parquet_file_is_named_with_the_row_where_it_is_known(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [b"a"] * 20
    texts[13] = b"b\xff"
    nested = pa.array([[{"content": text}] for text in texts], pa.list_(pa.struct([("content", pa.binary())])))
    as_text = pa.list_(pa.struct([("content", pa.string())]))
    for column in (pa.array(texts, pa.binary()).view(pa.string()), nested.view(as_text)):
        pq.write_table(pa.table({"said": column}), tmp_path / "p.parquet", row_group_size=6)
        with pytest.raises(ValueError, match=r"p\.parquet: row 14: not valid UTF-8"):
            list(open_stream(tmp_path / "p.parquet").batches(4, start=7))
        pq.write_table(pa.table({"said": column[:3]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"p\.parquet: row 14: not valid UTF-8"):
            list(open_stream(tmp_path).batches(4))
    data = (tmp_path / "p.parquet").read_bytes()
    for broken in (data[:-9], data[:40] + bytes(90) + data[130:]):
        (tmp_path / "p.parquet").write_bytes(broken)
        with pytest.raises(ValueError, match=r"p\.parquet: not a readable parquet file"):
            list(open_stream(tmp_path / "p.parquet").batches(4))


def test_broken_parquet_and_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ValueError, match=r"p\.parquet: not a readable parquet file"):
        read(tmp_path / "p.parquet")
    whole = GOOD.encode() * 999
    packed = {".gz": gzip.compress(whole), ".xz": lzma.compress(whole)}
    for suffix, data in packed.items():
        path = tmp_path / f"p.jsonl{suffix}"
        for broken in (b"no archive", data[:-20], data[:30] + b"\0\0\0\0" + data[34:]):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=rf"p\.jsonl{suffix}: broken {suffix[1:]} file"):
                read(path)


def user(content: Any, **other: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **other}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([{"role": "user"}], "row 2: column 'prompt': a message without role or content"),
        ([user(None)], "row 2: column 'prompt': a message without role or content"),
        (
            [user("b"), {"role": "assistant", "content": "c"}],
            "row 2: column 'prompt': the last message must be the user's",
        ),
        ([user(5)], "row 2: column 'prompt': expected .* got a list: .*; write role and content as text"),
        ([user([{"type": "text", "text": "b"}])], "row 2: column 'prompt': expected .*, got a list"),
        (["b"], "p.jsonl"),
    ],
)
def test_broken_messages_are_refused_with_their_row(tmp_path: Path, second: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": [user("a")]}, {"prompt": second}, {"prompt": [user("c")]}])
    with pytest.raises(ValueError, match=message):
        read(path)


def test_messages_of_other_shapes_are_refused_by_their_type(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"row 1: column 'prompt': expected .* got a list: \[\"a\"\]; give one text a row"
    ):
        read(write(tmp_path / "p.jsonl", [{"prompt": ["a"]}] * 2))
    with pytest.raises(
        ValueError, match=r"row 1: column 'prompt': expected .*; name the fields of a message role and content"
    ):
        read(write(tmp_path / "p.jsonl", [{"prompt": [{"from": "human", "value": "a"}]}] * 2))


def test_a_system_message_and_a_context_clash(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": [user("a")], "who": "x"}, {"prompt": [system, user("b")], "who": "y"}]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match=r"row 2: a system message and a context \('who'\), .* keep one"):
        read(path, context="who")
    assert read(path).frame["prompt"][1].to_list() == [system, user("b")]


def test_empty_messages_are_empty_prompts(tmp_path: Path) -> None:
    rows = [[user("a")], [], None, [user(" ")], [user("a"), {"role": "assistant", "content": ""}, user("b")]]
    prompts = read(write(tmp_path / "p.jsonl", [{"prompt": row} for row in rows]))
    assert (prompts.frame.height, prompts.dropped, prompts.first) == (2, {"empty prompt": 3}, {"empty prompt": 2})


def test_ids_are_distinct_whole_numbers() -> None:
    assert numbered(pl.DataFrame({"prompt": ["a", "b"]}))["prompt_id"].to_list() == [0, 1]
    assert numbered(pl.DataFrame({"prompt_id": [7, 3]}))["prompt_id"].dtype == pl.UInt64
    for ids in ([1, 1], [1, None], [-1, 2], ["a", "b"], [0.5, 1.0]):
        with pytest.raises(ValueError, match="prompt_id: expected 2 distinct whole numbers from 0"):
            numbered(pl.DataFrame({"prompt_id": ids}))


# In batches


prompts_of_lines = st.none() | st.sampled_from(["a", " ", "b", "c", "\ud83d"])
wrong_prompts = st.sampled_from([7, True, {"a": 1}, [], ["a"], [{"role": "user", "content": "d"}], [{"from": "a"}]])


@given(st.lists(st.none() | st.sampled_from(["a", " ", "b", "c"]), min_size=2, max_size=9), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_batches_of_a_parquet_file_are_what_is_read_at_once(tmp_path_factory, prompts, rows):
    path = tmp_path_factory.mktemp("batches") / "prompts.parquet"
    pl.DataFrame({"prompt": prompts, "n": range(len(prompts))}, {"prompt": pl.String, "n": pl.Int64}).write_parquet(
        path
    )
    assert_read_alike(path, rows, None)


@given(
    st.lists(st.tuples(prompts_of_lines, st.none() | st.sampled_from(["x", "\udc4d"])), min_size=1, max_size=9),
    st.integers(1, 4), st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_batches_of_json_lines_are_what_is_read_at_once(tmp_path_factory, values, rows, with_context):
    """Whatever fields a batch lacks, and with the same words for what is refused."""
    path = tmp_path_factory.mktemp("batches") / "prompts.jsonl"
    # Of a column that nobody asks for, such a text refuses the file.
    fields = [{"prompt": asked, "context": "x" if known and not with_context else known} for asked, known in values]
    lines = [json.dumps({name: value for name, value in row.items() if value is not None}) for row in fields]
    path.write_text("\n".join(lines))
    assert_read_alike(path, rows, "context" if with_context else None)


@given(
    st.lists(prompts_of_lines, min_size=1, max_size=6), st.lists(prompts_of_lines | wrong_prompts, max_size=6),
    st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_lines_that_are_no_texts_are_refused_in_the_words_of_the_whole_file(tmp_path_factory, texts, others, rows):
    """The row that is named is that of the file, whichever batch it is in."""
    path = tmp_path_factory.mktemp("batches") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in texts + others))
    assert_read_alike(path, rows, None)


def assert_read_alike(path: Path, rows: int, context: str | None) -> None:
    """In batches and at once: the same prompts and counts, or the same refusal."""
    outcomes = []
    for reading in (lambda: [read(path, context=context)], lambda: list(read_batches(path, rows, context=context))):
        try:
            parts = reading()
        except ValueError as refused:
            outcomes.append(str(refused))
            continue
        frame = pl.concat([part.frame for part in parts], how="diagonal_relaxed")
        places = pl.concat([part.rows for part in parts])
        dropped = sum((Counter(part.dropped) for part in parts), Counter[str]())
        first = {reason: min(p.first[reason] for p in parts if reason in p.first) for reason in dropped}
        outcomes.append((frame.to_dicts(), places.to_list(), sum(part.rows_in for part in parts), dict(dropped), first))
    assert outcomes[0] == outcomes[1]


def test_a_half_character_that_is_dropped_is_not_the_row_that_a_later_batch_is_refused_for(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in ("a", "\ud83d", "b", [user("c")])))
    with pytest.raises(ValueError, match=r"row 4: column 'prompt': .* write all rows as text, or all as lists of"):
        list(read_batches(path, 2))


@pytest.mark.parametrize("later", [[{"role": "user", "content": "d"}], 7])
def test_lines_whose_prompts_are_no_text_in_a_later_batch_are_refused_with_their_row(tmp_path, later):
    path = write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in ("a", "b", "c", later)])
    with pytest.raises(ValueError, match=r"p\.jsonl: row 4: column 'prompt': expected text or a list of messages"):
        list(read_batches(path, 2))


@pytest.mark.parametrize("first", [None, "\ud83d", [{"role": "user", "content": "a"}]])
def test_lines_of_chats_are_read_at_once_whatever_comes_first(tmp_path, first):
    chats = [[{"role": "user", "content": text, "name": text}] for text in "bc"]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in (first, *chats)))
    if first == "\ud83d":
        (batch,) = read_batches(path, 1)
        assert batch.dropped == {"half of a surrogate pair, which is not a character": 1}
    else:
        assert_read_alike(path, 1, None)


def test_what_is_wrong_in_a_later_batch_is_named_by_its_row(tmp_path):
    good, bad = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    pl.DataFrame({"prompt": [good, good, good, bad]}).write_parquet(tmp_path / "chats.parquet")
    with pytest.raises(ValueError, match="row 4: column 'prompt': the last message must be the user's"):
        list(read_batches(tmp_path / "chats.parquet", 3))


def test_a_turn_that_only_calls_a_tool_needs_no_content(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "list", "arguments": {"all": True}}}]
    turns = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}]
    user = {"role": "user", "content": "How many?"}
    lines = [json.dumps({"prompt": chat}) for chat in ([user, *turns, user], [user])]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "p.jsonl").frame.height == 2
    del turns[0]["tool_calls"]
    (tmp_path / "p.jsonl").write_text("\n".join([json.dumps({"prompt": [user, *turns, user]}), lines[1]]))
    with pytest.raises(ValueError, match=r"row 1: .* a message without role or content"):
        read(tmp_path / "p.jsonl")
