"""Scoring by a server, against a real HTTP server of the demo's model that makes the mistakes of servers."""

import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from demo_server import DemoServer
from numpy.typing import NDArray

from mipo import demo
from mipo.demo import world
from mipo.errors import InputError, NotThereError, StoppedError
from mipo.evaluation.measurement import evaluate
from mipo.models import model as models
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.pairing.join import pairs
from mipo.responses.engines import server
from mipo.responses.engines.choice import choose
from mipo.responses.engines.contract import Answer, Scorer, Scoring
from mipo.responses.engines.prompt_logprobs import ScoreBodies
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests
from mipo.responses.scoring import response_logps
from mipo.tokens.groups import tokenize
from mipo.tokens.store import PairStore

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(demo.HERE / "model")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
# float32 sums in another order: 1e-6 a token, some 20 tokens a response.
SUM_ATOL = 1e-4
FAULTS = [429, (503, {"Retry-After": "0.05"}), 500, "drop", "half", "empty", "short"]


@pytest.fixture
def site(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> DemoServer:
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)
    return DemoServer(model, tokenizer)


@pytest.fixture(scope="module")
def ids() -> list[list[NDArray[np.uint32]]]:
    """Ids of prompts and responses of many lengths; an empty response, an empty prompt, and one token after nothing."""
    random = np.random.default_rng(0)
    sizes = [(5, 1), (1, 9), (30, 12), (7, 12), (0, 4), (3, 0), (12, 2), (1, 1), (0, 1), (3, 3), (20, 9), (8, 8)]
    return [[random.integers(6, 130, size[side]).astype(np.uint32) for size in sizes] for side in (0, 1)]


@pytest.fixture(scope="module")
def expected(ids: list[list[NDArray[np.uint32]]]) -> NDArray[np.float64]:
    return response_logps(*ids, Model(DEMO))


def score(site: DemoServer, ids: list[list[NDArray[np.uint32]]], **options: Any) -> NDArray[np.float64]:
    database = options.pop("database", None)
    engine = choose(engine="server", urls=[site.url], **{"concurrency": 4, **options})
    return response_logps(*ids, Model(DEMO), engine=engine, database=database)


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_a_server_s_scores_are_those_of_the_local_engine(
    site: DemoServer, ids: Any, expected: NDArray[np.float64], concurrency: int
) -> None:
    with site.running():
        np.testing.assert_allclose(score(site, ids, concurrency=concurrency), expected, rtol=0, atol=SUM_ATOL)
    asked = sorted(body["prompt"] for body in site.bodies)
    rows = [[*prompt.tolist(), *response.tolist()] for prompt, response in zip(*ids, strict=True)]
    # Not the empty response, nor the one token that nothing predicts.
    assert asked == sorted(row for place, row in enumerate(rows) if place not in (5, 8))
    assert {(body["max_tokens"], body["prompt_logprobs"]) for body in site.bodies} == {(1, 0)}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_that_goes_away_changes_no_score(
    site: DemoServer, ids: Any, expected: NDArray[np.float64], fault: Any
) -> None:
    tries = site.fail_first(2, fault)
    with site.running():
        np.testing.assert_allclose(score(site, ids), expected, rtol=0, atol=SUM_ATOL)
    assert set(tries.values()) == {3}


def test_two_servers_share_the_scores_and_one_that_goes_away_leaves_them_to_the_other(
    site: DemoServer, ids: Any, expected: NDArray[np.float64]
) -> None:
    gone = DemoServer(site.model, site.tokenizer, fault=lambda number, body: "leave" if number > 1 else "late")
    with site.running(), gone.running():
        engine = choose(engine="server", urls=[gone.url, site.url], concurrency=2, patience=0)
        np.testing.assert_allclose(response_logps(*ids, Model(DEMO), engine=engine), expected, rtol=0, atol=SUM_ATOL)
    assert gone.bodies


def test_a_row_without_a_score_is_named(site: DemoServer, ids: Any) -> None:
    long = [*ids[0][2].tolist(), *ids[1][2].tolist()]
    site.fault = lambda number, body: 400 if body["prompt"] == long else None
    message = r"log-probs: refused by the server \(400: said 400\), in row 3 of 12 \(42 tokens\); mend the cause"
    with site.running(), pytest.raises(StoppedError, match=message):
        score(site, ids)


def test_logits_are_no_log_probs(site: DemoServer, ids: Any) -> None:
    site.fault = lambda number, body: "logits"
    with site.running(), pytest.raises(InputError, match=r"expected log-probs, got .* --logprobs-mode raw_logits"):
        score(site, ids)


def test_the_log_prob_of_the_token_itself_is_taken() -> None:
    """vLLM may put the most likely token beside it, first or last, and writes −9999 for minus infinity."""
    bodies = ScoreBodies(Scoring([np.array([5], np.uint32)], [np.array([7, 8], np.uint32)], np.zeros(1), Model(DEMO)))
    likely, own = {"9": {"logprob": -0.25}}, {"7": {"logprob": -2.0}}
    for second in (likely | own, own | likely):
        places = [None, second, {"8": {"logprob": -0.5}}]
        assert bodies.score(0, {"choices": [{"prompt_logprobs": places}]}) == -2.5
    places = [None, own, {"8": {"logprob": -9999.0}}]
    assert bodies.score(0, {"choices": [{"prompt_logprobs": places}]}) == -math.inf
    for wrong in (places[:2], [None, likely, own], [None, own, {"8": None}], {}):
        failure = bodies.score(0, {"choices": [{"prompt_logprobs": wrong}]})
        assert isinstance(failure, Answer)
        assert str(failure.detail).startswith("expected the log-probs of 3 tokens, got")
        assert not failure.final


def test_scores_are_kept_and_only_the_others_are_asked_for(
    site: DemoServer, ids: Any, expected: NDArray[np.float64], tmp_path: Path
) -> None:
    database = tmp_path / "scores.sqlite"
    options: dict[str, Any] = {"concurrency": 1, "patience": 0, "database": database}
    site.fault = lambda number, body: "leave" if number > 4 else None
    with site.running(), pytest.raises(StoppedError, match=r"no connection for .*; start it and run the same command"):
        score(site, ids, **options)
    assert sum(site.answered.values()) == 4
    site.fault = lambda number, body: None
    with site.running():
        for _ in range(2):
            np.testing.assert_allclose(score(site, ids, **options), expected, rtol=0, atol=SUM_ATOL)
        assert set(site.answered.values()) == {1}
        assert len(site.answered) == 10
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("UPDATE scores SET logp = logp - 1 WHERE logp = (SELECT min(logp) FROM scores)")
            connection.commit()
        np.testing.assert_allclose(score(site, ids, **options), expected, rtol=0, atol=SUM_ATOL)
    assert sorted(site.answered.values()) == [1] * 9 + [2]
    # Another engine rounds otherwise: one figure is not made of both.
    assert response_logps(*ids, Model(DEMO), database=database).tolist() == expected.tolist()
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as connection:
        connection.execute("CREATE TABLE births (day TEXT)")
    with pytest.raises(InputError, match="expected a database of mipo's, got one with the table births"):
        response_logps(*ids, Model(DEMO), database=tmp_path / "other.sqlite")


def test_scores_of_another_folder_are_taken_over_also_where_none_are_kept(
    ids: Any, expected: NDArray[np.float64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "a" / "answers.sqlite"
    own.parent.mkdir()
    assert response_logps(*ids, Model(DEMO), database=own).tolist() == expected.tolist()
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    for database in (tmp_path / "b.sqlite", None, own):
        again = response_logps(*ids, Model(DEMO), database=database, reuse=own.parent)
        assert again.tolist() == expected.tolist()


@pytest.mark.parametrize("database", [None, "scores.sqlite"])
def test_a_folder_without_scores_is_named(ids: Any, tmp_path: Path, database: str | None) -> None:
    with pytest.raises(NotThereError, match=r"no answers\.sqlite there; name a folder of responses, or of a run"):
        response_logps(*ids, Model(DEMO), database=database and tmp_path / database, reuse=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_equal_rows_are_scored_once(site: DemoServer, ids: Any, expected: NDArray[np.float64]) -> None:
    with site.running():
        twice = score(site, [side * 2 for side in ids])
    np.testing.assert_allclose(twice, [*expected, *expected], rtol=0, atol=SUM_ATOL)
    assert set(site.answered.values()) == {1}


# Evaluation


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    _, test = world.write(tmp_path_factory.mktemp("world"), train=0, test=10)
    return pl.read_ndjson(test).with_row_index("prompt_id").with_columns(pl.col("prompt_id").cast(pl.UInt64))


@pytest.fixture(scope="module")
def held_out(prompts: pl.DataFrame) -> PairStore:
    drawn = contrast(prompts, kind="context", negatives=2)
    responses = generate(compose_requests(prompts, drawn, chat=True).prompts, Model(DEMO), **GREEDY)
    return tokenize(pairs(prompts, drawn, responses), Model(DEMO).tokenizer)[0]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No weights are loaded in this process. (The server's were loaded before.)"""
    with monkeypatch.context() as patch:
        patch.setattr(models, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
        yield


@pytest.fixture(scope="module")
def local(prompts: pl.DataFrame, held_out: PairStore) -> dict[str, Any]:
    return evaluate(Model(DEMO), prompts, held_out, kind="context", negatives=3, **GREEDY)[0]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("kind", ["vllm", "another name"])
def test_the_figures_of_a_served_model_are_the_local_ones_without_its_weights(
    site: DemoServer, prompts: pl.DataFrame, held_out: PairStore, local: dict[str, Any], kind: str
) -> None:
    site.kind = kind
    with site.running():
        engine = choose(engine="server", urls=[site.url], concurrency=4)
        figures, _ = evaluate(Model(DEMO), prompts, held_out, kind="context", negatives=3, engine=engine, **GREEDY)
    assert figures.keys() == local.keys()
    for name, figure in figures.items():
        for part in ("value", "low", "high", "rows"):
            assert figure[part] == pytest.approx(local[name][part], abs=SUM_ATOL), (name, part)


@pytest.mark.usefixtures("no_weights")
def test_a_server_that_does_not_score_is_refused_before_anything_is_generated(
    site: DemoServer, prompts: pl.DataFrame
) -> None:
    site.scores = False
    with site.running():
        engine = choose(engine="server", urls=[site.url])
        for refused, reason in ((None, "its answer has no prompt_logprobs"), (422, "422: said 422")):
            site.fault = lambda number, body, refused=refused: refused  # type: ignore[misc]
            with pytest.raises(InputError, match=rf"expected a server that scores responses, .*\({reason}\); serve"):
                evaluate(Model(DEMO), prompts, engine=engine, **GREEDY)
    assert [body["max_tokens"] for body in site.bodies] == [1, 1]


def test_a_server_of_another_model_is_refused(site: DemoServer, prompts: pl.DataFrame) -> None:
    site.kind, site.tokenizer = "vllm", lambda text, **_: {"input_ids": [1, 2, 3]}
    with site.running(), pytest.raises(InputError, match=r"expected a server of .*model, got one of demo"):
        evaluate(Model(DEMO), prompts, engine=choose(engine="server", urls=[site.url]), **GREEDY)
    assert not site.bodies


def test_rows_that_fill_the_server_s_context_are_left_out(
    site: DemoServer, prompts: pl.DataFrame, tokenizer: Any
) -> None:
    """vLLM needs room for a new token; the local engine does not."""
    responses = generate(compose_requests(prompts, chat=True).prompts, Model(DEMO), **GREEDY)
    options: dict[str, Any] = {"kind": "context", "negatives": 1, "responses": responses, **GREEDY}
    with site.running():
        engine = choose(engine="server", urls=[site.url])
        whole, _ = evaluate(Model(DEMO), prompts, engine=engine, **options)
        longest = max(len(body["prompt"]) for body in site.bodies)
        site.context = longest
        some, _ = evaluate(Model(DEMO), prompts, engine=choose(engine="server", urls=[site.url]), **options)
    assert 0 < some["infonce"]["rows"] < whole["infonce"]["rows"] == prompts.height


def test_a_killed_evaluation_asks_for_nothing_twice(site: DemoServer, prompts: pl.DataFrame, tmp_path: Path) -> None:
    prompts.write_parquet(tmp_path / "prompts.parquet")
    command = [
        sys.executable, "-m", "mipo", "evaluate", str(tmp_path / "prompts.parquet"), "--model", DEMO, "--context",
        "context", "--kind", "context", "--negatives", "1", "--temperature", "0", "--max-new-tokens", "6",
        "--engine", "server", "--concurrency", "1", "--database", str(tmp_path / "kept.sqlite"),
    ]  # fmt: skip
    process: subprocess.Popen[bytes] | None = None

    def fault(number: int, body: dict[str, Any]) -> None:
        if number in (6, 20) and process:  # while it answers, and while it scores
            process.kill()

    site.fault = fault
    with site.running():
        for _ in range(2):
            process = subprocess.Popen([*command, "--urls", site.url])
            assert process.wait() == -9
        ended = subprocess.run([*command, "--urls", site.url], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "infonce" in ended.stdout
    probe = json.dumps(Model(DEMO).end_ids[:1] * 2)
    assert site.answered.pop(probe) == 3
    # Those that were killed while they were asked.
    assert sorted(site.answered.values()) == [1] * (len(site.answered) - 2) + [2, 2]


def test_vllm_scores_one_token_less_than_its_context_and_keeps_scores_of_other_weights_apart() -> None:
    model = Model(DEMO)

    def vllm(**options: Any) -> Any:
        return choose(engine="vllm", python=sys.executable, engine_options=options)

    assert model.context_length
    for options, context in (({}, model.context_length), ({"max_model_len": 64}, 64), ({"max_model_len": -1}, None)):
        assert vllm(**options).longest(model) == (context or model.context_length) - 1
    assert vllm(max_num_batched_tokens=512).precision(model) == vllm().precision(model)
    assert vllm(quantization="fp8").precision(model) != vllm().precision(model)


def test_an_engine_that_only_answers_is_refused(prompts: pl.DataFrame) -> None:
    class Parrot:
        def name(self) -> str:
            return "parrot"

    assert isinstance(choose(), Scorer)
    with pytest.raises(InputError, match=r"engine: expected one that scores responses .*, got parrot"):
        evaluate(Model(DEMO), prompts, engine=Parrot(), **GREEDY)  # type: ignore[arg-type]
