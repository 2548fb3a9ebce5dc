"""Laws of free-form JSON: tools, calls and arguments reach the template as the row has them, whatever others have."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from preferences import mipo_ids, trl_ids

from mipo.cli.app import main
from mipo.io import nested, sources
from mipo.tokens import parts
from mipo.tokens.preparation import prepare
from mipo.tokens.store import PairStore

TEMPLATE = (
    "{{ tools|tojson }}{{ mode }}{% for m in messages %}\n{{ m.role }}: "
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{{ m.content|tojson }}{% endif %}"
    "{% if m.reasoning_content %} ({{ m.reasoning_content }}){% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls|tojson }}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}\nassistant: {% endif %}"
)


def call(name: str, arguments: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": parameters}}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def said(text: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **fields}]


# Rows whose objects have other keys, other types under one key, explicit nulls, and fields that others do not have.
ROWS: list[dict[str, Any]] = [
    {"prompt": user("Rain in Bergen?"), "chosen": [call("weather", {"city": "Bergen", "days": 2})],
     "rejected": said("No idea."), "tools": [tool("weather", city={"type": "string"}, days={"type": "integer"})]},
    {"prompt": user("2 + 3?"), "chosen": [call("add", {"a": 2, "b": 3.0, "exact": None})], "rejected": said("Six."),
     "tools": [tool("add", a={"type": "number"}, b={"type": "number", "default": 0})]},
    {"prompt": user("Hi"), "chosen": said("Hello", reasoning_content="A greeting."), "rejected": said("No."),
     "tools": None},
    {"prompt": [*user("Both?"), call("list", {"of": [1, "two", {"three": 3}], "deep": {"a": {"b": []}}}),
                {"role": "tool", "content": '{"n": 2}', "name": "list"}, *user("And?")],
     "chosen": said("Two, “quoted” and \\ escaped."), "rejected": [call("list", {})],
     "tools": [tool("list", of={"anyOf": [{"type": "string"}, {"type": "null"}]}), tool("none")]},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, so that every difference in a rendered text is one in the ids."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    alphabet = {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    fast.add_special_tokens({"eos_token": "</s>"})
    fast.chat_template = TEMPLATE
    return fast


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def dataset_of(path: Path) -> Any:
    """The rows as TRL's own users load them."""
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


def rendered(folder: Path, tokenizer: Any) -> list[list[str]]:
    return [[tokenizer.decode(ids) for ids in row] for row in mipo_ids(PairStore.open(folder))]


def without_nulls(chats: list[Any]) -> list[Any]:
    return [[{name: v for name, v in message.items() if v is not None} for message in chat] for chat in chats]


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.parquet", "saved"])
def test_rows_that_differ_become_trls_ids(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    dataset = dataset_of(write(tmp_path / "pairs.jsonl", ROWS))
    expected = trl_ids(dataset, tokenizer)
    if kind == "pairs.parquet":
        dataset.to_parquet(str(tmp_path / kind))
    elif kind == "saved":
        dataset.save_to_disk(str(tmp_path / kind))
    prepare([tmp_path / kind], tokenizer, tmp_path / "tokens")
    assert [[*row] for row in mipo_ids(PairStore.open(tmp_path / "tokens"))] == [[*row] for row in expected]
    texts = rendered(tmp_path / "tokens", tokenizer)
    assert '"arguments": {"city": "Bergen", "days": 2}' in texts[0][1]
    assert '"arguments": {"a": 2, "b": 3.0, "exact": null}' in texts[1][1]
    assert '"default": 0' in texts[1][0]
    assert "days" not in texts[1][0]
    assert texts[2][1].startswith("Hello (A greeting.)")


def test_ids_do_not_depend_on_the_rows_around_nor_on_shards(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "pairs.jsonl", ROWS)
    prepare([whole], tokenizer, tmp_path / "whole")
    expected = rendered(tmp_path / "whole", tokenizer)
    for rows in (1, 2, 3):
        monkeypatch.setattr(parts, "BATCH_ROWS", rows)
        prepare([whole], tokenizer, tmp_path / f"batches-{rows}")
        assert rendered(tmp_path / f"batches-{rows}", tokenizer) == expected
        prepare([whole], tokenizer, tmp_path / f"shards-{rows}", shard_rows=rows)
        assert rendered(tmp_path / f"shards-{rows}", tokenizer) == expected
    for i, row in enumerate(ROWS):
        prepare([write(tmp_path / "one.jsonl", [row])], tokenizer, tmp_path / f"row-{i}")
        assert rendered(tmp_path / f"row-{i}", tokenizer) == [expected[i]]


def test_a_field_that_is_text_in_some_rows_stays_text_there(tmp_path: Path, tokenizer: Any) -> None:
    """Servers write arguments as text, templates' own examples as objects, and people merge both."""
    asked = [{"city": "Lima"}, '{"city": "Oslo"}', "[1]", "7"]
    rows = [
        {"prompt": user(city), "chosen": [call("weather", arguments)], "rejected": said("No.")}
        for city, arguments in zip(["Lima", "Oslo", "Bonn", "Rome"], asked, strict=True)
    ]
    prepare([write(tmp_path / "pairs.jsonl", rows)], tokenizer, tmp_path / "tokens")
    chosen = [texts[1] for texts in rendered(tmp_path / "tokens", tokenizer)]
    assert '"arguments": {"city": "Lima"}' in chosen[0]
    assert '"arguments": "{\\"city\\": \\"Oslo\\"}"' in chosen[1]
    assert '"arguments": "[1]"' in chosen[2]
    assert '"arguments": "7"' in chosen[3]


def test_contents_of_parts_and_of_text_in_one_file(tmp_path: Path, tokenizer: Any) -> None:
    asked = [[{"type": "text", "text": "A lake?"}], "A city?", [{"type": "text", "text": "A tool?", "cache": True}]]
    rows = [
        {"prompt": [{"role": "user", "content": content}], "chosen": said("Yes."), "rejected": said("No.")}
        for content in asked
    ]
    path = write(tmp_path / "pairs.jsonl", rows)
    prepare([path], tokenizer, tmp_path / "tokens")
    assert mipo_ids(PairStore.open(tmp_path / "tokens")) == trl_ids(dataset_of(path), tokenizer)


def test_each_row_has_its_own_arguments_of_the_template(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        row | {"chat_template_kwargs": how} for row, how in zip(ROWS, [{"mode": "a"}, {}, {"mode": 1}, {}], strict=True)
    ]
    prepare([write(tmp_path / "pairs.jsonl", rows)], tokenizer, tmp_path / "tokens")
    starts = [texts[0].partition("user: ")[0] for texts in rendered(tmp_path / "tokens", tokenizer)]
    assert starts[0].endswith("]a")
    assert starts[1].endswith("]")
    assert starts[2] == "null1"


def test_tools_as_text_are_read_as_trl_reads_them(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{**row, "tools": row["tools"] and json.dumps(row["tools"])} for row in ROWS]
    for folder, table in (("own", ROWS), ("text", rows)):
        prepare([write(tmp_path / f"{folder}.jsonl", table)], tokenizer, tmp_path / folder)
    assert rendered(tmp_path / "own", tokenizer) == rendered(tmp_path / "text", tokenizer)


def test_an_implicit_prompt_with_calls_is_trls(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")} for row in ROWS]
    path = write(tmp_path / "pairs.jsonl", rows)
    prepare([path], tokenizer, tmp_path / "tokens")
    assert mipo_ids(PairStore.open(tmp_path / "tokens")) == trl_ids(dataset_of(path), tokenizer)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_export_writes_the_rows_own_values(tmp_path: Path, tokenizer: Any, name: str) -> None:
    path = write(tmp_path / "pairs.jsonl", ROWS)
    assert main(["export", str(path), "--output", str(tmp_path / name)]) == 0
    frame = sources.load(tmp_path / name, texts={side: "chat" for side in ("prompt", "chosen", "rejected")})
    for side in ("prompt", "chosen", "rejected"):
        assert without_nulls(nested.values(frame[side])) == without_nulls([row[side] for row in ROWS])
    datasets = pytest.importorskip("datasets")
    builder = "json" if name.endswith("jsonl") else "parquet"
    loaded = datasets.load_dataset(
        builder, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0]["chosen"][0]["tool_calls"] == ROWS[0]["chosen"][0]["tool_calls"]


@pytest.mark.parametrize(
    ("message", "got"),
    [
        ({"role": "user", "content": 5}, '[{"role": "user", "content": 5}]'),
        ({"role": 1, "content": "x"}, '[{"role": 1, "content": "x"}]'),
        ({"role": "user", "content": {"text": "x"}}, '[{"role": "user", "content": {"text": "x"}}]'),
        ("x", '["x"]'),
    ],
)
def test_messages_of_other_shapes_are_refused_by_row(tmp_path: Path, capsys: Any, message: Any, got: str) -> None:
    rows = [*ROWS[:3], ROWS[3] | {"prompt": [message]}]
    path = write(tmp_path / "pairs.jsonl", rows)
    assert main(["export", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    line = capsys.readouterr().err.strip()
    assert (
        "pairs.jsonl: row 4: column 'prompt': expected text or a list of messages [{role, content}, …], got a list: "
        in line
    )
    assert got in line


def test_half_a_character_in_arguments_is_refused_by_row(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(ROWS[0]), json.dumps(ROWS[1]).replace('"exact": null', '"exact": "\\ud83d"')]
    path.write_text("\n".join(lines))
    assert main(["export", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "pairs.jsonl: row 2: column 'chosen': expected text or a list of messages" in capsys.readouterr().err


def test_json_survives_parquet_and_joins_of_columns() -> None:
    chats = [row["chosen"] for row in ROWS]
    column = nested.of_chats(chats, lambda row: ValueError(row), "chosen")
    assert without_nulls(nested.values(column)) == without_nulls(chats)
    text = pl.Series([said("x", tool_calls="none")])
    one, other = nested.alike(column, text)
    assert one.dtype == other.dtype
    assert nested.values(other)[0][0]["tool_calls"] == "none"
