"""Laws of the draw on Ray: the same bytes as on one machine, however the rows lie in blocks, and the same refusals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mipo import cli, contrast
from mipo.io import cluster
from mipo.negatives import on_ray

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mipo[ray]'")
pytest.importorskip("ray.data", reason="ray is installed without ray[data]")

ROWS = 101


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    """A Ray on two cores of this machine."""
    with cluster.connected(cores=2):
        yield


def frame_of(seed: int = 0) -> pl.DataFrame:
    """Prompts of which some are equal, or equal once normalised, and columns of several types with nulls."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(k, size=ROWS) for k in (40, 9, 7, 3)]
    prompt = [f"{('Straße', 'STRASSE')[i % 2]}  {i // 2}. And more? Yes." for i in drawn[0]]
    return pl.DataFrame(
        {
            "prompt": prompt,
            "context": [f"I like {i}" for i in drawn[1]],
            "user": [int(i) if i else None for i in drawn[2]],
            "task": [["sums", "SUMS", None][i] for i in drawn[3]],
            "note": [None] * ROWS,
        }
    )


def same(dataset: Any, frame: pl.DataFrame, **how: Any) -> None:
    here, there = contrast(frame, **how), cluster.gather(on_ray.contrast(dataset, **how))
    assert there.schema == here.schema
    assert there.equals(here)


@pytest.mark.parametrize(
    "how",
    [
        {"negatives": 3, "seed": 5},
        {"match": ["task"]},
        {"match": "task", "differ": "user", "negatives": 2},
        {"kind": "context", "match": ["prompt"]},
        {"kind": "context", "differ": ["context", "user"]},
        {"differ": ["prompt"], "match": ["context"]},
        {"kind": "partial", "seed": 3},
        {"kind": "dropped"},
        {"near": ("user", 1)},
        {"near": ("prompt", 0), "match": ["task"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("blocks", [1, 7])
def test_a_dataset_is_drawn_as_on_one_machine(how: dict[str, Any], blocks: int) -> None:
    frame = frame_of()
    same(cluster.spread(frame, blocks=blocks), frame, **how)


def test_without_duplicates_and_conditions_the_draw_is_the_same() -> None:
    frame = pl.DataFrame({"prompt": [f"prompt {i}" for i in range(ROWS)]})
    same(cluster.spread(frame, blocks=4), frame, negatives=2, seed=1)
    numbered = frame.with_columns(prompt_id=pl.int_range(ROWS, 0, -1, dtype=pl.UInt64))
    same(cluster.spread(numbered, blocks=4), numbered, negatives=2, seed=1)


def test_chat_prompts_and_empty_blocks() -> None:
    chats = [[{"role": "system", "content": f"s{i % 3}"}, {"role": "user", "content": f"u{i % 5}"}] for i in range(30)]
    frame = pl.DataFrame({"prompt": chats})
    pieces = [frame[:0], frame[:7], frame[7:7], frame[7:]]
    dataset = ray.data.from_arrow([piece.to_arrow(compat_level=pl.CompatLevel.oldest()) for piece in pieces])
    same(dataset, frame, negatives=2)


def test_rows_of_files_keep_their_order(tmp_path: Path) -> None:
    frame = frame_of(1).drop("note")
    for number, piece in enumerate(frame.iter_slices(10)):
        piece.write_parquet(tmp_path / f"{number:02}.parquet")
    before = ray.data.DataContext.get_current().execution_options.preserve_order
    same(ray.data.read_parquet(str(tmp_path)), frame, differ=["user"])
    assert ray.data.DataContext.get_current().execution_options.preserve_order == before


def test_what_cannot_be_drawn_is_refused_in_the_same_words() -> None:
    frame = frame_of()
    wrong: list[dict[str, Any]] = [{"match": ["lang"]}, {"negatives": ROWS}, {"kind": "other"}, {"seed": -1}]
    wrong += [{"kind": "partial", "match": ["task"]}]
    for how in wrong:
        messages = []
        for draw, prompts in ((contrast, frame), (on_ray.contrast, cluster.spread(frame, blocks=3))):
            with pytest.raises(ValueError, match=r"expected|needs|mean nothing") as refused:
                draw(prompts, **how)
            messages.append(str(refused.value))
        assert messages[0] == messages[1]


def test_the_command_writes_the_same_bytes(tmp_path: Path) -> None:
    frame_of().write_parquet(tmp_path / "prompts.parquet")
    for engine in ("local", "ray"):
        drawn = ["contrast", str(tmp_path / "prompts.parquet"), "--differ", "user", "--negatives", "2"]
        assert cli.main([*drawn, "--engine", engine, "--output", str(tmp_path / f"{engine}.parquet")]) == 0
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
