"""Laws of the draw: never a row itself, never an equal prompt, always what was asked for, or a reason."""

import itertools
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mipo import contrast, counterparts
from mipo.negatives.partial import part
from mipo.prompts.equality import normalised
from mipo.prompts.rows import read
from mipo.responses.requests import counter_prompts

seeds = st.integers(0, 2**64 - 1)
# The same few words again and again, as people write them: other case, width, spaces, composition, ligatures.
VARIANTS = [
    "straße", "STRASSE", "Strasse", "ＳＴＲＡＳＳＥ", " strasse ", "ﬁne", "FINE", "fi ne", "fi\u3000\n ne",
    "caf\u00e9", "cafe\u0301", "CAFÉ", "ΟΔΟΣ", "οδος", "οδοσ", "\u0390", "\u03aa\u0301", "a", "A", "ａ", "b",
]  # fmt: skip
duplicated = st.sampled_from(VARIANTS)


def same(text: str, other: str) -> bool:
    """The obvious check, in Python: equal up to Unicode form, case and white space."""

    def plain(text: str) -> str:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return re.sub(r"\s+", " ", folded).strip()

    return plain(text) == plain(other)


# No row faces itself


@pytest.mark.parametrize("kind", ["random", "context"])
@pytest.mark.parametrize("n", range(2, 9))
def test_no_self_pair_in_a_thousand_seeds(kind: Any, n: int) -> None:
    frame = pl.DataFrame({"prompt": [f"p{i}" for i in range(n)], "context": [f"c{i}" for i in range(n)]})
    for seed in range(1_000):
        drawn = contrast(frame, kind=kind, seed=seed)
        assert (drawn["counterpart_id"] != drawn["prompt_id"]).all()
        assert drawn["reason"].null_count() == n


# No two equal prompts face each other


@given(st.lists(duplicated, min_size=2, max_size=14), st.sampled_from(["random", "context"]), seeds, st.data())
@settings(max_examples=200, deadline=None)
def test_equal_texts_never_face_each_other(texts: list[str], kind: Any, seed: int, data: st.DataObject) -> None:
    negatives = data.draw(st.integers(1, min(3, len(texts) - 1)))
    other = [f"q{i}" for i in range(len(texts))]
    columns = (
        {"prompt": texts, "context": other} if kind == "random" else {"prompt": ["q"] * len(texts), "context": texts}
    )
    drawn = contrast(pl.DataFrame(columns), kind=kind, seed=seed, negatives=negatives)
    for row, text in enumerate(texts):
        mine = drawn.filter(pl.col("prompt_id") == row)
        admissible = [i for i, other in enumerate(texts) if not same(text, other)]
        if len(admissible) < negatives:
            unlike = "prompt" if kind == "random" else kind
            lacking = f"fewer than {negatives} row{'s' * (negatives > 1)} with another {unlike}"
            assert mine["reason"].to_list() == [lacking] * negatives
            assert mine["counterpart_id"].null_count() == negatives
        else:
            assert mine["reason"].null_count() == negatives
            assert mine["counterpart_id"].n_unique() == negatives
            assert set(mine["counterpart_id"]) <= set(admissible)


def test_normalising_makes_equal_whatever_python_folds_to_the_same() -> None:
    every = [chr(c) for c in range(0x20000) if not 0xD800 <= c <= 0xDFFF]
    texts = normalised(pl.Series(every)).to_list()
    forms: dict[str, set[str]] = {}
    for character, ours in zip(every, texts, strict=True):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
        forms.setdefault(re.sub(r"[^\S\x1c-\x1f]+", " ", folded).strip(" "), set()).add(ours)
    assert {folded: ours for folded, ours in forms.items() if len(ours) > 1} == {}
    # A text that is mended beside texts that are not, and the other way round.
    assert normalised(pl.Series(["A  b", None, "É\t c ", "Ab"])).to_list() == ["a b", None, "é c", "ab"]
    plain = [chr(c) for c in range(0x21, 0x7F) if not chr(c).isupper()]
    assert normalised(pl.Series(plain)).to_list() == plain


@given(st.lists(st.text(max_size=6), min_size=2, max_size=10), seeds)
@settings(max_examples=100, deadline=None)
def test_messages_with_equal_texts_never_face_each_other(texts: list[str], seed: int) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    drawn = contrast(pl.DataFrame({"prompt": prompts}), seed=seed)
    text_only = contrast(pl.DataFrame({"prompt": texts}), seed=seed)
    assert drawn.equals(text_only)


# What was asked for holds


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    n = draw(st.integers(2, 14))

    def column(values: Any) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    return {
        "prompt": column(st.sampled_from(["a", "A", "b", "c", "d e", "d  e"])),
        "task": column(st.sampled_from(["x", "y", None])),
        "level": column(st.sampled_from([1, 2])),
        "user": column(st.sampled_from(["u", "v", "w", None])),
    }


@given(
    tables(),
    st.sampled_from([(), ("task",), ("task", "level")]),
    st.sampled_from([(), ("user",), ("user", "level")]),
    st.integers(1, 3),
    seeds,
)
@settings(max_examples=150, deadline=None)
def test_match_and_differ_hold_or_the_row_is_refused_with_a_reason(
    table: dict[str, list[Any]], match: tuple[str, ...], differ: tuple[str, ...], negatives: int, seed: int
) -> None:
    n = len(table["prompt"])
    negatives = min(negatives, n - 1)
    drawn = contrast(pl.DataFrame(table), match=match, differ=differ, negatives=negatives, seed=seed)
    assert drawn["prompt_id"].to_list() == [row for row in range(n) for _ in range(negatives)]
    assert drawn["negative"].to_list() == list(range(negatives)) * n
    for row in range(n):
        mine = drawn.filter(pl.col("prompt_id") == row)
        admissible = {
            other
            for other in range(n)
            if not same(table["prompt"][row], table["prompt"][other])
            and all(table[c][row] == table[c][other] for c in match)
            and all(table[c][row] != table[c][other] for c in differ)
        }
        feasible = len(admissible) >= negatives
        assert (mine["reason"].null_count() == negatives) == feasible
        assert set(mine["counterpart_id"].drop_nulls()) <= admissible
        assert mine["counterpart_id"].drop_nulls().n_unique() == (negatives if feasible else 0)


def test_a_reason_says_what_was_lacking() -> None:
    frame = pl.DataFrame({"prompt": ["a", "b", "c"], "user": ["u", "u", "v"], "task": ["x", "x", "y"]})
    reasons = contrast(frame, match=["task"], differ=["user"], negatives=2)["reason"]
    assert reasons.unique().to_list() == ["fewer than 2 rows with another prompt, the same task, another user"]
    assert contrast(frame, match="task", differ="user").equals(contrast(frame, match=["task"], differ=["user"]))


def test_without_duplicates_every_row_is_used_equally_often() -> None:
    frame = pl.DataFrame({"prompt": [f"p{i}" for i in range(50)]})
    drawn = contrast(frame, negatives=3, seed=1)
    assert drawn["counterpart_id"].value_counts()["count"].to_list() == [3] * 50
    assert drawn["counterpart_id"].to_numpy().reshape(50, 3).tolist() == counterparts(50, negatives=3, seed=1).tolist()


def test_the_seed_decides_and_the_table_may_be_lazy_and_have_its_own_ids() -> None:
    frame = pl.DataFrame({"prompt_id": [70, 30, 50, 10], "prompt": ["a", "b", "c", "d"]})
    drawn = contrast(frame, seed=5)
    assert drawn.equals(contrast(frame.lazy(), seed=5))
    assert drawn["prompt_id"].to_list() == [70, 30, 50, 10]
    assert set(drawn["counterpart_id"]) == {70, 30, 50, 10}
    assert len({tuple(contrast(frame, seed=seed)["counterpart_id"]) for seed in range(50)}) > 5
    assert drawn.schema == {
        "prompt_id": pl.UInt64,
        "negative": pl.UInt32,
        "kind": pl.String,
        "counterpart_id": pl.UInt64,
        "reason": pl.String,
    }


# Near


@given(
    st.lists(st.text("ab é", max_size=12), min_size=2, max_size=14),
    st.integers(0, 5),
    st.booleans(),
    st.integers(1, 2),
    seeds,
)
@settings(max_examples=150, deadline=None)
def test_near_a_text_is_near_its_length_in_characters(
    texts: list[str], tolerance: int, messages: bool, negatives: int, seed: int
) -> None:
    negatives = min(negatives, len(texts) - 1)
    lengths = [len(text) for text in texts]
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in texts] if messages else texts
    drawn = contrast(pl.DataFrame({"prompt": prompts}), near=("prompt", tolerance), negatives=negatives, seed=seed)
    for row, text in enumerate(texts):
        mine = drawn.filter(pl.col("prompt_id") == row)["counterpart_id"].drop_nulls().to_list()
        admissible = {
            other
            for other, length in enumerate(lengths)
            if not same(text, texts[other]) and abs(length - lengths[row]) <= tolerance
        }
        assert set(mine) <= admissible
        assert len(set(mine)) == (negatives if len(admissible) >= negatives else 0)


def test_near_goes_with_match_and_differ_and_is_balanced_where_that_is_possible() -> None:
    n = 3_000
    frame = pl.DataFrame(
        {
            "prompt": [f"{i}" for i in range(n)],
            "task": [i % 3 for i in range(n)],
            "user": [i * i % 40 for i in range(n)],
            "words": [i * 7 % 101 for i in range(n)],
        }
    )
    drawn = contrast(frame, match="task", differ="user", near=("words", 9.5), negatives=2, seed=4)
    assert drawn["reason"].null_count() == 2 * n
    assert drawn["counterpart_id"].value_counts()["count"].to_list() == [2] * n
    own, other = frame[drawn["prompt_id"].to_list()], frame[drawn["counterpart_id"].to_list()]
    assert (own["task"] == other["task"]).all()
    assert (own["user"] != other["user"]).all()
    assert (own["words"] - other["words"]).abs().max() <= 9.5
    assert drawn.equals(contrast(frame.lazy(), match="task", differ="user", near=["words", 9.5], negatives=2, seed=4))


def test_a_row_with_nobody_near_says_why() -> None:
    frame = pl.DataFrame({"prompt": ["a", "b", "c", "d", "long " * 9], "v": [1.0, 2.0, None, float("nan"), 9.0]})
    assert contrast(frame, near=("v", 1))["reason"].to_list() == [
        None, None, "no number in v", "no number in v", "fewer than 1 row with another prompt, v within 1",
    ]  # fmt: skip
    reason = contrast(frame, near=("prompt", 2), negatives=2)["reason"].unique(maintain_order=True).to_list()
    assert reason == [None, "fewer than 2 rows with another prompt, prompt within 2 characters"]


# Parts

PARTS = [
    ("One. Two. Three.", ["One.", "One. Two."]),
    ("Ask Dr. Smith. He knows.", ["Ask Dr. Smith."]),
    ("It is 3.5 km to St. Ives, e.g. by foot. Go!", ["It is 3.5 km to St. Ives, e.g. by foot."]),
    ("J. K. Rowling wrote it. Who read it?", ["J. K. Rowling wrote it."]),
    ("See Fig. 3 and No. 5 vs. others. Why?", ["See Fig. 3 and No. 5 vs. others."]),
    ("1. Add 2 and 3. Then stop.", ["1. Add 2 and 3."]),
    ("Really?! Yes... Well", ["Really?!", "Really?! Yes..."]),
    ('He said "Stop." Then left.', ['He said "Stop."']),
    (
        "あなたは学生です。何を勉強していますか？教えて",
        ["あなたは学生です。", "あなたは学生です。何を勉強していますか？"],
    ),
    ("「行く。」と言った。次は", ["「行く。」と言った。"]),
    ("文です。\u3000次の文。", ["文です。"]),
    ("first line\n\n  second line\nthird", ["first line", "first line\n\n  second line"]),
    ("A question\nwith a break. And more", ["A question", "A question\nwith a break."]),
    ("i like soup . what should i eat ?", ["i like soup ."]),
    ("Apple Inc. was founded on Apr. 1 by Sgt. Wozniak. When?", ["Apple Inc. was founded on Apr. 1 by Sgt. Wozniak."]),
    ("She has a Ph.D. in law. Why?", ["She has a Ph.D. in law."]),
    ("Run this.\n```python\nx = 1.\nprint(x)\n```\nWhy?", ["Run this.", "Run this.\n```python\nx = 1.\nprint(x)\n```"]),
    ("~~~\na. B. c\n\nd\n~~~", []),
    ("```\nIs it. Open? No\nend", []),
    ("Say ```x``` or this. Then z.", ["Say ```x``` or this."]),
    ("سوال ہے۔ جواب دو۔", ["سوال ہے۔"]),
    ("Բարեւ։ Ինչպես ես։", ["Բարեւ։"]),
    ("ሰላም። እንዴት ነው።", ["ሰላም።"]),
    ("សួស្តី។តើអ្នកសុខសប្បាយទេ", ["សួស្តី។"]),
    ("ဟုတ်ကဲ့။ ဘာလဲ။", ["ဟုတ်ကဲ့။"]),
    ("他说“好。”然后走了。再见", ["他说“好。”然后走了。"]),
    ("Visit example.com/a?b=c today", []),
    ("5! + 3 is what", []),
    ("One sentence only.", []),
    ("  \n leading space", []),
    ("trailing\n \n", []),
    ("", []),
    (" . ", []),
    ("。。。", []),
]


@pytest.mark.parametrize(("text", "parts"), PARTS)
def test_parts_end_where_sentences_end(text: str, parts: list[str]) -> None:
    cut = {part(text, seed=0, row=row) for row in range(200)}
    assert cut == (set(parts) or {None})


@given(st.text("aB1 .!?。」\n\t\u3000\"'`", max_size=30), seeds, st.integers(0, 2**64 - 1))
@example("。 a", 0, 0)
@settings(max_examples=300, deadline=None)
def test_a_part_is_a_beginning_neither_empty_nor_the_whole_and_the_same_again(text: str, seed: int, row: int) -> None:
    cut = part(text, seed=seed, row=row)
    assert cut == part(text, seed=seed, row=row)
    if cut is not None:
        assert text.startswith(cut)
        assert cut.strip()
        assert cut.strip() != text.strip()
        assert text[len(cut) :].strip()
        assert not cut[-1:].isspace()


def test_parts_of_rows_depend_on_row_and_seed_alone() -> None:
    texts = ["One. Two. Three. Four. Five. Six.", "No part here.", "One! Two! Three!"]
    frame = pl.DataFrame({"prompt_id": [9, 4, 2], "prompt": texts})
    drawn = contrast(frame, kind="partial", seed=3)
    assert drawn["part"].to_list() == [part(t, seed=3, row=r) for r, t in zip((9, 4, 2), texts, strict=True)]
    assert drawn["reason"].to_list() == [None, "one sentence: no part to keep", None]
    assert drawn["counterpart_id"].null_count() == 3
    backwards = contrast(frame.reverse(), kind="partial", seed=3)
    assert backwards["part"].to_list() == drawn["part"].to_list()[::-1]
    assert len({part(texts[0], seed=seed, row=0) for seed in range(100)}) == 5


# Counter-prompts

FRAME = pl.DataFrame(
    {"prompt": ["Ask one. Then two.", "Bob? Yes.", "Cy! No."], "context": ["ann", "bob", "cy"], "user": [1, 2, 3]}
)


def chat(prompt: str, context: str | None = None) -> list[dict[str, str]]:
    before = [] if context is None else [{"role": "system", "content": context}]
    return [*before, {"role": "user", "content": prompt}]


def text(prompt: str, context: str | None = None) -> str:
    return prompt if context is None else f"{context}\n\n{prompt}"


@pytest.mark.parametrize("shape", [chat, text])
@pytest.mark.parametrize("kind", ["random", "context", "dropped", "partial"])
def test_the_counter_prompt_of_each_kind(kind: Any, shape: Any) -> None:
    drawn = contrast(FRAME, kind=kind, seed=4)
    composed = counter_prompts(FRAME, drawn, chat=shape is chat).to_list()
    for row, other, counter in zip(range(3), drawn["counterpart_id"], composed, strict=True):
        prompt, context = FRAME["prompt"][row], FRAME["context"][row]
        expected = {
            "random": lambda o=other: shape(FRAME["prompt"][o], FRAME["context"][o]),
            "context": lambda p=prompt, o=other: shape(p, FRAME["context"][o]),
            "dropped": lambda p=prompt: shape(p),
            "partial": lambda p=prompt, c=context, r=row: shape(part(p, seed=4, row=r) or "", c),
        }
        assert counter == expected[kind]()


def test_counter_prompts_of_several_kinds_in_one_table() -> None:
    kinds = ["random", "context", "dropped", "partial"]
    drawn = [contrast(FRAME, kind=kind, seed=4) for kind in kinds]
    together = counter_prompts(FRAME, pl.concat(drawn, how="diagonal"), chat=True).to_list()
    assert together == [prompt for one in drawn for prompt in counter_prompts(FRAME, one, chat=True).to_list()]


def test_counter_prompts_are_null_where_there_is_a_reason() -> None:
    frame = pl.DataFrame({"prompt": ["a", "A", "One. Two."], "context": ["x", "x", "x"]})
    for drawn in (contrast(frame, negatives=2), contrast(frame, kind="context"), contrast(frame, kind="partial")):
        for shape in (True, False):
            composed = counter_prompts(frame, drawn, chat=shape)
            assert composed.is_null().to_list() == drawn["reason"].is_not_null().to_list()


def test_messages_keep_all_but_what_the_kind_changes() -> None:
    before = [{"role": "user", "content": "One. Two."}, {"role": "assistant", "content": "Yes. No."}]
    prompts = [[*before, {"role": "user", "content": text}] for text in ("First. Second.", "Third. Fourth.")]
    frame = pl.DataFrame({"prompt": prompts, "context": ["ann", "bob"]})
    system = [{"role": "system", "content": name} for name in ("ann", "bob")]
    composed = {kind: counter_prompts(frame, contrast(frame, kind=kind), chat=True).to_list()
            for kind in ("random", "context", "dropped", "partial")}  # fmt: skip
    assert composed["random"] == [[system[1], *prompts[1]], [system[0], *prompts[0]]]
    assert composed["context"] == [[system[1], *prompts[0]], [system[0], *prompts[1]]]
    assert composed["dropped"] == prompts
    assert composed["partial"] == [
        [system[0], *before, {"role": "user", "content": "First."}],
        [system[1], *before, {"role": "user", "content": "Third."}],
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=2, max_size=8), seeds)
@settings(max_examples=60, deadline=None)
def test_no_counter_prompt_is_edited(texts: list[str], seed: int) -> None:
    frame = pl.DataFrame({"prompt": texts})
    drawn = contrast(frame, seed=seed)
    for shape, content in ((False, lambda prompt: prompt), (True, lambda prompt: prompt[0]["content"])):
        composed = counter_prompts(frame, drawn, chat=shape).to_list()
        assert [None if prompt is None else content(prompt) for prompt in composed] == [
            None if other is None else texts[other] for other in drawn["counterpart_id"]
        ]


def test_counterparts_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt_id 2: not among the prompts"):
        counter_prompts(FRAME.head(2), contrast(FRAME), chat=True)
    drawn = contrast(FRAME).with_columns(counterpart_id=pl.lit(7, dtype=pl.UInt64))
    with pytest.raises(ValueError, match=r"counterpart_id 7: not among the prompts"):
        counter_prompts(FRAME, drawn, chat=True)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "other"}, "kind: expected one of random, partial, context, dropped, got 'other'"),
        ({"negatives": 3}, r"negatives: expected 1 to 2 \(3 prompts\), got 3"),
        ({"negatives": 0}, "negatives: expected 1 to 2"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"kind": "partial", "seed": -1}, "seed: expected 0 to"),
        ({"match": ["nobody"]}, "needs the column 'nobody'; the prompts have prompt, context, user"),
        ({"differ": ["nobody"]}, "needs the column 'nobody'"),
        ({"kind": "dropped", "negatives": 2}, "one counter-prompt per prompt, got 2"),
        ({"kind": "partial", "differ": ["user"]}, "draws no other row"),
        ({"kind": "dropped", "near": ("user", 1)}, "near: expected none with kind 'dropped'"),
        ({"near": ("nobody", 1)}, "needs the column 'nobody'"),
        ({"near": ("user", -1)}, r"near: expected a column and a number of at least 0, .* got \('user', -1\)"),
        ({"near": ("user", float("nan"))}, "near: expected a column and a number"),
        ({"near": "prompt"}, "near: expected a column and a number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast(FRAME, **options)


def test_tables_that_cannot_be_drawn_from_are_refused() -> None:
    with pytest.raises(ValueError, match="'context' needs the column 'context'; the prompts have prompt"):
        contrast(FRAME.select("prompt"), kind="context")
    with pytest.raises(ValueError, match=r"column 'prompt': 1 null value.*first in row 2"):
        contrast(pl.DataFrame({"prompt": ["a", None, "c"]}))
    with pytest.raises(ValueError, match=r"column 'context': 2 null value.*first in row 1"):
        contrast(pl.DataFrame({"prompt": ["a", "b"], "context": [None, None]}), kind="context")
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        contrast(FRAME.head(1))
    with pytest.raises(ValueError, match="at least 2 prompts, got 0"):
        contrast(FRAME.clear())
    with pytest.raises(ValueError, match="prompt_id: expected 2 distinct whole numbers"):
        contrast(pl.DataFrame({"prompt": ["a", "b"], "prompt_id": [1, 1]}))


def test_what_is_no_number_is_refused_as_near() -> None:
    frame = pl.DataFrame({"prompt": ["a", "b"], "flag": [True, False], "large": [2**60, 1], "none": [None, None]})
    with pytest.raises(ValueError, match="numbers, texts or messages, got 'flag' of Boolean"):
        contrast(frame, near=("flag", 1))
    with pytest.raises(ValueError, match=r"whole numbers up to 2\*\*53, got larger ones in 'large'"):
        contrast(frame, near=("large", 1))
    nothing = contrast(frame.with_columns(pl.col("none").cast(pl.Int64)), near=("none", 1))
    assert nothing["reason"].to_list() == ["no number in none"] * 2


def test_independent_counterparts_are_not_balanced() -> None:
    drawn = counterparts(1_000, negatives=3, seed=2, balanced=False)
    assert set(np.bincount(drawn.ravel().astype(np.int64))) > {3}
    assert not (drawn == np.arange(1_000, dtype=np.uint64)[:, None]).any()


def test_counterparts_of_a_shard_are_those_of_the_whole() -> None:
    whole = counterparts(10, negatives=2, seed=3)
    shards = [counterparts(10, negatives=2, seed=3, start=a, stop=b) for a, b in itertools.pairwise([0, 4, 4, 10])]
    np.testing.assert_array_equal(np.concatenate(shards), whole)


def test_nan_is_null_in_the_columns_of_constraints(tmp_path: Path) -> None:
    """pandas writes a missing number as NaN into one file, and as null into the next."""
    group = [1.0, None, 2.0, 1.0, float("nan"), 2.0]
    frame = pl.DataFrame({"prompt": list("abcdef"), "group": group})
    frame.write_parquet(tmp_path / "p.parquet")
    prompts = read(tmp_path / "p.parquet").frame
    for kind in ("match", "differ"):
        nan, null = (
            contrast(table, seed=3, **{kind: ["group"]})  # type: ignore[arg-type]
            for table in (prompts, prompts.with_columns(pl.col("group").fill_nan(None)))
        )
        assert nan.equals(null)
    assert contrast(prompts, match=["group"], seed=3)["counterpart_id"].to_list() == [3, 4, 5, 0, 1, 2]
