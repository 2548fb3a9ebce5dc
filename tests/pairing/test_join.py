"""Laws of pairs: each row is a pair or dropped by name, nothing is edited, and the control leaves all to chance."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo import contrast, pairs
from mipo.io import tables
from mipo.pairing.controls import shuffle
from mipo.pairing.export import export
from mipo.pairing.filter import ResponseStates, add_reasons, dropped, keep, write_with_reasons
from mipo.pairing.join import join, links_of
from mipo.pairing.stored import StoredPairs
from mipo.pairing.texts import COLUMNS
from mipo.prompts.compose import compose
from mipo.responses.requests import compose_requests, counter_prompts, link

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
prompts_ = st.lists(texts.filter(lambda text: text.strip()), min_size=2, max_size=7)
answers_or_none = st.none() | st.sampled_from(["yes", "no", " yes ", "", "\n"]) | texts
shapes = pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])


def everything(frame: pl.DataFrame, drawn: pl.DataFrame, chat: bool) -> list[Any]:
    """Every distinct prompt and counter-prompt, as a model is asked."""
    own = compose(frame["prompt"], frame.get_column("context", default=None), chat=chat).to_list()
    every = [*own, *counter_prompts(frame, drawn, chat=chat).drop_nulls().to_list()]
    return [one for at, one in enumerate(every) if one not in every[:at]]


def answered(frame: pl.DataFrame, drawn: pl.DataFrame, chat: bool) -> pl.DataFrame:
    """A response to everything that is asked: "answer 0", "answer 1", …"""
    every = everything(frame, drawn, chat)
    return pl.DataFrame({"prompt": every, "response": [f"answer {i}" for i in range(len(every))]})


def linked_rows(frame: pl.DataFrame, drawn: pl.DataFrame, responses: pl.DataFrame, **how: Any) -> pl.DataFrame:
    """All rows as pairs of row numbers, with a reason where a row is none."""
    return pl.concat(links_of(frame, drawn, responses, ResponseStates.of(responses, 7), **how))


def content(turn: Any) -> Any:
    return turn[0]["content"] if isinstance(turn, list) else turn


# Rows in are pairs and drops


@shapes
@given(st.data(), prompts_, st.sampled_from(["random", "context", "dropped", "partial"]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_counterpart_is_a_pair_of_the_right_answers_or_dropped_by_name(
    chat: bool, data: st.DataObject, prompts: list[str], kind: Any, seed: int
) -> None:
    n = len(prompts)
    frame = pl.DataFrame({"prompt": prompts, "context": data.draw(st.lists(texts, min_size=n, max_size=n))})
    negatives = data.draw(st.integers(1, min(3, n - 1))) if kind in ("random", "context") else 1
    drawn = contrast(frame, kind=kind, negatives=negatives, seed=seed)
    every = everything(frame, drawn, chat)
    answers = data.draw(st.lists(answers_or_none, min_size=len(every), max_size=len(every)))
    there = data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, unique=True))
    responses = pl.DataFrame(
        {"prompt": [every[i] for i in there], "response": pl.Series([answers[i] for i in there], dtype=pl.String)}
    )
    linked = linked_rows(frame, drawn, responses)
    table = pairs(frame, drawn, responses)
    assert linked.height == drawn.height == table.height + sum(dropped(linked).values())
    assert table.columns == list(COLUMNS)
    ids = ["prompt_id", "negative", "kind", "chosen_id", "rejected_id"]
    assert keep(linked).select(ids).equals(table.select(ids))
    batches = linked_rows(frame, drawn, responses, batch_rows=data.draw(st.integers(1, 5)))
    assert batches.equals(linked)
    counter = counter_prompts(frame, drawn, chat=chat).to_list()
    own = compose(frame["prompt"], frame["context"], chat=chat).to_list()
    answer = {json.dumps(every[i]): answers[i] for i in there}
    rest = iter(table.iter_rows(named=True))
    for row, one in enumerate(linked.iter_rows(named=True)):
        prompt, other = own[row // negatives], counter[row]
        chosen, rejected = answer.get(json.dumps(prompt)), answer.get(json.dumps(other))
        assert one["reason"] == expected_reason(drawn["reason"][row], chosen, rejected)
        if one["reason"] is None:
            pair = next(rest)
            assert (pair["prompt"], content(pair["chosen"]), content(pair["rejected"])) == (prompt, chosen, rejected)
            assert pair["chosen_id"] == one["asked_id"] == there.index(every.index(prompt))
            assert pair["rejected_id"] == there.index(every.index(other))
    assert next(rest, None) is None


def expected_reason(drawn: str | None, chosen: str | None, rejected: str | None) -> str | None:
    if drawn:
        return drawn
    if chosen is None or rejected is None:
        return "no response"
    # Four separators that Python strips are no white space in Unicode.
    bare = [text.replace("\x1c", "_").replace("\x1d", "_").replace("\x1e", "_").replace("\x1f", "_").strip()
            for text in (chosen, rejected)]  # fmt: skip
    if "" in bare:
        return "empty response"
    return "chosen and rejected are equal" if bare[0] == bare[1] else None


FRAME = pl.DataFrame({"prompt": ["a", "b", "c"], "context": ["x", "y", "z"]})


@shapes
def test_both_formats_are_trls(chat: bool) -> None:
    from trl.data_utils import is_conversational

    drawn = contrast(FRAME, negatives=2)
    table = pairs(FRAME, drawn, answered(FRAME, drawn, chat))
    assert table.height == 6
    assert table["prompt_id"].to_list() == [0, 0, 1, 1, 2, 2]
    assert table["negative"].to_list() == [0, 1] * 3
    assert (table["chosen_id"] == table["prompt_id"]).all()
    assert table["rejected_id"].to_list() == drawn["counterpart_id"].to_list()
    row = table.select("prompt", "chosen", "rejected").row(0, named=True)
    assert is_conversational(row) == chat
    if chat:
        assert row["prompt"] == [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}]
        assert row["chosen"] == [{"role": "assistant", "content": "answer 0"}]
    else:
        assert (row["prompt"], row["chosen"]) == ("x\n\na", "answer 0")
    assert not table["chosen_truncated"].any()


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        (["same", "same", "other"], "chosen and rejected are equal"),
        (["same", " same\n", "other"], "chosen and rejected are equal"),
        ([" ", "b", "other"], "empty response"),
        ([None, "b", "other"], "no response"),
    ],
)
def test_drops_by_name(responses: list[str | None], reason: str) -> None:
    frame = pl.DataFrame({"prompt": ["p", "q"]})
    table = pl.DataFrame({"prompt": ["p", "q", "r"], "response": responses})
    linked = linked_rows(frame, contrast(frame), table)
    assert dropped(linked) == {reason: 2}
    assert keep(linked).height == 0


def test_what_was_not_drawn_keeps_its_reason_and_the_rest_is_paired() -> None:
    frame = pl.DataFrame({"prompt": ["a", "A", "b"]})
    drawn = contrast(frame, negatives=2)
    linked = linked_rows(frame, drawn, answered(frame, drawn, False))
    assert dropped(linked) == {"fewer than 2 rows with another prompt": 4}
    table = pairs(frame, drawn, answered(frame, drawn, False))
    assert table["prompt_id"].to_list() == keep(linked)["prompt_id"].to_list() == [2, 2]
    assert set(table["rejected"]) == {"answer 0", "answer 1"}


# Responses from elsewhere


def test_a_table_of_prompts_and_responses_from_elsewhere() -> None:
    messages = [[{"content": "a", "role": "user"}], [{"content": "b", "role": "user"}]]
    elsewhere = pl.DataFrame({"note": [1, 2], "response": ["A", "B"], "prompt": messages})
    frame = pl.DataFrame({"prompt": ["a", "b"]})
    table = pairs(frame, contrast(frame), elsewhere)
    assert [content(turn) for turn in table["chosen"].to_list()] == ["A", "B"]
    named = elsewhere.with_columns(response_id=pl.Series([70, 80]), truncated=pl.Series([True, None]))
    table = pairs(frame, contrast(frame), named)
    assert (table["chosen_id"].to_list(), table["rejected_id"].to_list()) == ([70, 80], [80, 70])
    assert table["chosen_truncated"].to_list() == [True, False]
    assert table["rejected_truncated"].to_list() == [False, True]
    served = elsewhere.with_columns(finish_reason=pl.Series(["length", "stop"]))
    table = pairs(frame, contrast(frame), served)
    assert table["chosen_truncated"].to_list() == [True, False]
    assert pairs(frame, contrast(frame), named.with_columns(served["finish_reason"].reverse())).equals(
        pairs(frame, contrast(frame), named)
    )


def test_several_responses_to_one_prompt_are_refused() -> None:
    table = pl.DataFrame({"prompt": ["a", "b", "c", "b"], "response": list("wxyz")})
    with pytest.raises(ValueError, match="2 rows share their prompts, the first is row 2; give one response"):
        pairs(FRAME, contrast(FRAME), table)


def test_other_tables_are_refused() -> None:
    drawn = contrast(FRAME)
    table = answered(FRAME, drawn, False)
    for column in ("prompt", "response"):
        with pytest.raises(ValueError, match=f"responses: no column '{column}'; it has"):
            pairs(FRAME, drawn, table.drop(column))
    with pytest.raises(ValueError, match="prompt_id 2: not among the prompts"):
        pairs(FRAME.head(2), drawn, table)
    frame = pl.DataFrame({"prompt": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]})
    with pytest.raises(ValueError, match=r"expected chat messages .* got text"):
        pairs(frame, contrast(frame), pl.DataFrame({"prompt": ["a"], "response": ["b"]}))


# Tables larger than a batch


def wide(n: int, kind: Any = "random") -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Prompts of which some are equal, their counterparts and responses, some of them missing, equal or empty."""
    frame = pl.DataFrame({"prompt": [f"p{i % (n - 5)}. q" for i in range(n)], "context": [f"c{i}" for i in range(n)]})
    drawn = contrast(frame, kind=kind, negatives=1 if kind in ("partial", "dropped") else 2, seed=3)
    answers = answered(frame, drawn, False).sample(fraction=0.9, shuffle=True, seed=1)
    values = [["", "same", f"answer {i}", f"answer {i}"][i % 4] for i in range(answers.height)]
    return frame, drawn, answers.with_columns(response=pl.Series(values))


@pytest.mark.parametrize("kind", ["random", "context", "dropped", "partial"])
@pytest.mark.parametrize("batch_rows", [1, 7, 40])
def test_a_join_in_batches_writes_the_pairs_and_accounts_for_every_row(
    tmp_path: Path, kind: Any, batch_rows: int
) -> None:
    whole = wide(40, kind)
    for name, table in zip("abc", whole, strict=True):
        table.write_parquet(tmp_path / f"{name}.parquet", row_group_size=6)
    scanned = [pl.scan_parquet(tmp_path / f"{name}.parquet") for name in "abc"]
    linked, expected = linked_rows(*whole), pairs(*whole)
    counts = join(*scanned, tmp_path / "out" / "pairs.parquet", batch_rows=batch_rows)
    assert counts == (linked.height, expected.height, dropped(linked))
    assert list(counts[2].items()) == list(dropped(linked).items())
    assert len(counts[2]) > 1
    assert pl.read_parquet(tmp_path / "out" / "pairs.parquet").equals(expected)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pairs.parquet"]
    assert pairs(*scanned).equals(expected)
    batches = list(links_of(*scanned, ResponseStates.of(scanned[2], batch_rows), batch_rows=batch_rows))
    assert pl.concat(batches).equals(linked)
    assert all(batch.height <= batch_rows for batch in batches)


def test_counterparts_in_any_order_and_prompts_with_other_ids() -> None:
    frame, drawn, answers = wide(30)
    other = pl.Series(range(1000, 970, -1), dtype=pl.UInt64)
    named = [
        pl.col(c).replace_strict(pl.int_range(30, eager=True), other).alias(c) for c in drawn.columns if "_id" in c
    ]
    drawn = (
        drawn.with_columns(pl.col("counterpart_id").fill_null(0)).with_columns(named).sample(fraction=1, shuffle=True)
    )
    frame = frame.with_columns(prompt_id=other).sample(fraction=1, shuffle=True)
    assert linked_rows(frame, drawn, answers, batch_rows=4).equals(linked_rows(frame, drawn, answers))


def test_a_join_in_batches_refuses_what_a_join_at_once_refuses(tmp_path: Path) -> None:
    frame, drawn, answers = wide(20)
    twice = pl.concat([answers, answers[4:6]])
    wrong = [(frame, drawn, twice), (frame.head(15), drawn, answers), (frame, drawn, answers.drop("response"))]
    wrong += [(frame.with_columns(prompt_id=pl.int_range(pl.len()) % 19), drawn, answers)]
    for each in wrong:
        with pytest.raises(ValueError, match=r"not among the prompts|share their prompts|no column|distinct"):
            pairs(*each)
        with pytest.raises(ValueError, match=r"not among the prompts|share their prompts|no column|distinct"):
            join(*each, tmp_path / "pairs.parquet", batch_rows=3)
    with pytest.raises(ValueError, match="4 rows share their prompts, the first is row 5; give one response"):
        join(frame, drawn, twice, tmp_path / "pairs.parquet", batch_rows=3)
    with pytest.raises(ValueError, match="batch_rows: expected at least 1, got 0"):
        join(frame, drawn, answers, tmp_path / "pairs.parquet", batch_rows=0)
    with pytest.raises(ValueError, match=r"expected a name that ends in \.jsonl or \.parquet"):
        join(frame, drawn, answers, tmp_path / "pairs.csv")
    assert list(tmp_path.iterdir()) == []


# Pairs of mipo's own: row numbers from the draw to the trainer


@shapes
@pytest.mark.parametrize("kind", ["random", "context", "dropped", "partial"])
def test_what_was_linked_when_asked_is_what_a_join_of_texts_finds(tmp_path: Path, kind: Any, chat: bool) -> None:
    frame = pl.DataFrame({"prompt": [f"p{i % 35}. q" for i in range(40)], "context": [f"c{i}" for i in range(40)]})
    drawn = contrast(frame, kind=kind, negatives=1 if kind in ("partial", "dropped") else 2, seed=3)
    requests = compose_requests(frame, drawn, chat=chat)
    values = [["", "same", f"answer {i}", None][i % 4] for i in range(requests.prompts.height)]
    cut = pl.Series([i % 3 == 0 for i in range(len(values))])
    responses = requests.prompts.with_columns(response=pl.Series(values), truncated=cut)[: len(values) - 3]
    linked = add_reasons(link(frame, drawn, requests), ResponseStates.of(responses, 7))
    assert linked.drop("asked_id", "chosen_id", "rejected_id").equals(
        linked_rows(frame, drawn, responses).drop("asked_id", "chosen_id", "rejected_id")
    )
    expected = pairs(frame, drawn, responses)
    assert expected.height

    (tmp_path / "responses").mkdir()
    for number in range(3):
        tables.write([responses[number::3]], tmp_path / "responses" / f"part-{number}.parquet")
    links, states = link(frame, drawn, requests), ResponseStates.of(responses, 7)
    rows = write_with_reasons(links, states, tmp_path / "pairs.parquet", batch_rows=9)
    assert rows == (drawn.height, expected.height, dropped(linked))
    for name in ("", "pairs.parquet"):
        stored = StoredPairs.find(tmp_path / name)
        assert stored is not None
        assert stored.height() == expected.height
        assert pl.concat(stored.batches(5)).equals(expected)
        assert pl.concat(stored.batches(5, start=3, stop=11)).equals(expected[3:11])
    export(stored, tmp_path / "pairs.jsonl")
    export(expected, tmp_path / "expected.jsonl")
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_a_file_of_texts_is_no_stored_pairs(tmp_path: Path) -> None:
    (tmp_path / "responses").mkdir()
    groups_of(3, 1, False).write_parquet(tmp_path / "pairs.parquet")
    assert StoredPairs.find(tmp_path) is None
    assert StoredPairs.find(tmp_path / "absent") is None


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_that_are_no_pairs_stay_as_they_are_in_the_control(valid: list[bool], seed: int) -> None:
    n = len(valid)
    rows = pl.DataFrame({"prompt_id": range(n), "chosen_id": range(n), "rejected_id": range(n, 2 * n)})
    reason = pl.Series("reason", [None if one else "no response" for one in valid], dtype=pl.String)
    linked = rows.with_columns(reason)
    shuffled = shuffle(linked, seed=seed)
    assert shuffled.filter(reason.is_not_null()).equals(linked.filter(reason.is_not_null()))
    assert keep(shuffled).equals(shuffle(keep(linked), seed=seed))


# The control


def groups_of(n: int, negatives: int, chat: bool) -> pl.DataFrame:
    frame = pl.DataFrame({"prompt": [f"p{i}" for i in range(n)]})
    drawn = contrast(frame, negatives=negatives)
    return pairs(frame, drawn, answered(frame, drawn, chat))


@shapes
@given(st.integers(2, 20), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_shuffling_swaps_exactly_half_and_is_decided_by_the_seed(chat: bool, n: int, seed: int) -> None:
    table = groups_of(n, 1, chat).with_columns(chosen_truncated=pl.int_range(n) % 3 == 0)
    shuffled = shuffle(table, seed=seed)
    assert shuffled.schema == table.schema
    assert shuffled.equals(shuffle(table, seed=seed))
    swaps = 0
    for before, after in zip(table.iter_rows(named=True), shuffled.iter_rows(named=True), strict=True):
        sides = ("", "_id", "_truncated")
        turned = before | {f"chosen{s}": before[f"rejected{s}"] for s in sides}
        turned |= {f"rejected{s}": before[f"chosen{s}"] for s in sides}
        assert after in (before, turned)
        swaps += after == turned
    assert swaps == n // 2


@given(st.integers(2, 9), st.integers(2, 4), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_each_sample_of_a_prompt_is_swapped_by_itself(prompts: int, samples: int, seed: int) -> None:
    n = prompts * samples
    ids = pl.int_range(n, eager=True)
    table = pl.DataFrame({"prompt_id": ids // samples, "chosen_id": ids, "rejected_id": ids + n})
    shuffled = shuffle(table, seed=seed)
    swapped = shuffled["chosen_id"] >= n
    assert swapped.sum() == n // 2
    assert (shuffled["chosen_id"] % n == ids).all()
    assert (shuffled["rejected_id"] % n == ids).all()
    assert ((shuffled["rejected_id"] < n) == swapped).all()


@given(st.integers(4, 12), st.integers(2, 3), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_of_several_negatives_each_answer_is_as_likely_to_be_chosen(n: int, negatives: int, seed: int) -> None:
    groups = groups_of(n, negatives, True)
    shuffled = shuffle(groups, seed=seed)
    changed = 0
    for prompt in range(n):
        before, after = (table.filter(pl.col("prompt_id") == prompt) for table in (groups, shuffled))
        assert after["chosen_id"].n_unique() == 1, "still one chosen response a prompt"
        answers = [{table["chosen_id"][0], *table["rejected_id"]} for table in (before, after)]
        assert answers[0] == answers[1], "the same answers as before"
        assert len(answers[1]) == negatives + 1
        changed += after["chosen_id"][0] != before["chosen_id"][0]
    assert changed == n * negatives // (negatives + 1)


def test_which_rows_are_swapped_is_left_to_chance() -> None:
    table = groups_of(10, 1, False)
    swapped = [(shuffle(table, seed=seed)["chosen_id"] != table["chosen_id"]).to_list() for seed in range(400)]
    share = [sum(column) / 400 for column in zip(*swapped, strict=True)]
    assert all(0.35 < one < 0.65 for one in share), share  # 0.5 ± 6 standard deviations
    assert shuffle(table.clear(), seed=0).equals(table.clear())


# Exports


@shapes
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["trl", "openrlhf"])
def test_trl_and_openrlhf_read_three_columns(tmp_path: Path, chat: bool, suffix: str, name: Any) -> None:
    import datasets

    table = groups_of(3, 2, chat)
    export(table, tmp_path / f"pairs{suffix}", format=name)
    kind = {".jsonl": "json", ".parquet": "parquet"}[suffix]
    files, cache = str(tmp_path / f"pairs{suffix}"), str(tmp_path / "cache")
    rows = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=cache)
    assert rows.to_list() == table.select("prompt", "chosen", "rejected").to_dicts()


@shapes
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nemo_rl_reads_ranked_completions(tmp_path: Path, chat: bool, suffix: str) -> None:
    table = groups_of(2, 1, chat)
    path = tmp_path / f"pairs{suffix}"
    export(table, str(path), format="nemo-rl")
    rows = (
        pl.read_parquet(path).to_dicts()
        if suffix == ".parquet"
        else list(map(json.loads, path.read_text().splitlines()))
    )
    assert rows == [
        {
            "context": [{"role": "user", "content": f"p{i}"}],
            "completions": [
                {"rank": 0, "completion": [{"role": "assistant", "content": f"answer {i}"}]},
                {"rank": 1, "completion": [{"role": "assistant", "content": f"answer {1 - i}"}]},
            ],
        }
        for i in range(2)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["trl", "nemo-rl"])
def test_an_export_in_batches_has_the_same_rows(tmp_path: Path, suffix: str, name: Any) -> None:
    table = groups_of(9, 2, True)
    table.write_parquet(tmp_path / "groups.parquet", row_group_size=5)
    export(table, tmp_path / f"once{suffix}", format=name)
    export(pl.scan_parquet(tmp_path / "groups.parquet"), tmp_path / f"batches{suffix}", format=name, batch_rows=4)
    once, batches = (tmp_path / f"{how}{suffix}" for how in ("once", "batches"))
    if suffix == ".jsonl":
        assert batches.read_bytes() == once.read_bytes()
    else:
        assert pl.read_parquet(batches).equals(pl.read_parquet(once))


def test_exports_to_other_names_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    table = groups_of(2, 1, True)
    with pytest.raises(ValueError, match=r"expected a name that ends in \.jsonl or \.parquet"):
        export(table, tmp_path / "pairs.csv")
    other: Any = "other"
    with pytest.raises(ValueError, match="format: expected one of trl, openrlhf, nemo-rl, got 'other'"):
        export(table, tmp_path / "pairs.jsonl", format=other)
    assert list(tmp_path.iterdir()) == []
