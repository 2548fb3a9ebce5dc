"""Evaluation: how much a model's responses tell of their prompts, and what training moved, each with its interval.

Knows a model, token ids and a rule that judges answers. Knows nothing of training or run folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mipo.contrast import Kind, contrast, counter_prompts
from mipo.groups import encode_prompts, encode_responses
from mipo.prompts import compose, is_chat, key
from mipo.responses import ask, context_length, generate, load_model
from mipo.store import PairStore

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESAMPLES = 2000
BOOTSTRAP = f"95 %, percentile bootstrap over rows, {RESAMPLES} resamples"
WILSON = "95 %, Wilson score interval over rows"
LOGIT_BYTES = 1 << 30  # of float32 logits held at once; with a vocabulary of 150,000, 1,800 response tokens

# "$-1,234.50", "18", ".5", "12 %": commas only where thousands have them, so that "1,2" and "3 4" are no numbers.
_NUMBER = re.compile(r"(?P<sign>[-+−$€£\s]*)(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\s*%?")


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval [low, high], how the interval was got, and the rows it rests on."""

    value: float
    low: float
    high: float
    interval: str
    rows: int


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
    Raises ValueError for other shapes and for what is not finite.
    """
    lower, upper = _bounds(logps)
    return Information(mean(lower, seed=seed), mean(upper, seed=seed), np.shape(logps)[1] - 1, len(lower))


def mean(values: Any, *, seed: int = 0) -> Figure:
    """The mean of `values` [n] with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("a mean with its interval needs at least one row, came none")
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), BOOTSTRAP, len(values))


def share(flags: Any) -> Figure:
    """The share of true `flags` [n] with its Wilson interval, which holds at 0 and 1 too."""
    if not len(flags):
        raise ValueError("a share with its interval needs at least one row, came none")
    n, p, z = len(flags), float(np.mean(np.asarray(flags, dtype=bool))), 1.959964
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Figure(p, float(max(0, (middle - spread) / scale)), float(min(1, (middle + spread) / scale)), WILSON, n)


def change(before: pl.DataFrame, after: pl.DataFrame, *, seed: int = 0) -> dict[str, Figure]:
    """What training moved, row by row: the mean of after − before for each figure that both tables of `evaluate` hold.

    Row i of both is the same prompt, so the bootstrap is over pairs: its interval is narrower than the two sides'
    intervals tell, where what is hard for one model is hard for the other. Rows without the figure on one side are
    left out. Raises ValueError for tables of other prompts.
    """
    if not key(before["prompt"]).equals(key(after["prompt"])):
        raise ValueError("before and after answer different prompts; evaluate both on the same ones")
    figures: dict[str, Figure] = {}
    for name in (
        n for n, kind in before.schema.items() if n in after.columns and (kind.is_numeric() or kind == pl.Boolean)
    ):
        moved = (after[name].cast(pl.Float64) - before[name].cast(pl.Float64)).drop_nulls()
        figures |= {name: mean(moved, seed=seed)} if len(moved) else {}
    return figures


def judge(
    responses: Sequence[str], answers: Sequence[str], patterns: str | Sequence[str]
) -> tuple[list[bool], list[bool]]:
    """Whether each response is right, and whether it is malformed.

    A pattern (one for all, or one a response) is a regular expression with a group `answer`, and its first match
    counts; a response without one is malformed, and never right. The group is compared with the answer, in which the
    pattern is looked for too: as numbers where both are ("$1,234.0" is 1234), otherwise as text without case, outer
    white space and a final stop. Raises ValueError for a pattern that is none or has no such group, and for a missing
    answer, with the row.
    """
    each = [patterns] * len(responses) if isinstance(patterns, str) else patterns
    right, malformed = [], []
    for row, (response, answer, pattern) in enumerate(zip(responses, answers, each, strict=True), start=1):
        if answer is None:
            raise ValueError(f"row {row}: no answer to judge by; give every held-out row one, or drop it")
        rule = _rule(pattern, row)
        found, given = _answer(rule, response), _answer(rule, answer)
        malformed.append(found is None)
        right.append(found is not None and _plain(found) == _plain(answer if given is None else given))
    return right, malformed


def sequence_logps(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]], *,
    batch_tokens: int | None = None, progress: str = "log-probs",
) -> NDArray[np.float64]:  # fmt: skip
    """log π(response | prompt) of each row, [n] in nats: the sum over the response's tokens, 0 for an empty response.

    Logits are taken to float32. Rows are batched by length, at most `batch_tokens` padded tokens at once (default
    16,384 on an accelerator, 2,048 on a CPU); only the positions that predict response tokens are projected on the
    vocabulary. Like TRL's, the sum leaves out the first token of a response without a prompt, which nothing predicts.
    """
    from tqdm import tqdm

    sums = np.empty(len(prompts))
    # On a CPU what fits its caches is faster: 2,048 rows of 52 tokens of the demo's model took 3.1 s at 2,048 padded
    # tokens and 5.0 s at 16,384 (one core, November 2026).
    batch_tokens = batch_tokens or (2_048 if model.device.type == "cpu" else 16_384)
    places = LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size)
    with tqdm(total=len(prompts), desc=progress, unit="row", delay=0.5) as bar:
        sizes = [(len(p) + len(r), len(r)) for p, r in zip(prompts, responses, strict=True)]
        for rows in _batches(sizes, batch_tokens, places):
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
    trust_remote_code: bool = False,
    progress: str = "",
) -> tuple[dict[str, Any], pl.DataFrame]:
    """One side (before or after) of `evaluation.json`, as {name: figure}, and what it rests on, a row a prompt.

    The model answers every prompt as in training; `information` scores its answers to the first `rows` prompts under
    `negatives` other prompts of the `kind`, passing over those that are empty or do not fit the model's context with
    every one of these prompts; the figure tells how many it rests on. `held_out` are fixed pairs of the reference
    model, of which a group counts as one row. With a `rule` ({"answer": column, "pattern": regex, or "pattern_column":
    column}) answers are judged, sampled and greedy. `answers`, where given, are the model's sampled responses (as
    `mipo.responses.generate` returns them).

    The table holds prompt, response, response_tokens, truncated, and infonce, leave_one_out, accuracy, malformed,
    accuracy_greedy of the row, where they are known: see `change`.
    """
    _check_rule(rule, prompts)
    if "prompt_id" not in prompts.columns:
        prompts = prompts.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    own = compose(prompts["prompt"], prompts.get_column("context", default=None), chat=is_chat(tokenizer))
    model = load_model(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    how: dict[str, Any] = {"tokenizer": tokenizer, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    how |= {"batch_size": batch_size, "progress": f"{progress} answers".strip()}
    if answers is None:
        answers = generate(ask(own), model, temperature=temperature, **how)
    table = _answered(own, answers)
    scored, logps = _candidate_logps(model, tokenizer, prompts, own, table, kind, negatives, rows, seed, progress)
    bounds = information(logps, seed=seed)
    figures = {"infonce": bounds.infonce, "leave_one_out": bounds.leave_one_out}
    for name, values in zip(figures, _bounds(logps), strict=True):
        table = table.with_columns(pl.Series(name, [None] * len(own), dtype=pl.Float64).scatter(scored, values))
    if held_out is not None:
        figures |= _margins(model, held_out, seed, progress)
    figures["response_tokens"] = mean(table["response_tokens"], seed=seed)
    figures["truncated"] = share(table["truncated"])
    if rule:
        right, malformed = _judged(table, prompts, rule)
        greedy, _ = _judged(_answered(own, generate(ask(own), model, temperature=0.0, **how)), prompts, rule)
        judged = {"accuracy": right, "malformed": malformed, "accuracy_greedy": greedy}
        table = table.with_columns(pl.Series(name, flags) for name, flags in judged.items())
        figures |= {name: share(flags) for name, flags in judged.items()}
    return {name: asdict(figure) for name, figure in figures.items()}, table


def _bounds(logps: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each row's term of InfoNCE and of leave-one-out, [n]."""
    logps = np.asarray(logps, dtype=np.float64)
    if logps.ndim != 2 or logps.shape[1] < 2 or not len(logps):
        raise ValueError(f"logps: expected [n, K+1] with n ≥ 1 rows and K ≥ 1 other prompts, came {logps.shape}")
    if not np.isfinite(logps).all():
        raise ValueError("logps: expected finite log-probabilities; a masked or empty response gives none")
    own, negatives = logps[:, 0], logps.shape[1] - 1
    lower = own - (np.logaddexp.reduce(logps, axis=1) - np.log(negatives + 1))
    upper = own - (np.logaddexp.reduce(logps[:, 1:], axis=1) - np.log(negatives))
    return lower, upper


def _answered(own: pl.Series, made: pl.DataFrame) -> pl.DataFrame:
    """The response to each prompt: prompt, response, response_tokens, truncated."""
    said = made.select(pl.exclude("prompt", "response_id"), key=key(made["prompt"]))
    table = pl.DataFrame({"prompt": own, "key": key(own)}).join(said, on="key", how="left", maintain_order="left")
    if missing := table["response"].null_count():
        first = table["response"].is_null().arg_true()[0] + 1
        raise ValueError(f"answers: none to {missing} of {len(own)} prompts, first in row {first}; answer them all")
    return table.select("prompt", "response", "response_tokens", "truncated")


def _margins(model: PreTrainedModel, held_out: PairStore, seed: int, progress: str) -> dict[str, Figure]:
    """Log-probs of fixed pairs, and each chosen response against its group's rejected ones; a group is a row."""
    scored = {s: sequence_logps(model, *held_out.rows(s), progress=f"{progress} {s}") for s in ("chosen", "rejected")}
    sizes = held_out.pairs["rejected"].list.len().cast(pl.Int64).to_numpy()
    rejected = np.add.reduceat(scored["rejected"], np.cumsum(sizes) - sizes) / sizes
    return {
        "logps_chosen": mean(scored["chosen"], seed=seed),
        "logps_rejected": mean(rejected, seed=seed),
        "margin": mean(scored["chosen"] - rejected, seed=seed),
    }


def _judged(answers: pl.DataFrame, prompts: pl.DataFrame, rule: dict[str, str]) -> tuple[list[bool], list[bool]]:
    patterns = prompts[rule["pattern_column"]].to_list() if "pattern_column" in rule else rule["pattern"]
    return judge(answers["response"].to_list(), prompts[rule["answer"]].cast(pl.String).to_list(), patterns)


def _candidate_logps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: pl.DataFrame, own: pl.Series,
    table: pl.DataFrame, kind: Kind, negatives: int, rows: int | None, seed: int, progress: str,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Which rows were scored, [n], and log-probs [n, K+1] of their responses under their own prompt and K others."""
    drawn = contrast(
        prompts, kind="context" if kind in ("context", "dropped") else "random", negatives=negatives, seed=seed
    )
    others = counter_prompts(prompts, drawn, chat=is_chat(tokenizer))
    usable = drawn["reason"].is_null().to_numpy().reshape(-1, negatives).all(axis=1)
    usable &= (table["response"].str.strip_chars() != "").to_numpy()
    kept = np.flatnonzero(usable)[:rows]
    columns = kept[:, None] * negatives + np.arange(negatives) + len(own)
    candidates = np.concatenate([kept[:, None], columns], axis=1)  # rows of own and others, [n, K+1]
    asked = pl.concat([own.alias("p"), others.alias("p")]).gather(candidates.ravel())
    said = table[np.repeat(kept, negatives + 1)]
    prompt_ids, response_ids = _encode_candidates(asked, said, tokenizer, negatives + 1) if len(kept) else ([], [])
    room = context_length(model.config)
    longest = np.array([len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)], dtype=np.int64)
    fits = (longest.reshape(-1, negatives + 1) <= (room or np.inf)).all(axis=1)
    if not fits.any():
        raise ValueError(
            "no held-out row has a response and enough other prompts; give more held-out rows or fewer negatives"
        )
    where = np.flatnonzero(np.repeat(fits, negatives + 1))
    scored = sequence_logps(
        model, [prompt_ids[i] for i in where], [response_ids[i] for i in where],
        progress=f"{progress} information".strip(),
    )  # fmt: skip
    return kept[fits], scored.reshape(-1, negatives + 1)


def _encode_candidates(
    asked: pl.Series, said: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, each: int
) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
    """Ids of each prompt and response, separated as in training; every `each`-th prompt is the response's own."""
    own, first = asked.gather_every(each), said.gather_every(each)
    whole = encode_prompts(asked, tokenizer)
    prompts, responses = encode_responses(own, first["response"], tokenizer, unfinished=first["truncated"])
    if (prompts.lengths() == whole.lengths()[::each]).all():
        # Prompts end where responses begin, so the response has the same ids after every prompt.
        return list(whole), [ids for ids in responses for _ in range(each)]
    prompts, responses = encode_responses(asked, said["response"], tokenizer, unfinished=said["truncated"])
    return list(prompts), list(responses)


def _score(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]]
) -> NDArray[np.float64]:
    import torch

    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    new = min(max(map(len, responses)), width - 1)
    if new < 1:
        return np.zeros(len(prompts))
    ids, mask, said = (np.zeros((len(prompts), width), dtype=np.int64) for _ in range(3))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        at = width - len(prompt) - len(response)  # padded on the left: all responses end in the last column
        ids[row, at:], mask[row, at:] = np.concatenate([prompt, response]), 1
        said[row, max(width - len(response), at + 1) :] = 1
    tokens, seen, spoken = (torch.from_numpy(array).to(model.device) for array in (ids, mask, said))
    places = (seen.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        logits = model(tokens, attention_mask=seen, position_ids=places, use_cache=False, logits_to_keep=new + 1).logits
        # Both terms from one float32 copy: a target in float32 over a log-sum-exp of bfloat16 could be positive.
        logits = logits[:, -new - 1 : -1].float()
        picked = logits.gather(-1, tokens[:, -new:, None]).squeeze(-1) - logits.logsumexp(-1)
        sums: NDArray[np.float64] = (picked.double() * spoken[:, -new:]).sum(1).cpu().numpy()
    return sums


def _batches(sizes: Sequence[tuple[int, int]], batch_tokens: int, places: int) -> Iterator[list[int]]:
    """Rows of like `sizes` (tokens, response tokens), at most so many padded tokens and places with logits at once."""
    batch: list[int] = []
    longest = said = 0
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True):
        longest, said = longest or sizes[row][0], max(said, sizes[row][1])
        if batch and ((len(batch) + 1) * longest > batch_tokens or (len(batch) + 1) * (said + 1) > places):
            yield batch
            batch, (longest, said) = [], sizes[row]
        batch.append(row)
    if batch:
        yield batch


def check(prompts: pl.DataFrame, *, negatives: int | None, rule: dict[str, str] | None) -> None:
    """Raises ValueError for what `evaluate` could not do on these prompts, before anything is generated."""
    if negatives is not None and not 1 <= negatives < prompts.height:
        raise ValueError(
            f"evaluation.negatives: expected 1 to {prompts.height - 1} ({prompts.height} held-out prompts), "
            f"came {negatives}"
        )
    _check_rule(rule, prompts)
    if rule and "pattern" in rule:
        _rule(rule["pattern"], 1)


def _check_rule(rule: dict[str, str] | None, prompts: pl.DataFrame) -> None:
    for setting in ("answer", "pattern_column"):
        column = (rule or {}).get(setting)
        if column is not None and column not in prompts.columns:
            raise ValueError(f"rule: {setting}: no column {column!r}; the prompts have {', '.join(prompts.columns)}")


def _rule(pattern: str, row: int) -> re.Pattern[str]:
    try:
        rule = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"row {row}: pattern {pattern!r} is no regular expression ({error})") from None
    if "answer" not in rule.groupindex:
        raise ValueError(f"row {row}: pattern {pattern!r} has no group `answer`; write (?P<answer>…) around the answer")
    return rule


def _answer(rule: re.Pattern[str], text: str) -> str | None:
    found = rule.search(text.strip())
    return found["answer"] if found else None


def _plain(text: str) -> Decimal | str:
    """A number where the text is one (currency, % and thousands' commas aside), else the text without case."""
    bare = text.strip().rstrip(".").strip()
    number = _NUMBER.fullmatch(bare)
    if number is None:
        return bare.casefold()
    return Decimal(number["digits"].replace(",", "")) * (-1 if re.search("[-−]", number["sign"]) else 1)
