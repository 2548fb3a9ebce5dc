"""Prompts for the tests of several engines."""

import polars as pl
import pytest

from mipo.responses.requests import compose_requests


@pytest.fixture(scope="module")
def prompts() -> pl.DataFrame:
    foods = ("soup", "ramen", "curry", "tacos")
    rows = [(f"what should i {verb} tonight ?", f"i like {food} .") for food in foods for verb in ("eat", "cook", "do")]
    return compose_requests(pl.DataFrame(rows, schema=["prompt", "context"], orient="row"), chat=True).prompts
