"""Paths: no folder of somebody's machine is left in a text, and nothing else is touched."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mipo.report.paths import last_part, shorten, shorten_command, shorten_recipe

RUN = Path("/home/somebody/my runs/demo")
SHORT = [
    ("/home/somebody/data/train.jsonl", "train.jsonl"),
    ("/home/somebody/my data/train.jsonl", "train.jsonl"),
    ("file:///home/somebody/train.jsonl", "train.jsonl"),
    ("~/data/train.jsonl", "train.jsonl"),
    ("~somebody/data/train.jsonl", "train.jsonl"),
    (r"C:\Users\somebody\train.jsonl", "train.jsonl"),
    (r"\\server\share\somebody\train.jsonl", "train.jsonl"),
    ("/home/somebody/my runs/demo", "demo"),
    ("/home/somebody/my runs/demo/inputs/model", "inputs/model"),
    ("shuffled=/home/somebody/my runs/demo/control", "shuffled=control"),
    ("--output=/home/somebody/my runs/demo", "--output=demo"),
    ('{"path": "/home/somebody/x.json"}', '{"path": "x.json"}'),
    ("json:/home/somebody/x.json", "json:x.json"),
]
KEPT = [
    "train.jsonl", "runs/demo/model", "../data/train.jsonl", "./train.jsonl", "meta-llama/Llama-3.2-1B-Instruct",
    "https://example.org/a/b", "s3://bucket/key/file", "kl/js", "1/2", "a / b", "</script><img src=x>", "/", "", "=",
]  # fmt: skip


@pytest.mark.parametrize(("text", "short"), SHORT)
def test_an_absolute_path_is_shortened(text: str, short: str) -> None:
    assert shorten(text, RUN) == short


@pytest.mark.parametrize("text", KEPT)
def test_other_text_stays(text: str) -> None:
    assert shorten(text, RUN) == text
    assert last_part(text) == text


part = st.text(st.sampled_from("abcxyz-_. 1é"), min_size=1, max_size=8).map(lambda text: f"q{text}q")
absolute = st.lists(part, min_size=2, max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(absolute, min_size=1, max_size=3))
def test_no_folder_is_left_in_a_command_or_a_recipe(paths: list[str]) -> None:
    command = shlex.join(["mipo", "run", *paths, f"--output={paths[0]}"])
    settings = {"model": paths[0], "prompts": {"source": paths[-1], "match": paths}}
    texts = (shorten_command(command, RUN), shorten_recipe(yaml.safe_dump(settings), RUN))
    for text in texts:
        assert not any(str(Path(path).parent) in text for path in paths)
    assert shlex.split(texts[0])[2] == Path(paths[0]).name
    assert yaml.safe_load(texts[1])["prompts"]["match"] == [Path(path).name for path in paths]


def test_a_recipe_keeps_everything_but_its_paths() -> None:
    settings = {
        "model": "gpt2",
        "prompts": {"source": f"{RUN}/inputs/train.jsonl", "test": None, "match": []},
        "trainer": {"beta": 0.3, "learning_rate": 5e-7, "deepspeed": "/home/somebody/zero3.json"},
        "evaluation": {"rule": {"answer": "answer", "pattern": r"/(?P<answer>\d+)/x"}},
    }
    short = yaml.safe_load(shorten_recipe(yaml.safe_dump(settings, sort_keys=False), RUN))
    assert short["prompts"].pop("source") == "inputs/train.jsonl"
    assert short["trainer"].pop("deepspeed") == "zero3.json"
    del settings["prompts"]["source"], settings["trainer"]["deepspeed"]
    assert short == settings


def test_text_that_is_no_recipe_or_command_is_shortened_as_text() -> None:
    assert shorten_recipe("a: b: /home/somebody/x.json\n", RUN) == "a: b: x.json\n"
    assert shorten_recipe("/home/somebody/x.json", RUN) == "x.json"
    assert shorten_command("mipo run 'x /home/somebody/x.json", RUN) == "mipo run 'x x.json"


def test_a_link_to_the_run_is_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert shorten(f"{tmp_path}/run/model", tmp_path / "link") == "model"
    assert shorten(f"{tmp_path}/link/model", tmp_path / "link") == "model"
