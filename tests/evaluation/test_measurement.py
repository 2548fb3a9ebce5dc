"""Evaluation: bounds that bound, intervals that cover, log-probs that a plain loop agrees with, honest counts."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

import mipo.demo
from mipo.demo import world
from mipo.evaluation import measurement
from mipo.evaluation.bounds import information, row_bounds
from mipo.evaluation.figures import change
from mipo.evaluation.measurement import evaluate
from mipo.evaluation.rule import Rule, judge
from mipo.models.loading import load_model, load_tokenizer
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.pairing.join import pairs
from mipo.prompts.compose import compose
from mipo.responses.engines import local_scoring
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests
from mipo.responses.scoring import response_logps
from mipo.run.recipe import Evaluation
from mipo.tokens.groups import tokenize
from mipo.tokens.store import PairStore

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")
# float32 matrix products against float64: 1e-6 a token, some 20 tokens a response.
SUM_ATOL = 1e-4
# float64 sums of a few hundred terms.
EXACT = 1e-9
# method.md gives the channel's figures to two places, from draws; the closed form is 0.015 away at most.
CHANNEL_ATOL = 0.02
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16}
PATTERN = r"####\s*(?P<answer>.+)"

law = settings(deadline=None, max_examples=60)
nats = st.floats(-200, 0)
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(2, 9)), elements=nats)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    _, test = world.write(tmp_path_factory.mktemp("world"), train=0, test=24)
    return pl.read_ndjson(test).with_row_index("prompt_id").with_columns(pl.col("prompt_id").cast(pl.UInt64))


@pytest.fixture(scope="module")
def whole(model: Any, tokenizer: Any) -> Model:
    return Model.of(model, tokenizer)


@pytest.fixture(scope="module")
def responses(prompts: pl.DataFrame, whole: Model) -> pl.DataFrame:
    return generate(compose_requests(prompts, chat=True).prompts, whole, **SAMPLED)


@pytest.fixture(scope="module")
def held_out(prompts: pl.DataFrame, whole: Model, tokenizer: Any) -> PairStore:
    drawn = contrast(prompts, kind="context", negatives=2)
    answers = generate(compose_requests(prompts, drawn, chat=True).prompts, whole, **SAMPLED)
    return tokenize(pairs(prompts, drawn, answers), tokenizer)[0]


# Information


def channel(n: int, noise: float, negatives: int, seed: int = 0) -> NDArray[np.float64]:
    """n uses of a channel of n symbols: y is x, or with `noise` any of the n; log p(y|x) of x and of K others."""
    random = np.random.default_rng(seed)
    x = random.integers(n, size=n)
    y = np.where(random.random(n) < noise, random.integers(n, size=n), x)
    others = np.stack([random.permutation(np.delete(x, i))[:negatives] for i in range(n)])
    asked = np.concatenate([x[:, None], others], axis=1)
    return np.log(np.where(asked == y[:, None], 1 - noise + noise / n, noise / n))


def expected(n: int, noise: float, negatives: int) -> tuple[float, float, float]:
    """The channel's information, and what InfoNCE and leave-one-out read on it, in closed form."""
    right, wrong, k = 1 - noise + noise / n, noise / n, negatives
    lower = upper = 0.0
    for own, chance in ((1, right), (0, 1 - right)):
        for m in range(k + 1):  # so many of the K others are y
            weight = chance * math.comb(k, m) * (1 / n) ** m * (1 - 1 / n) ** (k - m)
            mass, own_chance = m * right + (k - m) * wrong, right if own else wrong
            lower += weight * math.log(own_chance * (k + 1) / (mass + own_chance))
            upper += weight * math.log(own_chance * k / mass)
    return math.log(n) + right * math.log(right) + (n - 1) * wrong * math.log(wrong), lower, upper


def test_the_known_channel() -> None:
    for negatives, low, high in ((64, 2.81, 5.23), (512, 3.81, 4.69)):
        truth, lower, upper = expected(1024, 0.3, negatives)
        interval = information(channel(1024, 0.3, negatives))
        assert truth == pytest.approx(4.244, abs=1e-3)
        assert lower < truth < upper
        assert interval.infonce.low <= lower <= interval.infonce.high
        assert interval.leave_one_out.low <= upper <= interval.leave_one_out.high
        assert (lower, upper) == pytest.approx((low, high), abs=CHANNEL_ATOL)
        assert (interval.negatives, interval.rows) == (negatives, 1024)


@given(tables)
@example(np.zeros((1, 2)))
@law
def test_infonce_never_exceeds_its_cap_nor_leave_one_out(logps: NDArray[np.float64]) -> None:
    interval = information(logps)
    assert interval.infonce.value <= math.log(logps.shape[1]) + EXACT
    assert interval.infonce.high <= math.log(logps.shape[1]) + EXACT
    lower, upper = row_bounds(logps)
    own_is_best = logps[:, 0] >= np.logaddexp.reduce(logps[:, 1:], axis=1) - np.log(logps.shape[1] - 1)
    # log p_0 − log mean with p_0 in it lies between 0 and the same without it.
    assert (lower[own_is_best] <= upper[own_is_best] + EXACT).all()
    assert (np.abs(lower) <= np.abs(upper) + EXACT).all()


@given(tables, st.floats(-50, 50))
@law
def test_a_constant_a_response_moves_nothing(logps: NDArray[np.float64], constant: float) -> None:
    for moved, bound in zip(row_bounds(logps + constant), row_bounds(logps), strict=True):
        np.testing.assert_allclose(moved, bound, atol=EXACT)


def test_the_order_of_the_others_moves_nothing() -> None:
    logps = np.random.default_rng(0).normal(-20, 5, (50, 9))
    turned = np.concatenate([logps[:, :1], logps[:, :0:-1]], axis=1)
    assert information(turned).infonce.value == pytest.approx(information(logps).infonce.value, abs=EXACT)


def test_independent_responses_tell_nothing() -> None:
    constant = np.repeat(np.random.default_rng(0).normal(-20, 5, (200, 1)), 9, axis=1)
    for figure in (information(constant).infonce, information(constant).leave_one_out):
        assert figure.value == pytest.approx(0, abs=EXACT)
    noise = information(np.random.default_rng(1).normal(-20, 0.3, (500, 32)))
    assert noise.infonce.low < 0.03
    assert noise.leave_one_out.high > -0.1
    assert abs(noise.infonce.value) < 0.1


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (3,), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\[n, K\\+1\\]"):
        information(np.zeros(shape))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        information(np.array([[0.0, -np.inf]]))


# The judge


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so it is\n#### $18", "18"),
        ("#### 18.", "18"),
        ("#### 18.00", "18"),
        ("#### 1,234", "1234"),
        ("#### 1234", "1,234"),
        ("#### $1,234,567.50", "1234567.5"),
        ("#### -5", "-5"),
        ("#### −5", "-5"),
        ("#### -$5", "$-5"),
        ("#### .5", "0.50"),
        ("#### 50 %", "50"),
        ("#### 18  ", "He has 9 + 9 = 18 eggs.\n#### 18"),
        ("#### Blue.", "blue"),
        ("#### NaN", "nan"),
        ("#### Infinity", "infinity"),
    ],
)
def test_equal_answers_are_right(response: str, answer: str) -> None:
    assert judge([response], [answer], PATTERN) == ([True], [False])


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 5", "-5"),
        ("#### 1", "1,234"),
        ("#### 1,23", "123"),
        ("#### 1 2", "12"),
        ("#### infinity", "1e999"),
        ("#### nan", "infinity"),
        ("#### 1e3", "13"),
        ("#### green", "blue"),
    ],
)
def test_other_answers_are_wrong_and_well_formed(response: str, answer: str) -> None:
    assert judge([response], [answer], PATTERN) == ([False], [False])


@given(st.text(alphabet="ab1#\n", max_size=8), st.text(alphabet="ab1", min_size=1, max_size=3))
@law
def test_a_malformed_answer_is_never_right(response: str, answer: str) -> None:
    (right,), (malformed,) = judge([response], [answer], PATTERN)
    assert not (right and malformed)
    assert malformed == ("####" not in response or not response.split("####", 1)[1].strip())


def test_a_pattern_a_response() -> None:
    patterns = [r"^(?P<answer>\w+)$", r"is (?P<answer>\w+)"]
    assert judge(["blue", "blue"], ["Blue", "blue"], patterns) == ([True, False], [False, True])


def test_an_optional_group_that_matched_nothing_is_malformed() -> None:
    assert judge(["A"], ["A"], r"A|(?P<answer>B)") == ([False], [True])


ANSWER = r"####\s*(?P<answer>.+)"


@pytest.mark.parametrize(
    "answer",
    ["72", "72.", "72,", "72;", "**72**", "**72.**", "`72`", "(72)", "72)", '"72"', "$72", "\\$72", "$72$", "72%",
     "72.00", "\\boxed{72}", "$\\boxed{72}$.", "\\text{72}", "$72 dollars", "72 km", "72km", "144/2", " 72 ", "+72"],
)  # fmt: skip
def test_what_stands_around_a_number_is_none_of_it(answer: str) -> None:
    assert judge([f"So\n#### {answer}"], ["72"], ANSWER) == ([True], [False])
    assert judge(["#### 72"], [f"So\n#### {answer}"], ANSWER) == ([True], [False])


@pytest.mark.parametrize(
    ("answer", "other"),
    [("7,2", "72"), ("7 2", "72"), ("-72", "72"), ("72/0", "72"), ("5 apples", "5 pears"), ("72 or 73", "72"),
     ("1,072", "72"), ("A", "B"), ("0.72", "72"), ("72e3", "72"), ("seventy-two", "72")],
)  # fmt: skip
def test_other_answers_stay_other(answer: str, other: str) -> None:
    assert judge([f"#### {answer}"], [other], ANSWER)[0] == [False]


def test_texts_and_fractions_are_compared_as_what_they_are() -> None:
    responses = ["#### (A)", "#### **Paris**.", "#### 1/3", "#### C++"]
    assert judge(responses, ["a", "paris", "2/6", "c++"], ANSWER)[0] == [True] * 4


@pytest.mark.parametrize(
    ("answers", "pattern", "message"),
    [
        (["18", None], PATTERN, "row 2: expected an answer to judge by, got none"),
        (["18", "18"], r"####\s*(.+)", r"row 1: pattern: expected a group `answer`"),
        (["18", "18"], r"(?P<answer>", "row 1: pattern: expected a regular expression, got .*"),
    ],
)
def test_a_rule_that_cannot_judge_is_named(answers: list[Any], pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(["#### 18"] * 2, answers, pattern)


# Log-probs


def naive_logps(model: Any, prompt: NDArray[np.uint32], response: NDArray[np.uint32]) -> float:
    """One row alone, a full softmax in float64."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    with torch.inference_mode():
        logps = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(logps[at - 1, ids[0, at]]) for at in range(max(len(prompt), 1), ids.shape[1]))


@pytest.mark.parametrize("batch_tokens", [1, 60, 16_384])
@pytest.mark.parametrize("logit_bytes", [1, 130 * 4 * 20, 1 << 30])
def test_response_logps_are_a_plain_loop_s(
    whole: Model, model: Any, batch_tokens: int, logit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_scoring, "LOGIT_BYTES", logit_bytes)
    monkeypatch.setitem(local_scoring.score.__kwdefaults__, "batch_tokens", batch_tokens)
    random = np.random.default_rng(0)
    sizes = [(5, 1), (1, 9), (30, 12), (7, 12), (0, 4), (3, 0), (12, 2), (1, 1), (0, 1)]
    prompts, responses = ([random.integers(6, 130, s[k]).astype(np.uint32) for s in sizes] for k in (0, 1))
    logps = response_logps(prompts, responses, whole)
    naive = [naive_logps(model.double(), p, r) for p, r in zip(prompts, responses, strict=True)]
    model.float()
    np.testing.assert_allclose(logps, naive, atol=SUM_ATOL, rtol=0)
    assert logps[[5, 8]].tolist() == [0, 0]  # empty; nothing predicts its one token
    for row in (0, 4):
        alone = response_logps(prompts[row : row + 1], responses[row : row + 1], whole)
        np.testing.assert_allclose(alone, logps[row : row + 1], atol=SUM_ATOL)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), max_size=30), st.integers(1, 200), st.integers(1, 90)
)
@law
def test_batches_hold_every_row_once_within_their_bounds(
    pairs: list[tuple[int, int]], batch_tokens: int, places: int
) -> None:
    sizes = [(prompt + response, response) for prompt, response in pairs]
    batches = list(local_scoring._batches(sizes, batch_tokens, places))
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = len(batch) * max(sizes[row][0] for row in batch)
        logits = len(batch) * (1 + max(sizes[row][1] for row in batch))
        assert len(batch) == 1 or (padded <= batch_tokens and logits <= places)


# The whole side


def test_a_side_is_json_and_says_what_it_rests_on(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, held_out: PairStore
) -> None:
    rule = Rule(answer="answer", pattern_column="pattern")
    side, table = evaluate(whole, prompts, held_out, kind="context", negatives=3, rule=rule, rows=10,
                           responses=responses, **SAMPLED)  # fmt: skip
    assert json.loads(json.dumps(side, allow_nan=False)) == side
    assert list(side) == [
        "infonce", "leave_one_out", "logps_chosen", "logps_rejected", "margin", "response_tokens", "truncated",
        "accuracy", "malformed", "accuracy_greedy",
    ]  # fmt: skip
    for figure in side.values():
        assert set(figure) == {"value", "low", "high", "interval", "rows"}
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert side["infonce"]["rows"] == 10
    assert side["accuracy"]["rows"] == table.height == prompts.height
    assert side["margin"]["rows"] == len(held_out)
    assert side["infonce"]["value"] <= math.log(4)
    assert table["infonce"].count() == 10
    for name in ("infonce", "leave_one_out", "accuracy", "malformed", "accuracy_greedy", "truncated"):
        assert table[name].cast(pl.Float64).mean() == pytest.approx(side[name]["value"])
    assert (table["prompt"] == compose(prompts["prompt"], prompts["context"], chat=True)).all()
    right = [answer in response.split() for answer, response in zip(prompts["answer"], table["response"], strict=True)]
    assert table["accuracy"].to_list() == right


def test_the_demo_s_model_tells_of_its_users_and_chosen_beats_rejected(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, held_out: PairStore
) -> None:
    side, _ = evaluate(whole, prompts, held_out, negatives=3, responses=responses, **SAMPLED)
    assert side["infonce"]["low"] > 0.5  # other questions' answers do not fit
    assert side["infonce"]["value"] <= side["leave_one_out"]["value"]
    assert side["logps_chosen"]["value"] - side["logps_rejected"]["value"] == pytest.approx(side["margin"]["value"])


def test_margins_are_of_groups(whole: Model, held_out: PairStore) -> None:
    chosen, rejected = (response_logps(*held_out.rows(side), whole) for side in ("chosen", "rejected"))
    by_group = measurement._margins(held_out, None, chosen, rejected)["margin"]
    rejected = iter(rejected)
    sizes = held_out.pairs["rejected"].list.len()
    margins = [c - np.mean([next(rejected) for _ in range(size)]) for c, size in zip(chosen, sizes, strict=True)]
    assert by_group.to_list() == pytest.approx(margins)
    assert next(rejected, None) is None


def test_held_out_pairs_of_another_tokenizer_are_refused(whole: Model, held_out: PairStore) -> None:
    other = copy.deepcopy(whole.tokenizer)
    other.chat_template += "{# another #}"
    measured = Model.of(whole.weights, other)
    with pytest.raises(ValueError, match=r"held_out: expected token ids of .*'s tokenizer and chat template"):
        evaluate(measured, pl.DataFrame({"prompt": ["a", "b"]}), held_out, negatives=1)


def test_held_out_pairs_stand_in_the_row_of_their_prompt(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, held_out: PairStore
) -> None:
    shuffled = prompts.sample(fraction=1, shuffle=True, seed=3)
    names = ["logps_chosen", "logps_rejected", "margin"]
    logps = [response_logps(*held_out.rows(side), whole) for side in ("chosen", "rejected")]
    groups = measurement._margins(held_out, None, *logps)
    for asked, table in (
        (prompts, evaluate(whole, prompts, held_out, negatives=1, responses=responses, **SAMPLED)[1]),
        (shuffled, evaluate(whole, shuffled, held_out, negatives=1, **SAMPLED)[1]),
    ):
        rows = pl.concat([asked.select("prompt_id"), table.select(names)], how="horizontal").drop_nulls()
        # Scored in other batches, whose sums are rounded in another order.
        assert_frame_equal(rows.sort("prompt_id"), groups.sort("prompt_id"), rel_tol=0, abs_tol=SUM_ATOL)
    assert change(table, table)["margin"].rows == len(held_out)


def test_pairs_beyond_the_context_are_left_out_and_counted(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, held_out: PairStore,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lengths = held_out.lengths()
    ends = lengths.select(pl.col("prompt") + pl.max_horizontal("chosen", pl.col("rejected").list.max())).to_series()
    context, long = int(ends.max()) - 1, int((ends == ends.max()).sum())  # type: ignore[arg-type]
    monkeypatch.setattr(whole.config, "max_position_embeddings", context)
    side, _ = evaluate(whole, prompts, held_out, negatives=1, responses=responses, **SAMPLED)
    assert side["margin"]["rows"] == len(held_out) - long
    assert f"{long} of {len(held_out)} pairs are longer than the {context} tokens" in capsys.readouterr().out
    monkeypatch.setattr(whole.config, "max_position_embeddings", int(ends.min()) - 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"held_out: .* pairs are longer than .*; give it a longer context"):
        evaluate(whole, prompts, held_out, negatives=1, responses=responses, **SAMPLED)


def test_pairs_of_other_prompts_stand_in_no_row(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, held_out: PairStore
) -> None:
    few = prompts.filter(pl.col("prompt_id") != held_out.pairs["prompt_id"][0])
    few = few.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    side, table = evaluate(whole, few, held_out, negatives=1, **SAMPLED)
    missing = held_out.pairs["prompt_id"].max() == prompts.height - 1
    assert missing == ("margin" not in table.columns)
    assert side["margin"]["rows"] == len(held_out)
    twice = PairStore(held_out.prompts, held_out.responses, held_out.pieces * 2, 0, held_out.fingerprint)
    side, table = evaluate(whole, prompts, twice, negatives=1, responses=responses, **SAMPLED)
    assert "margin" not in table.columns
    assert side["margin"]["rows"] == 2 * len(held_out)


def test_candidate_logps_are_a_plain_loop_s(
    prompts: pl.DataFrame, model: Any, tokenizer: Any, responses: pl.DataFrame
) -> None:
    side, table = evaluate(
        Model.of(model, tokenizer), prompts, kind="context", negatives=2, rows=4, responses=responses, **SAMPLED
    )
    drawn = contrast(prompts, kind="context", negatives=2)["counterpart_id"]
    terms = []
    for row in range(4):
        response = np.array([*tokenizer(table["response"][row])["input_ids"], tokenizer.eos_token_id])
        asked = []
        for context in (row, *drawn[2 * row : 2 * row + 2]):
            system = {"role": "system", "content": prompts["context"][context]}
            user = {"role": "user", "content": prompts["prompt"][row]}
            text = tokenizer.apply_chat_template([system, user], tokenize=False, add_generation_prompt=True)
            asked.append(naive_logps(model, np.array(tokenizer(text)["input_ids"]), response))
        terms.append(asked[0] - (np.logaddexp.reduce(asked) - math.log(3)))
    np.testing.assert_allclose(table["infonce"][:4], terms, atol=SUM_ATOL)
    assert side["infonce"]["value"] == pytest.approx(np.mean(terms), abs=SUM_ATOL)


def test_responses_passed_in_are_not_generated_again(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"negatives": 1, "rows": 3, **SAMPLED}
    side, table = evaluate(whole, prompts, **options)
    monkeypatch.setattr(measurement, "generate", lambda *_, **__: pytest.fail("responses were generated"))
    again, table_again = evaluate(whole, prompts, responses=responses, **options)
    assert again == side
    assert table_again.equals(table)
    assert "margin" not in side
    assert "accuracy" not in side


def test_empty_responses_are_left_out_and_counted(
    prompts: pl.DataFrame, whole: Model, model: Any, tokenizer: Any, responses: pl.DataFrame
) -> None:
    blank = responses.with_columns(response=pl.when(pl.col("response_id") < 5).then(pl.lit(" ")).otherwise("response"))
    side, table = evaluate(whole, prompts, negatives=1, responses=blank, **SAMPLED)
    assert side["infonce"]["rows"] == prompts.height - 5
    assert side["response_tokens"]["rows"] == prompts.height
    assert table["infonce"].is_null().sum() == 5
    with pytest.raises(ValueError, match="no held-out row"):
        evaluate(
            Model.of(model, tokenizer),
            prompts,
            negatives=1,
            responses=responses.with_columns(response=pl.lit("")),
            **SAMPLED,
        )


def test_candidates_beyond_the_context_are_left_out(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame
) -> None:
    drawn = contrast(prompts, kind="context", negatives=1)["counterpart_id"]
    long = responses.with_columns(
        response=pl.when(pl.col("response_id") == 3).then(pl.lit("i " * 100)).otherwise("response")
    )
    side, table = evaluate(whole, prompts, kind="context", negatives=1, responses=long, **SAMPLED)
    assert drawn[3] != 3
    assert table["infonce"].is_null().arg_true().to_list() == [3]
    assert side["infonce"]["rows"] == prompts.height - 1


def test_a_missing_response_or_column_is_named(prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match="one to each of 24 prompts, 2 have none, first in row 23"):
        evaluate(whole, prompts, responses=responses[:-2], **SAMPLED)
    with pytest.raises(ValueError, match=r"rule\.answer: expected a column .*got 'key'"):
        evaluate(whole, prompts, rule=Rule(answer="key", pattern=PATTERN), **SAMPLED)


def test_what_cannot_be_measured_is_refused_before_anything_is_generated(
    prompts: pl.DataFrame, whole: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "generate", lambda *_, **__: pytest.fail("responses were generated"))
    keyed = prompts.with_columns(key=pl.lit("tea"), pattern=pl.lit("("), none=pl.lit(None, pl.String))
    for refused, message in [
        ({"negatives": 24}, "negatives: expected 1 to 23"),
        ({"kind": "context", "prompts": prompts.drop("context")}, "needs the column 'context'"),
        ({"rule": Rule(answer="key", pattern_column="pattern")}, "row 1: pattern: expected a regular expression"),
        ({"rule": Rule(answer="none", pattern=PATTERN)}, "row 1: expected an answer to judge by"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluate(whole, **{"prompts": keyed, **refused, **SAMPLED})


def test_without_rows_and_negatives_they_are_those_of_recipes(
    prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Evaluation().rows == measurement.ROWS
    monkeypatch.setitem(evaluate.__kwdefaults__, "rows", 5)
    asked: list[int] = []
    encoded = measurement.encode_prompts
    monkeypatch.setattr(
        measurement, "encode_prompts", lambda texts, *how: asked.append(len(texts)) or encoded(texts, *how)
    )
    side, _ = evaluate(whole, prompts, responses=responses, **SAMPLED)
    assert 1 <= side["infonce"]["rows"] <= 5
    # Every prompt is encoded once, though each stands beside all of the 5 rows.
    assert asked == [prompts.height]


def test_prompts_need_no_number(prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame) -> None:
    options: dict[str, Any] = {"negatives": 1, "rows": 3, "responses": responses, **SAMPLED}
    assert evaluate(whole, prompts.drop("prompt_id"), **options)[0] == evaluate(whole, prompts, **options)[0]


def test_change_is_paired(prompts: pl.DataFrame, whole: Model, responses: pl.DataFrame) -> None:
    _, before = evaluate(whole, prompts, negatives=2, responses=responses, **SAMPLED)
    after = before.with_columns(pl.col("infonce") + 0.1)
    changes = change(before, after)
    assert set(changes) == {
        "infonce", "leave_one_out", "response_tokens", "truncated", "information_at_least", "information_at_most",
    }  # fmt: skip
    assert (changes["infonce"].low, changes["infonce"].high) == pytest.approx((0.1, 0.1))
    assert changes["leave_one_out"].value == 0
    fewer = after.with_columns(pl.when(pl.int_range(pl.len()) > 3).then("infonce").alias("infonce"))
    assert change(before, fewer)["infonce"].rows == before["infonce"].count() - 4
    with pytest.raises(ValueError, match="different prompts"):
        change(before, after.reverse())


def test_merged_borders_are_scored_as_training_would(tmp_path: Path) -> None:
    stories = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
    if not stories.is_dir():
        pytest.skip(f"{stories} is not there: a text model whose tokens can melt over the border")
    tokenizer, model = load_tokenizer(str(stories)), load_model(str(stories))
    prompts = pl.DataFrame({"prompt": ["Once upon a ti", "One day, Tom", "Lily had a big red ba"]})
    endings = ["me, there was a cat.", " went home.", "ll and a doll."]
    responses = compose_requests(prompts, chat=False).prompts.with_columns(
        pl.Series("response", endings), response_tokens=pl.lit(9, pl.UInt32), truncated=pl.lit(False)
    )
    options: dict[str, Any] = {"negatives": 1, "responses": responses, "max_new_tokens": 16}
    side, table = evaluate(Model.of(model, tokenizer), prompts, **options)
    drawn = contrast(prompts, negatives=1)["counterpart_id"]
    for row in range(3):
        scores = []
        for prompt in (prompts["prompt"][row], prompts["prompt"][int(drawn[row])]):
            alone = tokenizer(prompt)["input_ids"]
            joint = tokenizer(prompt + endings[row] + tokenizer.eos_token)["input_ids"]
            border = next((i for i, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), len(alone))
            scores.append(naive_logps(model, np.array(joint[:border]), np.array(joint[border:])))
        term = scores[0] - (np.logaddexp.reduce(scores) - math.log(2))
        assert table["infonce"][row] == pytest.approx(term, abs=SUM_ATOL)
    assert side["infonce"]["rows"] == 3


def test_an_answer_that_is_nan_in_a_file_is_a_missing_one(tmp_path: Path) -> None:
    """A Parquet file of pandas has NaN where a number is missing; no response is compared with the word."""
    prompts = pl.DataFrame({"answer": [72.0, float("nan")]})
    prompts.write_parquet(tmp_path / "p.parquet")
    rule = Rule(answer="answer", pattern=r"(?P<answer>\S+)$")
    with pytest.raises(ValueError, match="row 2: expected an answer to judge by, got none"):
        measurement._judge(["72", "nan"], pl.read_parquet(tmp_path / "p.parquet"), rule)
