"""The worker of the vLLM engine: runs in vLLM's environment, which has nothing of mipo; imports vLLM and Python's own.

Reads JSON Lines: first how to load and sample, then a prompt a line. Writes lists of answers: an empty one when the
model is loaded, then those that have come together. A prompt with `first` has its response behind it: what is written
is the log-prob of the tokens from that place on. What vLLM prints goes to standard error.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Answers, or scores, all prompts of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]  # the files beside this one are no modules of vLLM's
    setup = json.loads(sys.stdin.readline())

    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # vLLM 0.32 ends on a CPU when a prompt that has a seed is cut into chunks.
        setup["model"].setdefault("enable_chunked_prefill", False)

    engine = LLM(**setup["model"]).llm_engine
    # As many as it computes at once, and as many again, so that it need not wait while answers are written.
    limit = 2 * engine.vllm_config.scheduler_config.max_num_seqs
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=limit)
    threading.Thread(target=read, args=(requests,), daemon=True).start()
    started: dict[str, dict[str, Any]] = {}
    ended = False
    answers.write("[]\n")
    before = time.monotonic()
    while not ended or started:
        values: list[dict[str, object]] = []
        while not ended and len(started) < limit:
            try:
                request = requests.get(block=not started and not values)
            except queue.Empty:
                break
            if request is None:
                ended = True
                break
            row = str(request["row"])
            # Only temperature and top_p act: the model's generation config is not asked.
            parameters = SamplingParams(**setup["sampling"], seed=request.get("seed"))
            try:
                engine.add_request(row, TokensPrompt(prompt_token_ids=request["ids"]), parameters)
            except Exception as error:  # too long, or out of the vocabulary; the engine goes on
                values.append({"row": request["row"], "error": str(error)[:500]})
                continue
            started[row] = request
        finished = [output for output in (engine.step() if started else ()) if output.finished]
        if finished:
            # An answer's share of the time, since many pass side by side.
            seconds, before = (time.monotonic() - before) / len(finished), time.monotonic()
        for output in finished:
            request = started.pop(output.request_id)
            value = (score if "first" in request else answer)(request, output)
            values.append({"row": request["row"], "seconds": round(seconds, 4), **value})
        if values:
            answers.write(json.dumps(values) + "\n")


def answer(request: dict[str, Any], output: Any) -> dict[str, Any]:
    """What vLLM has written."""
    best = output.outputs[0]
    return {
        "text": best.text,
        "response_tokens": len(best.token_ids),
        "prompt_tokens": len(request["ids"]),
        "finish_reason": best.finish_reason,
    }


def score(request: dict[str, Any], output: Any) -> dict[str, Any]:
    """The log-prob of the tokens from the place `first` on."""
    ids = request["ids"]
    return {"logp": sum(output.prompt_logprobs[at][ids[at]].logprob for at in range(request["first"], len(ids)))}


def read(requests: "queue.Queue[dict[str, Any] | None]") -> None:
    """Puts the prompts of standard input into a queue, and None after the last."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
