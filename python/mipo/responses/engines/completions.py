"""Completions: the body of a request in OpenAI's format, and the answer in the body that comes back.

Knows that format, and what the servers of the field want to be told so that they sample from the model's own
distribution. Knows neither HTTP nor files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.responses.engines.contract import Answer, Block, Work
from mipo.tokenizer.messages import is_messages, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.lazy import np
    from mipo.responses.sampling import Sent

# By the server's kind (`Site`): what switches off a server's own sampling defaults.
NEUTRAL: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    # In its own order top_p comes before the temperature, and top_k 40 and min_p 0.05 before both.
    "llamacpp": {"samplers": ["temperature", "top_p"], "repeat_penalty": 1.0},
}
# What servers call the end of an answer, and what mipo calls it.
FINISHED = {
    "stop": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop", "length": "length",
    "max_tokens": "length",
}  # fmt: skip


def identity(served_model: str | None, send: Sent) -> dict[str, str]:
    """What decides the answers beside the model: its name there, if chosen, and who renders the messages."""
    named = {"served_model": served_model} if served_model else {}
    return named | ({"send": "messages"} if send == "messages" else {})


class Bodies:
    """The bodies of the requests for some work, each prompt sent as ids (auto, too), text or messages."""

    def __init__(self, work: Work, send: Sent) -> None:
        self._work, self._send = work, send
        self._common = dict[tuple[str, str], dict[str, Any]]()  # by model and kind: what all bodies have
        self.path = "chat/completions" if send == "messages" else "completions"  # below the base URL

    def prompts(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each of the rows, with the part of its body that no other has."""
        hot = self._work.sampling.temperature > 0
        for block in self._work.blocks(rows):
            seeds = block.seeds.tolist()
            for place, (row, own) in enumerate(zip(block.rows.tolist(), self._sent(block), strict=True)):
                yield row, {"seed": seeds[place], **own} if hot else own

    def of(self, own: dict[str, Any], *, model: str, kind: str) -> dict[str, Any]:
        """The body of a prompt; `model` is the model's name on the server, `kind` the server's (`NEUTRAL`)."""
        if (model, kind) not in self._common:
            self._common[model, kind] = self._common_fields(model, kind)
        return {**self._common[model, kind], **own}

    def _sent(self, block: Block) -> Iterator[dict[str, Any]]:
        """The prompts of a block, as they are sent."""
        if self._send == "messages":
            chats = (
                plain(block.prompts)
                if is_messages(block.prompts)
                else ([{"role": "user", "content": prompt}] for prompt in block.prompts)
            )
            return ({"messages": chat} for chat in chats)
        if self._send == "text":
            return ({"prompt": text} for text in block.texts)
        return ({"prompt": ids.tolist()} for ids in block.ids)

    def _common_fields(self, model: str, kind: str) -> dict[str, Any]:
        sampling, ends = self._work.sampling, self._work.model.end_ids
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            **NEUTRAL.get(kind, {}),
        }
        if kind == "vllm":
            body["stop_token_ids"] = ends
            if self._send == "text":
                body["add_special_tokens"] = not self._work.is_messages
        if kind == "transformers":
            # Without it, it takes the model's generation config, which may have a penalty, and may be greedy.
            sampled = {"do_sample": True, "top_k": 0} if sampling.temperature else {"do_sample": False}
            body["generation_config"] = json.dumps({**sampled, "eos_token_id": ends})
        return body


def parsed(content: bytes) -> object:
    """The JSON value in the body of a response; its text where it is none."""
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def answer_in(value: Any) -> Answer:
    """The answer in the value of a response's body."""
    try:
        choice = value["choices"][0]
        message = choice.get("message") or {}
        text = choice["text"] if "text" in choice else message["content"]
        thought = message.get("reasoning_content") or message.get("reasoning")
        usage, reason = value.get("usage") or {}, choice["finish_reason"]
        if reason == "content_filter":
            return Answer(failure=reasons.FILTERED)
        if reason not in FINISHED or not isinstance(text, str | None) or not isinstance(thought, str | None):
            # Asked again, it would say the same.
            return Answer(failure=reasons.SERVER_ERROR, detail=f"finish_reason {reason}, text {text!r}"[:500])
        return Answer(
            valid(text or ""),
            response_tokens=int(usage.get("completion_tokens") or 0),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            finish_reason=FINISHED[reason],
            reasoning=thought and valid(thought),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = (value if isinstance(value, str) else json.dumps(value))[:200]
        return Answer(failure=reasons.SERVER_ERROR, detail=f"expected a completion, got {shown!r}", final=False)


def failure_of(status: int, message: str) -> Answer:
    """The failure that an HTTP status of 400 or more is."""
    # 408, 409, 425 and 429 ask to come again; other 4xx say that the request itself is wrong.
    refused = 400 <= status < 500 and status not in (408, 409, 425, 429)
    reason = reasons.REFUSED if refused else reasons.SERVER_ERROR
    return Answer(failure=reason, detail=f"{status}: {message}", final=False)


def message_in(value: Any) -> str:
    """What a server says of an error, from the value of a response's body."""
    error = value.get("error", value) if isinstance(value, dict) else value
    return valid(str(error.get("message", error) if isinstance(error, dict) else error))


def valid(text: str) -> str:
    """The text without halves of surrogate pairs, which are no characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
