"""Folders of data files: `datasets.load_dataset` says which rows a split has, and in which order."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mipo import cli, demo
from mipo.errors import InputError
from mipo.io import outputs, sources
from mipo.io.streams import open_stream

MODEL = str(demo.HERE / "model")


def write(folder: Path, names: list[str], readme: str = "") -> Path:
    """A folder of files with a row each, whose prompt is the name of its file."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pl.DataFrame({"prompt": [name], "chosen": ["good"], "rejected": ["bad"]})
        with path.open("wb") as file:
            if ".parquet" in name:
                frame.write_parquet(file)
            elif ".csv" in name:
                frame.write_csv(file)
            else:
                frame.write_ndjson(file)
    if readme:
        (folder / "README.md").write_text(
            f"---\nlicense: mit\nconfigs:\n{readme}\n---\n# A data set\n", encoding="utf-8"
        )
    return folder


def prompts(folder: Path, split: str) -> list[str]:
    """The prompts of a split, read in every way, which must agree."""
    loaded = sources.load(folder, split=split)["prompt"].to_list()
    assert sources.scan(folder, split=split).lazy().collect()["prompt"].to_list() == loaded
    stream = open_stream(folder, split=split)
    assert pl.concat(stream.batches(2))["prompt"].to_list() == loaded
    assert stream.rows == len(loaded)
    return loaded


def theirs(folder: Path, split: str, cache: Path) -> list[str]:
    datasets = pytest.importorskip("datasets")
    return list(datasets.load_dataset(str(folder), split=split, cache_dir=str(cache))["prompt"])


ONE = "- config_name: default\n  data_files:"
SHAPES = [
    (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], "", "train test"),
    (["train.jsonl", "validation.jsonl", "test.jsonl"], "", "train validation test"),
    (["train-b.jsonl", "train-a.jsonl", "x_train.jsonl", "training.jsonl", "dev.jsonl"], "", "train validation"),
    (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/odd-00000-of-00001.parquet",
      "extra.parquet"], "", "train odd"),
    (["train/b.parquet", "train/deep/a.parquet", "test/train.parquet", "my val/c.parquet", "other.parquet"], "",
     "train validation test"),
    (["a/train.csv", "a/eval.csv", "b/train.csv"], "", "train test"),
    (["contest.parquet", "pretrain.parquet", "sub/b.parquet", "sub-a.parquet"], "", "train"),
    ([".hidden/train.parquet", "__cache__/test.parquet", ".x.parquet", "a.parquet"], "", "train"),
    (["a.parquet", "b.parquet", "c.jsonl"], "", "train"),
    (["a.parquet", "b.jsonl"], "", "train"),
    (["x1.parquet", "x2.parquet", "train.parquet"], f"{ONE}\n  - split: train\n    path: x*\n  - split: test\n    "
     "path: [train.parquet]", "train test"),
    (["a/1.parquet", "a/b/2.parquet", "c.parquet"], f"{ONE} a/**", "train"),
    (["a/1.parquet", "a/b/2.parquet", "c.parquet"], f"{ONE} '**/[!2c].parquet'", "train"),
    (["b.parquet", "a.parquet", "c.parquet"], f"{ONE} [c.parquet, './?.parquet']", "train"),
    (["a/x.parquet", "b/train.parquet", "b/test.parquet"], "- config_name: a\n  data_dir: a\n- config_name: b\n  "
     "data_dir: b\n  default: true", "train test"),
    (["train.json", "test.json"], "", "train test"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "readme", "splits"), SHAPES)
def test_a_split_has_the_rows_that_load_dataset_gives_it(
    names: list[str], readme: str, splits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "ours")
    folder = write(tmp_path / "data", names, readme)
    for split in splits.split():
        assert prompts(folder, split) == list(dict.fromkeys(theirs(folder, split, tmp_path / "theirs")))
    with pytest.raises(InputError, match=f"data: no split 'none'; it has {', '.join(splits.split())}$"):
        sources.load(folder, split="none")


def test_a_file_whose_name_has_the_split_twice_is_read_once(tmp_path: Path) -> None:
    """`load_dataset` reads it twice, once for each of its patterns that the name matches."""
    folder = write(tmp_path / "data", ["train-train.parquet", "test.parquet"])
    assert prompts(folder, "train") == ["train-train.parquet"]
    assert theirs(folder, "train", tmp_path / "cache") == ["train-train.parquet"] * 2


@pytest.mark.parametrize("name", ["data[1]", "da?ta", "da*ta", "a b%20c", "データ ü"])
def test_names_of_folders_and_files_are_no_patterns(name: str, tmp_path: Path) -> None:
    other = name.replace("[1]", "1").replace("?", "X").replace("*", "b").replace("%20", " ")
    write(tmp_path, [f"{other}/train-wrong.parquet"] if other != name else [])
    folder = write(tmp_path / name, [f"train-{name}.parquet", "train-1.parquet", "test.parquet"])
    assert sorted(prompts(folder, "train")) == sorted([f"train-{name}.parquet", "train-1.parquet"])


def test_a_path_is_no_pattern_for_the_library_either(tmp_path: Path) -> None:
    write(tmp_path / "data1", ["train.json"])
    with pytest.raises(InputError, match=r"data\[1\]: train.json is for the library datasets, .* rename the folder"):
        sources.load(write(tmp_path / "data[1]", ["train.json"]))


def test_what_mipo_made_in_a_folder_is_no_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ["train.parquet", "runs/a/train.parquet"])
    outputs.mark(folder / "runs" / "a", "run")
    assert prompts(folder, "train") == ["train.parquet"]


@pytest.mark.parametrize(
    ("names", "readme", "message"),
    [
        ([], "", r"expected data files \(Parquet, JSON Lines or CSV\), got none"),
        (["notes.txt"], "", "expected data files .*, got none"),
        (["data/my-set-00000-of-00001.parquet"], "", "expected the name of a split before .*, got 'my-set'"),
        (["a/x.parquet"], "- config_name: a\n- config_name: b", "one default configuration, got a, b; name the folder"),
        (["a.parquet"], "- data_dir: a", "expected a list of settings, each with a config_name"),
        (["a.parquet"], f"{ONE} none.parquet", "README.md names 'none.parquet', which is not a data file in it"),
        (["a.parquet"], f"{ONE} ../*.parquet", "README.md names '../.*', which is not inside it"),
        (["a.parquet"], f"{ONE} [5]", "data_files in README.md: expected a name, .*, got 5"),
        (["a.parquet"], f"{ONE} [", "README.md: not valid YAML"),
    ],
)
def test_folders_that_tell_no_split_are_refused_in_a_line(
    names: list[str], readme: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=message) as error:
        sources.load(write(tmp_path / "data", names, readme))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_files_of_a_split_have_the_same_columns(suffix: str, tmp_path: Path) -> None:
    """Otherwise they are not one table, but for example prompts beside answers; `load_dataset` refuses them, too."""
    folder = write(tmp_path / "data", [f"a.{suffix}", f"b.{suffix}"])
    frame = pl.DataFrame({"prompt": ["no answer"]})
    write_as = {"parquet": frame.write_parquet, "jsonl": frame.write_ndjson, "csv": frame.write_csv}
    write_as[suffix](folder / f"b.{suffix}")
    message = rf"b\.{suffix}: has no column 'chosen', unlike a\.{suffix}; the files of a split have the same columns"
    kinds: Any = {"prompt": "chat", "chosen": "chat"}
    with pytest.raises(InputError, match=message):
        sources.load(folder, texts=kinds)
    with pytest.raises(InputError, match=message):
        open_stream(folder, sought=list(kinds))
    with pytest.raises(InputError, match=message):
        sources.scan(folder, kinds)


@pytest.mark.parametrize("name", ["train.parquet", "test.jsonl", "test.csv", "train.jsonl.gz"])
def test_a_file_has_one_split(name: str, tmp_path: Path) -> None:
    """As `load_dataset("json", data_files=FILE)`, whose only split is train."""
    path = write(tmp_path, [name]) / name
    for read in (sources.load, sources.scan, open_stream):
        with pytest.raises(InputError, match=rf"{name}: no split 'test'; a file has one split, train"):
            read(path, split="test")


def test_no_command_ignores_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(
        tmp_path / "data", ["train-1.jsonl", "train-2.jsonl", "test-1.jsonl", "test-2.jsonl", "test-3.jsonl"]
    )
    for split, rows in (([], 2), (["--split", "test"], 3)):
        tokens = str(tmp_path / f"tokens{rows}")
        assert cli.main(["tokens", str(folder), "--tokenizer", MODEL, "--output", tokens, *split]) == 0
        drawn = str(tmp_path / f"drawn{rows}.parquet")
        assert cli.main(["contrast", str(folder), "--output", drawn, *split]) == 0
        assert f"{tokens}: {rows} rows in" in (printed := capsys.readouterr().out)
        assert f"{folder}: {rows} rows in" in printed
    output = ["--output", str(tmp_path / "overlap.parquet")]
    assert cli.main(["overlap", str(folder), "--held-out", str(folder), "--held-out-split", "test", *output]) == 0
    assert f"{output[1]}: 2 rows in, 2 out" in capsys.readouterr().out
    assert cli.main(["overlap", str(folder), "--held-out", str(folder), *output]) == 0
    assert f"{output[1]}: 2 rows in, 0 out" in capsys.readouterr().out
    store = ["--tokenizer", MODEL, "--output", str(tmp_path / "none"), "--split", "dev"]
    assert cli.main(["tokens", str(folder), *store]) == 2
    assert capsys.readouterr().err == f"mipo tokens: error: {folder}: no split 'dev'; it has train, test\n"


def test_what_a_source_holds_is_what_its_split_holds(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ["train.jsonl", "test.jsonl"])
    known = {split: sources.content(folder, split) for split in ("train", "test")}
    assert known["train"] != known["test"]
    (folder / "test.jsonl").write_text(json.dumps({"prompt": "new"}) + "\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "index").write_text("x")
    assert sources.content(folder, "train") == known["train"]
    assert sources.content(folder, "test") != known["test"]
    moved = folder.rename(tmp_path / "moved")
    assert sources.content(moved, "train") == known["train"]
