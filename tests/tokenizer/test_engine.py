"""Engines: ids are those of the `tokenizers` package, whichever engine makes them, and the choice has a reason."""

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_tokens
import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from fuzz_tokens import NAMES, Target, first_difference, load_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mipo.tokenizer.encoder import encode, open_encoder

TEXTS = 50_000


@pytest.fixture(scope="session")
def real_texts(shared: Path) -> list[str]:
    """50,000 of all strings in all files of real data, with the longest and most of those that are not English."""
    texts = fuzz_tokens.load_texts()
    texts.sort(key=lambda text: zlib.crc32(text.encode()))
    foreign = [text for text in texts if not text.isascii()][:10_000]
    longest = sorted(texts, key=len)[-200:]
    chosen, size = dict.fromkeys(["", *foreign, *longest]), 0
    # Short ones after half of the bytes, so that the count is reached with 10 MB.
    for text in texts:
        if len(text) < (10_000 if size < 5_000_000 else 120):
            chosen[text] = None
            size += len(text)
        if len(chosen) == TEXTS:
            break
    return list(chosen)


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_real_texts_are_the_tokenizers(name: str, real_texts: list[str]) -> None:
    target = next(load_targets([name]), None)
    if target is None:
        pytest.skip(f"{name} is not here")
    assert len(real_texts) >= TEXTS
    rng = random.Random(0)
    lookalikes = [fuzz_tokens.cut(rng, target, real_texts) for _ in range(2_000)]
    assert first_difference(real_texts + lookalikes, target, True) is None


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "smollm2", "stories260K"])
def test_byte_pair_encodings_get_the_fast_engine(name: str, shared: Path) -> None:
    target = next(load_targets([name]))
    encoder = open_encoder(target.truth)
    assert (encoder.name, encoder.why.split(" for ")[0]) == ("fastokens", "its ids are those of tokenizers")


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_encoded_whole(name: str) -> None:
    target = next(load_targets([name]), None)
    if target is None:
        pytest.skip(f"{name} is not here")
    mixed = "".join(character for kind in fuzz_tokens.CLASSES for character in kind)
    texts = ["a" * 100_000, " " * 100_000, "\n" * 50_000, mixed * 400, "the cat 's " * 100_000]
    assert first_difference(texts, target, False) is None


def test_a_slice_of_the_fuzzer_finds_no_difference() -> None:
    assert fuzz_tokens.fuzz(2, 0, NAMES) is None


# Made-up tokenizers

CORPUS = [
    "The quick brown fox doesn't jump over 13 lazy dogs.\n\n\tdef f(x): return x ** 2  # 日本語 é e\u0301",
    'I\'LL say: "well, café naïve" 1234567 HTTPServer camelCase <e> </s> ▁ 👍🏽 한국어 Ǆ',
] * 20
LETTERS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX, CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTION + "|" + LETTERS + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    f"{LETTERS}{UPPER}*{LOWER}+{SUFFIX}|{LETTERS}{UPPER}+{LOWER}*{SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]  # fmt: skip


def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(
    pre_tokenizer: Any = None, normalizer: Any = None, added: list[AddedToken] | None = None, **model: Any
) -> tokenizers.Tokenizer:
    """A byte-pair encoding of a few hundred tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<e>", "</s>"], show_progress=False,
        **{affix: model[affix] for affix in ("continuing_subword_prefix", "end_of_word_suffix") if affix in model},
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(added or [])
    return tokenizer


def with_bytes(normalizer: Any, unknown: str | None = None, missing: int = 0) -> tokenizers.Tokenizer:
    """A byte-pair encoding of sentencepiece's kind, with bytes to fall back on."""
    content = json.loads(train(pre_tokenizers.Split("x", "isolated"), normalizers.Replace(" ", "▁")).to_str())
    model = content["model"]
    short = [token for token in model["vocab"] if token.isprintable() and len(token) < 8]
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256 - missing)), *short]
    model["vocab"] = {token: place for place, token in enumerate(dict.fromkeys(vocab))}
    merges = (merge for merge in model["merges"] if {*merge, "".join(merge)} <= set(model["vocab"]))
    model.update(merges=list(merges), byte_fallback=True, fuse_unk=True, unk_token=unknown)
    content.update(pre_tokenizer=None, decoder=None, added_tokens=[])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizer
    return tokenizer


def trained(model: Any, trainer: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def ended() -> tokenizers.Tokenizer:
    tokenizer = train()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing("<e> $0 </s>", None, [("<e>", 0), ("</s>", 1)])]
    )
    return tokenizer


def plain(**flags: bool) -> list[AddedToken]:
    return [AddedToken("<|x|>", normalized=False), AddedToken("day", **{"normalized": False, **flags})]


FAST: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bytes": train,
    "bytes with a space before": lambda: train(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": lambda: train(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ),
    "Llama 3": lambda: train(split(LLAMA3), ignore_merges=True),
    "o200k": lambda: train(split(O200K)),
    "DeepSeek": lambda: train(split(*DEEPSEEK)),
    "NFC": lambda: train(split(LLAMA3), normalizers.NFC()),
    "added tokens": lambda: train(added=plain()),
    "template": ended,
    "sentencepiece": lambda: with_bytes(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), "<unk>"
    ),
}
SLOW: dict[str, tuple[str, Callable[[], tokenizers.Tokenizer]]] = {
    "NFKC": ("the normalizer NFKC", lambda: train(normalizer=normalizers.NFKC())),
    "NFD": ("the normalizer NFD", lambda: train(normalizer=normalizers.NFD())),
    "lower case": ("the normalizer Lowercase", lambda: train(normalizer=normalizers.Lowercase())),
    "replaced by a pattern": (
        "the normalizer Replace",
        lambda: train(normalizer=normalizers.Replace(tokenizers.Regex(r"\s+"), " ")),
    ),
    "metaspace": ("the pre-tokenizer Metaspace", lambda: train(pre_tokenizers.Metaspace())),
    "whitespace": ("the pre-tokenizer Whitespace", lambda: train(pre_tokenizers.Whitespace())),
    "another pattern": ("the pattern or behavior", lambda: train(split(r"\w+|\s+"))),
    "a byte missing": ("unk_token without all bytes", lambda: with_bytes(normalizers.Prepend("▁"), "<unk>", missing=3)),
    "unknown": ("unk_token without all bytes", lambda: train(unk_token="<e>")),
    "suffix": ("end_of_word_suffix", lambda: train(end_of_word_suffix="</w>")),
    "prefix": ("continuing_subword_prefix", lambda: train(continuing_subword_prefix="##")),
    "lstrip": ('the added token "day" with lstrip', lambda: train(added=plain(lstrip=True))),
    "rstrip": ('the added token "day" with rstrip', lambda: train(added=plain(rstrip=True))),
    "single word": ('the added token "day" with single_word', lambda: train(added=plain(single_word=True))),
    "normalized": ('the added token "day" with normalized', lambda: train(added=plain(normalized=True))),
    "WordPiece": (
        "the model WordPiece",
        lambda: trained(
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False),
        ),
    ),
    "Unigram": (
        "the model Unigram",
        lambda: trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=100, special_tokens=["<u>"], unk_token="<u>", show_progress=False),
        ),
    ),
}
MADE = {**FAST, **{name: make for name, (_, make) in SLOW.items()}}


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    return Target(request.param, MADE[request.param](), ["<e>", "</s>", "<|x|>", "day", "<unk>"])


@pytest.mark.parametrize("target", list(MADE), indirect=True)
def test_ids_of_made_up_tokenizers_are_theirs_or_another_engine_says_why(target: Target) -> None:
    encoder = open_encoder(target.truth)
    if target.name in FAST:
        assert encoder.name == "fastokens", encoder.why
    else:
        assert encoder.name == "tokenizers"
        assert encoder.why.startswith(SLOW[target.name][0]), encoder.why
        with pytest.raises(ValueError, match=r"fastokens cannot take this tokenizer: .* use encoder="):
            encode(["a"], target.truth, encoder="fastokens")
    rng = random.Random(0)
    texts = [rng.choice(fuzz_tokens.WAYS)(rng, target, CORPUS) for _ in range(1_500)]
    texts += [character + other for kind in fuzz_tokens.CLASSES for character in kind for other in ("", "a", " 1")]
    for special in (False, True):
        difference = first_difference(texts, target, special)
        assert difference is None, fuzz_tokens.minimize(difference, target, special)


@given(texts=st.lists(st.text(), max_size=8), special=st.booleans())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("target", ["Llama 3", "o200k", "DeepSeek", "NFC", "sentencepiece"], indirect=True)
def test_ids_of_any_text_are_the_tokenizers(target: Target, texts: list[str], special: bool) -> None:
    assert first_difference(texts, target, special) is None


def test_a_tokenizer_with_dropout_is_random_and_never_fast() -> None:
    tokenizer = train()
    tokenizer.model.dropout = 0.5
    assert open_encoder(tokenizer).why.startswith("dropout is not known")


# Errors


def test_another_engine_is_refused(demo_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match='expected auto, fastokens or tokenizers, got "gigatoken"'):
        encode(["a"], demo_tokenizer, encoder="gigatoken")


@pytest.mark.parametrize(
    ("text", "raw"),
    [(pa.string(), pa.binary()), (pa.large_string(), pa.large_binary()), (pa.string_view(), pa.binary_view())],
)
def test_bytes_that_arrow_calls_text_and_are_none_are_named_by_row(demo_tokenizer: Any, text: Any, raw: Any) -> None:
    rows = pa.array([b"what ?", b"soup \xff of more than twelve bytes", b"\xe9"], pa.binary()).cast(raw)
    unchecked = pa.Array.from_buffers(text, len(rows), rows.buffers())
    with pytest.raises(ValueError, match=r"got other bytes in row 1 from byte 5 on; .*errors=\"replace\""):
        encode(unchecked, demo_tokenizer)
    assert len(encode(unchecked[:1], demo_tokenizer)) == 1


def test_offsets_that_leave_their_bytes_are_named_by_row(demo_tokenizer: Any) -> None:
    offsets = pa.py_buffer(np.array([0, 2, 99, 3], dtype=np.int32).tobytes())
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    with pytest.raises(ValueError, match=r"expected offsets that never fall .* in row 1"):
        encode(broken, demo_tokenizer)
