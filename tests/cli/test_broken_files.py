"""Broken files: what a library says of a file that it cannot read is one line, with the file's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mipo import cli, demo

MODEL = demo.HERE / "model"
PAIRS = [{"prompt": f"what tea {i} ?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(30)]


def table(folder: Path) -> bytes:
    """A Parquet file as bytes."""
    pl.DataFrame(PAIRS).write_parquet(folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(table(path.parent)[:-200])


def flipped(path: Path) -> None:
    data = table(path.parent)
    path.write_bytes(data[:300] + b"\xff" * 400 + data[700:])


def twice(path: Path) -> None:
    columns = [[row[name] for row in PAIRS] for name in ("prompt", "chosen", "chosen", "rejected")]
    pq.write_table(pa.table(columns, names=["prompt", "chosen", "chosen", "rejected"]), path)


def twice_in_csv(path: Path) -> None:
    path.write_text("prompt,chosen,chosen,rejected\na,b,c,d\ne,f,g,h\n")


def quoted(path: Path) -> None:
    path.write_text('prompt,chosen,rejected\n"a,b,c\nd,e,f\n')


def without_rows(path: Path) -> None:
    datasets.Dataset.from_list(PAIRS).select([]).save_to_disk(path)


def without_columns(path: Path) -> None:
    datasets.Dataset.from_list([]).save_to_disk(path)


def of_another_info(path: Path) -> None:
    datasets.Dataset.from_list(PAIRS).save_to_disk(path)
    (path / "dataset_info.json").write_text("[]")


def of_junk(path: Path) -> None:
    datasets.Dataset.from_list(PAIRS).save_to_disk(path)
    next(path.glob("*.arrow")).write_bytes(b"junk" * 100)


SOURCES: list[tuple[Callable[[Path], None], str, str]] = [
    (cut, "cut.parquet", "not a readable parquet file"),
    (flipped, "flipped.parquet", "not a readable parquet file"),
    (twice, "twice.parquet", "more than on"),
    (twice_in_csv, "twice.csv", "expected each column once, got 'chosen' more than once"),
    (quoted, "quoted.csv", "not a readable csv file"),
    (without_rows, "rows", "expected a data set with rows, got one without any"),
    (without_columns, "columns", "expected a data set with rows, got one without any"),
    (of_another_info, "info", "neither a file nor a dataset that can be loaded"),
    (of_junk, "junk", "neither a file nor a dataset that can be loaded"),
]


@pytest.mark.parametrize(("make", "name", "message"), SOURCES, ids=[name for _, name, _ in SOURCES])
def test_a_broken_source_is_one_line(
    make: Callable[[Path], None], name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    capsys.readouterr()  # the bars of datasets
    for command in (
        ["tokens", str(tmp_path / name), "--tokenizer", str(MODEL), "--output", str(tmp_path / "new")],
        ["contrast", str(tmp_path / name), "--output", str(tmp_path / "new.parquet")],
    ):
        assert cli.main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"mipo {command[0]}: error: {tmp_path / name}: ")
        assert message in error


def test_a_table_that_is_broken_in_the_middle_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped(tmp_path / "x.parquet")
    assert cli.main(["export", str(tmp_path / "x.parquet"), "--output", str(tmp_path / "new.jsonl")]) == 2
    assert "a Parquet file is broken (parquet: " in capsys.readouterr().err
    assert not (tmp_path / "new.jsonl").exists()


Edit = Callable[[bytes], bytes]
MODELS: list[tuple[str, str, Edit, str]] = [
    ("cut", "tokenizer.json", lambda data: data[:500], "no tokenizer found there that can be read"),
    ("a list", "tokenizer.json", lambda _: b"[]", "no tokenizer found there that can be read"),
    ("without a model", "tokenizer.json", lambda data: data.replace(b'"model"', b'"modell"'), "no tokenizer found"),
    ("cut settings", "tokenizer_config.json", lambda data: data[:40], "no tokenizer found there that can be read"),
    ("a listed config", "config.json", lambda _: b"[]", "no tokenizer found there that can be read"),
    ("heads that do not fit", "config.json", lambda data: heads(data, 7), "no tokenizer found there that can be read"),
    ("an unknown type", "config.json", lambda data: data.replace(b'"llama"', b'"lama"'), "no config found there"),
    ("cut weights", "model.safetensors", lambda data: data[:-5000], "no causal language model found there that can"),
    ("junk", "model.safetensors", lambda _: b"junk" * 30, "no causal language model found there that can be read"),
]


def heads(config: bytes, number: int) -> bytes:
    return json.dumps(json.loads(config) | {"num_attention_heads": number}).encode()


@pytest.mark.parametrize(("name", "file", "edit", "message"), MODELS, ids=[name for name, *_ in MODELS])
def test_a_broken_model_is_one_line(
    name: str, file: str, edit: Edit, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    shutil.copytree(MODEL, folder)
    (folder / file).write_bytes(edit((MODEL / file).read_bytes()))
    pl.DataFrame(PAIRS).write_ndjson(tmp_path / "p.jsonl")
    command = ["generate", str(tmp_path / "p.jsonl"), "--model", str(folder), "--output", str(tmp_path / "new")]
    assert cli.main([*command, "--max-new-tokens", "2"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mipo ")]
    assert len(error) == 1
    assert error[0].startswith(f"mipo generate: error: {folder}: {message}")
