"""Fuzzer over chat templates: what Rust renders is what transformers renders, for random templates and conversations.

    python tests/support/fuzz_templates.py --minutes 20 --seed 0

No probe and no sample stands between a difference and a text here. Prints its progress once a minute. At a difference
it prints the template and the conversation, and exits with 1. Knows nothing of pytest.
"""

from __future__ import annotations

import argparse
import copy
import random
import resource
import sys
import time
import warnings
from collections import Counter
from typing import Any

import polars as pl
import template_grammar

from mipo.tokenizer import template

ROLES = ["user", "assistant", "system", "tool", "user", "assistant", "User", "", "é\n"]
OPTIONAL = ("reasoning_content", "thinking", "reasoning", "name")
KIND = pl.List(pl.Struct(dict.fromkeys(("role", "content", *OPTIONAL), pl.String)))
PIECES = ["a", "b", " ", "\n", "x", "\t\r\n", "\x1c", "\x85", "\u2028", "\u200b", "<think>", "</think>", "{{", "'",
          '"', "\\", "é", "ß", "🙂", "\0", "</", "user", "A", "İ", "None"]  # fmt: skip
CHATS = 24  # conversations for each template


def conversation(rng: random.Random) -> list[dict[str, str]]:
    """A few messages, some with reasoning or a name."""

    def text() -> str:
        if rng.random() < 0.2:
            return rng.choice(template.CONTENTS)
        return "".join(rng.choices(PIECES, k=rng.randint(0, 8)))

    def message() -> dict[str, str]:
        turn = {"role": rng.choice(ROLES), "content": text()}
        return turn | {name: text() for name in OPTIONAL if rng.random() < 0.1}

    return [message() for _ in range(rng.randint(1, 5))]


def rendered(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> str | None:
    """transformers' text, None where it raises."""
    text = template._reference(tokenizer, copy.deepcopy(messages), prompt)
    return text if isinstance(text, str) else None


def difference(tokenizer: Any, rng: random.Random, counts: Counter[str]) -> str | None:
    """The first conversation for which Rust has a text that is not transformers'."""
    native, why = template._native_of(tokenizer, tokenizer.chat_template)
    if native is None:
        counts[f"not a template of {'Rust' if 'Rust' in str(why) else 'Jinja2'}"] += 1
        return None
    counts["templates"] += 1
    chats = [conversation(rng) for _ in range(CHATS)]
    prompt = rng.random() < 0.5
    offsets, data, failed = native.render(pl.Series(chats, dtype=KIND), prompt)
    texts, reasons = template._texts(offsets, data), dict(failed)
    for row, messages in enumerate(chats):
        expected = rendered(tokenizer, messages, prompt)
        if row in reasons:
            counts["left" if expected is not None else "refused by both"] += 1
        elif texts[row] == expected:
            counts["same"] += 1
        else:
            return f"prompt {prompt}, {messages}\nRust         {texts[row]!r}\ntransformers {expected!r}"
    return None


def main() -> None:
    """The command line."""
    from mipo import demo
    from mipo.models.loading import load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # A random template may double a text without end: in Python that is a MemoryError then, and Rust must have stopped.
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    warnings.simplefilter("ignore", SyntaxWarning)  # Python's compiler on what Jinja2 made of a random template
    tokenizer = load_tokenizer(str(demo.HERE / "model"))
    rng, counts = random.Random(arguments.seed), Counter[str]()
    start = told = time.monotonic()
    while time.monotonic() - start < 60 * arguments.minutes:
        tokenizer.chat_template = template_grammar.template(rng)
        if found := difference(tokenizer, rng, counts):
            print(f"a difference after {dict(counts)}:\n{tokenizer.chat_template}\n{found}")
            sys.exit(1)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{(told - start) / 60:.0f} min: {dict(counts)}", flush=True)
    print(f"no difference: {dict(counts)}")


if __name__ == "__main__":
    main()
