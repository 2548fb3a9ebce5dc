"""A small batch runner of the demo's model: files of requests in, files of results out, in `vllm run-batch`'s format.

The answers are the model's own, greedy. Knows the format, and nothing of mipo's engine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def answer(model: Any, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The body of the response to one request."""
    if "messages" in body:
        how = {"chat_template": body["chat_template"]} if "chat_template" in body else {"add_generation_prompt": True}
        ids = tokenizer.apply_chat_template(body["messages"], **how)["input_ids"]
    else:
        ids = body["prompt"]
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=body["max_tokens"])
    new = out[0, len(ids) :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    choice = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    return {
        "choices": [{"index": 0, "finish_reason": "stop" if new[-1] == tokenizer.eos_token_id else "length", **choice}],
        "usage": {"prompt_tokens": len(ids), "completion_tokens": len(new)},
    }


def run_batch(
    model: Any, tokenizer: Any, requests: Path, results: Path,
    fault: Callable[[int], dict[str, Any] | None] = lambda number: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Answers a file, in another order, and returns its requests. `fault(number)` is what one's result says instead."""
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    lines = []
    for number, request in enumerate(asked):
        assert (request["method"], request["url"].split("/")[1]) == ("POST", "v1")
        result = {"id": f"vllm-{number}", "custom_id": request["custom_id"], "error": None}
        what = fault(number)
        if what is None:
            body = answer(model, tokenizer, request["body"])
            result["response"] = {"status_code": 200, "request_id": f"r-{number}", "body": body}
        lines.append(json.dumps(result | (what or {})) + "\n")
    random.Random(0).shuffle(lines)
    results.write_text("".join(lines))
    return asked
