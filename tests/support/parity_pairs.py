"""Ids of `mipo.tokens.groups.tokenize` beside those of TRL's own `_prepare_dataset`, on real pairs and the fuzzer's.

    python tests/support/parity_pairs.py FOLDER --rows 50000

Every tokenizer in FOLDER, as text and, where there is a template, as chat; and every template that TRL ships, on a
part of the rows. Prints what was compared, and exits with 1 at a difference. Knows nothing of pytest; slices of it are
tests in test_groups.py.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_tokens import WAYS, Target, load_texts
from preferences import chat, mipo_ids, store_of, text, trl_ids

NAMES = ("gpt2", "qwen2.5", "smollm2", "stories260K")


def real_rows(count: int, shape: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of which each prompt and response is another real text, in the order of a shuffle."""
    texts = load_texts()
    random.Random(seed).shuffle(texts)
    draws = (texts * (3 * count // len(texts) + 1))[: 3 * count]
    return [shape(*draws[3 * i : 3 * i + 3]) for i in range(count)]


def nasty_rows(count: int, shape: Any, target: Target, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of the fuzzer's strings."""
    rng, real = random.Random(seed), load_texts()
    draw: Callable[[], str] = lambda: rng.choice(WAYS)(rng, target, real)[:400]  # noqa: E731
    return [shape(draw(), draw(), draw()) for _ in range(count)]


def first_difference(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any] | None:
    """The first row of which an id is not TRL's."""
    ours, theirs = mipo_ids(store_of(rows, tokenizer)), trl_ids(rows, tokenizer)
    assert len(ours) == len(theirs) == len(rows)
    return next((row for row, one, other in zip(rows, ours, theirs, strict=True) if one != other), None)


def templates() -> Iterator[Path]:
    """The chat templates that TRL ships."""
    import trl

    yield from sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def main() -> None:
    """The command line."""
    from datasets import disable_progress_bars
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds a tokenizer's folder for each name, unpacked")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--templates-rows", type=int, default=500)
    args = parser.parse_args()
    disable_progress_bars()
    for name in NAMES:
        tokenizer = AutoTokenizer.from_pretrained(str(args.folder / name))
        target = Target(name, tokenizer.backend_tokenizer, list(tokenizer.get_added_vocab()) or ["<s>"])
        for shape in (text, chat) if tokenizer.chat_template else (text,):
            rows = real_rows(args.rows, shape) + nasty_rows(args.rows // 10, shape, target)
            _compare(f"{name}, {shape.__name__}", rows, tokenizer)
    for path in templates():
        other = copy.deepcopy(AutoTokenizer.from_pretrained(str(args.folder / "qwen2.5")))
        other.chat_template = path.read_text()
        other.bos_token = other.bos_token or "<|endoftext|>"  # some templates begin with it
        try:
            _compare(path.stem, real_rows(args.templates_rows, chat), other)
        except ValueError as error:
            print(f"{path.stem}: {error}"[:200], flush=True)


def _compare(name: str, rows: list[dict[str, Any]], tokenizer: Any) -> None:
    difference = first_difference(rows, tokenizer)
    result = "0 differences" if difference is None else f"a difference: {difference}"
    print(f"{name}: {len(rows):,} pairs, {result}", flush=True)
    if difference is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
