"""A path is a path: `[`, `*`, `?`, spaces, percent signs and letters of any script in a name mean nothing else."""

import json

import polars as pl
import pytest

from mipo import PairStore, cli, demo
from mipo.io import sources
from mipo.io.streams import open_stream

MODEL = str(demo.HERE / "model")
# A name that a pattern's reader takes for others, and the name of another file that it would take.
NAMES = {"data[1]": "data1", "data?": "dataX", "da*ta": "dabta", "a b%20c": "a b c", "データ ü": "other", "{a,b}": "a"}


def write(frame: pl.DataFrame, path) -> None:
    if path.name.endswith(".parquet"):
        with path.open("wb") as file:
            frame.write_parquet(file)
    else:
        path.write_text(frame.write_ndjson() if path.name.endswith(".jsonl") else frame.write_csv(), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_by_its_own_name(name, suffix, tmp_path):
    write(pl.DataFrame({"prompt": ["right"]}), tmp_path / f"{name}{suffix}")
    write(pl.DataFrame({"prompt": ["wrong"] * 2}), tmp_path / f"{NAMES[name]}{suffix}")
    path = tmp_path / f"{name}{suffix}"
    assert sources.load(path)["prompt"].to_list() == ["right"]
    assert pl.concat(open_stream(path).batches(10))["prompt"].to_list() == ["right"]
    assert sources.scan(path).lazy().collect()["prompt"].to_list() == ["right"]
    assert open_stream(path).rows == 1


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_read_and_written_by_their_own_names(name, tmp_path, capsys):
    for folder, word in ((tmp_path / name, "right"), (tmp_path / NAMES[name], "wrong")):
        folder.mkdir()
        pairs = {"prompt": ["Say"] * 2, "chosen": [word] * 2, "rejected": ["no"] * 2}
        write(pl.DataFrame(pairs)[: 1 if word == "right" else 2], folder / "part-0.parquet")
    tokens = str(tmp_path / name / "tokens")
    assert cli.main(["tokens", str(tmp_path / name), "--tokenizer", MODEL, "--output", tokens]) == 0
    assert len(PairStore.open(tokens)) == 1
    prompts = tmp_path / f"{name}.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(3)))
    drawn = tmp_path / name / f"{name}.parquet"
    assert cli.main(["contrast", str(prompts), "--output", str(drawn)]) == 0
    responses = str(tmp_path / name / "responses")
    counted = ["--counterparts", str(drawn), "--model", MODEL, "--max-new-tokens", "2", "--output", responses]
    assert cli.main(["generate", str(prompts), *counted]) == 0
    output = str(tmp_path / name / "out [2].jsonl")
    assert cli.main(["pairs", str(prompts), *counted[:2], "--responses", responses, "--output", output]) == 0
    capsys.readouterr()
