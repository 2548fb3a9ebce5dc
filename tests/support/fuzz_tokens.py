"""Fuzzer over tokenizer × text: `mipo.encode` gives the ids of the `tokenizers` package for all texts. So do prompts
and responses, which are not encoded whole, with TRL's border between them.

    python tests/support/fuzz_tokens.py --minutes 60 --seed 0

Prints its progress once a minute. At a difference it prints the shortest text with one, and exits with 1.
Knows nothing of pytest; a slice of two seconds is a test in test_engine.py.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tokenizers

from mipo import _native, demo
from mipo.tokenizer.encoder import encode, open_encoder
from mipo.tokenizer.table import TokenTable

SHARED = Path(__file__).parents[3] / "shared"
BATCH = 1_000

# Characters that pre-tokenizers, normalizers and merges treat in their own ways, a class at a time.
CLASSES = [
    [chr(c) for c in range(128)],
    list(" \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"),
    list(" \n\r\t"),
    list("'’sStTmMdDlLrReEvVſK"),
    list("!?.,;:-_/\\|<>()[]{}@#$%^&*+=~`\"'¿¡«»…—"),
    list("0123456789٠٣۴५৭๕½¼²³Ⅷⅳ①⑳一二三〇𝟘𝟙"),
    [chr(c) for c in (*range(0x300, 0x370), *range(0x591, 0x5C8), 0x6E0, 0x7FD, *range(0x20D0, 0x20F1), 0x3099)],
    list("aeoucAEOUCṩạ̈éèàçñÅΩKﬁﬂǅǆŉßẞİıſ"),
    [chr(c) for c in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3), *range(0xAC00, 0xAC20))],
    [chr(c) for c in (*range(0x3040, 0x3100), *range(0x4E00, 0x4E60), 0x9FA5, 0x9FA6, 0xF900, 0x20000, 0x2F800)],
    [chr(c) for c in (*range(0x600, 0x700), *range(0x5D0, 0x5EB), *range(0x900, 0x980), *range(0xE01, 0xE3B))],
    list("👍🏽👨👩👧\u200d\ufe0f\u20e3🏳🌈🇯🇵🇩🇪❤☺\U000e0067\U000e007f"),
    list("ＡＢＣａｂｃ１２３！？　ｱｲｳ𝐀𝒃ℂ™©®°µ"),
    list("\0\x07\x1b\x7f\x80\x9f\xad\u200b\u200c\u200e\u202e\u2060\ufeff\ufffd\uffff\ue000\U0010ffff\U000f0000"),
    list("▁ĠĊĉâÂÃ�"),
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A tokenizer of the `tokenizers` package under test, and pieces for its texts."""

    name: str
    truth: tokenizers.Tokenizer
    pieces: list[str]


def load_targets(names: list[str]) -> Iterator[Target]:
    """The tokenizers of these names that are at hand."""
    for name in names:
        packed, model = SHARED / "tokenizers" / name / "tokenizer.json.xz", SHARED / "models" / name / "tokenizer.json"
        plain = demo.HERE / "model" / "tokenizer.json" if name == "demo" else model
        if not (packed.is_file() or plain.is_file()):
            continue
        content = lzma.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
        truth = tokenizers.Tokenizer.from_buffer(content)
        truth.no_padding()
        truth.no_truncation()
        added = [token.content for token in truth.get_added_tokens_decoder().values()]
        yield Target(name, truth, added or ["<s>"])


def load_texts() -> list[str]:
    """Real texts: every string in every row of `shared/data`, or a few lines where it is missing."""
    files = {file: file.read_bytes() for file in sorted(SHARED.glob("data/*/*.jsonl*"))}
    unpacked = (lzma.decompress(data) if file.suffix == ".xz" else data for file, data in files.items())
    lines = (line for data in unpacked for line in data.splitlines())
    texts = dict.fromkeys(text for line in lines for text in strings(json.loads(line)))
    return list(texts) or ["The café's 3 naïve owners can't say \"日本語\".\n\n\tif x != 10:  # 👍"]


def strings(value: Any) -> Iterator[str]:
    """Every string within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


# Texts


def nasty(rng: random.Random, target: Target, real: list[str]) -> str:
    """Characters of one to three classes."""
    classes = rng.sample(CLASSES, rng.randint(1, 3))
    return "".join(rng.choice(rng.choice(classes)) for _ in range(rng.randint(0, 40)))


def mutated(rng: random.Random, target: Target, real: list[str]) -> str:
    """A part of a real text with a few places changed."""
    text = rng.choice(real)
    start = rng.randrange(max(1, len(text) - 200))
    characters = list(text[start : start + rng.randint(1, 400)])
    for _ in range(rng.randint(0, 8)):
        place = rng.randint(0, len(characters))
        end = place + rng.choice((0, 0, 1, 1, 2, 8))
        piece = rng.choice((characters[place:end] * 2, [], rng.choices(rng.choice(CLASSES), k=rng.randint(1, 3))))
        characters[place:end] = piece
    return "".join(characters)


def unassigned(rng: random.Random, target: Target, real: list[str]) -> str:
    """Any characters there are, among letters and spaces."""
    points = (rng.choice((rng.randrange(0x3000), rng.randrange(0x20000), rng.randrange(0x110000))) for _ in range(12))
    return "".join(rng.choice(("a", " ", "'", "1", "")) + chr(c) for c in points if not 0xD800 <= c < 0xE000)


def glued(rng: random.Random, target: Target, real: list[str]) -> str:
    """Tokens of the vocabulary side by side."""
    size = target.truth.get_vocab_size()
    text: str = target.truth.decode([rng.randrange(size) for _ in range(rng.randint(1, 20))], skip_special_tokens=False)
    return text


def cut(rng: random.Random, target: Target, real: list[str]) -> str:
    """Added tokens, whole and cut, mixed with small pieces."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        token = rng.choice(target.pieces)
        start, end = rng.choice((0, 0, 1, rng.randrange(len(token)))), rng.choice((0, 0, 1, rng.randrange(len(token))))
        parts.append(token[start : len(token) - end])
        parts.append(rng.choice(("", "", " ", "  ", "\n", "a", "1", "é", "日", "<", "'s", "\u0301")))
    return "".join(parts)


def spaced(rng: random.Random, target: Target, real: list[str]) -> str:
    """White space of all sorts between words, digits and marks."""
    spaces = CLASSES[1] + list(" \n") * 10
    words = ("", "a", "'s", "1", "!", "/", "é", "日", "def", "\u0301")
    return "".join(
        "".join(rng.choices(spaces, k=rng.randint(0, 4))) + rng.choice(words) for _ in range(rng.randint(1, 12))
    )


def run(rng: random.Random, target: Target, real: list[str]) -> str:
    """One piece many times over; now and then long enough for engines that split a text among threads."""
    piece = rng.choice((rng.choice(rng.choice(CLASSES)), nasty(rng, target, real)[:4], mutated(rng, target, real)[:50]))
    length = rng.choice((20, 50, 200, 200, 1_000)) if rng.random() < 0.99 else rng.choice((20_000, 300_000))
    return rng.choice(("", "a", " ")) + piece * (length // max(1, len(piece.encode()))) + rng.choice(("", "a", " "))


def joined(rng: random.Random, target: Target, real: list[str]) -> str:
    """Several of the others in a row."""
    return "".join(rng.choice(WAYS[:-1])(rng, target, real) for _ in range(rng.randint(2, 4)))


WAYS: list[Callable[[random.Random, Target, list[str]], str]] = [
    nasty, mutated, unassigned, glued, cut, spaced, run, joined,
]  # fmt: skip


# Comparison


def differ(text: str, target: Target, special: bool) -> bool:
    """Whether a text is refused or gets other ids than the tokenizer's."""
    try:
        ids = encode([text], target.truth, add_special_tokens=special).ids.tolist()
    except ValueError:
        return True
    return bool(ids != target.truth.encode(text, add_special_tokens=special).ids)


def minimize(text: str, target: Target, special: bool) -> str:
    """A part of the text that still differs, and of which no part can be left out."""
    size = len(text)
    while size:
        start = 0
        while start < len(text):
            shorter = text[:start] + text[start + size :]
            if differ(shorter, target, special):
                text = shorter
            else:
                start += size
        size //= 2
    return text


def first_difference(texts: list[str], target: Target, special: bool) -> str | None:
    """The first text whose ids are not the tokenizer's."""
    expected = [encoding.ids for encoding in target.truth.encode_batch_fast(texts, add_special_tokens=special)]
    try:
        table = encode(texts, target.truth, add_special_tokens=special)
    except ValueError:
        return next((text for text in texts if differ(text, target, special)), "refused only among others")
    if np.array_equal(table.lengths(), [len(ids) for ids in expected]):
        flat = np.fromiter((i for ids in expected for i in ids), dtype=np.uint32, count=len(table.ids))
        if np.array_equal(table.ids, flat):
            return None
    return next(text for text, row, ids in zip(texts, table, expected, strict=True) if row.tolist() != ids)


def first_wrong_group(texts: list[str], target: Target, rng: random.Random) -> tuple[str, str] | None:
    """The first text and continuation with another border than that of the tokenizer's ids and TRL's rule.

    Between them is a place where Rust may cut a text (rust/tokenizer/seams.rs), or nearly one.
    """
    middles = ("", " a", "a b", " the and", "ab  c", "x y\u0301", "a b ", "s t's", "é z", "a b<")
    prompts = [text + rng.choice(middles) for text in texts]
    responses = [rng.choice((text, text[:3], " " + text)) for text in reversed(texts)]
    joints = [prompt + own for prompt, own in zip(prompts, responses, strict=True)]
    alone, whole = (target.truth.encode_batch_fast(side) for side in (prompts, joints))
    builder = _native.GroupBuilder(open_encoder(target.truth))
    finished, count = np.zeros(len(texts), dtype=bool), len(texts)
    groups = (np.arange(count + 1), np.arange(count, dtype=np.uint64), finished, finished)
    own = pl.Series(responses, dtype=pl.String)
    _, prompt, chosen, *_ = builder.push_text((pl.Series(prompts, dtype=pl.String), own, own), groups, end="")
    heads, tails = TokenTable((builder.take_prompts(),)), TokenTable((builder.take_responses(),))
    for row in range(count):
        one, both = alone[row].ids, whole[row].ids
        border = next((i for i, (a, b) in enumerate(zip(one, both, strict=False)) if a != b), min(len(one), len(both)))
        if (heads[prompt[row]].tolist(), tails[chosen[row]].tolist()) != (both[:border], both[border:]):
            return prompts[row], responses[row]
    return None


def fuzz(seconds: float, seed: int, names: list[str], say: Callable[[str], None] = lambda line: None) -> str | None:
    """The first difference, or None after `seconds` without one."""
    rng, real, targets = random.Random(seed), load_texts(), list(load_targets(names))
    for target in targets:
        encoder = open_encoder(target.truth)
        say(f"{target.name}: {encoder.name}, {encoder.why}")
    began, reported, tried, size = time.monotonic(), time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        target, special = targets[tried // BATCH % len(targets)], rng.random() < 0.5
        texts = [rng.choice(WAYS)(rng, target, real) for _ in range(BATCH)]
        text = first_difference(texts, target, special)
        if text is not None:
            return f"{target.name}, add_special_tokens={special}: {minimize(text, target, special)!r}"
        wrong = first_wrong_group(texts[: BATCH // 2], target, rng)
        if wrong is not None:
            return f"{target.name}, prompt and response: {wrong!r}"
        tried, size = tried + len(texts), size + sum(len(text.encode()) for text in texts)
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            say(f"{(reported - began) / 60:.0f} min: {tried:,} texts, {size / 1e6:,.0f} MB, 0 differences")
    say(f"{(time.monotonic() - began) / 60:.1f} min: {tried:,} texts, {size / 1e6:,.0f} MB, 0 differences")
    return None


NAMES = ["gpt2", "qwen2.5", "smollm2", "stories260K", "demo"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizers", nargs="*", default=NAMES)
    args = parser.parse_args()
    difference = fuzz(60 * args.minutes, args.seed, args.tokenizers, lambda line: print(line, flush=True))
    if difference is not None:
        print("a difference:", difference)
        sys.exit(1)


if __name__ == "__main__":
    main()
