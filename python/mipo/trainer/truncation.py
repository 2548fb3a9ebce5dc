"""Truncation: what TRL's `max_length` drops and cuts, counted.

Knows rows of token ids. Knows no trainer, and nothing of how a row is cut: that is the collators' part.
"""

from __future__ import annotations

import logging
from typing import Any

import datasets
from accelerate import PartialState

from mipo.errors import InputError
from mipo.trainer.config import MIPOConfig

logger = logging.getLogger(__name__)


def fitting(dataset: Any, args: MIPOConfig) -> Any:
    """The groups whose prompt leaves room for a response; with truncation_mode keep_end, which cuts prompts, all."""
    limit = args.max_length
    if limit is None or args.truncation_mode != "keep_start":
        return dataset
    return dataset.filter(lambda row: len(row["prompt_ids"]) < limit)


def check(dataset: Any, kept: Any, args: MIPOConfig, name: str) -> None:
    """Raises InputError where `max_length` keeps none of the groups, and warns of those that it drops or cuts.

    Those of a stream are not counted.
    """
    limit = args.max_length
    if limit is None:
        return
    if next(iter(kept), None) is None:
        raise InputError(
            f"max_length: expected a shorter prompt in one group at least, got {limit}; raise it, or leave it out"
        )
    if not isinstance(kept, datasets.Dataset) or not PartialState().is_main_process:
        return
    dropped, cut = len(dataset) - len(kept), _longer(kept, limit)
    what = [f"drops {dropped:,}, whose prompt alone has that many tokens"] * bool(dropped)
    what += [f"cuts responses of {cut:,} ({args.truncation_mode})"] * bool(cut)
    if what:
        logger.warning(
            "max_length: of %s groups of the %s data set, %d %s", f"{len(dataset):,}", name, limit, " and ".join(what)
        )


def _longer(dataset: datasets.Dataset, length: int) -> int:
    """The number of groups with a prompt and response of more tokens than `length`."""
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    count = 0
    for batch in dataset.iter(batch_size=1_000):
        for prompt, chosen, rejected in zip(*(batch[name] for name in names), strict=True):
            several = rejected and isinstance(rejected[0], list)
            responses = [chosen, *rejected] if several else [chosen, rejected]
            count += len(prompt) + max(map(len, responses)) > length
    return count
