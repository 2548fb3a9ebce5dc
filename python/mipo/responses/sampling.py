"""Sampling: the settings of sampled responses, and of the engine that samples them.

One record for generation, evaluation and recipes.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mipo.errors import InputError
from mipo.io import records
from mipo.io.records import Count, Record, Share, Text

EngineName = Literal["local", "server", "vllm"]
Sent = Literal["ids", "text", "messages"]
Reasoning = Literal["drop", "keep", "part"]


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
            description="transformers in this process (local), an OpenAI-compatible server (server), or vLLM in an "
            "environment of its own (vllm)"
        ),
    ] = "local"
    urls: Annotated[
        tuple[Text, ...],
        Meta(description="base URLs of servers, which share the work", examples=[["http://localhost:8000/v1"]]),
    ] = ()
    served_model: Annotated[
        Text | None, Meta(description="the model's name on the server; null for the only one that it serves")
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
        Meta(description="python of the environment that has vLLM", examples=["~/vllm/bin/python"]),
    ] = None
    send: Annotated[
        Sent,
        Meta(
            description="what a server gets: the token ids that training has (ids), the rendered text (text), or the "
            "messages, which it renders by itself (messages)"
        ),
    ] = "ids"
    dtype: Annotated[
        Text,
        Meta(
            description="dtype of the weights that answer, for the engines local and vllm; auto is the saved one, for "
            "local on a CPU float32",
            examples=["bfloat16"],
        ),
    ] = "auto"
    engine_options: Annotated[
        dict[str, Any], Meta(description="arguments of vllm.LLM", examples=[{"tensor_parallel_size": 2}])
    ] = msgspec.field(default_factory=dict)
    concurrency: Annotated[Count, Meta(description="requests in flight to each server")] = 64
    timeout: Annotated[float, Meta(gt=0, description="seconds that a request may take")] = 600.0
    patience: Annotated[
        float, Meta(ge=0, description="seconds for which a server may be away before it is given up")
    ] = 300.0
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
        for url in self.urls:
            if not url.startswith(("http://", "https://")) or set(url) & {"@", "?"}:
                shown = url.rpartition("@")[2].partition("?")[0]
                raise InputError(f"urls: expected http://HOST:PORT/v1 without a password or a key, got {shown!r}")
        if (self.engine == "server") != bool(self.urls):
            got = f"{list(self.urls)} with engine: {self.engine}"
            raise InputError(f"urls: expected the URLs of servers with engine: server, got {got}")
        if self.python and self.engine != "vllm":
            raise InputError(f"python: expected engine: vllm with it, got engine: {self.engine}")

    @property
    def sampling(self) -> Sampling:
        """The settings that decide which responses are likely."""
        return records.read(Sampling, {name: getattr(self, name) for name in Sampling.__struct_fields__})

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `mipo.responses.generation.generate` that are settings."""
        return records.settings(self.sampling) | {"reasoning": self.reasoning, "max_failures": self.max_failures}
