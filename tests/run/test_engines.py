"""A run by another engine is the same run: the same pairs, no answer asked twice."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from demo_batch import run_batch
from demo_server import DemoServer

from mipo import demo
from mipo.demo import world
from mipo.errors import InputError, StoppedError
from mipo.models import model as record
from mipo.responses.engines import local, server
from mipo.responses.engines.contract import Scoring
from mipo.responses.engines.local_scoring import score
from mipo.run import pipeline, recipe
from mipo.run.preview import dry_run

pytestmark = pytest.mark.usefixtures("one_thread")


def write_recipe(folder: Path, **responses: Any) -> Path:
    """The demo's recipe with greedy responses, on 24 training and 8 held-out rows."""
    folder.mkdir(parents=True, exist_ok=True)
    world.write(folder, train=24, test=8, seed=1)
    recipe = yaml.safe_load((demo.HERE / "recipe.yaml").read_text())
    drops = {"chosen and rejected are equal": 1, "no response": 1}
    recipe |= {"model": str(demo.HERE / "model"), "max_dropped": drops}
    recipe["evaluation"] |= {"negatives": 3, "rows": 4}
    recipe["responses"] = {"temperature": 0, "max_new_tokens": 16, **responses}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def site(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> DemoServer:
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)
    return DemoServer(model, tokenizer)


def test_a_run_by_a_server_has_the_report_of_a_local_run_and_keeps_no_key(
    site: DemoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    local = pipeline.run_recipe(write_recipe(tmp_path / "a"), output=tmp_path / "local")
    site.key = "sk-planted-secret"
    monkeypatch.setenv("KEY_OF_TESTS", site.key)
    with site.running():
        path = write_recipe(tmp_path / "b", engine="server", urls=[site.url], key_variable="KEY_OF_TESTS")
        served = pipeline.run_recipe(path, output=tmp_path / "served")
    assert site.bodies
    for name in ("links.parquet", "pairs.parquet", "responses/part-00000.parquet", "evaluation/after.parquet"):
        assert pl.read_parquet(served / name).equals(pl.read_parquet(local / name)), name
    assert (served / "evaluation.json").read_bytes() == (local / "evaluation.json").read_bytes()
    written = {path for path in served.rglob("*") if path.is_file()}
    assert {served / name for name in ("report.html", "manifest.json", "answers.sqlite", "recipe.yaml")} <= written
    manifest = json.loads((served / "manifest.json").read_text())
    assert manifest["responses"] == {"engine": "server", "token_ids": "mipo's"}
    assert not [path for path in written if b"planted" in path.read_bytes()]
    assert "planted" not in "".join(capfd.readouterr())


def test_a_run_by_batches_stops_for_them_and_ends_as_a_local_run(site: DemoServer, tmp_path: Path) -> None:
    """Also the held-out responses, which the trained model has to answer too, and so this process."""
    local = pipeline.run_recipe(write_recipe(tmp_path / "a"), output=tmp_path / "local", until="baseline")
    path, output = write_recipe(tmp_path / "b", engine="batch", requests_per_file=20), tmp_path / "out"
    for name in (r"wrote \d+ requests into 3 files .*\. Let vLLM", "wrote nothing new; .* requests in 3 files"):
        with pytest.raises(StoppedError, match=name):
            pipeline.run_recipe(path, output=output, until="baseline")
    for requests in (output / "batch" / "requests").iterdir():
        run_batch(site.model, site.tokenizer, requests, output / "batch" / "results" / requests.name)
    assert pipeline.run_recipe(path, output=output, until="baseline") == output
    for name in ("links.parquet", "pairs.parquet", "responses/part-00000.parquet", "evaluation/before.parquet"):
        assert pl.read_parquet(output / name).equals(pl.read_parquet(local / name)), name


def test_another_engine_goes_on_and_asks_only_what_is_missing(site: DemoServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    site.fault = lambda number, body: 400 if number > 10 else None
    with site.running():
        path = write_recipe(tmp_path / "in", engine="server", urls=[site.url], max_failures=0.1, concurrency=1)
        with pytest.raises(RuntimeError, match="prompts failed, more than max_failures allows"):
            pipeline.run_recipe(path, output=output, until="pairs")
    path = write_recipe(tmp_path / "in")
    assert "by the engine local, 10 of them there already" in dry_run(path, output=output)
    pipeline.run_recipe(path, output=output, until="pairs")
    with sqlite3.connect(output / "answers.sqlite") as database:
        engines = dict(database.execute("SELECT substr(engine, 1, 6), count(*) FROM answers GROUP BY 1"))
    database.close()
    responses = pl.read_parquet(output / "responses" / "part-*.parquet")
    assert engines == {"server": 10, "local,": responses.height - 10}
    assert responses["failure"].null_count() == responses.height


def test_answers_of_another_run_are_taken_over(site: DemoServer, tmp_path: Path) -> None:
    with site.running():
        path = write_recipe(tmp_path / "a", engine="server", urls=[site.url])
        first = pipeline.run_recipe(path, output=tmp_path / "first", until="responses")
        asked = len(site.bodies)
        more = write_recipe(tmp_path / "b", engine="server", urls=[site.url])
        lines = (tmp_path / "b" / "train.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "b" / "train.jsonl").write_text("".join(lines[1:]))
        pipeline.run_recipe(more, output=tmp_path / "second", reuse=first, until="responses")
    assert asked < len(site.bodies) < 2 * asked  # new counter-prompts, not the prompts that were answered


def test_scores_of_another_run_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def counted(scoring: Scoring) -> Iterator[Any]:
        asked.append(len(scoring.rows))
        return score(scoring)

    monkeypatch.setattr(local, "score", counted)
    path = write_recipe(tmp_path / "in", choose="best", samples=2, temperature=0.8)
    first = pipeline.run_recipe(path, output=tmp_path / "first", until="pairs")
    assert asked
    expected, before = pl.read_parquet(first / "pairs.parquet"), (first / "answers.sqlite").read_bytes()
    (first / "pairs.parquet").unlink()  # or the whole stage would be taken over
    asked.clear()
    second = pipeline.run_recipe(path, output=tmp_path / "second", reuse=first, until="pairs")
    assert asked == []
    assert pl.read_parquet(second / "pairs.parquet").equals(expected)
    assert (first / "answers.sqlite").read_bytes() == before


def test_weights_of_a_dtype_are_loaded_once_for_the_answers_and_the_choice_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = list[str](), record.load_model
    monkeypatch.setattr(record, "load_model", lambda *a, **k: loaded.append(k["dtype"]) or load(*a, **k))
    path = write_recipe(tmp_path / "in", choose="best", samples=2, temperature=0.8, dtype="float64")
    pipeline.run_recipe(path, output=tmp_path / "out", until="pairs")
    assert loaded == ["float64"]


def test_a_recipe_names_the_setting_that_an_engine_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: responses\.urls: expected the URLs of servers"):
        pipeline.run_recipe(write_recipe(tmp_path, engine="server"), output=tmp_path / "out")


def test_an_evaluation_that_was_stopped_scores_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def counted(scoring: Scoring) -> Iterator[Any]:
        asked.append(len(scoring.rows))
        for number, batch in enumerate(score(scoring, batch_tokens=256)):
            if len(asked) == 1 and number == 2:
                raise KeyboardInterrupt
            yield batch

    path = write_recipe(tmp_path / "in")
    monkeypatch.setattr(local, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_recipe(path, output=tmp_path / "out", until="baseline")
    pipeline.run_recipe(path, output=tmp_path / "out", until="baseline")
    assert 0 < asked[1] < asked[0]
    with sqlite3.connect(tmp_path / "out" / "answers.sqlite") as database:
        assert database.execute("SELECT count(*) FROM scores").fetchone() == (asked[0],)
    database.close()
    pipeline.run_recipe(path, output=tmp_path / "undisturbed", until="baseline")
    for name in ("before.json", "before.parquet"):
        stopped, undisturbed = ((tmp_path / run / "evaluation" / name).read_bytes() for run in ("out", "undisturbed"))
        assert stopped == undisturbed, name


@pytest.mark.parametrize(
    ("settings", "lora", "judges"),
    [
        ({"engine": "vllm", "python": sys.executable}, None, True),
        ({"engine": "vllm", "python": sys.executable}, {"r": 4}, False),  # vLLM cannot load an adapter as a model
        ({"engine": "server", "urls": ["http://localhost:1/v1"]}, None, False),  # it has the model before training
        ({}, None, False),
    ],
)
def test_vllm_measures_both_sides_if_it_can_load_the_trained_model(
    tmp_path: Path, settings: dict[str, Any], lora: Any, judges: bool
) -> None:
    path = write_recipe(tmp_path, **settings)
    path.write_text(path.read_text() + yaml.safe_dump({"lora": lora}))
    judge = recipe.load(path).judge
    assert (judge is not None) == judges
    assert judge is None or judge.engine == "vllm"
