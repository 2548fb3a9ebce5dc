"""Results: what is read from a run folder, and what is refused by name."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from run_folder import make_run, write_json

from mipo.evaluation.figures import Figure
from mipo.report import page
from mipo.report.results import read


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    written = json.loads((folder / "evaluation.json").read_text())
    run = read(folder)
    for side, figures in (("before", run.before), ("after", run.after), ("change", run.paired)):
        assert figures == {name: Figure(**parts) for name, parts in written[side].items()}
    assert run.cap == math.log(32)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"name": "/home/somebody/models/tiny", "checksum": "00"}, "tiny"),
        ({"name": "models/tiny/", "checksum": "00"}, "tiny"),
        ({"name": r"C:\Users\somebody\tiny", "checksum": "00"}, "tiny"),
        ({"name": "meta-llama/Llama-3.2-1B-Instruct", "revision": "00"}, "meta-llama/Llama-3.2-1B-Instruct"),
        ({"name": "gpt2", "revision": None}, "gpt2"),
        ({"name": 5}, None),
        ("gpt2", None),
        (None, None),
    ],
)
def test_a_model_has_the_name_of_its_folder_or_that_of_the_hub(tmp_path: Path, model: object, name: str | None) -> None:
    folder = make_run(tmp_path / "run")
    write_json(folder / "manifest.json", {"model": model})
    assert read(folder).model.get("name") == name


def test_a_run_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "runs" / "demo")
    monkeypatch.chdir(folder)
    assert {read(Path(name)).name for name in (os.curdir, folder, "../demo/")} == {"demo"}


@pytest.mark.parametrize(
    "content",
    [
        '{"before": ',
        "[]",
        '{"before": {}, "after": {}, "negatives": 31, "rows": 512}',
        '{"before": {"infonce": 1, "leave_one_out": 2}, "after": {}, "negatives": 31, "rows": 512}',
        '{"before": {"infonce": {"value": NaN, "low": 0, "high": 1}, "leave_one_out": 0}, "negatives": 1, "rows": 1}',
        '{"before": {}, "after": {}, "negatives": "many", "rows": 512}',
    ],
)
def test_a_broken_evaluation_is_named(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "evaluation.json").write_text(content)
    for call in (page.write, page.table):
        with pytest.raises(ValueError, match=r"evaluation\.json: .*delete .*run.* again"):
            call(folder)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("low", 5.0, '"low" <= "high" as change.margin'),
        ("value", None, 'finite numbers "value"'),
        ("interval", None, 'a text "interval"'),
        ("rows", "many", 'a whole number "rows" in change.margin, got {'),
    ],
)
def test_a_broken_figure_is_named(tmp_path: Path, part: str, value: object, message: str) -> None:
    folder = make_run(tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["change"]["margin"][part] = value
    write_json(folder / "evaluation.json", evaluation)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(folder)


@pytest.mark.parametrize("manifest", [[], {"stages": []}, {"stages": {"train": "done"}}])
def test_a_broken_manifest_is_named(tmp_path: Path, manifest: object) -> None:
    folder = make_run(tmp_path / "run")
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match=r"manifest\.json: expected an object whose .*, got "):
        read(folder)


@pytest.mark.parametrize("name", ["evaluation.json", "manifest.json"])
def test_a_run_that_never_finished_is_named(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        page.write(folder)
