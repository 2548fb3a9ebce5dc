"""The ray engine on a real cluster of this machine: the local engine's answers, also when workers are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from demo_vllm import vllm_that_ends
from failed import failures

from mipo import demo
from mipo.errors import InputError, StoppedError
from mipo.io import cluster
from mipo.models.model import Model
from mipo.responses.engines import on_ray
from mipo.responses.engines.choice import choose
from mipo.responses.engines.contract import Answer, Work
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests
from mipo.tokenizer.chat import encode_prompts

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mipo[ray]'")

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(demo.HERE / "model")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12, "batch_size": 4}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "batch_size": 4, "seed": 3}


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    """A Ray on two cores of this machine."""
    with cluster.connected(cores=2):
        yield


@pytest.fixture(scope="module")
def prompts() -> pl.DataFrame:
    foods = ("soup", "ramen", "curry", "tacos", "pizza", "sushi", "salad", "pasta")
    rows = [(f"what should i {verb} tonight ?", f"i like {food} .") for food in foods for verb in ("eat", "cook", "do")]
    return compose_requests(pl.DataFrame(rows, schema=["prompt", "context"], orient="row"), chat=True).prompts


@pytest.fixture(scope="module")
def expected(prompts: pl.DataFrame) -> pl.DataFrame:
    return generate(prompts, Model(DEMO), **GREEDY)


def workers() -> list[int]:
    """The processes of the engine's workers."""
    return [process.pid for process in psutil.process_iter(["name"]) if "ray::_Worker" in process.info["name"]]


class Interrupted:
    """An engine; `act` is called with the answers that have come and their number so far."""

    def __init__(self, engine: Any, act: Any) -> None:
        self.engine, self.act, self.asked = engine, act, 0
        self.identity, self.name = engine.identity, engine.name

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        self.asked = len(work.missing)
        count = 0
        for answered in self.engine.answers(work):
            yield answered
            self.act(count := count + len(answered))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_greedy_answers_are_those_of_the_local_engine(
    prompts: pl.DataFrame, expected: pl.DataFrame, count: int
) -> None:
    """Also of more workers than the cluster has room for."""
    engine = choose(engine="ray", workers=count)
    assert generate(prompts, Model(DEMO), engine=engine, **GREEDY).equals(expected)
    assert "ray, local, transformers" in engine.name()


def test_sampled_answers_are_the_same_on_any_number_of_workers(prompts: pl.DataFrame) -> None:
    local = generate(prompts, Model(DEMO), **SAMPLED)
    for count in (1, 2):
        assert generate(prompts, Model(DEMO), engine=choose(engine="ray", workers=count), **SAMPLED).equals(local)


def test_the_prompts_of_a_killed_worker_are_asked_again_and_none_is_answered_twice(
    prompts: pl.DataFrame, expected: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = []

    def kill(count: int) -> None:
        if not counts:
            for process in workers():
                os.kill(process, signal.SIGKILL)
        counts.append(count)

    engine = Interrupted(choose(engine="ray", workers=2), kill)
    assert generate(prompts, Model(DEMO), engine=engine, **GREEDY).equals(expected)
    assert counts[-1] == prompts.height
    assert "ray: a worker was lost" in capsys.readouterr().out
    deadline = time.monotonic() + 30
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers()


def test_a_worker_waits_for_a_machine_and_says_so(
    prompts: pl.DataFrame, expected: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_ray, "PATIENCE", 0.5)

    class Busy:
        """Has all cores."""

    busy = ray.remote(num_cpus=2)(Busy).remote()
    ray.get(busy.__ray_ready__.remote())
    timer = threading.Timer(2, lambda: ray.kill(busy))
    timer.start()
    assert generate(prompts, Model(DEMO), engine=choose(engine="ray", workers=1), **GREEDY).equals(expected)
    timer.join()
    assert "ray: no machine of the cluster has room for a worker ({'num_cpus': 2}) yet" in capsys.readouterr().out


def test_a_job_of_a_cluster_works_there() -> None:
    """Ray names the cluster in RAY_ADDRESS."""
    here = ray.get_runtime_context().gcs_address
    code = "import ray; from mipo.io import cluster\nwith cluster.connected():\n"
    code += " print(ray.get_runtime_context().gcs_address)"
    command, variables = [sys.executable, "-c", code], {**os.environ, "RAY_ADDRESS": here}
    job = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert job.stdout.split() == [here]


def test_a_stopped_generation_goes_on(prompts: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    engine = Interrupted(choose(engine="ray", workers=1), stop)
    with pytest.raises(KeyboardInterrupt):
        generate(prompts, Model(DEMO), folder=tmp_path, engine=engine, **GREEDY)
    again = Interrupted(choose(engine="ray", workers=1), lambda count: None)
    assert generate(prompts, Model(DEMO), folder=tmp_path, engine=again, **GREEDY).equals(expected)
    assert 0 < again.asked < prompts.height


def test_workers_that_cannot_start_stop_generation_with_the_cause(prompts: pl.DataFrame, tmp_path: Path) -> None:
    engine = choose(engine="ray", workers=2, python=vllm_that_ends(tmp_path, at=None))
    with pytest.raises(
        StoppedError, match=r"no worker left, the last was lost: vLLM ended with 1 .*: RuntimeError: no"
    ):
        generate(prompts, Model(DEMO), engine=engine, max_failures=1.0, **GREEDY)


def test_an_error_that_every_worker_would_have_is_raised_as_it_is(prompts: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"python: .* has no vLLM; install vllm there"):
        generate(prompts, Model(DEMO), engine=choose(engine="ray", python="/usr/bin/env"), **GREEDY)


@pytest.mark.parametrize(("count", "concurrency"), [(2, 2), (1, 64)])
def test_a_prompt_that_ends_its_workers_is_a_failure_and_the_others_are_answered(
    prompts: pl.DataFrame, tmp_path: Path, count: int, concurrency: int
) -> None:
    engine = choose(engine="ray", workers=count, concurrency=concurrency, python=vllm_that_ends(tmp_path, at=0))
    responses = generate(prompts, Model(DEMO), engine=engine, max_failures=0.05, **GREEDY)
    assert failures(responses) == {"the server failed": 1}
    assert "3 workers were lost with it, the last: vLLM ended with 3" in responses["detail"][0]
    ids = encode_prompts(prompts["prompt"], Model(DEMO).tokenizer)
    good = range(1, prompts.height)
    assert responses["response"].gather(good).to_list() == [str(ids[row].tolist()) for row in good]


def test_settings_that_a_cluster_cannot_have_are_refused(prompts: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="workers: expected engine: ray with it, got engine: vllm"):
        choose(engine="vllm", python="x", workers=2)
    with pytest.raises(InputError, match="engine_options: expected the python of vLLM with them, got engine: ray"):
        choose(engine="ray", engine_options={"enforce_eager": True})
    with pytest.raises(InputError, match="address: expected engine: ray with it, got engine: local"):
        choose(address="auto")
