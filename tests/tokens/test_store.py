"""Laws of stores: a group has the same ids in every process, from one shard or several, by every way to read it."""

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from preferences import WORDS, chat, mipo_ids, store_of, text

from mipo.tokenizer.table import TokenTable
from mipo.tokens import shards
from mipo.tokens.store import Groups, PairStore

NAMES = ["prompt_ids", "chosen_ids", "rejected_ids"]
RESIDENT = 16 << 20  # bytes that opening any store may take: a few of Rust's buffers, and imports


def preferences(negatives: int, groups: int = 12) -> list[dict[str, Any]]:
    """Groups of one to `negatives` rejected responses, with prompts and responses in common."""
    return [
        {"prompt_id": 10 * row, **chat(f"{WORDS[row % 5]} ?", f"{WORDS[row % 7]} .", f"{WORDS[(row + k) % 9]} it .")}
        for row in range(groups)
        for k in range(1 + row % negatives)
    ]


@pytest.fixture(params=[1, 3], ids=["one", "several"])
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return preferences(request.param)


@pytest.fixture
def store(rows: list[dict[str, Any]], demo_tokenizer: Any) -> PairStore:
    return store_of(rows, demo_tokenizer)


@pytest.fixture
def opened(store: PairStore, tmp_path: Path) -> PairStore:
    store.save(tmp_path / "tokens")
    return PairStore.open(tmp_path / "tokens")


def halves(table: TokenTable) -> tuple[TokenTable, TokenTable]:
    rows = np.arange(len(table), dtype=np.uint64)
    return table.take(rows[: len(rows) // 2]), table.take(rows[len(rows) // 2 :])


def sharded(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, size: int) -> PairStore:
    """The store of the same rows in shards of `size` groups, each of several batches."""
    ids = sorted({row["prompt_id"] for row in rows})
    for number, start in enumerate(range(0, len(ids), size)):
        part = store_of([row for row in rows if row["prompt_id"] in ids[start : start + size]], tokenizer)
        with shards.ShardWriter(folder, number) as writer:
            for half in range(2):
                writer.put_tables(*(halves(table)[half] for table in (part.prompts, part.responses)))
            for piece in part.pieces:
                for place in range(len(piece.prompt)):
                    own, rejected = slice(place, place + 1), piece.rejected[slice(*piece.offsets[place : place + 2])]
                    rows_of = (piece.prompt_id[own], piece.prompt[own], piece.chosen[own])
                    writer.put_groups(*rows_of, np.array([0, len(rejected)]), rejected)
            writer.record |= {"merged": part.merged}
    shards.finish(folder, {"fingerprint": "f"})
    return PairStore.open(folder)


def as_rows(store: PairStore) -> list[dict[str, Any]]:
    """The rows that a data set shows, from the table of pairs alone."""
    ids = [
        (prompt, chosen, rejected if store.negatives > 1 else rejected[0])
        for prompt, chosen, *rejected in mipo_ids(store)
    ]
    return [dict(zip(NAMES, row, strict=True)) for row in ids]


# On disk


def test_a_store_is_read_as_it_was_written(store: PairStore, opened: PairStore) -> None:
    assert opened.pairs.equals(store.pairs)
    assert opened.pairs.schema == store.pairs.schema
    assert mipo_ids(opened) == mipo_ids(store)
    assert (opened.merged, opened.fingerprint, len(opened)) == (store.merged, store.fingerprint, len(store))
    assert opened.negatives == store.negatives
    assert opened.lengths().equals(store.lengths())


def test_an_opened_store_may_be_saved_over_itself(opened: PairStore, tmp_path: Path) -> None:
    before = mipo_ids(opened)
    opened.save(tmp_path / "tokens")
    assert mipo_ids(opened) == mipo_ids(PairStore.open(tmp_path / "tokens")) == before


@pytest.mark.parametrize("size", [1, 5, 11])
def test_several_shards_are_read_as_one(
    rows: list[dict[str, Any]], store: PairStore, demo_tokenizer: Any, tmp_path: Path, size: int
) -> None:
    several = sharded(tmp_path, rows, demo_tokenizer, size)
    assert len(several) == len(store)
    assert mipo_ids(several) == mipo_ids(store), "by the row numbers of the whole store"
    assert several.pairs.schema == store.pairs.schema
    assert several.pairs["prompt_id"].equals(store.pairs["prompt_id"])
    assert several.lengths().equals(store.lengths())
    assert (several.negatives, several.merged) == (store.negatives, store.merged)
    for side in ("chosen", "rejected"):
        for one, other in zip(several.rows(side), store.rows(side), strict=True):
            assert [ids.tolist() for ids in one] == [ids.tolist() for ids in other]
    assert [several[group] for group in range(len(several))] == list(several) == as_rows(store)
    assert list(several.to_trl()) == as_rows(store)
    several.save(tmp_path / "one")
    assert mipo_ids(PairStore.open(tmp_path / "one")) == mipo_ids(store)
    assert len(shards.manifest(tmp_path / "one")["shards"]) == 1


def test_lengths_are_those_of_the_ids(store: PairStore) -> None:
    lengths = store.lengths().rows()
    assert lengths == [(len(a), len(b), [len(c) for c in rest]) for a, b, *rest in mipo_ids(store)]


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    empty = PairStore(TokenTable(()), TokenTable(()), (), 0, "f")
    empty.save(tmp_path)
    for store in (empty, PairStore.open(tmp_path)):
        assert (len(store), store.negatives, list(store), store.pairs.height) == (0, 0, [], 0)
        assert store.lengths().height == 0
        assert len(store.to_trl()) == 0


def test_groups_outside_a_store_are_refused(store: PairStore) -> None:
    for group in (-1, len(store)):
        with pytest.raises(IndexError, match=f"group {group} of a store of {len(store)} groups"):
            store[group]


RESIDENT_PROGRAM = """
import re, sys
from pathlib import Path
from mipo import PairStore
import numpy, pyarrow, pyarrow.ipc

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

PairStore.open(sys.argv[1])
before = anonymous()
store = PairStore.open(sys.argv[2])
assert store[len(store) - 1]["chosen_ids"][-1] == store.responses.ids[-1]
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report resident memory")
def test_opening_a_store_copies_nothing(demo_tokenizer: Any, tmp_path: Path) -> None:
    store_of(preferences(1), demo_tokenizer).save(tmp_path / "small")
    rows, length = 25_000, 1_000
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int64)
    own = np.arange(rows, dtype=np.uint64)
    responses = TokenTable(((offsets, np.arange(rows * length, dtype=np.uint32)),))
    piece = Groups(own, own * np.uint64(0), own, np.arange(rows + 1), own)
    PairStore(TokenTable(((offsets[:2], np.arange(length, dtype=np.uint32)),)), responses, (piece,), 0, "f").save(
        tmp_path / "large"
    )
    assert (tmp_path / "large/shard-00000/responses.arrow").stat().st_size > 100_000_000
    command = [sys.executable, "-c", RESIDENT_PROGRAM, str(tmp_path / "small"), str(tmp_path / "large")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < RESIDENT


# In other processes


def test_a_store_on_disk_is_pickled_as_the_name_of_its_folder(
    opened: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = PairStore(opened.prompts, opened.responses, opened.pieces * 1000, 0, "f", opened.folder, opened.checksum)
    assert len(pickle.dumps(large)) < 1000
    monkeypatch.chdir(Path(str(opened.folder)).parent)
    pickled = pickle.dumps(PairStore.open("tokens"))
    monkeypatch.chdir("/")
    store = pickle.loads(pickled)
    assert mipo_ids(store) == mipo_ids(opened)
    assert store.fingerprint == opened.fingerprint


def test_another_store_in_the_folder_of_a_pickled_one_is_refused(opened: PairStore, demo_tokenizer: Any) -> None:
    pickled = pickle.dumps(opened)
    store_of([chat("it", "it", "you")], demo_tokenizer).save(str(opened.folder))
    with pytest.raises(ValueError, match="holds another store than before"):
        pickle.loads(pickled)


def test_a_store_in_memory_is_pickled_whole(store: PairStore) -> None:
    assert mipo_ids(pickle.loads(pickle.dumps(store))) == mipo_ids(store)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("lazy", [False, True], ids=["store", "to_trl"])
def test_workers_of_a_data_loader_read_it(demo_tokenizer: Any, tmp_path: Path, method: Any, lazy: bool) -> None:
    from torch.utils.data import DataLoader

    if method not in multiprocessing.get_all_start_methods() or (lazy and method == "spawn"):
        pytest.skip("another process is shown by one of them" if lazy else f"no {method} here")
    sharded(tmp_path, preferences(1), demo_tokenizer, 5)
    store: Any = PairStore.open(tmp_path)
    data = store.to_trl() if lazy else store
    loader: Any = DataLoader(data, batch_size=5, num_workers=2, collate_fn=list, multiprocessing_context=method)
    assert [row for batch in loader for row in batch] == as_rows(store)


def test_a_data_loader_shuffles_a_store(store: PairStore) -> None:
    from torch.utils.data import DataLoader

    data: Any = store
    loader: Any = DataLoader(data, batch_size=4, shuffle=True, collate_fn=list)
    shuffled = [row for batch in loader for row in batch]
    assert sorted(map(str, shuffled)) == sorted(map(str, as_rows(store)))


# As a data set for TRL


def test_trl_gets_lists_of_ids(opened: PairStore) -> None:
    dataset = opened.to_trl()
    expected = as_rows(opened)
    assert dataset.column_names == NAMES
    assert list(dataset) == expected
    assert dataset[3] == expected[3]
    assert dataset[-1] == expected[-1]
    assert dataset[2:4]["chosen_ids"] == [row["chosen_ids"] for row in expected[2:4]]
    for name in NAMES:
        assert list(dataset[name]) == [row[name] for row in expected]
    assert type(dataset[0]["prompt_ids"][0]) is int


def length(row: dict[str, Any]) -> dict[str, Any]:
    return {"length": len(row["prompt_ids"])}


WAYS: dict[str, tuple[Callable[[Any], Any], Callable[[list[Any]], list[Any]]]] = {
    "select": (lambda d: d.select([3, 1, 4]), lambda r: [r[3], r[1], r[4]]),
    "filter": (lambda d: d.filter(lambda row: row["chosen_ids"][0] % 2), 
               lambda r: [x for x in r if x["chosen_ids"][0] % 2]),
    "shard": (lambda d: d.shard(3, 1, contiguous=True), lambda r: r[4:8]),
    "skip": (lambda d: d.skip(5).take(4), lambda r: r[5:9]),
    "map": (lambda d: d.map(lambda row: row), lambda r: r),
    "map batched": (lambda d: d.map(lambda batch: batch, batched=True), lambda r: r),
    "map reversed": (lambda d: d.map(lambda row: {"prompt_ids": row["prompt_ids"][::-1]}),
                     lambda r: [{**x, "prompt_ids": x["prompt_ids"][::-1]} for x in r]),
    "map a column": (lambda d: d.map(length).remove_columns("length"), lambda r: r),
    "flatten": (lambda d: d.select([2, 0]).flatten_indices(), lambda r: [r[2], r[0]]),
    "sort": (lambda d: d.map(length).sort("length").remove_columns("length"),
             lambda r: sorted(r, key=lambda x: len(x["prompt_ids"]))),
}  # fmt: skip


# datasets 5.2 sorts by pyarrow's old argument.
@pytest.mark.parametrize("way", WAYS)
def test_every_change_of_it_shows_ids(opened: PairStore, way: str) -> None:
    change, expected = WAYS[way]
    assert list(change(opened.to_trl())) == expected(as_rows(opened))


def test_shuffled_and_split_it_shows_ids(opened: PairStore) -> None:
    expected = as_rows(opened)
    shuffled = opened.to_trl().shuffle(seed=0)
    assert list(shuffled) != expected
    assert sorted(map(str, shuffled)) == sorted(map(str, expected))
    halves = opened.to_trl().train_test_split(test_size=4, seed=1)
    assert sorted(map(str, [*halves["train"], *halves["test"]])) == sorted(map(str, expected))


def test_mapped_in_other_processes_it_shows_ids(opened: PairStore) -> None:
    mapped = opened.to_trl().map(length, num_proc=2)
    assert [row["length"] for row in mapped] == [len(row["prompt_ids"]) for row in as_rows(opened)]


def test_an_equal_store_is_an_equal_data_set(opened: PairStore) -> None:
    """datasets and TRL look their caches up by fingerprint, which must change with the ids."""
    one, other = (PairStore.open(str(opened.folder)).to_trl() for _ in range(2))
    assert one._fingerprint == other._fingerprint
    changed = TokenTable((*((offsets, ids + np.uint32(1)) for offsets, ids in opened.responses.pieces),))
    PairStore(opened.prompts, changed, opened.pieces, 0, "f").save(str(opened.folder))
    assert PairStore.open(str(opened.folder)).to_trl()._fingerprint != one._fingerprint


def test_trl_s_own_trainer_trains_on_it(rows: list[dict[str, Any]], demo_tokenizer: Any, tmp_path: Path) -> None:
    """TRL 1.16 tokenizes every data set; without that step it trains on a store as on the rows themselves."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from mipo import demo

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    flat = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    store_of(flat, demo_tokenizer).save(tmp_path / "flat")
    args = DPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, save_strategy="no",
        disable_tqdm=True, report_to=[], use_cpu=True, bf16=False,
    )  # fmt: skip
    options = {"args": args, "processing_class": demo_tokenizer}
    logs = []
    for kind, data in ((Ready, PairStore.open(tmp_path / "flat").to_trl()), (DPOTrainer, Dataset.from_list(flat))):
        trainer = kind(str(demo.HERE / "model"), train_dataset=data, **options)
        trainer.train()
        logs.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2


def test_no_format_shows_numbers_that_look_like_ids(opened: PairStore) -> None:
    dataset = opened.to_trl()
    frame = dataset.to_pandas()
    assert frame["prompt_ids"][0].keys() == {"row_of_prompts"}
    for form in (None, "numpy", "torch"):
        row = dataset.with_format(form)[0]
        assert {name: set(row[name]) for name in NAMES[:2]} == {
            "prompt_ids": {"row_of_prompts"}, "chosen_ids": {"row_of_responses"},
        }  # fmt: skip
        rejected = row["rejected_ids"]
        assert set(rejected if opened.negatives == 1 else rejected[0]) == {"row_of_responses"}
    assert pa.types.is_struct(dataset.with_format("arrow")[:2]["prompt_ids"].type)


def test_a_new_column_keeps_row_numbers_or_ids(opened: PairStore) -> None:
    """datasets itself forgets the format of a data set with a new column, and then shows row numbers."""
    added = opened.to_trl().add_column("margin", [0.5] * len(opened))
    assert added[0]["margin"] == 0.5
    assert added[0]["prompt_ids"] in (as_rows(opened)[0]["prompt_ids"], {"row_of_prompts": 0})


def test_no_id_is_copied_into_it(demo_tokenizer: Any) -> None:
    words = [text(f"{WORDS[i % 5]} " * 50, "soup " * 200, "pizza " * 200) for i in range(2_000)]
    store = store_of(words, demo_tokenizer)
    before = pa.total_allocated_bytes()
    dataset = store.to_trl()
    assert pa.total_allocated_bytes() - before < 100 * len(store)
    assert dataset.data.nbytes < 100 * len(store)
    assert len(dataset[1_999]["chosen_ids"]) > 200


def test_polars_and_ids_go_together(store: PairStore) -> None:
    first = store.pairs.filter(pl.col("prompt_id") == 0)
    assert store.prompts[first["prompt"][0]].tolist() == store[0]["prompt_ids"]
