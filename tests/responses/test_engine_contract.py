"""What holds of every engine: an error in reading the prompts is the error that generation ends with."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from demo_server import DemoServer
from demo_vllm import vllm_that_ends
from numpy.typing import NDArray

from mipo import demo
from mipo.models.model import Model
from mipo.responses.engines import contract
from mipo.responses.engines.choice import choose
from mipo.responses.engines.contract import Block, Work
from mipo.responses.generation import generate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["local", "server", "vllm"])
@pytest.mark.parametrize("good", [0, 1])
def test_an_error_in_reading_the_prompts_ends_generation_and_loses_no_answer(
    prompts: pl.DataFrame, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any,
    good: int,
) -> None:  # fmt: skip
    """For example one of the disk with the texts, after `good` blocks of three."""
    blocks = list[NDArray[np.int64]]()

    def block(work: Work, rows: NDArray[np.int64]) -> Block:
        blocks.append(rows)
        if len(blocks) > good:
            raise OSError(5, "Input/output error")
        return whole(work, rows)

    whole = Work.block
    monkeypatch.setattr(Work, "block", block)
    monkeypatch.setattr(contract, "BLOCK_ROWS", 3)
    monkeypatch.setattr("mipo.responses.engines.local.BLOCK_ROWS", 3)
    database = tmp_path / "answers.sqlite"
    with DemoServer(model, tokenizer).running() as site:
        more: dict[str, Any] = {
            "server": {"urls": [site.url], "concurrency": 4, "send": "messages"},
            "vllm": {"python": vllm_that_ends(tmp_path, at=-1)},
        }  # fmt: skip
        engine = choose(engine=name, **more.get(name, {}))
        demo_model = Model(str(demo.HERE / "model"))
        with pytest.raises(OSError, match="Input/output error"):
            generate(prompts, demo_model, database=database, engine=engine, temperature=0.0, max_new_tokens=4)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (3 * good,)
