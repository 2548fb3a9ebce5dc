"""Sites: the servers that a recipe names, which model each serves, and how a session with them is opened.

Knows addresses, the key and what servers say of themselves. Asks no prompt.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from mipo.errors import InputError, LibraryError, StoppedError, first_line
from mipo.responses.engines.completions import message_in, parsed

if TYPE_CHECKING:
    import aiohttp

    from mipo.models.model import Model
    from mipo.responses.sampling import Responses

# Answers that mean that no prompt can be answered.
FATAL = {
    401: "refuses the key", 402: "wants to be paid first", 403: "refuses the key", 404: "has no such model or address",
    405: "has no such address",
}  # fmt: skip

# Servers that encode a text on request, which shows whether they serve this model: the name of the text, the options.
TOKENIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("prompt", {"add_special_tokens": False}),
    "llamacpp": ("content", {"add_special": False, "parse_special": True}),
}


@dataclass(frozen=True)
class Site:
    """A server: its base URL, the model there, its kind, version and context, in tokens, if it says.

    The kind is `owned_by` in its list of models, or "transformers" for `transformers serve`, where that is the owner of
    the model.
    """

    url: str
    model: str
    kind: str
    version: str
    context: int | None = None


def open_session(settings: Responses) -> aiohttp.ClientSession:
    """A session that sends the key, if there is one; LibraryError without aiohttp."""
    try:
        import aiohttp
    except ImportError:
        raise LibraryError("engine: server needs aiohttp; install mipo[server]") from None
    key = _key(settings)
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=aiohttp.ClientTimeout(total=settings.timeout, sock_connect=10),
        connector=aiohttp.TCPConnector(limit=0),
        # With it, aiohttp looks for a proxy and a password in a thread, at every request.
        trust_env=bool(getproxies()),
    )


async def find_sites(settings: Responses) -> list[Site]:
    """The servers of the settings, each asked which models it has."""
    async with open_session(settings) as session:
        return [await _site(session, settings, url.rstrip("/")) for url in settings.urls]


async def _site(session: aiohttp.ClientSession, settings: Responses, url: str) -> Site:
    """A server with its model; StoppedError where none answers, InputError where the model is not clear."""
    import aiohttp

    try:
        async with session.get(f"{url}/models") as response:
            status, content = response.status, await response.read()
        async with session.get(f"{url.removesuffix('/v1')}/version") as response:
            about = await response.read() if response.status == 200 else b"{}"
    except (aiohttp.ClientError, OSError) as error:
        raise StoppedError(f"{url}: no server answers there ({first_line(error)}); start it, or mend urls") from None
    if status in (401, 403):
        raise InputError(f"{url}: {FATAL[status]} ({status}: {message_of(content, settings)}); the key is read from "
                         f"{settings.key_variable}")  # fmt: skip
    try:
        models = {model["id"]: model for model in json.loads(content)["data"]}
    except (ValueError, LookupError, TypeError):
        shown = f"{status}: {message_of(content, settings)!r}"
        raise InputError(
            f"{url}/models: expected a list of models, got {shown}; name the base URL, for example "
            "http://localhost:8000/v1"
        ) from None
    name = settings.served_model
    if name is None and len(models) != 1:
        raise InputError(f"{url}: serves {len(models)} models ({', '.join(sorted(models)[:8])}); name one with "
                         "served_model")  # fmt: skip
    name = name or next(iter(models))
    try:
        version = str(json.loads(about).get("version", ""))
    except (ValueError, AttributeError):
        version = ""
    card = models.get(name, {})
    context = card.get("max_model_len")
    kind = card.get("owned_by", "")
    if kind in ("local", name.partition("/")[0]) and isinstance(card.get("status"), dict):
        kind = "transformers"
    return Site(url, name, kind, version, context if isinstance(context, int) else None)


async def check_tokenizer(settings: Responses, sites: list[Site], model: Model, text: str, own: list[int]) -> None:
    """InputError for a server whose tokenizer gives a text other ids than the model's `own`: another model's server."""
    import aiohttp

    async with open_session(settings) as session:
        for site in sites:
            if site.kind not in TOKENIZE:
                continue
            name, options = TOKENIZE[site.kind]
            body = {"model": site.model, name: text, **options}
            try:
                async with session.post(f"{site.url.removesuffix('/v1')}/tokenize", json=body) as response:
                    theirs = json.loads(await response.read())["tokens"]
            except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
                continue
            if theirs != own:
                raise InputError(
                    f"{site.url}: expected a server of {model.name}, got one of {site.model}, which encodes a prompt "
                    f"as other tokens ({len(theirs)}; the model's own: {len(own)}); serve the model of the recipe"
                )


def message_of(content: bytes, settings: Responses) -> str:
    """What a server says of an error, without the key."""
    text, key = message_in(parsed(content)), _key(settings)
    return (text.replace(key, "…") if key else text)[:500]


def _key(settings: Responses) -> str | None:
    """The API key in the environment."""
    return os.environ.get(settings.key_variable, "").strip() or None
