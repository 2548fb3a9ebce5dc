"""Columns: a value is taken or refused alike by every command, in the words of one room."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mipo.cli.app import main
from mipo.io import columns
from mipo.prompts.rows import read
from mipo.tokens.parts import parts_of

ASKED = ["Name a lake.", "Name a city.", "Name a tool.", "Name a metal."]
ANSWERS = ["Como", "Graz", "Saw", "Zinc"]
DEMO = Path(__file__).parents[2] / "python" / "mipo" / "demo" / "model"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs_of(**changed: Any) -> list[dict[str, Any]]:
    """Four pairs, the second and fourth with other values."""
    rows = [
        {"prompt": asked, "chosen": answer, "rejected": "None"} for asked, answer in zip(ASKED, ANSWERS, strict=True)
    ]
    return [row | changed if i % 2 else row for i, row in enumerate(rows)]


def error_of(capsys: pytest.CaptureFixture[str], *command: str | Path) -> str:
    """The line in which a command refuses its input."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# A wrong answer, as JSON; what came, in words; what to do.
WRONG = [
    (7, "a number: 7", "write it as text"),
    (True, "a truth value: true", "write it as text"),
    ({"a": 1}, 'an object: {"a": 1}', "give its text alone"),
    (["Como", "Garda"], 'a list: ["Como", "Garda"]', "give one text a row"),
    ("lone \ud83d", "half of a surrogate pair, which is not a character", "write the whole character"),
]


@pytest.mark.parametrize("every", [False, True], ids=["some rows", "every row"])
@pytest.mark.parametrize(("value", "came", "remedy"), WRONG)
def test_every_command_refuses_a_value_in_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any, came: str, remedy: str, every: bool
) -> None:
    rows, row = pairs_of(chosen=value), 1 if every else 2
    if every:
        rows = [pair | {"chosen": value} for pair in rows]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "out.jsonl"
    # As a prompt, a text that no table holds is dropped by name, and the others are asked.
    draws = [["contrast", pairs, "--prompt", "chosen", "--output", output]] * (not came.startswith("half"))
    for command in (["tokens", pairs, "--tokenizer", DEMO, "--output", tmp_path / "store"],
                    ["export", pairs, "--output", output],
                    *draws):  # fmt: skip
        line = error_of(capsys, *command)
        where, _, rest = line.partition("expected text or a list of messages [{role, content}, …], got ")
        assert where.endswith(f"pairs.jsonl: row {row}: column 'chosen': "), line
        assert rest == f"{came}; {remedy}", line
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": asked} for asked in ASKED])
    assert main(["contrast", str(prompts), "--output", str(tmp_path / "drawn.parquet")]) == 0
    answers = [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in rows]
    answers = write(tmp_path / "answers.jsonl", answers)
    drawn = ["--counterparts", tmp_path / "drawn.parquet", "--responses", answers]
    line = error_of(capsys, "pairs", prompts, *drawn, "--output", output)
    assert line.endswith(f"answers.jsonl: row {row}: column 'response': expected text, got {came}; {remedy}"), line
    assert not output.exists()


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ({"role": "assistant", "content": "Como"}, "wrap it in a list"),
        ({"from": "gpt", "value": "Como"}, "wrap it in a list, and name its fields role and content"),
        ([{"from": "gpt", "value": "Como"}], "name the fields of a message role and content"),
    ],
)
def test_a_message_of_another_form_is_refused_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any, remedy: str
) -> None:
    rows = [{"chosen": value, "rejected": value} for _ in range(3)]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    line = error_of(capsys, "tokens", pairs, "--tokenizer", DEMO, "--output", tmp_path / "store")
    assert "pairs.jsonl: row 1: column 'chosen': expected text or a list of messages" in line
    assert line.endswith(f"; {remedy}"), line


TEXT, CHAT = "Name a lake.", [{"role": "user", "content": "Name a city."}]
HALF = [{"role": "user", "content": "a \ud83d"}]


@pytest.mark.parametrize(
    ("prompts", "came", "remedy"),
    [
        ([TEXT, CHAT], "a list", "write all rows as text, or all as lists of messages"),
        ([CHAT, TEXT], "text: 'Name a lake.'", "write all rows as text, or all as lists of messages"),
        ([TEXT, []], "a list", "write all rows as text, or all as lists of messages"),
        ([TEXT, "a \ud83d"], "half of a surrogate pair", "write the whole character"),
        ([CHAT, HALF], "a list", "write the whole character"),
        ([CHAT, [{"role": "user", "content": 7}]], "a list", "write role and content as text"),
    ],
)
def test_the_remedy_is_one_for_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: list[Any], came: str, remedy: str
) -> None:
    rows = [{"prompt": prompt, "chosen": "Como", "rejected": "Graz"} for prompt in prompts]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    line = error_of(capsys, "tokens", pairs, "--tokenizer", DEMO, "--output", tmp_path / "store")
    assert (
        f"pairs.jsonl: row 2: column 'prompt': expected text or a list of messages [{{role, content}}, …], got {came}"
        in line
    )
    assert line.endswith(f"; {remedy}"), line


def dictionary(values: list[str]) -> pa.Array:
    return pa.array(values).dictionary_encode()


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(lambda v: pa.Array.from_pandas(pd.Series(v, dtype="category")), id="pandas category"),
        pytest.param(dictionary, id="dictionary"),
        pytest.param(lambda v: pa.array(v, pa.large_string()), id="large"),
        pytest.param(lambda v: pa.array(v, pa.string_view()), id="view"),
        pytest.param(lambda v: pl.Series(v, dtype=pl.Enum(sorted(set(v)))).to_arrow(), id="polars enum"),
    ],
)
def test_texts_of_every_type_are_texts(tmp_path: Path, encode: Callable[[list[str]], pa.Array]) -> None:
    table = pa.table({name: encode([row[name] for row in pairs_of()]) for name in ("prompt", "chosen", "rejected")})
    path = tmp_path / "pairs.parquet"
    pq.write_table(table, path)
    assert read(path).frame["prompt"].to_list() == ASKED
    (part,) = parts_of(path, 100, "train")
    assert pl.concat(part.batches()).rows(named=True) == pairs_of()
    assert main(["export", str(path), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == pairs_of()


@pytest.mark.parametrize(
    "lists", [lambda kind: pa.large_list(kind), lambda kind: pa.list_(kind, 1)], ids=["large", "fixed"]
)
def test_lists_of_every_type_are_chats(tmp_path: Path, lists: Callable[[pa.DataType], pa.DataType]) -> None:
    message = pa.struct({"role": pa.dictionary(pa.int32(), pa.string()), "content": pa.string()})
    chats = [[{"role": "user", "content": asked}] for asked in ASKED]
    pq.write_table(pa.table({"prompt": pa.array(chats, lists(message))}), tmp_path / "prompts.parquet")
    prompts = read(tmp_path / "prompts.parquet").frame["prompt"]
    assert prompts.to_list() == chats
    assert prompts.dtype == pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


@pytest.mark.parametrize(
    ("kind", "values", "right"),
    [
        ("flag", [0, 1, None], [False, True, None]),
        ("flag", [0.0, 1.0, float("nan")], [False, True, None]),
        ("flag", ["true", "False", ""], [True, False, None]),
        ("id", [5.0, 0.0, None], [5, 0, None]),
        ("id", ["12", "0", ""], [12, 0, None]),
        ("text", [float("nan"), None], [None, None]),
    ],
)
def test_flags_and_ids_as_other_tools_write_them(kind: columns.Kind, values: list[Any], right: list[Any]) -> None:
    assert columns.read(pl.DataFrame({"a": values}), {"a": kind}, "t").lazy().collect()["a"].to_list() == right


@pytest.mark.parametrize(
    ("kind", "values", "came"),
    [
        ("flag", [0, 2], "a number: 2"),
        ("flag", ["true", "perhaps"], "text: 'perhaps'"),
        ("id", [104.0, 104.5], "a number: 104.5"),
        ("id", [1, -1], "a number: -1"),
        ("id", ["1", "one"], "text: 'one'"),
        ("text", [None, b"x"], "bytes"),
    ],
)
def test_wrong_flags_and_ids_are_refused_with_their_row(kind: columns.Kind, values: list[Any], came: str) -> None:
    for table in (pl.DataFrame({"a": values}), pl.LazyFrame({"a": values})):
        with pytest.raises(ValueError, match=f"t: row 42: column 'a': expected .*, got {came}"):
            columns.read(table, {"a": kind}, "t", before=40)


def test_nan_in_json_is_null_in_every_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pandas has NaN for a missing text, and `json.dumps` writes it as such."""
    frame = pd.DataFrame({"prompt": [*ASKED, None], "response": ["Como", None, "Saw", "Zinc", "Lost"]})
    rows = frame.astype(object).where(frame.notna(), float("nan")).to_dict("records")
    table = write(tmp_path / "table.jsonl", rows)
    assert "NaN" in table.read_text()
    prompts = read(table)
    assert (prompts.frame["prompt"].to_list(), prompts.dropped) == (ASKED, {"empty prompt": 1})
    assert prompts.frame["response"].to_list() == ["Como", None, "Saw", "Zinc"]
    assert main(["contrast", str(table), "--output", str(tmp_path / "drawn.parquet")]) == 0
    drawn = ["--counterparts", str(tmp_path / "drawn.parquet"), "--responses", str(table)]
    assert main(["pairs", str(table), *drawn, "--output", str(tmp_path / "pairs.jsonl")]) == 0
    assert "no response: 2" in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {row[side] for row in answers for side in ("chosen", "rejected")} <= {"Como", "Saw", "Zinc"}
    pairs = write(tmp_path / "nan.jsonl", pairs_of(rejected=float("nan")))
    assert main(["tokens", str(pairs), "--tokenizer", str(DEMO), "--output", str(tmp_path / "store")]) == 0
    assert "4 rows in, 2 out; null rejected: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "column 'prompt': expected text or .*, got a number: Infinity; write it as text"),
        (-float("inf"), "column 'prompt': expected text or .*, got a number: -Infinity"),
        (
            [{"role": "user", "content": float("nan")}],
            "column 'prompt': .* got a list: .*NaN.*; write role and content",
        ),
    ],
)
def test_infinity_and_nan_within_a_chat_are_refused_with_their_row(tmp_path: Path, value: Any, message: str) -> None:
    asked = [[{"role": "user", "content": text}] if isinstance(value, list) else text for text in ASKED]
    path = write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in [*asked, value]])
    with pytest.raises(ValueError, match=rf"p\.jsonl: row 5: {message}"):
        read(path)


def test_infinity_in_another_column_is_refused_and_nan_there_is_null(tmp_path: Path) -> None:
    rows = [
        {"prompt": asked, "score": score} for asked, score in zip(ASKED, [1.5, float("nan"), 2.5, 3.5], strict=True)
    ]
    assert read(write(tmp_path / "p.jsonl", rows)).frame["score"].to_list() == [1.5, None, 2.5, 3.5]
    rows[2]["score"] = float("inf")
    with pytest.raises(ValueError, match=r"row 3: column 'score': expected a finite number, got Infinity; write null"):
        read(write(tmp_path / "p.jsonl", rows))


class Markup(pa.ExtensionType):
    """Texts in a format of somebody's own."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "acme.markup")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


@pytest.mark.parametrize("column", ["prompt", "tools"])
def test_an_unknown_extension_type_is_refused_by_name_and_not_read_as_its_storage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    texts = pa.ExtensionArray.from_storage(Markup(), pa.array(["<b>Name a lake.</b>"] * 4))
    table = pa.table({name: [row[name] for row in pairs_of()] for name in ("prompt", "chosen", "rejected")})
    table = table.drop_columns([column] if column in table.column_names else []).append_column(column, texts)
    pq.write_table(table, tmp_path / "pairs.parquet")
    line = error_of(capsys, "tokens", tmp_path / "pairs.parquet", "--tokenizer", DEMO, "--output", tmp_path / "store")
    assert f"pairs.parquet: column '{column}': expected" in line
    assert "got the Arrow extension type 'acme.markup'" in line
    if column == "prompt":
        line = error_of(capsys, "contrast", tmp_path / "pairs.parquet", "--output", tmp_path / "drawn.parquet")
        assert "pairs.parquet: column 'prompt': expected text or a list of messages" in line
        assert "got the Arrow extension type 'acme.markup'" in line


@pytest.mark.parametrize("values", [["Name a lake.", "Name a city."], [[{"role": "user", "content": "Hi"}]] * 2])
def test_prompts_that_datasets_stores_as_json_are_the_texts_and_chats_themselves(tmp_path: Path, values: Any) -> None:
    """`datasets` stores whole messages as arrow.json as soon as one of them has another field."""
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps(value) for value in values]))
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "prompts.parquet")
    assert read(tmp_path / "prompts.parquet").frame["prompt"].to_list() == values
    parts = [json.dumps(message) for value in values for message in value if isinstance(value, list)]
    if parts:
        cells = pa.ExtensionArray.from_storage(pa.json_(), pa.array(parts))
        lists = pa.ListArray.from_arrays(pa.array(range(len(parts) + 1), pa.int32()), cells)
        pq.write_table(pa.table({"prompt": lists}), tmp_path / "prompts.parquet")
        assert read(tmp_path / "prompts.parquet").frame["prompt"].to_list() == values


def test_what_a_json_column_may_not_hold_is_refused_by_row(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"Name a lake."', '{"a": 1}', "3"]))
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "prompts.parquet")
    with pytest.raises(ValueError, match=r"row 2: column 'prompt': expected text or a list.*, got an object"):
        read(tmp_path / "prompts.parquet")
    broken = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"Name a lake."', "{"]))
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "prompts.parquet")
    with pytest.raises(ValueError, match=r"prompts.parquet: column 'prompt': not valid JSON"):
        read(tmp_path / "prompts.parquet")


def test_list_views_are_refused_in_words_and_not_by_a_panic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"prompt": pa.array([["x"], ["y"]], pa.list_view(pa.string()))})
    pq.write_table(table, tmp_path / "prompts.parquet")
    line = error_of(capsys, "contrast", tmp_path / "prompts.parquet", "--output", tmp_path / "drawn.parquet")
    assert "prompts.parquet: column 'prompt': expected lists, got Arrow's list views; cast it to lists" in line
