"""The benchmark of tokens checks itself: all contenders make the same ids, or are named. Never how fast."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the benchmark prints and writes at tiny sizes."""
    into = tmp_path_factory.mktemp("results")
    command = [sys.executable, ROOT / "benchmarks" / "tokens.py", "--small", "--shapes", "chat"]
    paths = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--into", into, "--folder", into], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = into.iterdir()
    return done.stdout, json.loads(path.read_text())


def test_a_self_check_says_that_its_ratios_mean_nothing(run: tuple[str, dict[str, Any]]) -> None:
    printed, record = run
    assert "mean nothing" in printed
    assert {target["verdict"] for target in record["targets"]} == {"not measured"}


def test_every_engine_makes_the_ids_of_tokenizers_or_is_named(run: tuple[str, dict[str, Any]]) -> None:
    printed, record = run
    (result,) = record["encode"]
    seen = {row["name"]: row for row in result["engines"]}
    assert list(seen) == ["mipo", "tokenizers", "fastokens", "gigatoken"]
    for name, row in seen.items():
        assert f"| {name} |" in printed
        assert ("failure" in row) != (row.get("wrong") == 0)
    for name in ("mipo", "tokenizers"):
        assert seen[name]["wrong"] == 0
        assert (len(seen[name]["cold"]), len(seen[name]["warm"])) == (1, 2)
    assert seen["mipo"]["rows"] == result["rows"] > seen["tokenizers"]["rows"]


def test_stores_hold_all_pairs_with_the_ids_of_trl(run: tuple[str, dict[str, Any]]) -> None:
    record = run[1]
    assert [row["shape"] for row in record["prepare"]] == ["chat", "chat"]
    for row, contenders in zip(record["prepare"], ({"mipo", "trl"}, {"mipo"}), strict=True):
        readings = {reading["name"]: reading for reading in row["contenders"]}
        assert contenders == readings.keys() - {"trl, fastokens"}
        assert {reading["wrong"] for reading in readings.values()} == {0}
        assert row["store"]["rows"] == row["pairs"]
        assert readings["mipo"]["peak_bytes"] > readings["mipo"]["anonymous_bytes"] > 0


def test_every_target_is_judged(run: tuple[str, dict[str, Any]]) -> None:
    targets = [target["target"] for target in run[1]["targets"]]
    for words in ("cold: at least 20 times as fast as tokenizers", "warm: at least 0.85 of the faster of fastokens"):
        assert any(words in target for target in targets)
    for words in (
        "chat: at least 25 times as fast as trl",
        "at least 10 times as fast as trl, fastokens",
        "1 GiB beyond",
    ):
        assert any(words in target for target in targets)


def test_what_is_spent_once_is_not_scaled_and_memory_is_judged_beyond_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    verdicts = importlib.import_module("verdicts")

    def prepared(pairs: int, peak: int, **seconds: float) -> dict[str, Any]:
        memory = {"peak_bytes": peak, "anonymous_bytes": peak}
        contenders = [
            {"name": name, "seconds": taken, "engine_seconds": 0.2, "sample_seconds": 12, "wrong": 0, **memory}
            for name, taken in seconds.items()
        ]
        return {"shape": "text", "pairs": pairs, "sample": 10, "store": {"rows": pairs}, "contenders": contenders}

    gib = 2**30
    few, many = prepared(100, 2 * gib, mipo=1, trl=30, **{"trl, fastokens": 12}), prepared(500, 4 * gib, mipo=10)
    alone = {"peak_bytes": gib, "anonymous_bytes": gib}
    record = {"small": False, "encode": [], "prepare": [few, many], "tokenizer_alone": alone}
    judged = {one["target"]: (one["number"], one["verdict"]) for one in verdicts.judge(record)}
    assert judged["100 pairs, text: at least 25 times as fast as trl"] == (25, "met"), "30 s, and 1.2 with the engine"
    number, verdict = judged["500 pairs, text: at least 25 times as fast as trl"]
    assert (number, verdict) == (pytest.approx(110 / 10.2), "NOT met"), "30 s, and 400 rows of 0.2 s"
    assert judged["100 pairs, text: at least 10 times as fast as trl, fastokens"] == (12, "met"), (
        "both have their engine"
    )
    assert judged["500 pairs, text: at least 10 times as fast as trl, fastokens"] == (1.2, "NOT met"), (
        "no row took time"
    )
    assert judged["500 pairs, text: at most 1 GiB beyond the tokenizer, resident"] == (3, "NOT met")
    assert judged["text: MiB, anonymous, more with 500 pairs than with 100, at most 64"] == (2048, "NOT met")
    assert judged["text: ids are those of TRL, and no pair is lost"] == (1, "met")
