"""Measurement: the figures of a model on held-out prompts: information, log-probs and accuracy, with their intervals.

Knows a model, an engine that answers and scores, token ids and a rule that judges responses. Knows nothing of training
or run folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mipo.errors import InputError
from mipo.evaluation.bounds import information, row_bounds
from mipo.evaluation.figures import mean, share
from mipo.evaluation.rule import Rule, judge
from mipo.models.model import Model
from mipo.negatives.draw import Kind, contrast
from mipo.prompts.rows import numbered
from mipo.responses.engines.contract import Engine
from mipo.responses.generation import generate
from mipo.responses.requests import Requests, compose_requests, counter_prompts, distinct
from mipo.responses.sampling import Reasoning
from mipo.responses.scoring import response_logps, scorer
from mipo.tokenizer.chat import encode_prompts
from mipo.tokenizer.messages import key
from mipo.tokenizer.table import TokenTable
from mipo.tokens.groups import encode_responses
from mipo.tokens.store import PairStore

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


Ids = tuple["list[NDArray[np.uint32]]", "list[NDArray[np.uint32]]"]  # of prompts, and of a response to each
ROWS = 512  # whose information is measured, unless somebody asks for more
NEGATIVES = 31
NO_ROW = "no held-out row has a response and enough other prompts; give more held-out rows or fewer negatives"


def evaluate(
    model: Model,
    prompts: pl.DataFrame,
    held_out: PairStore | None = None,
    *,
    kind: Kind = "random",
    negatives: int | None = None,
    rows: int | None = ROWS,
    rule: Rule | None = None,
    responses: pl.DataFrame | None = None,
    engine: Engine | None = None,
    database: Path | None = None,
    reuse: Path | None = None,
    seed: int = 0,
    temperature: float = 0.1,
    top_p: float = 0.9,
    max_new_tokens: int = 512,
    batch_size: int = 64,
    reasoning: Reasoning = "drop",
    progress: str = "",
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The figures of one side of `evaluation.json` (before or after), by name, and their table, a row a prompt.

    The model answers every prompt as in training, by `engine` (default: in this process), or `responses` are its
    responses to the requests of these prompts (`mipo.responses.requests`), or of these and more. The same engine scores
    them; the weights are loaded in this process only if it is the local one. With `database`, answers and scores are
    kept there as they come, and a later call asks only for the others; those in the folder `reuse` are taken over.

    Information: the responses to the first `rows` prompts (None for all) are scored under `negatives` other prompts
    (None for 31, or all others) of the `kind`. Empty responses, and those that are longer than the engine can score
    (the model's context) with every one of these prompts, are passed over; the figure says on how many rows it rests.
    `held_out` are fixed pairs of the reference model, whose log-probs are measured; a group counts as one row, and one
    that is too long is passed over, too. With a `rule`, responses are judged, sampled and greedy ones.

    The table holds prompt, response, response_tokens, truncated, and where they are known infonce, leave_one_out,
    accuracy, malformed and accuracy_greedy of the row (see `change`). It also holds logps_chosen, logps_rejected and
    margin if every group of `held_out` belongs to another one of these prompts, by prompt_id.
    """
    check(prompts, negatives=negatives, rule=rule)
    negatives = negatives_of(negatives, prompts.height)
    if held_out is not None and held_out.fingerprint != model.tokenizer_fingerprint:
        raise InputError(
            f"held_out: expected token ids of {model.name}'s tokenizer and chat template, got those of another; make "
            "them again with `mipo tokens`"
        )
    scoring = scorer(engine)
    scoring.check_scoring(model)
    longest = scoring.longest(model)
    fits = None if held_out is None else _fitting(held_out, longest)
    drawn = contrast(
        prompts, kind="context" if kind in ("context", "dropped") else "random", negatives=negatives, seed=seed
    )
    requests = compose_requests(prompts, chat=model.is_chat)
    settings: dict[str, Any] = {"top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    settings |= {
        "batch_size": batch_size,
        "engine": engine,
        "database": database,
        "reuse": reuse,
        "reasoning": reasoning,
        "progress": f"{progress} responses".strip(),
    }
    if responses is None:
        responses = generate(requests.prompts, model, temperature=temperature, **settings)
    table = _responses_of(requests, responses)
    if rule:  # before the weights are loaded here, since another engine may need the memory
        greedy = _responses_of(requests, generate(requests.prompts, model, temperature=0.0, **settings))
    scored, candidates = _candidates(model, prompts, table, drawn, negatives, rows, longest)
    asked = [candidates]
    if held_out is not None:
        asked += [held_out.rows(side, fits) for side in ("chosen", "rejected")]
    logps, *pairs = _score(asked, model, engine, database, reuse, progress)
    logps = logps.reshape(-1, negatives + 1)
    bounds = information(logps, seed=seed)
    figures = {"infonce": bounds.infonce, "leave_one_out": bounds.leave_one_out}
    for name, values in zip(figures, row_bounds(logps), strict=True):
        table = table.with_columns(pl.Series(name, [None] * table.height, dtype=pl.Float64).scatter(scored, values))
    if held_out is not None:
        margins = _margins(held_out, fits, *pairs)
        figures |= {name: mean(margins[name], seed=seed) for name in margins.columns[1:]}
        table = _with_margins(table, prompts, margins)
    figures["response_tokens"] = mean(table["response_tokens"], seed=seed)
    figures["truncated"] = share(table["truncated"])
    if rule:
        right, malformed = _judge(table["response"], prompts, rule)
        right_greedy, _ = _judge(greedy["response"], prompts, rule)
        flags = {"accuracy": right, "malformed": malformed, "accuracy_greedy": right_greedy}
        table = table.with_columns(pl.Series(name, values) for name, values in flags.items())
        figures |= {name: share(values) for name, values in flags.items()}
    return {name: asdict(figure) for name, figure in figures.items()}, table


def _responses_of(requests: Requests, responses: pl.DataFrame) -> pl.DataFrame:
    """The response to each prompt: prompt, response, response_tokens, truncated."""
    columns = ["response_id", "prompt", "response", "response_tokens", "truncated"]
    own = requests.own.alias("response_id").to_frame()
    table = own.join(responses.select(columns), on="response_id", how="left", maintain_order="left")
    if missing := table["response"].null_count():
        first = table["response"].is_null().arg_true()[0] + 1
        raise InputError(
            f"responses: expected one to each of {table.height} prompts, {missing} have none, first in row {first}"
        )
    prompts = own.join(requests.prompts, on="response_id", how="left", maintain_order="left")["prompt"]
    if not key(prompts).equals(key(table["prompt"])):
        raise InputError("responses: expected responses to these prompts, got responses to others")
    return table.drop("response_id")


def _score(
    asked: Sequence[Ids], model: Model, engine: Engine | None, database: Path | None, reuse: Path | None, progress: str
) -> list[NDArray[np.float64]]:
    """Log-probs of each of the tables. They are asked for at one time, since an engine may take minutes to start."""
    prompts, responses = (list(chain.from_iterable(ids)) for ids in zip(*asked, strict=True))
    bar = f"{progress} log-probs".strip()
    logps = response_logps(prompts, responses, model, engine=engine, database=database, reuse=reuse, progress=bar)
    return np.split(logps, np.cumsum([len(ids) for ids, _ in asked])[:-1])


def _fitting(held_out: PairStore, longest: int | None) -> pl.Series:
    """Which groups have no more than `longest` tokens in any response with its prompt; says how many have more."""
    ends = pl.col("prompt") + pl.max_horizontal("chosen", pl.col("rejected").list.max())
    fits = held_out.lengths().select(ends <= (longest or np.inf)).to_series()
    if long := (~fits).sum():
        what = f"{long:,} of {len(held_out):,} pairs are longer than the {longest:,} tokens that the engine can score"
        if long == len(held_out):
            raise InputError(f"held_out: {what}; give it a longer context, or shorter pairs")
        print(f"held_out: {what}, and are left out")
    return fits


def _margins(
    held_out: PairStore, fits: pl.Series | None, chosen: NDArray[np.float64], rejected: NDArray[np.float64]
) -> pl.DataFrame:
    """Log-probs of fixed pairs, and each chosen response against its group's rejected ones; a row a group that fits."""
    pairs = held_out.pairs if fits is None else held_out.pairs.filter(fits)
    sizes = pairs["rejected"].list.len().cast(pl.Int64).to_numpy()
    rejected = np.add.reduceat(rejected, np.cumsum(sizes) - sizes) / sizes
    figures = {"logps_chosen": chosen, "logps_rejected": rejected, "margin": chosen - rejected}
    return pl.DataFrame({"prompt_id": pairs["prompt_id"], **figures})


def _with_margins(table: pl.DataFrame, prompts: pl.DataFrame, margins: pl.DataFrame) -> pl.DataFrame:
    """The table with each group's figures in the row of its prompt, if every group has a row of its own there."""
    ids = numbered(prompts).select("prompt_id")
    rows = ids.join(margins, on="prompt_id", how="left", maintain_order="left").drop("prompt_id")
    complete = rows.height == table.height and rows["margin"].count() == margins.height
    return table.hstack(rows) if complete else table


def _judge(responses: Iterable[str], prompts: pl.DataFrame, rule: Rule) -> tuple[list[bool], list[bool]]:
    patterns = rule.pattern or prompts[str(rule.pattern_column)].to_list()
    answers = prompts[rule.answer]
    answers = answers.fill_nan(None) if answers.dtype.is_float() else answers
    return judge(list(responses), answers.cast(pl.String).to_list(), patterns)


def _candidates(
    model: Model, prompts: pl.DataFrame, table: pl.DataFrame, drawn: pl.DataFrame, negatives: int, rows: int | None,
    longest: int | None,
) -> tuple[NDArray[np.int64], Ids]:  # fmt: skip
    """Which rows are scored, [n], and the ids of their own prompt and K others with their responses, [n · (K+1)].

    A prompt is the own one of a row and another one of many: each distinct prompt is composed and encoded once.
    """
    usable = drawn["reason"].is_null().to_numpy().reshape(-1, negatives).all(axis=1)
    usable &= (table["response"].str.strip_chars() != "").to_numpy()
    scored = np.flatnonzero(usable)[:rows]
    if not len(scored):
        raise InputError(NO_ROW)
    places = scored[:, None] * negatives + np.arange(negatives)
    others = counter_prompts(prompts, drawn[places.ravel()], chat=model.is_chat)
    asked = distinct(table["prompt"].gather(scored), others)
    # Rows of asked.prompts, [n, K+1].
    candidates = np.column_stack([asked.own.to_numpy(), asked.counter.to_numpy().reshape(-1, negatives)])
    responses = table[scored]
    fits, ids = fitting_candidates(asked.prompts["prompt"], candidates, responses, model.tokenizer, longest)
    if not fits.any():
        raise InputError(NO_ROW)
    return scored[fits], ids


def fitting_candidates(
    asked: pl.Series, candidates: NDArray[np.int64], responses: pl.DataFrame, tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
) -> tuple[NDArray[np.bool_], Ids]:  # fmt: skip
    """Which responses have at most `longest` tokens with each of their candidates, [n], and the ids of these
    (`_encode_candidates`), K + 1 rows each.
    """
    prompts, answers = _encode_candidates(asked, candidates, responses, tokenizer)
    lengths = np.array([len(p) + len(r) for p, r in zip(prompts, answers, strict=True)], dtype=np.int64)
    fits = np.asarray((lengths.reshape(candidates.shape) <= (longest or np.inf)).all(axis=1))
    places = np.flatnonzero(np.repeat(fits, candidates.shape[1]))
    return fits, ([prompts[place] for place in places], [answers[place] for place in places])


def _encode_candidates(
    asked: pl.Series, candidates: NDArray[np.int64], responses: pl.DataFrame, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
    """Ids of prompt and response of each of the `candidates` [n, K+1], rows of `asked`, separated as in training.

    Column 0 is the prompt of the response itself, which is the row's.
    """
    whole = encode_prompts(asked, tokenizer)
    prompt_ids, response_ids = _encode_column(asked.gather(candidates[:, 0]), responses, tokenizer)
    if (prompt_ids.lengths() == whole.lengths()[candidates[:, 0]]).all():
        # Prompts end where responses begin, so the response has the same ids after every prompt.
        rows = list(whole)
        return [rows[row] for row in candidates.ravel()], _by_row([response_ids] * candidates.shape[1])
    # Each column by itself: every response once at a time.
    columns = [_encode_column(asked.gather(column), responses, tokenizer) for column in candidates.T]
    prompts_of, responses_of = zip(*columns, strict=True)
    return _by_row(prompts_of), _by_row(responses_of)


def _encode_column(
    asked: pl.Series, responses: pl.DataFrame, tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenTable, TokenTable]:
    return encode_responses(asked, responses["response"], tokenizer, truncated=responses["truncated"])


def _by_row(columns: Sequence[TokenTable]) -> list[NDArray[np.uint32]]:
    return [ids for row in zip(*columns, strict=True) for ids in row]


def negatives_of(wanted: int | None, rows: int) -> int:
    """K of the information interval: 31, or all other rows, unless somebody asks for another number."""
    return min(NEGATIVES, rows - 1) if wanted is None else wanted


def check(prompts: pl.DataFrame, *, negatives: int | None, rule: Rule | None, at: str = "") -> None:
    """Raises InputError for settings that `evaluate` would refuse on these prompts, before anything is generated.

    `at` comes before the name of a setting.
    """
    most = prompts.height - 1
    if negatives is not None and not 1 <= negatives <= most:
        raise InputError(f"{at}negatives: expected 1 to {most} ({prompts.height} held-out prompts), got {negatives}")
    for setting in ("answer", "pattern_column"):
        column = getattr(rule, setting, None)
        if column is not None and column not in prompts.columns:
            raise InputError(
                f"{at}rule.{setting}: expected a column of the prompts ({', '.join(prompts.columns)}), got {column!r}"
            )
    if rule:
        _judge([""] * prompts.height, prompts, rule)
