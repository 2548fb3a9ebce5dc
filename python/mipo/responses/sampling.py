"""Sampling: the settings of sampled responses, and of the engine that samples them.

One record for generation, evaluation and recipes.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mipo.errors import InputError
from mipo.io import records
from mipo.io.records import Count, Record, Share, Text

EngineName = Literal["local", "server", "vllm", "batch", "ray"]
Sent = Literal["auto", "ids", "text", "messages"]
Reader = Literal["vllm", "hosted"]
Choose = Literal["each", "best"]
Reasoning = Literal["drop", "keep", "part"]
# Settings that not every engine has.
ENGINES = {
    "served_model": ("server", "batch"), "send": ("server", "batch"), "key_variable": ("server",),
    "python": ("vllm", "ray"), "dtype": ("local", "vllm", "ray"), "engine_options": ("vllm", "ray"),
    "concurrency": ("server", "ray"), "timeout": ("server",), "patience": ("server",), "batch_for": ("batch",),
    "requests_per_file": ("batch",), "address": ("ray",), "workers": ("ray",), "gpus": ("ray",),
}  # fmt: skip
AUTO: dict[Reader, Sent] = {"vllm": "text", "hosted": "messages"}  # what a batch sends, by what reads it


class Sampling(Record, frozen=True, kw_only=True):
    """How responses are sampled, before and after training alike. The defaults are the paper's."""

    temperature: Annotated[float, Meta(ge=0, description="0 is greedy; colder makes more equal pairs")] = 0.1
    top_p: Annotated[float, Meta(gt=0, le=1, description="nucleus sampling; 1 keeps all tokens")] = 0.9
    max_new_tokens: Annotated[Count, Meta(description="longest response, in tokens")] = 512
    batch_size: Annotated[Count, Meta(description="prompts answered at once; another number rounds differently")] = 64


class Prices(Record, frozen=True, kw_only=True):
    """What a server charges for a million tokens, in any currency."""

    input: Annotated[float, Meta(ge=0, description="price of a million tokens of prompts")] = 0.0
    output: Annotated[float, Meta(ge=0, description="price of a million tokens of responses")] = 0.0


class Responses(Sampling, frozen=True, kw_only=True):
    """How responses are sampled, before and after training alike, and by what. The defaults are the paper's."""

    samples: Annotated[
        Count, Meta(description="responses to each prompt; sample s is paired with sample s of its counterparts")
    ] = 1
    choose: Annotated[
        Choose,
        Meta(
            description="which samples become pairs: each, or the best of each prompt, by leave-one-out PMI under its "
            "counter-prompts, which costs a score of each response under each of them"
        ),
    ] = "each"
    fresh: Annotated[
        bool,
        Meta(
            description="whether a rejected response that is the chosen one of another pair is sampled anew, which "
            "makes the two independent"
        ),
    ] = False
    engine: Annotated[
        EngineName,
        Meta(
            description="transformers in this process (local), an OpenAI-compatible server (server), vLLM in an "
            "environment of its own (vllm), files for a batch runner (batch), or the machines of a Ray cluster (ray)"
        ),
    ] = "local"
    urls: Annotated[
        tuple[Text, ...],
        Meta(description="base URLs of servers, which share the work", examples=[["http://localhost:8000/v1"]]),
    ] = ()
    served_model: Annotated[
        Text | None,
        Meta(
            description="the model's name on the server; null for the only one that it serves, for a batch for its own"
        ),
    ] = None
    key_variable: Annotated[
        str,
        Meta(
            description="environment variable that holds the server's API key, if it wants one",
            pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        ),
    ] = "OPENAI_API_KEY"
    python: Annotated[
        Text | None,
        Meta(
            description="python of the environment that has vLLM, for ray on each machine, where null is transformers",
            examples=["~/vllm/bin/python"],
        ),
    ] = None
    send: Annotated[
        Sent,
        Meta(
            description="what a server gets: the token ids that training has (ids), the rendered text (text), or the "
            "messages, which it renders by itself (messages); auto is ids for a server, text for a batch of vLLM, "
            "messages for a hosted one"
        ),
    ] = "auto"
    batch_for: Annotated[
        Reader,
        Meta(description="what reads a batch: `vllm run-batch` (vllm), or an API that takes OpenAI's files (hosted)"),
    ] = "vllm"
    requests_per_file: Annotated[
        int,
        Meta(ge=1, le=50_000, description="requests in a file of a batch; `vllm run-batch` keeps whole files alone"),
    ] = 10_000
    dtype: Annotated[
        Text,
        Meta(
            description="dtype of the weights that answer, for the engines local, vllm and ray; auto is the saved one, "
            "for local on a CPU float32",
            examples=["bfloat16"],
        ),
    ] = "auto"
    engine_options: Annotated[
        dict[str, Any], Meta(description="arguments of vllm.LLM", examples=[{"tensor_parallel_size": 2}])
    ] = msgspec.field(default_factory=dict)
    concurrency: Annotated[
        Count, Meta(description="requests in flight to each server; with ray, prompts that each vLLM gets at once")
    ] = 64
    timeout: Annotated[float, Meta(gt=0, description="seconds that a request may take")] = 600.0
    patience: Annotated[
        float, Meta(ge=0, description="seconds for which a server may be away before it is given up")
    ] = 300.0
    address: Annotated[
        Text | None,
        Meta(
            description="the Ray cluster; null for that of RAY_ADDRESS, or else one on this machine",
            examples=["auto", "10.0.0.5:6379"],
        ),
    ] = None
    workers: Annotated[
        Count | None, Meta(description="models on the cluster; null for what its GPUs hold, or one on each machine")
    ] = None
    gpus: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="GPUs of each worker on the cluster; null for what engine_options need"),
    ] = None
    prices: Annotated[
        Prices | None,
        Meta(
            description="what a million tokens cost, for the estimate of --dry-run",
            examples=[{"input": 0.15, "output": 0.6}],
        ),
    ] = None
    reasoning: Annotated[
        Reasoning,
        Meta(
            description="what becomes of a text between <think> and </think>: drop, keep (a column of its own), or "
            "part (of the response)"
        ),
    ] = "drop"
    max_failures: Annotated[
        Share, Meta(description="share of prompts that may fail before generation stops; what is there is kept")
    ] = 0.1

    def __post_init__(self) -> None:
        if not self.temperature and (self.samples > 1 or self.fresh):
            name, got = ("samples", self.samples) if self.samples > 1 else ("fresh", "true")
            raise InputError(
                f"{name}: expected a temperature above 0, so that samples differ, got 0 with {name}: {got}"
            )
        if self.choose == "best" and self.samples == 1:
            raise InputError("choose: expected samples: 2 or more to choose the best of, got samples: 1")
        if self.choose == "best" and self.engine in ("ray", "batch"):
            raise InputError(f"choose: expected an engine that scores (local, vllm, server), got engine: {self.engine}")
        for url in self.urls:
            if not url.startswith(("http://", "https://")) or set(url) & {"@", "?"}:
                shown = url.rpartition("@")[2].partition("?")[0]
                raise InputError(f"urls: expected http://HOST:PORT/v1 without a password or a key, got {shown!r}")
        if (self.engine == "server") != bool(self.urls):
            got = f"{list(self.urls)} with engine: {self.engine}"
            raise InputError(f"urls: expected the URLs of servers with engine: server, got {got}")
        for field in msgspec.structs.fields(type(self)):
            engines = ENGINES.get(field.name, (self.engine,))
            default = {} if field.default is msgspec.NODEFAULT else field.default
            if self.engine not in engines and getattr(self, field.name) != default:
                expected = f"{field.name}: expected engine: {' or '.join(engines)} with it"
                raise InputError(f"{expected}, got engine: {self.engine}")
        if self.engine == "ray" and self.engine_options and not self.python:
            raise InputError("engine_options: expected the python of vLLM with them, got engine: ray without python")
        if self.engine == "batch" and self.batch_for == "vllm" and self.send == "ids":
            raise InputError("send: expected text or messages for `vllm run-batch`, which takes no ids, got ids")

    @property
    def sampling(self) -> Sampling:
        """The settings that decide which responses are likely."""
        return records.read(Sampling, {name: getattr(self, name) for name in Sampling.__struct_fields__})

    @property
    def sent(self) -> Sent:
        """What the model gets: `send`, with auto resolved; ids where it is not asked by requests."""
        if self.engine not in ("server", "batch"):
            return "ids"
        if self.send != "auto":
            return self.send
        return AUTO[self.batch_for] if self.engine == "batch" else "ids"

    @property
    def token_ids(self) -> str:
        """Whose token ids the model answers, in words for the manifest: training has mipo's."""
        renders = {"text": "the server's, of mipo's text", "messages": "the server's, of messages that it renders"}
        return renders.get(self.sent, "mipo's")

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `mipo.responses.generation.generate` that are settings."""
        return records.settings(self.sampling) | {"reasoning": self.reasoning, "max_failures": self.max_failures}
