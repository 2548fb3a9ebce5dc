"""Completions: the body of a request in OpenAI's format, and the answer in the body that comes back.

Knows that format, and what the servers of the field want to be told so that they sample from the model's own
distribution. Knows neither HTTP nor files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.responses.engines.contract import Answer, Work
from mipo.tokenizer.chat import render
from mipo.tokenizer.messages import is_messages, plain

if TYPE_CHECKING:
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
        self._texts = render(work.prompts, work.model.tokenizer) if send == "text" else None
        self._ends = work.model.end_ids
        self.path = "chat/completions" if send == "messages" else "completions"  # below the base URL

    def of(self, row: int, *, model: str, kind: str) -> dict[str, Any]:
        """The body for a row; `model` is the model's name on the server, `kind` the server's (`NEUTRAL`)."""
        sampling = self._work.sampling
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            **NEUTRAL.get(kind, {}),
        }
        if sampling.temperature:
            body["seed"] = int(self._work.seeds[row])
        if kind == "vllm":
            body["stop_token_ids"] = self._ends
        if kind == "transformers":
            # Without it, it takes the model's generation config, which may have a penalty, and may be greedy.
            sampled = {"do_sample": True, "top_k": 0} if sampling.temperature else {"do_sample": False}
            body["generation_config"] = json.dumps({**sampled, "eos_token_id": self._ends})
        if self._send == "messages":
            prompt = self._work.prompts[row]
            body["messages"] = (
                next(plain([prompt])) if is_messages(self._work.prompts) else [{"role": "user", "content": prompt}]
            )
        else:
            body["prompt"] = self._work.ids[row].tolist() if self._texts is None else self._texts[row]
            if self._texts is not None and kind == "vllm":
                body["add_special_tokens"] = not is_messages(self._work.prompts)
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
