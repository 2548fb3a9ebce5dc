"""Preference pairs for tests, the ids that a store holds of them, and those that TRL makes."""

from types import SimpleNamespace
from typing import Any

import polars as pl
from hypothesis import strategies as st

from mipo.tokens.groups import tokenize
from mipo.tokens.store import PairStore

# What breaks tokenizers: characters of several tokens, white space at the border, and texts that look like markup.
HARD = [
    "🎌 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "日本語のテキスト。質問です",
    "def f(x):\n\treturn {k: v for k, v in x}  # tail ",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant",
    "literal </s> and <|endoftext|> and [INST] look-alikes",
    "ends in a blank ",
    "\n\nstarts with new lines",
    "e\u0301 decomposed, \u00e9 composed, \ufb01 ligature, \u200b zero width",
    "1234567890 3.14159 1e-9",
    "\u0000 and \u0007 controls",
]
WORDS = ["what", "should", "i", "eat", "tonight", "?", "pizza", "soup", "because", "it", "suits", "you", "."]
worded = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def trl_ids(rows: Any, tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """What TRL's own `_prepare_dataset` makes of rows, a list or a dataset, called on a stand-in for the trainer."""
    from datasets import Dataset
    from trl import DPOTrainer

    args: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    stand_in: Any = SimpleNamespace(_tokenizer=tokenizer)
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    dataset = DPOTrainer._prepare_dataset(stand_in, dataset, tokenizer, args, "train")
    return list(zip(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True))


def mipo_ids(store: PairStore) -> list[tuple[list[int], ...]]:
    return [
        (
            store.prompts[row["prompt"]].tolist(),
            store.responses[row["chosen"]].tolist(),
            *(store.responses[rejected].tolist() for rejected in row["rejected"]),
        )
        for row in store.pairs.iter_rows(named=True)
    ]


def chat(prompt: str, chosen: str, rejected: str, system: str | None = None) -> dict[str, Any]:
    before = [{"role": "system", "content": system}] if system is not None else []
    return {
        "prompt": [*before, {"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def text(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def store_of(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> PairStore:
    return tokenize(pl.DataFrame(rows, infer_schema_length=None), tokenizer, **options)[0]
