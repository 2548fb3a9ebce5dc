"""The engines against each other, with a real model and real servers: `make test-engines` sets up and runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from numpy.typing import NDArray

FOLDER = os.environ.get("MIPO_ENGINES")
if not FOLDER:
    pytest.skip("needs real servers: make test-engines", allow_module_level=True)

from mipo.errors import InputError, StoppedError  # noqa: E402
from mipo.evaluation.measurement import evaluate  # noqa: E402
from mipo.io import cluster  # noqa: E402
from mipo.models.model import Model  # noqa: E402
from mipo.responses.engines.choice import choose  # noqa: E402
from mipo.responses.engines.contract import Answer, Engine, Work  # noqa: E402
from mipo.responses.generation import generate  # noqa: E402
from mipo.responses.requests import compose_requests  # noqa: E402
from mipo.responses.scoring import response_logps  # noqa: E402
from mipo.tokens.groups import encode_responses  # noqa: E402

SMOLLM, PYTHON = Path(FOLDER) / "smollm2", Path(FOLDER) / "vllm" / "bin" / "python"
ROWS = int(os.environ.get("MIPO_ENGINES_ROWS", "1000"))
# float32, and no graph of kernels: what differs from transformers is the order of sums.
OPTIONS = {"max_model_len": 1024, "enforce_eager": True, "gpu_memory_utilization": 0.3}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count()),
}  # fmt: skip
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24}
# Two tokens of nearly equal probability: in another order of sums the other one wins, and all that follows differs.
NEAR_TIES = 0.03
# Sums of some 130 log-probs in float32, added up in another order through 30 layers: 1e-4 a token at most.
SCORE_ATOL = 1e-2
SCORED = 200
OTHERS = min(ROWS, 200)  # prompts for a server that is not vLLM


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def prompts(shared: Path) -> pl.DataFrame:
    questions = [json.loads(line) for line in (shared / "data/math/gsm8k_train.jsonl").read_text().splitlines()]
    frame = pl.DataFrame({"prompt": [row["question"] for row in questions[:ROWS]]})
    return compose_requests(frame, chat=True).prompts


@pytest.fixture(scope="module")
def ids(shared: Path) -> list[list[NDArray[np.uint32]]]:
    """Ids of questions and their answers by people, and of a row of all tokens that vLLM can score at once."""
    lines = (shared / "data/math/gsm8k_train.jsonl").read_text().splitlines()[: SCORED - 1]
    rows = pl.DataFrame([json.loads(line) for line in lines])
    asked = compose_requests(rows.select(prompt="question"), chat=True).prompts["prompt"]
    cut = pl.repeat(False, len(rows), dtype=pl.Boolean, eager=True)
    prompts, responses = encode_responses(asked, rows["answer"], Model(str(SMOLLM)).tokenizer, truncated=cut)
    full = np.random.default_rng(0).integers(100, 40_000, OPTIONS["max_model_len"] - 1).astype(np.uint32)
    return [[*prompts, full[:1000]], [*responses, full[1000:]]]


@pytest.fixture(scope="module")
def scores(ids: list[list[NDArray[np.uint32]]]) -> NDArray[np.float64]:
    return response_logps(*ids, Model(str(SMOLLM)))


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """The base URL of the server that a command starts, with the port behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*map(str, command), str(port)])
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A vLLM server."""
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in OPTIONS.items()
    ]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", SMOLLM, "--dtype", "float32", *options]
    with serving(*command, "--port") as url:
        yield url


def transformers_serve(*options: str) -> list[str | Path]:
    command = Path(FOLDER) / "serving" / "bin" / "transformers"
    return [command, "serve", SMOLLM, "--device", "cpu", "--dtype", "float32", *options, "--port"]


@pytest.fixture(scope="module")
def local(prompts: pl.DataFrame) -> pl.DataFrame:
    return timed("local", prompts, None)


def served_by(url: str, concurrency: int = 32, **settings: Any) -> Engine:
    return choose(engine="server", urls=(url,), concurrency=concurrency, **settings)


def offline() -> Engine:
    return choose(engine="vllm", python=str(PYTHON), dtype="float32", engine_options=OPTIONS)


def timed(name: str, prompts: pl.DataFrame, engine: Engine | None, **options: Any) -> pl.DataFrame:
    started = time.monotonic()
    responses = generate(prompts, Model(str(SMOLLM)), engine=engine, **{**GREEDY, **options})
    seconds, tokens = time.monotonic() - started, responses["response_tokens"].sum()
    print(f"\n{name}: {len(prompts):,} prompts, {tokens:,} tokens, {seconds:.0f} s with start-up")
    assert responses["failure"].null_count() == responses.height
    return responses


def assert_nearly_equal(name: str, ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    columns = ["response", "response_tokens", "truncated"]
    differing = (ours.select(columns).to_struct() != theirs.select(columns).to_struct()).sum()
    print(f"\n{name}: {differing} of {ours.height} answers differ")
    assert differing <= NEAR_TIES * ours.height


def test_greedy_answers_of_a_vllm_server_are_those_of_the_local_engine(
    url: str, prompts: pl.DataFrame, local: pl.DataFrame
) -> None:
    engine = choose(engine="server", urls=(url,), concurrency=32)
    served = timed("vLLM server, token ids", prompts, engine)
    assert "server, vllm" in engine.name()
    assert_nearly_equal("server and local", served, local)


@pytest.mark.parametrize("send", ["text", "messages"])
def test_batches_of_vllm_are_answered_as_by_the_local_engine(
    prompts: pl.DataFrame, local: pl.DataFrame, tmp_path: Path, send: Any
) -> None:
    """By `vllm run-batch`, whose command needs a distribution of the name vllm, which vllm-cpu is not."""
    engine = choose(engine="batch", send=send, requests_per_file=-(-len(prompts) // 2))
    with pytest.raises(StoppedError, match=r"wrote [\d,]+ requests into 2 files"):
        timed("batch", prompts, engine, folder=tmp_path)
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in OPTIONS.items()
    ]
    options += ["--dtype", "float32", "--model", str(SMOLLM)]
    options += ["--trust-request-chat-template"] if send == "text" else []
    for path in sorted((tmp_path / "batch" / "requests").iterdir()):
        files = ["-i", str(path), "-o", str(tmp_path / "batch" / "results" / path.name)]
        subprocess.run([str(PYTHON), "-m", "vllm.entrypoints.openai.run_batch", *files, *options], check=True)
    assert_nearly_equal(f"batch, {send}", timed("batch", prompts, engine, folder=tmp_path), local)


def test_vllm_on_ray_answers_as_the_local_engine_though_it_is_killed(
    prompts: pl.DataFrame, local: pl.DataFrame
) -> None:
    killed = list[int]()

    class Killing:
        """The ray engine, whose vLLM is killed at its first answer."""

        engine = choose(engine="ray", workers=1, python=str(PYTHON), dtype="float32", engine_options=OPTIONS)
        identity, name = engine.identity, engine.name

        def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
            for answered in self.engine.answers(work):
                yield answered
                if not killed:
                    names = ((process.pid, process.info["cmdline"]) for process in psutil.process_iter(["cmdline"]))
                    killed.extend(pid for pid, words in names if words and words[-1].endswith("vllm_worker.py"))
                    for process in killed:
                        os.kill(process, signal.SIGKILL)

    with cluster.connected(cores=os.cpu_count()):
        assert_nearly_equal("ray and local", timed("vLLM on Ray, killed once", prompts, Killing()), local)
    assert killed


def test_a_server_s_own_sampling_defaults_do_not_act(url: str, prompts: pl.DataFrame) -> None:
    """Sampled answers depend on the prompt and the seed alone, not on the order or the number in flight."""
    some = prompts[:24]
    sampled = {"temperature": 1.0, "top_p": 0.95, "seed": 5}
    one, other = (
        timed(f"{n} in flight", rows, choose(engine="server", urls=(url,), concurrency=n), **sampled)
        for n, rows in ((1, some), (16, some.reverse()))
    )
    assert_nearly_equal("one and sixteen in flight", one, other.reverse())


@pytest.mark.parametrize("send", ["text", "messages"])
def test_text_and_messages_ask_the_same(url: str, prompts: pl.DataFrame, local: pl.DataFrame, send: Any) -> None:
    engine = choose(engine="server", urls=(url,), send=send)
    assert_nearly_equal(send, timed(send, prompts[:24], engine), local[:24])


def test_vllm_offline_answers_as_the_local_engine(prompts: pl.DataFrame, local: pl.DataFrame) -> None:
    engine = offline()
    assert_nearly_equal("vLLM offline and local", timed("vLLM offline", prompts, engine), local)


def test_llama_server_answers_as_the_local_engine(prompts: pl.DataFrame, local: pl.DataFrame) -> None:
    some, sampled = prompts[:OTHERS], {"temperature": 1.0, "top_p": 0.95, "seed": 5}
    script = Path(__file__).with_name("llama_server.py")
    with serving(Path(FOLDER) / "llama" / "bin" / "python", script, SMOLLM.with_suffix(".gguf")) as url:
        engine = served_by(url)
        served = timed("llama-server, token ids", some, engine)
        again = timed("llama-server, again", some.reverse(), served_by(url, 3)).reverse()
        one = timed("sampled, one in flight", some[:24], served_by(url, 1), **sampled)
        other = timed("sampled, sixteen in flight", some[:24].reverse(), served_by(url, 16), **sampled).reverse()
    assert "server, llamacpp" in engine.name()
    assert_nearly_equal("llama-server and local", served, local[:OTHERS])
    assert_nearly_equal("in another order", again, served)
    # Its samplers sort tokens by probability, so that a swap of two moves what a random number picks.
    same = (one["response"] == other["response"]).sum()
    print(f"\nsampled in another order: {same} of 24 answers are the same")
    assert same >= 12
    assert (one["response"] == served["response"][:24]).sum() < 12


def test_transformers_serve_answers_as_the_local_engine(prompts: pl.DataFrame, local: pl.DataFrame) -> None:
    # Otherwise its cache takes most of the memory that is free.
    with serving(
        *transformers_serve("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "1024")
    ) as url:
        engine = served_by(url, send="messages")
        served = timed("transformers serve, messages", prompts[:OTHERS], engine)
        text = timed("transformers serve, text", prompts[:24], served_by(url, send="text"))
        with pytest.raises(InputError, match="takes no token ids; set send: messages"):
            generate(prompts[:1], Model(str(SMOLLM)), engine=served_by(url), **GREEDY)
    assert "server, transformers" in engine.name()
    assert_nearly_equal("transformers serve and local", served, local[:OTHERS])
    assert_nearly_equal("text", text, local[:24])


def test_transformers_serve_samples_although_its_generation_config_is_greedy(prompts: pl.DataFrame) -> None:
    with serving(*transformers_serve()) as url:
        engine, few = served_by(url, 1, send="messages"), {"temperature": 1.0, "max_new_tokens": 8}
        one, same, other = (timed(f"seed {n}", prompts[:6], engine, **few, seed=n)["response"] for n in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)


def assert_scores(name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    print(f"\n{name}: log-probs differ by at most {np.abs(ours - theirs).max():.1e}, in the mean {theirs.mean():.1f}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=SCORE_ATOL)


def test_scores_of_a_vllm_server_are_those_of_the_local_engine(
    url: str, ids: list[list[NDArray[np.uint32]]], scores: NDArray[np.float64]
) -> None:
    """The second time, in another order, vLLM's prefix cache has every row; it must not be read."""
    few, many = (choose(engine="server", urls=(url,), concurrency=n) for n in (4, 64))
    few.check_scoring(Model(str(SMOLLM)))  # type: ignore[attr-defined]
    assert few.longest(Model(str(SMOLLM))) == OPTIONS["max_model_len"] - 1  # type: ignore[attr-defined]
    assert_scores("server and local", response_logps(*ids, Model(str(SMOLLM)), engine=many), scores)
    turned = [side[::-1] for side in ids]
    assert_scores("server again", response_logps(*turned, Model(str(SMOLLM)), engine=few)[::-1], scores)
    longer = [[ids[0][-1]], [np.append(ids[1][-1], np.uint32(100))]]
    with pytest.raises(StoppedError, match=r"refused by the server \(400: .*, in row 1 of 1 \(1,024 tokens\)"):
        response_logps(*longer, Model(str(SMOLLM)), engine=many)


def test_the_information_of_a_served_model_is_the_local_one(url: str, shared: Path) -> None:
    rows = pl.read_ndjson(shared / "data/math/gsm8k_train.jsonl", n_rows=12).select(prompt="question")
    answers = generate(compose_requests(rows, chat=True).prompts, Model(str(SMOLLM)), **GREEDY)
    served, local = (
        evaluate(Model(str(SMOLLM)), rows, negatives=3, responses=answers, engine=engine, **GREEDY)[0]
        for engine in (choose(engine="server", urls=(url,)), None)
    )
    for name in ("infonce", "leave_one_out"):
        print(f"\n{name}: served {served[name]['value']:.5f}, local {local[name]['value']:.5f}")
        assert served[name]["value"] == pytest.approx(local[name]["value"], abs=SCORE_ATOL)


def test_scores_of_vllm_offline_are_those_of_the_local_engine(
    ids: list[list[NDArray[np.uint32]]], scores: NDArray[np.float64]
) -> None:
    assert_scores("vLLM offline and local", response_logps(*ids, Model(str(SMOLLM)), engine=offline()), scores)
