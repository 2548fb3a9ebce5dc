"""Laws of `mipo._native` through Python: counterparts, the border between prompt and response, ids of real texts."""

import itertools
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mipo import _native

SHARED = Path(__file__).parents[3] / "shared"
ABSENT = np.uint64(2**64 - 1)

# A fair χ² lies this many standard deviations above its mean about once in 30,000 draws, and the seeds are fixed.
SIGMAS = 4.0
SEEDS_PER_CELL = 20

Rows = NDArray[np.uint64]


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """(n, negatives) on both sides of the border between the table and the Feistel rounds."""
    n = draw(st.integers(2, 200) | st.integers(4_000, 4_200) | st.integers(2, 20_000))
    return n, draw(st.integers(1, min(n - 1, 6)))


seeds = st.integers(0, 2**64 - 1)


@given(sizes(), seeds)
def test_counterparts_are_distinct_other_rows_and_every_row_is_used_equally(size: tuple[int, int], seed: int) -> None:
    n, negatives = size
    drawn = _native.counterparts(n, negatives, seed, 0, n)
    assert drawn.shape == (n, negatives)
    assert drawn.dtype == np.uint64
    assert not (drawn == np.arange(n, dtype=np.uint64)[:, None]).any()
    assert (np.diff(np.sort(drawn, axis=1)) > 0).all()
    assert (np.bincount(drawn.ravel().astype(np.int64), minlength=n) == negatives).all()


@given(sizes(), seeds)
def test_the_used_rows_are_k_copies_of_all_rows(size: tuple[int, int], seed: int) -> None:
    """The rejected side has exactly the marginal of the responses."""
    n, negatives = size
    used = np.sort(_native.counterparts(n, negatives, seed, 0, n).ravel())
    np.testing.assert_array_equal(used, np.repeat(np.arange(n, dtype=np.uint64), negatives))


@given(sizes(), seeds, st.booleans(), st.data())
def test_a_slice_is_the_slice_of_the_whole(
    size: tuple[int, int], seed: int, balanced: bool, data: st.DataObject
) -> None:
    n, negatives = size
    start, stop = sorted([data.draw(st.integers(0, n)), data.draw(st.integers(0, n))])
    whole = _native.counterparts(n, negatives, seed, 0, n, balanced)
    np.testing.assert_array_equal(_native.counterparts(n, negatives, seed, start, stop, balanced), whole[start:stop])
    np.testing.assert_array_equal(_native.counterparts(n, 1, seed, 0, n, balanced), whole[:, :1])


@given(st.integers(2, 300) | st.integers(2, 20_000), seeds, st.data())
def test_independent_counterparts_are_distinct_other_rows(n: int, seed: int, data: st.DataObject) -> None:
    negatives = data.draw(st.integers(1, min(n - 1, 100)))
    drawn = _native.counterparts(n, negatives, seed, 0, n, False)
    assert not (drawn == np.arange(n, dtype=np.uint64)[:, None]).any()
    assert (np.diff(np.sort(drawn, axis=1)) > 0).all()
    assert drawn.max() < n


def test_the_result_is_memory_of_numpys_own() -> None:
    drawn = _native.counterparts(10_000, 2, 0, 0, 10_000)
    assert drawn.flags.owndata
    assert drawn.flags.writeable
    assert drawn.flags.c_contiguous
    assert _native.counterparts(10, 2, 0, 5, 5).shape == (0, 2)


@pytest.mark.parametrize("n", range(2, 13))
def test_no_row_is_its_own_counterpart_in_a_thousand_seeds(n: int) -> None:
    own = np.arange(n, dtype=np.uint64)[:, None]
    assert not any((_native.counterparts(n, n - 1, seed, 0, n) == own).any() for seed in range(1_000))


def _unfairness(draw: Callable[[int, int], Rows], n: int) -> float:
    """How far χ² of the pairs (row, counterpart) lies from its mean, in standard deviations."""
    counts = np.zeros((n, n))
    for seed in range(SEEDS_PER_CELL * (n - 1)):
        counts[np.arange(n), draw(n, seed)] += 1
    statistic = ((counts[~np.eye(n, dtype=bool)] - SEEDS_PER_CELL) ** 2).sum() / SEEDS_PER_CELL
    freedom = n * n - 3 * n + 1  # every row and column sums to the number of seeds; the diagonal is empty
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def _shift_without_permutation(n: int, seed: int) -> Rows:
    """Fair in each row's counterpart up to a habit: half of the seeds take the next row."""
    rng = np.random.default_rng(seed)
    shift = 1 if rng.random() < 0.5 else rng.integers(1, n)
    return ((np.arange(n) + shift) % n).astype(np.uint64)


@pytest.mark.parametrize("n", [5, 6, 7, 8, 9, 12, 16, 23, 32, 41, 50])
def test_every_other_row_is_as_likely(n: int) -> None:
    assert abs(_unfairness(lambda n, seed: _native.counterparts(n, 1, seed, 0, n)[:, 0], n)) < SIGMAS


@pytest.mark.parametrize("n", [5, 12, 50])
def test_the_same_check_catches_a_bad_permutation(n: int) -> None:
    assert abs(_unfairness(_shift_without_permutation, n)) > SIGMAS


@st.composite
def columns(draw: st.DrawFn) -> tuple[Rows, list[Rows]]:
    n = draw(st.integers(0, 24))

    def column(values: int) -> Rows:
        return np.array(draw(st.lists(st.integers(0, values), min_size=n, max_size=n)), dtype=np.uint64)

    return column(2), [column(values) for values in draw(st.lists(st.integers(0, 24), min_size=1, max_size=3))]


@given(columns(), st.integers(1, 4), seeds)
@settings(max_examples=400)
def test_constrained_counterparts_are_admissible_or_absent(
    codes: tuple[Rows, list[Rows]], negatives: int, seed: int
) -> None:
    alike, unlike = codes
    drawn = _native.counterparts_within(alike, unlike, negatives, seed)
    assert drawn.shape == (len(alike), negatives)
    for row, others in enumerate(drawn):
        admissible = [
            other
            for other in range(len(alike))
            if alike[row] == alike[other] and all(column[row] != column[other] for column in unlike)
        ]
        if len(admissible) < negatives:
            assert (others == ABSENT).all()
        else:
            assert len(set(others.tolist())) == negatives
            assert set(others.tolist()) <= set(admissible)


@given(columns(), st.data(), st.integers(1, 3), seeds)
@settings(max_examples=400)
def test_near_counterparts_are_near_or_absent(
    codes: tuple[Rows, list[Rows]], data: st.DataObject, negatives: int, seed: int
) -> None:
    alike, unlike = codes
    number = st.sampled_from([0.0, -0.0, 1.0, 2.5, 3.0, -7.0, 1e300, np.nan, np.inf, -np.inf]) | st.floats(-9, 9)
    values = np.array(data.draw(st.lists(number, min_size=len(alike), max_size=len(alike))), dtype=np.float64)
    tolerance = data.draw(st.sampled_from([0.0, 0.5, 3.0, 1e9]))
    drawn = _native.counterparts_within(alike, unlike, negatives, seed, (values, tolerance))
    for row, others in enumerate(drawn):
        admissible = [
            other
            for other in range(len(alike))
            if alike[row] == alike[other]
            and all(column[row] != column[other] for column in unlike)
            and np.isfinite(values[[row, other]]).all()
            and abs(values[row] - values[other]) <= tolerance
        ]
        if len(admissible) < negatives:
            assert (others == ABSENT).all()
        else:
            assert len(set(others.tolist())) == negatives
            assert set(others.tolist()) <= set(admissible)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.integers(1, 3), seeds)
def test_one_differ_column_is_balanced_where_no_value_owns_more_than_half(
    runs: list[int], negatives: int, seed: int
) -> None:
    users = np.repeat(np.arange(len(runs), dtype=np.uint64), runs)
    drawn = _native.counterparts_within(np.zeros_like(users), [users], negatives, seed)
    if 2 * max(runs) <= len(users) and len(users) - max(runs) >= negatives:
        assert (np.bincount(drawn.ravel().astype(np.int64), minlength=len(users)) == negatives).all()


# Of the wrong type on purpose, and so hidden from mypy.
WRONG: list[Any] = [1.5, np.zeros(2)]


def _nothing(n: int) -> Rows:
    return np.zeros(n, dtype=np.uint64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _native.counterparts(1, 1, 0, 0, 1), ValueError, "n: expected at least 2 rows"),
        (lambda: _native.counterparts(5, 0, 0, 0, 5), ValueError, "negatives: expected at least 1"),
        (
            lambda: _native.counterparts(5, 5, 0, 0, 5),
            ValueError,
            "at most 4 distinct counterparts among 5 rows, got 5",
        ),
        (lambda: _native.counterparts(5, 1, 0, 3, 2), ValueError, "0 <= start <= stop <= 5, got 3 and 2"),
        (lambda: _native.counterparts(5, 1, 0, 0, 6), ValueError, "0 <= start <= stop <= 5, got 0 and 6"),
        (lambda: _native.counterparts(5, 1, -1, 0, 5), ValueError, "seed: expected an integer from 0 .* got -1"),
        (lambda: _native.counterparts(5, 1, 2**64, 0, 5), ValueError, "seed: expected an integer"),
        (lambda: _native.counterparts(5, WRONG[0], 0, 0, 5), TypeError, "negatives: expected an integer .* got 1.5"),
        (lambda: _native.counterparts(2**60, 1, 0, 0, 2**60), MemoryError, "slice of the rows"),
        (lambda: _native.counterparts_within(_nothing(2), [], 1, 0), ValueError, "at least one column"),
        (lambda: _native.counterparts_within(_nothing(2), [_nothing(3)], 1, 0), ValueError, "length 2, got 3"),
        (lambda: _native.counterparts_within(_nothing(2), [WRONG[1]], 1, 0), TypeError, "got float64"),
        (lambda: _native.counterparts_within(_nothing(4)[::2], [_nothing(2)], 1, 0), ValueError, "ascontiguousarray"),
        (lambda: _native.Encoder(b"{"), ValueError, "json: expected the bytes of a tokenizer.json"),
    ],
)
def test_errors_say_what_was_expected_and_what_they_got(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def _tiny() -> tokenizers.Tokenizer:
    """A byte-level tokenizer with merges, truncation and padding, trained on a few lines here."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the other prompt answers another question"] * 3 + ["ab abc abcd"] * 3, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=9)
    return tokenizer


def _lists(table: tuple[NDArray[np.int64], NDArray[np.uint32]]) -> list[list[int]]:
    offsets, ids = table
    return [ids[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]


@given(st.lists(st.text(max_size=30), max_size=200), st.booleans())
@settings(max_examples=50, deadline=None)
def test_ids_are_those_of_tokenizers_without_cutting_or_padding(texts: list[str], special: bool) -> None:
    tokenizer = _tiny()
    ids = _native.Encoder(tokenizer.to_str().encode()).encode(pl.Series(texts, dtype=pl.String), special)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert _lists(ids) == [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=special)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_arrow_string_and_chunking_gives_the_same_ids(kind: pa.DataType) -> None:
    texts = ["the prompt", "", "another question, longer than twelve bytes", "ab"]
    encoder = _native.Encoder(_tiny().to_str().encode())
    whole = _lists(encoder.encode(pl.Series(texts), True))
    assert _lists(encoder.encode(pa.array(texts, kind), True)) == whole
    assert _lists(encoder.encode(pa.array(texts, kind).slice(1, 2), True)) == whole[1:3]
    chunked = pa.chunked_array([texts[:1], [], texts[1:]], type=kind)
    assert _lists(encoder.encode(chunked, True)) == whole


def test_what_is_no_text_is_refused_with_its_row() -> None:
    encoder = _native.Encoder(_tiny().to_str().encode())
    with pytest.raises(ValueError, match="null in row 3"):
        encoder.encode(pa.chunked_array([["a", "b"], ["c", None, None]]), False)
    with pytest.raises(TypeError, match="got Int64; cast it to string"):
        encoder.encode(pl.Series([1, 2]), False)
    with pytest.raises(TypeError, match=r"got <class 'list'>; wrap it with polars\.Series"):
        encoder.encode(["a"], False)  # type: ignore[arg-type]


def _read(path: str, column: str, limit: int) -> list[str]:
    file = SHARED / "data" / path
    content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    lines = [json.loads(line)[column] for line in content.splitlines()[:limit]]
    return ["\n".join(text) if isinstance(text, list) else text for text in lines]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real texts and tokenizers lie in ../shared, which is not here")
@pytest.mark.parametrize("name", ["qwen2.5", "gpt2", "smollm2"])
def test_ids_of_real_texts_are_those_of_tokenizers(name: str) -> None:
    source = lzma.decompress((SHARED / "tokenizers" / name / "tokenizer.json.xz").read_bytes())
    texts = _read("math/gsm8k_train.jsonl", "question", 1_000)
    texts += _read("prompts/human_instructions.jsonl", "prompt", 900)
    texts += _read("prompts/t0_prompts.jsonl.xz", "prompt", 500)
    texts += ["<|im_start|>user\nhi<|im_end|>\n", "日本語のテキスト 🎌", " ", "\r\n\t"]
    reference = tokenizers.Tokenizer.from_buffer(source)
    reference.no_truncation()
    reference.no_padding()
    ids = _native.Encoder(source).encode(pl.Series(texts), False)
    assert _lists(ids) == [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]


def _prefix(one: list[int], other: list[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


CALLS = {
    "counterparts": "_native.counterparts(2 * 10**8, 1, 0, 0, 2 * 10**8)",
    "counterparts_within": "_native.counterparts_within(np.zeros(N, np.uint64), [np.arange(N, dtype=np.uint64)], 2, 0)",
    "counterparts_within near": "_native.counterparts_within("
    "np.zeros(N, np.uint64), [np.arange(N, dtype=np.uint64)], 1, 0, (np.linspace(0, 1, N), 0.1))",
    "clusters": "_native.clusters(TEXTS, 5, 0.7)",
    "overlaps": "_native.overlaps((TEXTS, GROUPS), (TEXTS, GROUPS), 5, 0.8)",
    "encode": "ENCODER.encode(TEXTS, False)",
    "digests": "_native.digests(TEXTS)",
}
SHORT_OF_MEMORY = """
import resource, sys
import numpy as np, polars as pl
from mipo import _native
from mipo.tokenizer.encoder import open_encoder
from mipo import demo
N = 400_000
TEXTS = pl.Series([f"{i} hello world this is {i * 7} a text {i % 13} foo bar" for i in range(60_000)])
GROUPS = np.zeros(len(TEXTS), np.uint64)
ENCODER = open_encoder(str(demo.HERE / "model"))
_native.digests(TEXTS[:9])  # threads are there
def limit(mebibytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20), resource.RLIM_INFINITY))
for mebibytes in (2, 16, 48, 80, 120):
    limit(mebibytes)
    try:
        CALL
    except MemoryError as error:
        print("MemoryError", error)
    else:
        print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("name", CALLS)
def test_too_little_memory_is_a_memory_error_and_never_an_abort(name):
    program = SHORT_OF_MEMORY.replace("CALL", CALLS[name])
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    lines = ended.stdout.splitlines()
    assert len(lines) == 5
    assert all(line == "done" or line.startswith("MemoryError") for line in lines), lines
    assert lines[0] != "done"


def test_ctrl_c_ends_a_native_call(tmp_path):
    """Of a file of 64 TiB, which takes no space: the whole checksum would take hours."""
    with (tmp_path / "holes").open("wb") as file:
        try:
            file.truncate(2**46)
        except OSError:
            file.truncate(2**43)
    program = (
        "import os, signal, threading, sys\n"
        "from mipo import _native\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: _native.checksum_file(sys.argv[1], 0, 0)\n"
        "except KeyboardInterrupt: print('interrupted', _native.checksum([]) == _native.checksum([]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "holes")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout == "interrupted True\n", ended.stderr
