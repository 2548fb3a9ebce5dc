"""Laws of near-duplicates and of the leakage guard, each against the obvious way; and that a leak is never lost."""

import itertools
import json
import lzma
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo import _native, cli, contrast, demo
from mipo.demo import world
from mipo.prompts.equality import normalised
from mipo.prompts.overlap import NGRAM, clusters, overlaps
from mipo.reasons import EQUALS_HELD_OUT as EQUAL
from mipo.reasons import OVERLAPS_HELD_OUT as OVERLAPS
from mipo.responses.requests import counter_prompts
from mipo.run import pipeline
from mipo.run.preview import dry_run

SHARED = Path(__file__).parents[3] / "shared" / "data" / "prompts" / "clinc150.jsonl.xz"
THRESHOLDS = [0.01, 0.2, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 1.0]
seeds = st.integers(0, 2**64 - 1)

# Near-duplicates


def ngrams(text: str, size: int = NGRAM) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)} or {text}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def chained(texts: list[str], threshold: float, size: int = NGRAM) -> list[int]:
    """The obvious way: every pair is compared, and clusters are joined until nothing changes."""
    first, sets = list(range(len(texts))), [ngrams(text, size) for text in texts]
    for i, j in itertools.combinations(range(len(texts)), 2):
        if first[i] != first[j] and jaccard(sets[i], sets[j]) >= threshold:
            low, high = sorted([first[i], first[j]])
            first = [low if f == high else f for f in first]
    return first


@st.composite
def likes(draw: st.DrawFn) -> list[str]:
    """Texts of few letters, some of them others with an edit or two, so that similarities lie around the thresholds."""
    texts = draw(st.lists(st.text("abc é語", max_size=24), min_size=1, max_size=6))
    for _ in range(draw(st.integers(0, 10))):
        text = draw(st.sampled_from(texts))
        place = draw(st.integers(0, len(text)))
        texts.append(text[:place] + draw(st.text("abc ", max_size=3)) + text[place + draw(st.integers(0, 3)) :])
    return draw(st.permutations(texts))


@given(likes(), st.sampled_from(THRESHOLDS), st.integers(1, 6))
@settings(max_examples=400, deadline=None)
def test_clusters_are_those_of_all_pairs(texts: list[str], threshold: float, size: int) -> None:
    assert _native.clusters(pl.Series(texts), size, threshold).tolist() == chained(texts, threshold, size)


@given(likes(), st.sampled_from(THRESHOLDS), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_rows_changes_no_cluster(texts: list[str], threshold: float, chance: random.Random) -> None:
    order = list(range(len(texts)))
    chance.shuffle(order)
    ids, shuffled = clusters(pl.Series(texts), threshold), clusters(pl.Series([texts[i] for i in order]), threshold)
    assert all(ids[i] == ids[j] for i in range(len(texts)) for j in range(i) if texts[i] == texts[j])
    assert [[shuffled[a] == shuffled[b] for a in range(len(order))] for b in range(len(order))] == [
        [ids[i] == ids[j] for i in order] for j in order
    ]


def real(count: int) -> list[str]:
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    with lzma.open(SHARED, "rt") as lines:
        return random.Random(0).sample([json.loads(line)["text"] for line in lines], count)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_clusters_of_real_prompts_are_those_of_all_pairs(threshold: float) -> None:
    texts = [text for text in real(150) for text in (text, text.replace("my", "our"), f"please {text}")]
    ids = clusters(pl.Series(texts), threshold).to_list()
    assert ids == chained([*normalised(pl.Series(texts))], threshold)
    assert 30 < len(set(ids)) < 400


def test_long_texts_of_one_template_too() -> None:
    """Sets of 90 to 700 n-grams, whose parities fill words of different numbers, in many runs of postings."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghij", k=6)) for _ in range(400)]
    texts = []
    for length, share in itertools.product([14, 20, 40, 100], [0.05, 0.1, 0.2]):
        template = chance.sample(words, length)
        for _ in range(14):
            texts.append(" ".join(chance.choice(words) if chance.random() < share else word for word in template))
    for threshold in (0.6, 0.7, 0.8):
        ids = _native.clusters(pl.Series(texts), NGRAM, threshold).tolist()
        assert ids == chained(texts, threshold)
        assert 20 < len(set(ids)) < len(texts) - 20


def test_texts_count_as_normalised_and_a_chain_is_one_cluster() -> None:
    texts = ["Straße  und Brücke", "STRASSE UND BRÜCKE", "strasse und brücken", "strasse und brücken!", "Ast"]
    first, second, third = [ngrams(text) for text in normalised(pl.Series(texts))[1:4]]
    assert (jaccard(first, second), jaccard(second, third), jaccard(first, third)) == (14 / 15, 15 / 16, 14 / 16)
    assert clusters(pl.Series(texts), 0.935).to_list() == [0, 0, 2, 2, 4]
    assert clusters(pl.Series(texts), 14 / 15).to_list() == [0, 0, 0, 0, 4]
    assert clusters(pl.Series([], dtype=pl.String), 0.8).to_list() == []
    assert clusters(pl.Series(["", "a", ""]), 0.8).to_list() == [0, 1, 0]


@given(likes(), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from(["random", "context"]), seeds)
@settings(max_examples=150, deadline=None)
def test_near_duplicates_never_face_each_other(texts: list[str], threshold: float, kind: Any, seed: int) -> None:
    texts = [*texts, "another"]
    columns = {"prompt": texts} if kind == "random" else {"prompt": ["q"] * len(texts), "context": texts}
    drawn = contrast(pl.DataFrame(columns), kind=kind, seed=seed, near_duplicates=threshold)
    first = chained([*normalised(pl.Series(texts))], threshold)
    unlike = "prompt" if kind == "random" else kind
    for row, (other, reason) in enumerate(drawn.select("counterpart_id", "reason").iter_rows()):
        if len(set(first)) == 1:
            assert (other, reason) == (None, f"fewer than 1 row with a {unlike} that is no near-duplicate")
        else:
            assert reason is None
            assert first[other] != first[row]


# The leakage guard

WORDS = re.compile(r"[a-z0-9]+|[ぁ-ん一-龯]|\+|-(?=[0-9])")


def weighed(text: str) -> list[tuple[str, int]]:
    return [(word, 1 if word > "ぁ" else 2) for word in WORDS.findall(text)]


def runs(words: list[tuple[str, int]], least: int) -> dict[int, list[tuple[str, int]]]:
    """From each word on the shortest run that weighs enough."""
    shortest = {}
    for start in range(len(words)):
        ends = [end for end in range(start + 1, len(words) + 1) if sum(w for _, w in words[start:end]) >= least]
        if ends:
            shortest[start] = words[start : ends[0]]
    return shortest


def shared(text: str, held_out: str, words: int) -> float:
    """The obvious way: the share of the held-out words' weight that runs of both cover."""
    a, b = weighed(text), weighed(held_out)
    if text == held_out:
        return 1.0
    if b and not runs(b, 2 * words):
        return float(a == b)
    mine = list(runs(a, 2 * words).values())
    covered = {
        place for start, run in runs(b, 2 * words).items() if run in mine for place in range(start, start + len(run))
    }
    return sum(b[place][1] for place in covered) / sum(weight for _, weight in b) if b else 0.0


pieces = st.sampled_from(
    ["a", "b", "tom", "ate 5", "it.", "  ", "5 + 3", "- 4 -", "-4", "す。", "日本", "語で", "b, a!", "?"]
)
phrases = st.lists(pieces, max_size=12).map(lambda parts: normalised(pl.Series([" ".join(parts)]))[0])


@given(
    st.lists(phrases, min_size=1, max_size=5), st.lists(phrases, min_size=1, max_size=5), st.integers(1, 5), st.data()
)
@settings(max_examples=400, deadline=None)
def test_overlaps_are_those_of_all_pairs(texts: list[str], tests: list[str], words: int, data: st.DataObject) -> None:
    texts += data.draw(
        st.lists(st.sampled_from(tests).flatmap(lambda t: phrases.map(lambda p: f"{p} {t}")), max_size=3)
    )
    share = data.draw(st.sampled_from([0.01, 0.25, 0.5, 0.75, 1.0]))
    train, held_out = pl.DataFrame({"prompt": texts}), pl.DataFrame({"prompt": tests})
    table = {row["prompt_id"]: row for row in overlaps(train, held_out, words=words, share=share).iter_rows(named=True)}
    for row, text in enumerate(normalised(train["prompt"])):
        shares = [shared(text, test, words) for test in tests]
        if max(shares) < share and text not in tests:
            assert row not in table
        elif text in tests:
            assert (table[row]["held_out_id"], table[row]["reason"]) == (tests.index(text), EQUAL)
        else:
            best = shares.index(max(shares))
            assert (table[row]["held_out_id"], table[row]["reason"]) == (best, OVERLAPS)
            assert table[row]["share"] == pytest.approx(shares[best], abs=1e-12)
            assert (table[row]["prompt"], table[row]["held_out"]) == (texts[row], tests[best])


@pytest.mark.parametrize(
    ("text", "held_out", "reason"),
    [
        ("What is 5 - 3?", "what  IS 5 - 3?", EQUAL),
        ("What is 5 - 3", "what is 5 - 3?", OVERLAPS),
        ("What is 5 + 3?", "What is 5 - 3?", None),
        ("What is -5?", "What is 5?", None),
        ("Costs 3.5 apples", "Costs 35 apples", None),
        ("So tell me: what is 5 - 3?", "what is 5 - 3?", None),
        ("Isn't it so?", "isn’t it so", OVERLAPS),
        ("Ann: one two three four five six seven eight nine?", "one two three four five six seven eight ten", OVERLAPS),
        ("1 2 3 4 5 6 7, 8", "1 2 3 4 5 6 7 8. Nine? No, ten! So twelve at last.", OVERLAPS),
        ("one two three four five six seven eighty", "one two three four five six seven eight nine", None),
        ("日本酒が好きでよく居酒屋へ飲みにいく。", "私は日本酒が好きでよく居酒屋へ飲みにいくのです", OVERLAPS),
        ("日本酒が好きです。", "日本酒が好きですか", None),
        ("คุณชอบกินอาหารอะไรมากที่สุดในโลกนี้", "คุณชอบกินอาหารอะไรมากที่สุดในโลกนี้ครับ", OVERLAPS),
        ("ｗｈａｔ　ｉｓ　ｉｔ", "What is it", EQUAL),
        ("🙂 🙂 🙂", "🙁 🙁 🙁", None),
        ("...", "?!", None),
    ],
)  # fmt: skip
def test_what_occurs(text: str, held_out: str, reason: str | None) -> None:
    table = overlaps(pl.DataFrame({"prompt": ["x", text]}), pl.DataFrame({"prompt": ["y", held_out]}))
    assert table["reason"].to_list() == ([] if reason is None else [reason])


def test_of_messages_the_users_turns_count() -> None:
    def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in turns]

    prompts = [
        chat(("system", "be brief"), ("user", "Who?"), ("assistant", "I."), ("user", "why")),
        chat(("user", "who?"), ("assistant", "he"), ("user", "Why")),
        chat(("system", "Who? Why"), ("user", "how")),
    ]
    table = overlaps(pl.DataFrame({"prompt": prompts}), pl.DataFrame({"prompt": ["who? why"]}))
    assert table.select("prompt_id", "reason", "prompt").rows() == [
        (0, EQUAL, "Who?\nwhy"),
        (1, EQUAL, "who?\nWhy"),
    ]


def test_only_prompts_with_equal_contexts_are_compared() -> None:
    prompts = pl.DataFrame({"prompt_id": [7, 5, 3], "prompt": ["q", "q", "r"], "context": ["ann", "bob", "ann"]})
    test = pl.DataFrame({"prompt_id": [9, 8], "prompt": ["Q", "r"], "context": ["ANN", "bob"]})
    assert overlaps(prompts, test).select("prompt_id", "held_out_id").rows() == [(7, 9)]
    assert overlaps(prompts, test.drop("context"))["prompt_id"].to_list() == [7, 5, 3]
    assert overlaps(prompts.drop("context"), test)["held_out_id"].to_list() == [9, 9, 8]


TEST = pl.DataFrame({"prompt": ["Held out, b?", "held out c"]})
FRAME = pl.DataFrame(
    {
        "prompt_id": [40, 30, 20, 10, 0],
        "prompt": ["One. Two. 1", "HELD OUT, b?", "One. Two. 2", "held out: c", "One. Two. 3"],
        "context": ["v", "w", "x", "y", "z"],
    }
)


@pytest.mark.parametrize(
    ("kind", "negatives"), [("random", 1), ("random", 2), ("context", 2), ("dropped", 1), ("partial", 1)]
)
def test_a_leaked_prompt_has_no_counterpart_and_is_none(kind: Any, negatives: int) -> None:
    for seed in range(20):
        drawn = contrast(FRAME, kind=kind, negatives=negatives, seed=seed, held_out=TEST)
        assert drawn["prompt_id"].to_list() == [row for row in FRAME["prompt_id"] for _ in range(negatives)]
        assert drawn["negative"].to_list() == list(range(negatives)) * 5
        assert dict(drawn["reason"].drop_nulls().value_counts().iter_rows()) == {EQUAL: negatives, OVERLAPS: negatives}
        assert not {30, 10} & set(drawn["counterpart_id"])
        assert counter_prompts(FRAME, drawn, chat=False).null_count() == 2 * negatives
        clean = contrast(FRAME[[0, 2, 4]], kind=kind, negatives=negatives, seed=seed)
        assert drawn.filter(pl.col("reason").is_null()).equals(clean)
        assert drawn.schema == clean.schema
        assert drawn.equals(contrast(FRAME.lazy(), kind=kind, negatives=negatives, seed=seed, held_out=TEST))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near_duplicates": 0.0}, "expected a share above 0 and up to 1, got 0; give a share, for example 0.8"),
        ({"near_duplicates": 1.5}, "threshold: expected a share above 0 and up to 1, got 1.5"),
        ({"near_duplicates": float("nan")}, "threshold: expected a share above 0 and up to 1, got NaN"),
        (
            {"near_duplicates": 0.8, "kind": "dropped"},
            "near_duplicates: expected none with kind",
        ),
        ({"held_out": TEST, "overlap_words": 0}, "words: expected a whole number from 1, got 0"),
        ({"held_out": TEST, "overlap_words": 2.5}, "words: expected a whole number from 1, got 2.5"),
        ({"held_out": TEST, "overlap_share": 0}, "share: expected a share above 0 and up to 1, got 0"),
        ({"held_out": TEST.rename({"prompt": "q"})}, "held_out: no column 'prompt'; it has q"),
        ({"held_out": TEST, "negatives": 3}, "held_out: expected at least 4 prompts outside it, got 3 of 5"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        contrast(FRAME, **options)


def test_the_native_half_checks_its_arguments() -> None:
    texts, groups = pl.Series(["a", "b"]), np.zeros(2, dtype=np.uint64)
    with pytest.raises(ValueError, match=r"size: expected at least 1, got 0; it says how many successive characters"):
        _native.clusters(texts, 0, 0.5)
    with pytest.raises(ValueError, match=r"words: expected at least 1, got 0"):
        _native.overlaps((texts, groups), (texts, groups), 0, 0.5)
    with pytest.raises(ValueError, match=r"groups: expected length 2, got 1; give one entry for each text"):
        _native.overlaps((texts, groups[:1]), (texts, groups), 8, 0.5)
    with pytest.raises(ValueError, match=r"held_out_groups: expected length 2, got 1"):
        _native.overlaps((texts, groups), (texts, groups[:1]), 8, 0.5)
    with pytest.raises(ValueError, match="got a null in row 1"):
        _native.clusters(pl.Series(["a", None]), 5, 0.5)
    with pytest.raises(TypeError, match="expected an Arrow array of string"):
        _native.clusters(pl.Series([1, 2]), 5, 0.5)


# The command line and the recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    FRAME.rename({"prompt_id": "id"}).write_ndjson(tmp_path / "train.jsonl")
    TEST.write_ndjson(tmp_path / "test.jsonl")
    return tmp_path


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        str(folder / "train.jsonl"),
        "--held-out",
        str(folder / "test.jsonl"),
        "--output",
        str(folder / "o.parquet"),
    ]
    assert cli.main(["overlap", *files]) == 0
    printed = capsys.readouterr().out
    assert f"5 rows in, 3 out; {EQUAL}: 1; {OVERLAPS}: 1" in printed
    assert "── prompt 1 equals a held-out prompt, 0 (100%)\nHELD OUT, b?\n── held out\nHeld out, b?" in printed
    assert pl.read_parquet(folder / "o.parquet")["prompt_id"].to_list() == [1, 3]
    assert cli.main(["contrast", *files, "--near-duplicates", "0.95"]) == 0
    assert f"5 rows in, 3 out; {EQUAL}: 1; {OVERLAPS}: 1" in capsys.readouterr().out
    assert pl.read_parquet(folder / "o.parquet")["counterpart_id"].null_count() == 2
    assert cli.main(["contrast", *files[:-2], "--overlap-share", "2", "--output", "x.parquet"]) == 2
    assert "--overlap-share: expected a number above 0 and at most 1, got 2" in capsys.readouterr().err


def test_a_run_drops_what_its_held_out_rows_hold(tmp_path: Path) -> None:
    world.write(tmp_path, train=40, test=12, seed=1)
    rows = [
        json.loads(line) for name in ("train", "test") for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
    ]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:43]))
    settings = yaml.safe_load((demo.HERE / "recipe.yaml").read_text()) | {"model": str(demo.HERE / "model")}
    settings["prompts"]["overlap_share"] = 1.0
    settings["max_dropped"] = {EQUAL: 0.1}
    settings["evaluation"]["negatives"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = pipeline.run_recipe(tmp_path / "recipe.yaml", output=tmp_path / "out", until="contrast")
    stage = json.loads((out / "manifest.json").read_text())["stages"]["prompts"]
    assert stage["dropped"] == {EQUAL: 3}
    assert stage["rows_in"] == stage["rows_out"] + 3 == 55
    left = pl.read_parquet(out / "prompts.parquet")
    assert left["prompt_id"].to_list() == list(range(40))
    assert left["prompt"].to_list() == [row["prompt"] for row in rows[:40]]
    assert pl.read_parquet(out / "overlaps.parquet")["held_out_id"].to_list() == [0, 1, 2]
    assert f"{EQUAL}: 3" in dry_run(tmp_path / "recipe.yaml")


# The benchmark


def test_the_benchmark_checks_itself(tmp_path: Path) -> None:
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "benchmarks" / "overlap.py"), "--small", "--into", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root / "python")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = tmp_path.glob("*-overlap.json")
    record = json.loads(written.read_text())
    assert record["self_check"]
    near, guard = record["results"]
    ours, truth = ({row["name"]: row for row in near["table"]}[name] for name in ("mipo", "all pairs"))
    assert (ours["recall"], ours["precision"], ours["clusters"]) == (1, 1, truth["clusters"])
    assert 100 < ours["clusters"] < near["rows"] - 100
    assert {row["occur"] for row in guard["table"]} == {row["agree"] for row in guard["table"]}
    assert guard["table"][0]["occur"] > 50
    for package in ("datasketch", "rensa"):
        assert (package in {row["name"] for row in near["table"]}) != (package in near["left_out"])
