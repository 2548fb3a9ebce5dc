"""Laws of shards: a store is written whole or not at all, and a changed file is refused by name."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preferences import chat, mipo_ids, store_of

from mipo.io import arrow
from mipo.tokens import shards
from mipo.tokens.store import PairStore

FILES = {"prompts.arrow", "responses.arrow", "pairs.arrow", "shard.json"}


def content(store: PairStore) -> Any:
    pairs = [[int(value) for value in row] for piece in store.pieces for row in zip(*row_numbers(piece), strict=True)]
    return mipo_ids(store), pairs, store.merged, store.fingerprint


def row_numbers(piece: Any) -> tuple[Any, ...]:
    return piece.prompt_id, piece.prompt, piece.chosen


@pytest.fixture
def store(demo_tokenizer: Any) -> PairStore:
    return store_of([chat("what ?", "soup .", "pizza ."), chat("i eat", "it .", "soup .")], demo_tokenizer)


@pytest.fixture
def folder(store: PairStore, tmp_path: Path) -> Path:
    store.save(tmp_path / "tokens")
    return tmp_path / "tokens"


def put(folder: Path, number: int, store: PairStore) -> dict[str, Any]:
    """Writes a store as one shard of several."""
    with shards.ShardWriter(folder, number) as writer:
        writer.put_tables(store.prompts, store.responses)
        for piece in store.pieces:
            writer.put_groups(piece.prompt_id, piece.prompt, piece.chosen, piece.offsets, piece.rejected)
        writer.record |= {"merged": store.merged}
    return shards.record_of(folder, number) or {}


# What is written


def test_a_store_is_a_manifest_and_its_shards(folder: Path, store: PairStore) -> None:
    assert {path.name for path in folder.iterdir()} == {".mipo.json", "manifest.json", "shard-00000"}
    assert {path.name for path in (folder / "shard-00000").iterdir()} == FILES
    (record,) = shards.manifest(folder)["shards"]
    assert (record["prompts"], record["responses"], record["groups"]) == (2, 3, 2)
    assert record == shards.record_of(folder, 0)
    assert shards.is_whole(folder, record)
    assert shards.record_of(folder, 1) is None


def test_shards_stand_in_the_order_of_their_numbers(store: PairStore, tmp_path: Path) -> None:
    for number in (100_000, 2, 99_999, 0):
        put(tmp_path, number, store)
    records = shards.finish(tmp_path, {"fingerprint": "f"})["shards"]
    assert [record["folder"] for record in records] == ["shard-00000", "shard-00002", "shard-99999", "shard-100000"]


def test_shards_without_a_manifest_are_no_store(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"tokens: expected a store of tokens, .* was not finished; run the same comm"
    ):
        PairStore.open(folder)
    for other in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"a store of tokens, got no manifest\.json; make one with"):
            PairStore.open(other)


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_while_a_shard_is_written_leaves_none_and_keeps_the_old_one(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = put(tmp_path, 0, store)
    for owner, name in ((shards.ShardWriter, "put_groups"), (arrow.Writer, "close"), (arrow.Writer, "__init__")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                put(tmp_path, 0, store)
        assert [path.name for path in tmp_path.iterdir()] == ["shard-00000"]
    assert shards.record_of(tmp_path, 0) == before
    assert shards.is_whole(tmp_path, before)


def test_a_store_saved_over_another_is_never_half_of_each(
    folder: Path, store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.ShardWriter, "put_tables", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(folder)
    with pytest.raises(FileNotFoundError, match="expected a store of tokens"):
        PairStore.open(folder)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("point", ["put_tables", "put_groups", "close", "rename", "manifest"])
def test_a_process_killed_while_it_writes_leaves_no_store(folder: Path, store: PairStore, point: str) -> None:
    """SIGKILL, as from the kernel when memory runs out."""

    def save(folder: Path) -> None:
        owner, name = {
            "close": (arrow.Writer, "close"), "rename": (Path, "rename"), "manifest": (shards, "finish"),
        }.get(point, (shards.ShardWriter, point))  # fmt: skip
        setattr(owner, name, die)
        store.save(folder)

    process = multiprocessing.get_context("fork").Process(target=save, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="was not finished; run the same command again"):
        PairStore.open(folder)
    store.save(folder)
    assert content(PairStore.open(folder)) == content(store)
    assert {path.name for path in folder.iterdir()} == {".mipo.json", "manifest.json", "shard-00000"}, (
        "nothing is left of the first"
    )


# What was changed


def opened_or_refused(folder: Path, path: Path) -> Any:
    """The content of a store, or None where it is refused with the name of the file."""
    try:
        return content(PairStore.open(folder))
    except (FileNotFoundError, ValueError) as error:
        if str(path) not in str(error):
            raise
        return None


def changed(whole: bytes, step: int) -> Iterator[bytes]:
    """The bytes with one bit flipped in each `step`-th byte, and cut off before that byte."""
    for place in range(0, len(whole), step):
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        yield whole[:place]


# Not every byte of the Arrow files: test_arrow has those.
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("manifest.json", 1),
        ("shard-00000/shard.json", 9),
        *((f"shard-00000/{name}.arrow", 23) for name in shards.NAMES),
    ],
)
def test_a_broken_byte_is_found_or_changes_nothing(folder: Path, store: PairStore, name: str, step: int) -> None:
    path = folder / name
    refused = 0
    for broken in changed(path.read_bytes(), step):
        path.write_bytes(broken)
        result = opened_or_refused(folder, path)
        assert result in (None, content(store))
        refused += result is None
    assert (refused == 0) == path.name.endswith("shard.json"), "a finished store does not read shard.json"


def test_a_broken_shard_is_made_again_and_never_signed_for(folder: Path) -> None:
    path = folder / "shard-00000" / "shard.json"
    whole = path.read_bytes()
    for broken in changed(whole, 3):
        path.write_bytes(broken)
        record = shards.record_of(folder, 0)
        if record is None:
            with pytest.raises(ValueError, match=r"shard\.json: "):
                shards.finish(folder, {})
        else:
            assert record == json.loads(whole)
    path.write_bytes(whole)
    record = shards.record_of(folder, 0)
    assert record is not None
    (folder / "shard-00000" / "pairs.arrow").unlink()
    assert not shards.is_whole(folder, record)


def swap(one: Path, other: Path) -> None:
    both = one.read_bytes(), other.read_bytes()
    other.write_bytes(both[0])
    one.write_bytes(both[1])


@pytest.mark.parametrize("name", ["prompts", "responses", "pairs"])
def test_files_of_another_store_are_refused(folder: Path, demo_tokenizer: Any, tmp_path: Path, name: str) -> None:
    store_of([chat("you eat", "pizza .", "soup .")] * 2, demo_tokenizer).save(tmp_path / "other")
    swap(folder / f"shard-00000/{name}.arrow", tmp_path / f"other/shard-00000/{name}.arrow")
    for mixed in (folder, tmp_path / "other"):
        with pytest.raises(ValueError, match=rf"{name}\.arrow: is not the file that .*manifest\.json describes"):
            PairStore.open(mixed)


def swap_files(folder: Path) -> None:
    swap(folder / "shard-00000/prompts.arrow", folder / "shard-00000/responses.arrow")


def swap_shards(folder: Path) -> None:
    (folder / "shard-00000").rename(folder / "held")
    (folder / "shard-00001").rename(folder / "shard-00000")
    (folder / "held").rename(folder / "shard-00001")


def lose_a_shard(folder: Path) -> None:
    shutil.rmtree(folder / "shard-00001")


@pytest.mark.parametrize("change", [swap_files, swap_shards, lose_a_shard])
def test_files_and_shards_in_each_others_place_are_refused(
    demo_tokenizer: Any, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    for number, word in enumerate(("soup", "pizza")):
        put(tmp_path, number, store_of([chat(word, "it .", "you .")], demo_tokenizer))
    shards.finish(tmp_path, {"fingerprint": "f"})
    assert len(PairStore.open(tmp_path)) == 2
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"shard-0000\d.(prompts|pairs)\.arrow"):
        PairStore.open(tmp_path)


def test_other_json_is_no_manifest(folder: Path) -> None:
    for text in ("[]", "{}", '{"format": "mipo tokens 0"}', "null"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json: not the manifest of a store of tokens"):
            PairStore.open(folder)


def test_an_empty_shard_is_a_shard(store: PairStore, tmp_path: Path) -> None:
    put(tmp_path, 0, store)
    none = np.empty(0, np.uint64)
    with shards.ShardWriter(tmp_path, 1) as writer:
        writer.put_groups(none, none, none, np.zeros(1, np.int64), none)
        writer.record |= {"merged": 0}
    put(tmp_path, 2, store)
    shards.finish(tmp_path, {"fingerprint": "f"})
    assert mipo_ids(PairStore.open(tmp_path)) == mipo_ids(store) * 2
