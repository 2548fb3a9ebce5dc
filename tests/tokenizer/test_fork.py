"""A forked process works, whatever its parent did; `datasets.map(num_proc=2)` and DataLoader workers fork."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

import mipo
from mipo import demo

MODEL = str(demo.HERE / "model")
TEXTS = [f"row {row} of some text" for row in range(3_000)]


def encode() -> list[list[int]]:
    return [row.tolist() for row in mipo.encode(TEXTS, MODEL)]


def draw() -> list[int]:
    return mipo.counterparts(100_000, seed=1)[:, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("work", [encode, draw])
def test_a_forked_child_does_the_same_work(work: Callable[[], Any]) -> None:
    here, context = work(), multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    process = context.Process(target=lambda: child.send(work()))
    process.start()
    try:
        assert parent.poll(120), "the child hangs"
        assert parent.recv() == here
    finally:
        process.kill()
        process.join()


def test_functions_that_name_mipo_are_hashed_and_map_in_two_processes() -> None:
    datasets = pytest.importorskip("datasets")
    from datasets.fingerprint import Hasher

    for function in (encode, draw):
        assert Hasher.hash(function) == Hasher.hash(function)
    here = encode()
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    ids = lambda batch: {"ids": [row.tolist() for row in mipo.encode(batch["text"], MODEL)]}  # noqa: E731
    assert rows.map(ids, batched=True, num_proc=2)["ids"] == here
