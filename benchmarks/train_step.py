"""One DPO step end to end, forward, loss and backward, with three ways to the loss on one randomly initialised model.

    python benchmarks/train_step.py --out result.json             # on a GPU
    python benchmarks/train_step.py --out result.json --tiny      # small, on the CPU; its times mean nothing

The body is a Qwen2 of the sizes of Qwen2.5-0.5B with a head of its own (not tied, so that it can be frozen alone), in
bf16; rows of a prompt of 500 tokens and a response of 200, without padding; fixed reference log-probs; no optimizer.
Exit status: 0, or 1 if ours fails or disagrees with naive logits.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heads
import table
import torch
from inputs import Batch
from stopwatch import Contender, LostDevice, failure_of, measure, tidy
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from mipo.fused.operators import linear_logps

# Against naive logits of every position. Nats: in bf16 log-probs of 200 tokens are off by up to 0.35, times beta = 0.1;
# in fp32 by some units of 6e-8 of a few hundred nats, times beta.
LOSS_ATOL = {torch.float32: 1e-4, torch.bfloat16: 3.5e-2}
# Norm of the difference over the norm, all parameters together. The body carries every difference in rounding through
# its layers: 24 of them in bf16 get more room than one head.
GRADIENT_RTOL = {torch.float32: 1e-4, torch.bfloat16: 1e-1}

BODY = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
BODY |= {"num_attention_heads": 14, "num_key_value_heads": 2}
TINY_BODY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 499}
TINY_BODY |= {"num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Sizes:
    """What one step is made of: rows of prompt + response tokens, two rows for each group."""

    device: str
    dtype: torch.dtype
    body: dict[str, int]
    prompt: int
    response: int
    groups: int


def main() -> int:
    arguments = _parse()
    if arguments.tiny:
        sizes = Sizes("cpu", torch.float32, TINY_BODY, 12, 9, 2)
    else:
        sizes = Sizes("cuda", torch.bfloat16, BODY, 500, 200, arguments.groups)
    try:
        result = _run(sizes, arguments.rounds, time.monotonic() + arguments.seconds)
    except LostDevice as error:
        print(error, file=sys.stderr)
        return 1
    print(table.render_steps(result))
    arguments.out.write_text(json.dumps({"train_step": result}, indent=1) + "\n")
    return int(any(r["failure"] for r in result["rows"] if r["name"].startswith("ours")))


def _run(sizes: Sizes, rounds: int, deadline: float) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.device(sizes.device):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes.body, tie_word_embeddings=False)).to(sizes.dtype)
    ids, batch = _draw(model, sizes)
    steps, absent = _steps(model, ids, sizes.prompt)
    rows = []
    for setting, share in zip(heads.BOTH, (0.5, 1.0), strict=True):
        model.lm_head.weight.requires_grad_(setting == "trained")
        contenders = [_contend(name, loss, model, batch) for name, (_, loss) in steps.items()]
        checks = _check(contenders, sizes.dtype, sizes.device)
        able = [c for c in contenders if checks[c.name]["failure"] is None]
        now = time.monotonic()
        end = now + share * (deadline - now)
        seen = measure(able, sizes.device, rounds=rounds, deadline=end, announce=lambda name: None)
        for name, (label, _) in steps.items():
            rows.append({"name": name, "label": label, "setting": setting} | checks[name])
            if name in seen:
                rows[-1] |= seen[name].summary() | {"failure": seen[name].failure}
    parameters = sum(p.numel() for p in model.parameters())
    title = f"{len(ids)} rows of {sizes.prompt} + {sizes.response} tokens, {parameters:,} parameters, {sizes.dtype}"
    return {"title": title, "device": sizes.device, "rows": rows, "left_out": absent}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--groups", type=int, default=8, help="pairs in a step; two rows each")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--seconds", type=float, default=90.0, help="time for everything; fewer rounds when short")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, got none; --tiny checks everything on the CPU, with meaningless times")
    return arguments


def _draw(model: Qwen2ForCausalLM, sizes: Sizes) -> tuple[Tensor, Batch]:
    """Rows [2G, prompt + response], chosen and rejected in turn, and the loss's other inputs."""
    prompt, response, groups = sizes.prompt, sizes.response, sizes.groups
    device = model.device
    ids = torch.randint(model.config.vocab_size, (2 * groups, prompt + response), device=device)
    ids[1::2, :prompt] = ids[::2, :prompt]
    lengths = torch.full((groups, 2), response)
    sequence_ids = torch.arange(2 * groups, device=device).repeat_interleave(response)
    empty = torch.empty(0, device=device)
    batch = Batch(empty, model.lm_head.weight, ids[:, prompt:].flatten(), lengths, sequence_ids, empty, {})
    with torch.no_grad():
        logps = linear_logps(_responses(model, ids, prompt), batch.weight, batch.targets)
    ref_logps = logps.view(groups, 2, response).sum(2) + 3 * torch.randn(groups, 2, device=device)
    return ids, Batch(empty, batch.weight, batch.targets, lengths, sequence_ids, ref_logps, {})


def _responses(model: Qwen2ForCausalLM, ids: Tensor, prompt: int) -> Tensor:
    """Hidden states [T, D] that predict the response tokens."""
    hidden: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, prompt - 1 : -1].flatten(0, 1)


def _steps(
    model: Qwen2ForCausalLM, ids: Tensor, prompt: int
) -> tuple[dict[str, tuple[str, Callable[[Batch], Tensor]]], dict[str, str]]:
    """Name to label and loss; the others are compared with the first."""

    def naive(batch: Batch) -> Tensor:
        log_p = functional.log_softmax(model(input_ids=ids, use_cache=False).logits, -1, dtype=torch.float32)
        return batch.loss_of(log_p[:, :-1].gather(2, ids[:, 1:, None])[:, prompt - 1 :].flatten())

    def through(head: heads.Head) -> Callable[[Batch], Tensor]:
        return lambda batch: head.loss(batch, _responses(model, ids, prompt), batch.weight)

    # Only heads that skip nothing, since an untrained model is not peaked; naive first, as the truth.
    available, absent = heads.find(model.device.type, without=("liger", "cce"))
    present = {h.name: h for h in available}
    labels = {"naive": "naive logits of the response positions"}
    steps: dict[str, tuple[str, Callable[[Batch], Tensor]]] = {}
    steps["naive-everywhere"] = ("naive logits of every position", naive)
    for name in ("naive", "ours", "ours+statistics", "trl", "trl+statistics"):
        if name in present:
            steps[name] = (labels.get(name, present[name].label), through(present[name]))
    return steps, absent


def _contend(name: str, loss: Callable[[Batch], Tensor], model: Qwen2ForCausalLM, batch: Batch) -> Contender:
    wanted = [p for p in model.parameters() if p.requires_grad]
    return Contender(name, lambda: loss(batch), lambda value: torch.autograd.grad(value, wanted))


def _check(contenders: Sequence[Contender], dtype: torch.dtype, device: str) -> dict[str, dict[str, Any]]:
    """By name: distance of loss and gradients from those of the first contender that runs, and a failure if too far."""
    truth: tuple[float, Sequence[Tensor]] | None = None
    checks: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        check: dict[str, Any] = {"failure": None}
        checks[contender.name] = check
        value: Any = None
        gradients: Sequence[Tensor] = ()
        try:
            value = contender.forward()
            gradients = contender.backward(value)
            truth = truth or (float(value.detach()), gradients)
            check["loss_error"] = abs(float(value.detach()) - truth[0])
            check["gradient_error"] = _distance(gradients, truth[1])
        except Exception as error:
            check["failure"] = failure_of(error)
        else:
            check["failure"] = _disagreement(check, dtype)
        del value, gradients
        tidy(device)
    return checks


def _disagreement(check: dict[str, Any], dtype: torch.dtype) -> str | None:
    limits = {"loss_error": LOSS_ATOL[dtype], "gradient_error": GRADIENT_RTOL[dtype]}
    # Not <=: NaN is too far.
    far = [f"{k} {check[k]:.1e} > {limit:.1e}" for k, limit in limits.items() if not check[k] <= limit]
    return f"wrong, not timed: {', '.join(far)}" if far else None


def _distance(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    off = sum(float((a.float() - b.float()).norm()) ** 2 for a, b in zip(ours, truth, strict=True))
    return float((off / sum(float(b.float().norm()) ** 2 for b in truth)) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
