"""What failed: counts in a table of responses."""

from collections import Counter

import polars as pl


def failures(responses: pl.DataFrame) -> dict[str, int]:
    """How many prompts have no response, by reason."""
    return dict(Counter(responses["failure"].drop_nulls().to_list()))
