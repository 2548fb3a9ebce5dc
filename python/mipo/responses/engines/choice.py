"""The choice of an engine, by its settings. Knows all engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mipo.io import records
from mipo.responses.engines.batch import Batch
from mipo.responses.engines.contract import Engine
from mipo.responses.engines.local import Local
from mipo.responses.engines.on_ray import Ray
from mipo.responses.engines.server import Server
from mipo.responses.engines.vllm_offline import Vllm
from mipo.responses.sampling import EngineName, Reader, Responses, Sent


def choose(
    *,
    engine: EngineName = "local",
    urls: tuple[str, ...] = (),
    served_model: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    send: Sent = "auto",
    batch_for: Reader = "vllm",
    requests_per_file: int = 10_000,
    python: str | None = None,
    dtype: str = "auto",
    engine_options: Mapping[str, Any] | None = None,
    concurrency: int = 64,
    timeout: float = 600.0,
    patience: float = 300.0,
    address: str | None = None,
    workers: int | None = None,
    gpus: int | None = None,
) -> Engine:
    """The engine of these settings (those of a recipe's `responses`); InputError for wrong ones."""
    values = {
        "engine": engine, "urls": tuple(urls), "served_model": served_model, "key_variable": key_variable, "send": send,
        "batch_for": batch_for, "requests_per_file": requests_per_file, "python": python, "dtype": dtype,
        "engine_options": dict(engine_options or {}), "concurrency": concurrency, "timeout": timeout,
        "patience": patience, "address": address, "workers": workers, "gpus": gpus,
    }  # fmt: skip
    return of_settings(records.read(Responses, values))


def of_settings(settings: Responses) -> Engine:
    """The engine of these settings."""
    match settings.engine:
        case "server":
            return Server(settings)
        case "vllm":
            return Vllm(settings)
        case "batch":
            return Batch(settings)
        case "ray":
            return Ray(settings)
    return Local()
