"""The batch engine, with files that a real runner of the demo's model answers, or answers wrongly."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from demo_batch import run_batch
from failed import failures

from mipo import demo
from mipo.errors import InputError, StoppedError
from mipo.io import outputs
from mipo.models.model import Model
from mipo.responses.engines import batch_files
from mipo.responses.engines.choice import choose
from mipo.responses.generation import generate

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(demo.HERE / "model")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
EXPIRED = {"response": None, "error": {"code": "batch_expired", "message": "the window has expired"}}


def status(code: int, **more: Any) -> dict[str, Any]:
    """What vLLM says of a request that it could not answer."""
    error = {"error": {"message": f"said {code}", "code": code}}
    return {"response": {"status_code": code, "request_id": "r", "body": None}, "error": error, **more}


@pytest.fixture(scope="module")
def expected(prompts: pl.DataFrame) -> pl.DataFrame:
    return generate(prompts, Model(DEMO), **GREEDY)


class Site:
    """A folder of responses, and a runner of its requests."""

    def __init__(self, folder: Path, model: Any, tokenizer: Any) -> None:
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.requests, self.results = (folder / "batch" / name for name in ("requests", "results"))

    def ask(self, prompts: pl.DataFrame, **options: Any) -> pl.DataFrame:
        own = {name: options.pop(name) for name in ("max_failures", "seed", "temperature") if name in options}
        engine = choose(engine="batch", **options)
        return generate(prompts, Model(DEMO), folder=self.folder, engine=engine, **{**GREEDY, **own})

    def stopped(self, prompts: pl.DataFrame, **options: Any) -> str:
        with pytest.raises(StoppedError) as error:
            self.ask(prompts, **options)
        return str(error.value)

    def run(self, **options: Any) -> list[dict[str, Any]]:
        """Answers the files that have no result yet."""
        todo = [path for path in sorted(self.requests.iterdir()) if not (self.results / path.name).exists()]
        how = (self.model, self.tokenizer)
        return [asked for path in todo for asked in run_batch(*how, path, self.results / path.name, **options)]


@pytest.fixture
def site(tmp_path: Path, model: Any, tokenizer: Any) -> Site:
    return Site(tmp_path / "out", model, tokenizer)


@pytest.mark.parametrize(
    ("batch_for", "send", "url"),
    [
        ("vllm", "auto", "/v1/chat/completions"),
        ("vllm", "messages", "/v1/chat/completions"),
        ("hosted", "auto", "/v1/chat/completions"),
        ("hosted", "ids", "/v1/completions"),
    ],
)
def test_answers_are_those_of_the_local_engine(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, batch_for: Any, send: Any, url: str
) -> None:
    options: dict[str, Any] = {"batch_for": batch_for, "send": send, "requests_per_file": 5}
    message = site.stopped(prompts, **options)
    assert re.search(r"wrote 12 requests into 3 files \(\w+-00001.jsonl to \w+-00003.jsonl\)\.", message)
    assert ("vllm run-batch -i" in message) == (batch_for == "vllm")
    asked = site.run()
    assert {request["url"] for request in asked} == {url}
    assert {request["body"]["model"] for request in asked} == {DEMO}
    assert all(("top_k" in request["body"]) == (batch_for == "vllm") for request in asked)
    if batch_for == "hosted":  # which refuses what OpenAI does not know
        known = {"model", "max_tokens", "temperature", "top_p", "seed", "messages", "prompt"}
        assert all(request["body"].keys() <= known for request in asked)
    assert len({request["custom_id"] for request in asked}) == len(asked) == prompts.height
    assert site.ask(prompts, **options).equals(expected)
    outputs.check_folder(site.folder, "responses")


def test_a_call_before_the_results_writes_nothing_again(site: Site, prompts: pl.DataFrame) -> None:
    site.stopped(prompts[:8], requests_per_file=5)
    before = {path.name: path.read_bytes() for path in site.requests.iterdir()}
    assert "wrote nothing new; 8 requests in 2 files of earlier calls still without a result" in site.stopped(
        prompts[:8], requests_per_file=5
    )
    assert {path.name: path.read_bytes() for path in site.requests.iterdir()} == before
    assert re.match(r"batch: wrote 4 requests into 1 file \(\S+\); 8 requests in 2 f", site.stopped(prompts))


def test_results_of_some_files_are_kept_and_the_others_waited_for(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame
) -> None:
    site.stopped(prompts, requests_per_file=5)
    site.run()
    late = sorted(site.results.iterdir())[1]
    late.rename(site.folder.parent / late.name)
    assert "wrote nothing new; 5 requests in 1 file" in site.stopped(prompts)
    shutil.rmtree(site.results)  # what has come is in the database
    site.results.mkdir()
    (site.folder.parent / late.name).rename(site.results / "any name")
    assert site.ask(prompts).equals(expected)


@pytest.mark.parametrize("fault", [EXPIRED, status(429), status(500), {"response": None, "error": None}], ids=str)
def test_what_failed_for_now_is_asked_again_alone(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, fault: dict[str, Any]
) -> None:
    site.stopped(prompts)
    site.run(fault=lambda number: fault if number in (2, 7) else None)
    assert "wrote 2 requests into 1 file (" in site.stopped(prompts)
    assert "wrote nothing new; 2 requests in 1 file" in site.stopped(prompts)
    assert len(site.run()) == 2
    assert site.ask(prompts).equals(expected)


def test_a_request_that_fails_three_times_is_a_failure(site: Site, prompts: pl.DataFrame) -> None:
    for _ in range(3):
        site.stopped(prompts)
        site.run(fault=lambda number: status(503) if number == 0 else None)
    responses = site.ask(prompts)
    assert failures(responses) == {"the server failed": 1}
    assert responses["detail"].drop_nulls().to_list() == ["503: said 503"]


def test_what_was_refused_is_a_failure_until_its_results_are_deleted(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    site.stopped(prompts)
    site.run(fault=lambda number: status(400))
    with pytest.raises(StoppedError, match=r"12 of 12 prompts failed.*refused by the server: 12; the last: 400: said"):
        site.ask(prompts)
    assert failures(site.ask(prompts, max_failures=1.0)) == {"refused by the server": 12}
    assert "12 requests failed; the last: 400: said 400; delete the results, and run them" in capsys.readouterr().out
    next(site.results.iterdir()).unlink()
    assert "wrote nothing new; 12 requests" in site.stopped(prompts)
    site.run()
    assert site.ask(prompts).equals(expected)


def test_broken_files_are_named_and_cost_only_what_is_broken(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    site.stopped(prompts)
    site.run()
    whole = next(site.results.iterdir())
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.unlink()
    (site.results / "cut.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-20])
    packed = gzip.compress(b"".join(lines[5:7]))
    (site.results / "packed.jsonl.gz").write_bytes(packed)
    (site.results / "torn.gz").write_bytes(packed[: len(packed) // 2])
    (site.results / "empty.jsonl").touch()
    (site.results / "bytes").write_bytes(b"\n\xff\xfe{\r\n")
    (site.results / "list.jsonl").write_bytes(b"[]\n\r\n[]")
    shutil.copy(next(site.requests.iterdir()), site.results / "requests.jsonl")
    assert "wrote nothing new; 6 requests in 1 file" in site.stopped(prompts)
    out = capsys.readouterr().out
    assert f"{site.results}/bytes:2: expected a result as JSON, got a broken line" in out
    assert (
        f"{site.results}/list.jsonl:1: expected a result, with `response` or `error`, got '[]' (1 more line of" in out
    )
    assert f"{site.results}/cut.jsonl:5: expected a result as JSON" in out
    assert f"{site.results}/requests.jsonl:1: expected a result, with `response` or `error`" in out
    assert f"{site.results}/torn.gz:" in out
    for path in site.results.iterdir():
        path.unlink()
    whole.write_bytes(b"".join(lines))
    assert site.ask(prompts).equals(expected)
    assert "ignored" not in capsys.readouterr().out


def test_halves_of_surrogate_pairs_are_no_characters(site: Site, prompts: pl.DataFrame) -> None:
    site.stopped(prompts[:1])
    site.run()
    path = next(site.results.iterdir())
    result = json.loads(path.read_text())
    result["response"]["body"]["choices"][0]["message"]["content"] = "a \ud83d b"
    path.write_text(json.dumps(result))
    assert site.ask(prompts[:1])["response"].to_list() == ["a \ufffd b"]


def test_results_of_other_settings_prompts_and_programs_are_ignored_and_counted(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Site(tmp_path / "other", site.model, site.tokenizer)
    other.stopped(prompts, temperature=1.0, seed=1)
    other.run()
    site.stopped(prompts)
    site.run()
    shutil.copy(next(other.results.iterdir()), site.results / "other.jsonl")
    (site.results / "theirs").write_text('{"custom_id": "request-1", "response": null, "error": null}\n')
    few = Site(tmp_path / "few", site.model, site.tokenizer)
    few.stopped(prompts[:3])
    shutil.copytree(site.results, few.results, dirs_exist_ok=True)
    assert few.ask(prompts[:3]).equals(expected[:3])
    out = capsys.readouterr().out
    assert "ignored 12 results of other settings, or of another model" in out
    assert "ignored 9 results of other prompts" in out
    assert "ignored 1 result whose custom_id is not mipo's" in out


def test_the_first_of_several_results_counts_and_those_that_differ_are_counted(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    site.stopped(prompts)
    site.run()
    path = next(site.results.iterdir())
    shutil.copy(path, site.results / "zz-again.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    changed = json.loads(lines[0])
    changed["response"]["body"]["choices"][0]["message"]["content"] = "another answer"
    (site.results / "zzz.jsonl").write_text(json.dumps(changed))
    assert site.ask(prompts).equals(expected)
    assert "ignored 1 result that differs from an earlier one of the same request" in capsys.readouterr().out


def test_an_answer_to_another_prompt_is_refused(site: Site, prompts: pl.DataFrame) -> None:
    """As of a runner with another model or another template."""
    site.stopped(prompts)
    site.run()
    path = next(site.results.iterdir())
    path.write_text(path.read_text().replace('"prompt_tokens": ', '"prompt_tokens": 9'))
    with pytest.raises(
        InputError, match=r"jsonl:1: expected an answer to a prompt of \d+ tokens, got one to 9\d+; the"
    ):
        site.ask(prompts)


def test_files_are_small_enough_and_a_stopped_writing_goes_on(
    site: Site, prompts: pl.DataFrame, expected: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "LARGEST", 2_000)
    site.stopped(prompts)
    files = sorted(site.requests.iterdir())
    assert len(files) > 1
    assert all(path.stat().st_size <= 2_000 for path in files)
    files[-1].unlink()
    assert re.match(r"batch: wrote \d+ requests? into 1 file \(\S+\); \d+ requests in", site.stopped(prompts))
    site.run()
    assert site.ask(prompts).equals(expected)


def test_a_sampled_request_has_the_seed_of_its_prompt_and_the_own_name_of_the_model(
    site: Site, prompts: pl.DataFrame
) -> None:
    message = site.stopped(prompts, temperature=1.0, served_model="my model")
    assert "--served-model-name 'my model' --trust-request-chat-template" in message
    bodies = [request["body"] for request in site.run()]
    assert len({body["seed"] for body in bodies}) == prompts.height
    assert {body["model"] for body in bodies} == {"my model"}


def test_without_a_folder_or_a_name_nothing_can_be_asked(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="engine: batch keeps requests and results in files; name a folder"):
        generate(prompts, Model(DEMO), engine=choose(engine="batch"), **GREEDY)


def test_settings_of_other_engines_are_refused_by_name() -> None:
    for settings, message in (
        ({"engine": "batch", "concurrency": 2}, "concurrency: expected engine: server or ray with it, got e"),
        ({"requests_per_file": 5}, "requests_per_file: expected engine: batch with it, got engine: local"),
        (
            {"engine": "batch", "send": "ids"},
            "send: expected text or messages for `vllm run-batch`, which takes no ids",
        ),
        (
            {"engine": "batch", "requests_per_file": 50_001},
            "requests_per_file: expected a whole number from 1 to 50000",
        ),
    ):
        with pytest.raises(InputError, match=message):
            choose(**settings)
