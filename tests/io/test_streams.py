"""Streams: any rows of a source, with each byte of a file read once before them, whatever the number of shards."""

import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hub_cache import HubCache

from mipo.errors import InputError, WriteError
from mipo.io import lines, sources
from mipo.io.streams import open_stream
from mipo.tokens import parts
from mipo.tokens.preparation import prepare

PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def write(path: Path, rows: int) -> Path:
    data = "".join(json.dumps({"prompt": f"{n} ?", "chosen": "yes", "rejected": "no"}) + "\n" for n in range(rows))
    path.write_bytes(PACKED[path.suffix if path.suffix in PACKED else ""](data.encode()))
    return path


class Counted:
    """A file that counts the lines that are read from it."""

    def __init__(self, file: Any) -> None:
        self.file, self.lines = file, 0

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def readline(self) -> bytes:
        self.lines += 1
        line: bytes = self.file.readline()
        return line

    def seek(self, byte: int) -> None:
        self.file.seek(byte)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Counted]]:
    """The files that were opened, with the lines that were read."""
    opened, files = lines.unpacked, list[tuple[str, Counted]]()

    @contextmanager
    def unpacked(path: Path) -> Iterator[Any]:
        with opened(path) as file:
            files.append((path.suffix, Counted(file)))
            yield files[-1][1]

    monkeypatch.setattr(lines, "unpacked", unpacked)
    monkeypatch.setattr(lines, "BLOCK", 8)
    monkeypatch.setattr(parts, "BATCH_ROWS", 7)
    return files


@pytest.mark.parametrize("packed", PACKED)
def test_shards_do_not_read_the_lines_before_them(
    packed: str, reads: list[tuple[str, Counted]], tmp_path: Path, demo_tokenizer: Any
) -> None:
    path = write(tmp_path / f"pairs.jsonl{packed}", 400)
    manifest = prepare([path], demo_tokenizer, tmp_path / "tokens", shard_rows=20)
    assert (len(manifest["shards"]), manifest["groups"]) == (20, 400)
    # Once to count, once to tokenize, and for each shard a block and a batch around its borders.
    assert sum(file.lines for _, file in reads) < 4 * 400
    if packed:
        assert [suffix for suffix, _ in reads].count(packed) == 1, "unpacked once"
    assert not list((tmp_path / "tokens").glob(".scratch*"))


def test_what_is_unpacked_is_removed_after_an_error_and_after_a_kill(tmp_path: Path, demo_tokenizer: Any) -> None:
    path = write(tmp_path / "pairs.jsonl.gz", 9)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"{broken\n"))
    with pytest.raises(InputError, match=r"pairs\.jsonl\.gz: row 10: not valid JSON"):
        prepare([path], demo_tokenizer, tmp_path / "tokens")
    assert not list((tmp_path / "tokens").glob(".scratch*"))
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / "tokens" / f".scratch.{int(killed.stdout)}.tmp"
    left.mkdir()
    (left / "copy").write_text("{}")
    prepare([write(tmp_path / "pairs.jsonl.gz", 9)], demo_tokenizer, tmp_path / "tokens")
    assert not left.exists()


def test_a_broken_archive_is_named_and_a_full_disk_too(tmp_path: Path, demo_tokenizer: Any) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    whole = write(path, 999).read_bytes()
    for broken in (b"no archive", whole[:-50], whole[:50] + bytes(50) + whole[100:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"pairs\.jsonl\.gz: broken gz file"):
            prepare([path], demo_tokenizer, tmp_path / "tokens")
        assert not list((tmp_path / "tokens").glob(".scratch*"))
    path.write_bytes(whole)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"full: could not be written \(No space left on device\)"):
        lines.survey(path, copy=tmp_path / "full")


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.jsonl.xz", "pairs.parquet", "pairs.csv", "folder"])
def test_a_stream_that_was_sent_elsewhere_reads_the_same_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK", 4)
    whole = sources.load(write(tmp_path / "all.jsonl", 23))
    path = tmp_path / kind
    if kind.startswith("pairs.jsonl"):
        write(path, 23)
    elif kind == "folder":
        path.mkdir()
        for part in range(3):
            whole[part * 9 : (part + 1) * 9].write_ndjson(path / f"train-{part}.jsonl")
    else:
        whole.write_csv(path) if kind == "pairs.csv" else whole.write_parquet(path)
    scratch = tmp_path / "scratch"
    stream = pickle.loads(pickle.dumps(open_stream(path, sought=["prompt"], scratch=scratch)))
    assert (stream.rows, set(stream.fields)) == (23, set(whole.columns))
    assert stream.is_seekable == (kind != "pairs.csv")
    for start in range(0, 24, 5):
        batches = list(stream.batches(3, start=start, stop=start + 7))
        assert pl.concat([whole.clear(), *batches]).equals(whole[start : start + 7])


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", 9)
    stream = open_stream(path)
    write(path, 8)
    with pytest.raises(InputError, match=r"pairs\.jsonl: was changed while it was read"):
        list(stream.batches(4))


def test_fields_are_those_that_any_row_has(tmp_path: Path) -> None:
    """A name within a text, or within another field, is none."""
    rows = [
        {"a": 'say \\"prompt\\"', "b": {"chosen": 1}},
        {"a": '"rejected": 5'},
        {"a": None, "late": 1},
        {"prompt": None},
    ]
    (tmp_path / "p.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert open_stream(tmp_path / "p.jsonl", sought=["prompt", "chosen", "rejected"]).fields == ("a", "b", "prompt")


def test_a_data_set_of_the_hub_is_identified_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubCache(tmp_path, monkeypatch)
    hub.publish("owner/name", "1" * 40, train=[{"prompt": "old"}], test=[{"prompt": "held out"}])
    stream = open_stream("owner/name")
    assert stream.content == sources.content("owner/name") != sources.content("owner/name", "test")
    assert pl.concat(stream.batches(9))["prompt"].to_list() == ["old"]
    sent = pickle.loads(pickle.dumps(stream))
    hub.publish("owner/name", "2" * 40, train=[{"prompt": "new"}], test=[{"prompt": "held out"}])
    assert sources.content("owner/name") != stream.content
    with pytest.raises(InputError, match="owner/name: was changed on the hub meanwhile"):
        list(sent.batches(9))
    with pytest.raises(InputError, match="owner/name: no split 'dev'; it has train, test"):
        sources.load("owner/name", split="dev")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"p\.jsonl: expected a file or a folder, got a pipe or a device"):
        sources.load(tmp_path / "p.jsonl")
