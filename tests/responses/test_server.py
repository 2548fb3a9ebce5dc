"""The server engine, against a real HTTP server of the demo's model that makes the mistakes of servers."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from demo_server import DemoServer
from failed import failures

from mipo import cli, demo
from mipo.errors import InputError, StoppedError
from mipo.models.model import Model
from mipo.responses.engines import server
from mipo.responses.engines.choice import choose
from mipo.responses.generation import generate

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(demo.HERE / "model")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
FAULTS = [429, (429, {"Retry-After": "0.05"}), (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 500, "drop",
          "half", "empty"]  # fmt: skip


@pytest.fixture(scope="module")
def expected(prompts: pl.DataFrame) -> pl.DataFrame:
    return generate(prompts, Model(DEMO), **GREEDY)


@pytest.fixture
def site(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> DemoServer:
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)
    return DemoServer(model, tokenizer)


def ask(site: DemoServer, prompts: pl.DataFrame, folder: Path | None = None, **options: Any) -> pl.DataFrame:
    names = ("max_failures", "reasoning", "temperature")
    own = {name: options.pop(name) for name in names if name in options}
    engine = choose(engine="server", urls=[site.url], **{"concurrency": 4, **options})
    return generate(prompts, Model(DEMO), folder=folder, engine=engine, **{**GREEDY, **own})


@pytest.mark.parametrize("send", ["ids", "text", "messages"])
def test_greedy_answers_are_those_of_the_local_engine(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, send: Any
) -> None:
    with site.running():
        assert ask(site, prompts, send=send).equals(expected)
    assert set(site.answered.values()) == {1}
    body = site.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("demo", 0, 12)
    assert isinstance(body.get("prompt", body.get("messages")), str if send == "text" else list)


def test_a_sampled_request_has_the_seed_of_its_prompt(site: DemoServer, prompts: pl.DataFrame) -> None:
    seeds = []
    for order, seed in ((prompts, 3), (prompts.reverse(), 3), (prompts, 4)):
        with site.running():
            engine = choose(engine="server", urls=[site.url], concurrency=4)
            generate(order, Model(DEMO), engine=engine, temperature=1.0, max_new_tokens=4, seed=seed)
        seeds.append({json.dumps(body["prompt"]): body["seed"] for body in site.bodies})
        site.bodies.clear()
    assert len(set(seeds[0].values())) == prompts.height
    assert seeds[0] == seeds[1]
    assert not set(seeds[0].values()) & set(seeds[2].values())


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_that_goes_away_loses_nothing_and_asks_no_answer_again(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, fault: Any
) -> None:
    tries = site.fail_first(2, fault)
    with site.running():
        assert ask(site, prompts).equals(expected)
    assert set(tries.values()) == {3}
    assert len(site.answered) == prompts.height
    assert set(site.answered.values()) == {1}


def test_a_request_that_takes_too_long_is_a_failure_that_is_asked_again(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    slow = []

    def fault(number: int, body: dict[str, Any]) -> str | None:
        slow.append(body["prompt"]) if not slow else None
        return "slow" if body["prompt"] == slow[0] else None

    site.fault = fault
    with site.running():
        first = ask(site, prompts, tmp_path, timeout=3.0)
        assert failures(first) == {"timed out": 1}
        assert first["detail"].drop_nulls().to_list() == ["after 3.0 s"]
        site.fault = lambda number, body: None
        site.bodies.clear()
        assert ask(site, prompts, tmp_path).equals(expected)
    assert [body["prompt"] for body in site.bodies] == slow[:1]


def test_refused_prompts_are_listed_with_what_the_server_said_and_asked_again_by_the_next_call(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path
) -> None:
    poisoned = {2, 7}
    ids = [body for body in Model(DEMO).tokenizer.apply_chat_template(prompts["prompt"].to_list(),
           add_generation_prompt=True)["input_ids"]]  # fmt: skip
    site.fault = lambda number, body: 400 if body["prompt"] in [ids[row] for row in poisoned] else None
    with site.running():
        for requests in (prompts.height, len(poisoned)):
            site.bodies.clear()
            responses = ask(site, prompts, tmp_path, max_failures=0.5)
            assert len(site.bodies) == requests
            assert set(responses["failure"].is_not_null().arg_true()) == poisoned
            assert set(responses["detail"].drop_nulls()) == {"400: said 400"}
    good = responses["failure"].is_null()
    assert responses.filter(good).equals(expected.filter(good))


def test_a_server_that_goes_away_stops_generation_and_the_next_call_goes_on(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path
) -> None:
    site.fault = lambda number, body: "leave" if number > 5 else None
    with site.running(), pytest.raises(StoppedError, match=r"no connection for .*; start it and run the same command"):
        ask(site, prompts, tmp_path, patience=0)
    assert sum(site.answered.values()) == 5
    site.fault = lambda number, body: None
    with site.running():
        assert ask(site, prompts, tmp_path).equals(expected)
    assert len(site.answered) == sum(site.answered.values()) == prompts.height


def test_another_server_does_the_work_of_one_that_goes_away(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame
) -> None:
    """Also when it goes last, with the other server's workers waiting."""
    gone = DemoServer(site.model, site.tokenizer, fault=lambda number, body: "leave" if number > 1 else "late")
    with site.running(), gone.running():
        engine = choose(engine="server", urls=[gone.url, site.url], concurrency=2, patience=0)
        assert generate(prompts, Model(DEMO), engine=engine, **GREEDY).equals(expected)
    assert gone.bodies


def test_a_server_that_was_away_goes_on(site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame) -> None:
    back = DemoServer(site.model, site.tokenizer)
    site.fault = lambda number, body: "leave" if number > 3 else None
    with site.running():
        port = int(site.url.split(":")[2].split("/")[0])

        def come_back() -> None:
            while len(site.bodies) < 4:
                time.sleep(0.05)
            time.sleep(0.5)
            stack.enter_context(back.running(port))

        with ExitStack() as stack:
            thread = threading.Thread(target=come_back)
            thread.start()
            assert ask(site, prompts).equals(expected)
            thread.join()
    assert sum(site.answered.values()) + sum(back.answered.values()) == prompts.height


def test_an_error_waits_for_the_answers_in_flight(site: DemoServer, prompts: pl.DataFrame, tmp_path: Path) -> None:
    site.fault = lambda number, body: "late" if number < 3 else 401 if number == 3 else None
    with site.running(), pytest.raises(StoppedError, match=r"refuses the key \(401: said 401\)"):
        ask(site, prompts, tmp_path, concurrency=3)
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        (kept,) = database.execute("SELECT count(*) FROM answers").fetchone()
    database.close()
    assert kept == sum(site.answered.values()) >= 2


def test_a_limit_of_the_rate_is_no_failure(site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame) -> None:
    site.fault = lambda number, body: 429 if number < 60 else None
    with site.running():
        assert ask(site, prompts).equals(expected)


def test_poisoned_prompts_of_a_file_are_named_and_all_others_answered(
    site: DemoServer, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())[:100]
    texts = [f"i like {word} and {other} ." for word in words for other in words[:6]]
    poison = {7: "", 61: "  ", 133: "i " * 200, 266: "i " * 300, 399: "\t\n", 532: "i like soup " * 60}
    rows = [{"prompt": poison.get(row, text)} for row, text in enumerate(texts)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = [json.dumps(tokenizer(text)["input_ids"]) for text in texts[300:306]]
    site.fault = lambda number, body: 400 if any(ids[1:-1] in json.dumps(body["prompt"]) for ids in refused) else None
    with site.running():
        command = ["generate", str(source), "--model", DEMO, "--output", str(tmp_path / "out"), "--engine", "server"]
        code = cli.main([*command, "--urls", site.url, "--temperature", "0", "--max-new-tokens", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert code == 0
    assert printed[0] == f"{source}: 600 rows in, 597 out; empty prompt: 3"
    assert printed[1:3] == [
        "refused by the server: 6 of 597 prompts",
        "longer than the 126 tokens that the model's context leaves: 3 of 597 prompts",
    ]
    responses = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    asked = responses.select(pl.col("prompt").list.get(0).struct.field("content"), "response", "failure", "detail")
    failed = asked.filter(pl.col("failure").is_not_null())
    long = {poison[133], poison[266], poison[532]}
    assert set(failed["content"]) == {*texts[300:306], *(text.strip() for text in long), *long} & set(asked["content"])
    assert set(failed.filter(pl.col("failure") == "refused by the server")["detail"]) == {"400: said 400"}
    answered = asked.filter(pl.col("response").is_not_null())["content"].to_list()
    assert sorted([*answered, *failed["content"]]) == sorted(asked["content"])
    assert set(answered) == {text for row, text in enumerate(texts) if row not in poison} - set(texts[300:306])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program forks")
def test_a_killed_client_loses_no_answer_and_asks_none_twice(tmp_path: Path) -> None:
    """tests/support/kill_generation.py tries more points."""
    program = Path(__file__).parents[1] / "support" / "kill_generation.py"
    call = [sys.executable, str(program), "--points", "4", "--folder", str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has none of its parent's threads
    ended = subprocess.run(call, capture_output=True, text=True, check=False, env=one_thread)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2_000:]
    assert "kills: 4" in ended.stdout


def test_the_key_is_read_from_the_environment_and_stays_there(
    site: DemoServer, prompts: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    site.key = "sk-planted-secret"
    with site.running():
        with pytest.raises(InputError, match=r"refuses the key \(401: no such key\); the key is read from OTHER_KEY"):
            ask(site, prompts, tmp_path, key_variable="OTHER_KEY")
        monkeypatch.setenv("OTHER_KEY", site.key)
        site.fault = lambda number, body: 400 if number == 1 else None
        ask(site, prompts, tmp_path, key_variable="OTHER_KEY")
    assert b"planted" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "planted" not in "".join(capfd.readouterr())


def test_a_server_must_be_there_and_serve_one_model(site: DemoServer, prompts: pl.DataFrame) -> None:
    site.models = ("a", "b")
    with site.running():
        with pytest.raises(InputError, match=r"serves 2 models \(a, b\); name one with served_model"):
            ask(site, prompts)
        ask(site, prompts[:1], served_model="b")
    assert site.bodies[-1]["model"] == "b"
    with pytest.raises(StoppedError, match=r"no server answers there .*; start it, or mend urls"):
        ask(site, prompts)


def test_a_server_of_another_model_is_refused(
    site: DemoServer, prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path
) -> None:
    site.kind = "vllm"
    with site.running():
        assert ask(site, prompts).equals(expected)
        assert {name: site.bodies[0][name] for name in ("top_k", "repetition_penalty", "stop_token_ids")} == {
            "top_k": 0, "repetition_penalty": 1, "stop_token_ids": Model(DEMO).end_ids,
        }  # fmt: skip
        site.bodies.clear()
        site.tokenizer = lambda text, **_: {"input_ids": [1, 2, 3]}
        with pytest.raises(InputError, match=r"expected a server of .*model, got one of demo, .* serve the model of"):
            ask(site, prompts)
    assert not site.bodies


@pytest.mark.parametrize("hot", [True, False])
def test_transformers_serve_is_told_how_to_sample(site: DemoServer, prompts: pl.DataFrame, hot: bool) -> None:
    """By itself it is greedy, or has a penalty, as the model's generation config says."""
    site.kind = "transformers"
    with site.running():
        ask(site, prompts, send="messages", temperature=float(hot))
        with pytest.raises(InputError, match=r"transformers serve takes no token ids; set send: messages"):
            ask(site, prompts)
    told = [json.loads(body["generation_config"]) for body in site.bodies]
    sampled = {"do_sample": True, "top_k": 0} if hot else {"do_sample": False}
    assert told == [{**sampled, "eos_token_id": Model(DEMO).end_ids}] * prompts.height


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "server", "urls": ["http://h/v1?key=sk-1"]}, "without a password or a key, got 'http://h/v1'"),
        ({"urls": ["http://me:secret@host/v1"]}, "without a password or a key, got 'host/v1'"),
        ({"key_variable": "sk-secret/1"}, "key_variable: expected"),
        ({"engine": "server"}, "urls: expected the URLs of servers with engine: server, got"),
        ({"urls": ["http://localhost/v1"]}, r"got \['http://localhost/v1'\] with engine: local"),
        ({"engine": "server", "urls": ["localhost:8000"]}, "urls: expected http://HOST:PORT/v1"),
        ({"engine": "server", "urls": ["http://me:secret@host/v1"]}, "without a password or a key, got 'host/v1'"),
        ({"engine": "vllm", "python": "/no/such/python"}, "expected the python of an environment that has vLLM"),
        ({"engine": "vllm", "python": "x", "concurrency": 0}, "concurrency: expected a whole number of at least 1"),
        ({"engine": "llama"}, "engine: expected batch, local, ray, server or vllm"),
    ],
)
def test_wrong_engine_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(**settings)
