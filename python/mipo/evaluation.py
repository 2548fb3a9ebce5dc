"""Evaluation: how much a model's responses tell of their prompts, and what training moved, each with its interval.

Knows a model, token ids and a rule that judges answers. Knows nothing of training or run folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mipo.contrast import Kind, contrast, counter_prompts
from mipo.prompts import compose, is_chat, key
from mipo.responses import ask, generate, load_model
from mipo.tokens import PairStore, encode_prompts, encode_responses

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESAMPLES = 2000
BOOTSTRAP = f"95 %, percentile bootstrap over rows, {RESAMPLES} resamples"
WILSON = "95 %, Wilson score interval over rows"


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval [low, high], and how the interval was got."""

    value: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True)
class Information:
    """The interval [InfoNCE, leave-one-out] around the mutual information of prompt and response, in nats."""

    infonce: Figure
    leave_one_out: Figure
    negatives: int
    rows: int


def information(logps: NDArray[np.floating[Any]], *, seed: int = 0) -> Information:
    """Bounds on the mutual information from `logps` [n, K+1]: log π(y_i|x) of response i, x its own prompt in column 0.

    The other columns are prompts that y_i does not answer. InfoNCE = mean log π(y|x_0) − log mean_{k=0…K} π(y|x_k), a
    lower bound that cannot exceed log(K+1); leave-one-out = the same without x_0 in the mean, an upper estimate. Both
    tighten with K; neither alone is "the" mutual information (method: arXiv 2603.19294; bounds: Poole et al. 2019).
    """
    logps = np.asarray(logps, dtype=np.float64)
    if logps.ndim != 2 or logps.shape[1] < 2 or not len(logps):
        raise ValueError(f"logps: expected [n, K+1] with n ≥ 1 rows and K ≥ 1 other prompts, came {logps.shape}")
    if not np.isfinite(logps).all():
        raise ValueError("logps: expected finite log-probabilities; a masked or empty response gives none")
    own, negatives = logps[:, 0], logps.shape[1] - 1
    lower = own - (np.logaddexp.reduce(logps, axis=1) - np.log(negatives + 1))
    upper = own - (np.logaddexp.reduce(logps[:, 1:], axis=1) - np.log(negatives))
    return Information(mean(lower, seed=seed), mean(upper, seed=seed), negatives, len(logps))


def mean(values: Any, *, seed: int = 0) -> Figure:
    """The mean of `values` [n] with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), BOOTSTRAP)


def share(flags: Any) -> Figure:
    """The share of true `flags` [n] with its Wilson interval, which holds at 0 and 1 too."""
    n, p, z = len(flags), float(np.mean(np.asarray(flags, dtype=bool))), 1.959964
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Figure(p, float(max(0, (middle - spread) / scale)), float(min(1, (middle + spread) / scale)), WILSON)


def judge(
    responses: Sequence[str], answers: Sequence[str], patterns: str | Sequence[str]
) -> tuple[list[bool], list[bool]]:
    """Whether each response is right, and whether it is malformed.

    A pattern (one for all, or one a response) is a regular expression with a group `answer`; a response without a match
    is malformed, and never right. The group is compared with the answer, in which the pattern is looked for too: as
    numbers where both are ("$1,234" is 1234), otherwise as text without case, outer white space and a final stop.
    """
    each = [patterns] * len(responses) if isinstance(patterns, str) else patterns
    right, malformed = [], []
    for response, answer, pattern in zip(responses, answers, each, strict=True):
        found, given = re.search(pattern, response.strip()), re.search(pattern, answer)
        wanted = given["answer"] if given else answer
        malformed.append(found is None)
        right.append(found is not None and _plain(found["answer"]) == _plain(wanted))
    return right, malformed


def sequence_logps(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]], *,
    batch_tokens: int = 16_384, progress: str = "log-probs",
) -> NDArray[np.float64]:  # fmt: skip
    """log π(response | prompt) of each row, [n] in nats: the sum over the response's tokens, in float32 logits.

    Rows are batched by length, at most `batch_tokens` padded tokens at once; only the positions that predict response
    tokens are projected on the vocabulary.
    """
    from tqdm import tqdm

    sums = np.empty(len(prompts))
    with tqdm(total=len(prompts), desc=progress, unit="row", delay=0.5) as bar:
        for rows in _batches([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], batch_tokens):
            sums[rows] = _score(model, [prompts[row] for row in rows], [responses[row] for row in rows])
            bar.update(len(rows))
    return sums


def evaluate(
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: pl.DataFrame,
    held_out: PairStore | None = None,
    *,
    kind: Kind = "random",
    negatives: int = 31,
    rows: int | None = None,
    rule: dict[str, str] | None = None,
    answers: pl.DataFrame | None = None,
    seed: int = 0,
    temperature: float = 0.1,
    top_p: float = 0.9,
    max_new_tokens: int = 512,
    batch_size: int = 64,
    progress: str = "",
) -> tuple[dict[str, Any], pl.DataFrame]:
    """One side (before or after) of `evaluation.json`, as {name: figure}, and the responses it rests on.

    The model answers every prompt as in training; `information` scores its answers to the first `rows` prompts under
    `negatives` other prompts of the `kind`. `held_out` are fixed pairs of the reference model. With a `rule`
    ({"answer": column, "pattern": regex, or "pattern_column": column}) answers are judged, sampled and greedy.
    `answers`, where given, are the model's sampled responses (as `mipo.responses.generate` returns them).
    """
    chat = is_chat(tokenizer)
    model = load_model(model) if isinstance(model, str) else model
    own = compose(prompts["prompt"], prompts["context"] if "context" in prompts.columns else None, chat=chat)
    how: dict[str, Any] = {"tokenizer": tokenizer, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    how |= {"batch_size": batch_size, "progress": f"{progress} answers"}

    def answer(temperature: float, made: pl.DataFrame | None = None) -> pl.DataFrame:
        made = generate(ask(own), model, temperature=temperature, **how) if made is None else made
        return pl.DataFrame({"key": key(own)}).join(
            made.with_columns(key=key(made["prompt"])), on="key", how="left", maintain_order="left"
        )

    sampled = answer(temperature, answers)
    logps = _candidate_logps(model, tokenizer, prompts, own, sampled, kind, negatives, rows, seed, progress)
    bounds = information(logps, seed=seed)
    figures = {"infonce": bounds.infonce, "leave_one_out": bounds.leave_one_out}
    if held_out is not None:
        figures |= _margins(model, held_out, seed, progress)
    figures["response_tokens"] = mean(sampled["response_tokens"], seed=seed)
    figures["truncated"] = share(sampled["truncated"])
    if rule:
        right, malformed = _judged(sampled, prompts, rule)
        figures["accuracy"], figures["malformed"] = share(right), share(malformed)
        figures["accuracy_greedy"] = share(_judged(answer(0.0), prompts, rule)[0])
    side = {name: asdict(figure) for name, figure in figures.items()}
    return side, sampled.select("prompt", "response", "response_tokens", "truncated")


def _margins(model: PreTrainedModel, held_out: PairStore, seed: int, progress: str) -> dict[str, Figure]:
    """Log-probs of fixed pairs: each rejected response against its group's chosen one."""
    scored = {s: sequence_logps(model, *held_out.rows(s), progress=f"{progress} {s}") for s in ("chosen", "rejected")}
    apart = np.repeat(scored["chosen"], held_out.pairs["rejected"].list.len().to_numpy()) - scored["rejected"]
    return {
        "logps_chosen": mean(scored["chosen"], seed=seed),
        "logps_rejected": mean(scored["rejected"], seed=seed),
        "margin": mean(apart, seed=seed),
    }


def _judged(answers: pl.DataFrame, prompts: pl.DataFrame, rule: dict[str, str]) -> tuple[list[bool], list[bool]]:
    patterns = prompts[rule["pattern_column"]].to_list() if "pattern_column" in rule else rule["pattern"]
    return judge(answers["response"].to_list(), prompts[rule["answer"]].cast(pl.String).to_list(), patterns)


def _candidate_logps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: pl.DataFrame, own: pl.Series,
    sampled: pl.DataFrame, kind: Kind, negatives: int, rows: int | None, seed: int, progress: str,
) -> NDArray[np.float64]:  # fmt: skip
    """log-probs [n, K+1] of the sampled responses under their own prompt and K drawn others."""
    drawn = contrast(
        prompts, kind="context" if kind in ("context", "dropped") else "random", negatives=negatives, seed=seed
    )
    others = counter_prompts(prompts, drawn, chat=is_chat(tokenizer))
    usable = drawn["reason"].is_null().to_numpy().reshape(-1, negatives).all(axis=1)
    _, said = encode_responses(own, sampled["response"], tokenizer, unfinished=sampled["truncated"])
    usable &= said.lengths() > 0
    kept = np.flatnonzero(usable)[:rows]
    if not len(kept):
        raise ValueError(
            "no held-out row has a response and enough other prompts; give more held-out rows or fewer negatives"
        )
    asked = pl.concat([own.alias("p"), others.alias("p")])
    index = (kept[:, None] * negatives + np.arange(negatives)) + len(own)
    index = np.concatenate([kept[:, None], index], axis=1)
    prompt_ids = encode_prompts(asked.gather(index.ravel()), tokenizer)
    responses = [said[int(row)] for row in np.repeat(kept, negatives + 1)]
    scored = sequence_logps(model, list(prompt_ids), responses, progress=f"{progress} information")
    return scored.reshape(len(kept), negatives + 1)


def _score(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]]
) -> NDArray[np.float64]:
    import torch

    width, new = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), max(map(len, responses))
    ids, mask, said = (np.zeros((len(prompts), width), dtype=np.int64) for _ in range(3))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        at = width - len(prompt) - len(response)  # padded on the left: all responses end in the last column
        ids[row, at:], mask[row, at:] = np.concatenate([prompt, response]), 1
        said[row, width - len(response) :] = 1
    tokens, seen, spoken = (torch.from_numpy(array).to(model.device) for array in (ids, mask, said))
    places = (seen.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        logits = model(tokens, attention_mask=seen, position_ids=places, use_cache=False, logits_to_keep=new + 1).logits
        logps = torch.log_softmax(logits[:, -new - 1 : -1].float(), -1)
        picked = logps.gather(-1, tokens[:, -new:, None]).squeeze(-1)
        return (picked.double() * spoken[:, -new:]).sum(1).cpu().numpy()


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _plain(text: str) -> Decimal | str:
    bare = text.strip().rstrip(".").strip()
    try:
        return Decimal(re.sub(r"[$€£%,\s]", "", bare))
    except InvalidOperation:
        return bare.casefold()
