"""Sources: the table in a JSONL, Parquet or CSV file or a Hugging Face dataset, as it is written there or refused.

Knows file formats and how they break. Knows nothing of prompts or chat messages.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mipo.errors import InputError, LibraryError, NotThereError
from mipo.io import tables
from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pa = lazy("pyarrow")
    pl = lazy("polars")
    pq = lazy("pyarrow.parquet")

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")
_PIECE = 1 << 20  # bytes of a Parquet column that are read at once
_BOM = b"\xef\xbb\xbf"
# Texts that polars may have made of something else in the JSON: a number, a truth value, an object, a list; and of half
# a surrogate pair it makes \0. Few real texts look so, and only those are compared with what the file says.
_SUSPECT = r'^(?:-?\d[\d.eE+-]*|true|false)$|^(?:\{["}]|\[(?:[\[{\]"\d-]|true|false|null))|\x00'


def load(source: str | Path, *, split: str = "train", texts: Sequence[str] = ()) -> pl.DataFrame:
    """The table in a JSONL, Parquet or CSV file (also .gz, .xz), or a Hugging Face dataset (saved folder or hub name).

    `split` is for datasets that have several. CSV columns are all text. In the columns `texts` a JSONL file must hold
    text (or lists of objects of text) in every row: what polars would turn into text is refused. Raises
    FileNotFoundError for what is not there, ValueError, with the file and where known the row, for what is broken.
    """
    check(source)
    path = Path(source)
    if path.is_dir() or not path.exists():
        found = _dataset(source, split)
        return _frame(found, 0, len(found))
    suffix = next((s for s in reversed(path.suffixes) if s in SUFFIXES), None)
    if suffix is None or path.suffix not in (suffix, ".gz", ".xz"):
        raise InputError(f"{source}: expected a file named {', '.join(SUFFIXES)} (or .gz, .xz of one), or a dataset")
    data = _unpack(path) if path.suffix != suffix else None
    if data == b"" or path.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty")
    if suffix == ".parquet":
        return _load_parquet(source, data)
    return _load_csv(source, data) if suffix == ".csv" else _load_jsonl(source, data, texts)


def check(source: str | Path) -> None:
    """FileNotFoundError for what is neither there nor can be the name of a dataset."""
    if not Path(source).exists() and not _names_hub_dataset(str(source)):
        raise NotThereError(f"{source}: no such file")


def scan(source: str | Path) -> pl.DataFrame | pl.LazyFrame:
    """The table in a Parquet file, or in those of a folder, to be read as it goes; any other as `load` reads it."""
    parts = _parquet_files(Path(source))
    if not parts or not all(part.stat().st_size for part in parts):
        return load(source)
    try:
        lazy_frame = pl.scan_parquet(parts, glob=False)
        lazy_frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: not a readable parquet file ({error})") from None
    return lazy_frame


def height(source: str | Path, *, split: str = "train") -> int:
    """How many rows `stream` gives; of JSONL and Parquet files, and of datasets, they are counted; others are read."""
    path = _place(source)
    if parquet := _parquet_files(path):
        rows = 0
        for part in parquet:
            with _opened_parquet(part) as opened:
                rows += opened.metadata.num_rows
        return rows
    if _is_jsonl(path):
        with _opened_lines(path) as lines:
            return sum(not _is_blank(line) for line in lines)
    return load(source).height if path.is_file() else len(_dataset(source, split))


def is_streamed(source: str | Path) -> bool:
    """Whether `stream` reads no more than it is asked for."""
    path = Path(source)
    return _is_jsonl(path) or bool(_parquet_files(path)) or not path.is_file()


def stream(
    source: str | Path,
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
    split: str = "train",
    texts: Sequence[str] = (),
) -> Iterator[pl.DataFrame]:
    """Rows start..stop of what `load` reads, in their order, at most `rows` at a time.

    Of Parquet and JSONL files, a folder of Parquet files and datasets little more than these is held; lines before
    `start` are read, too. Batches of a JSONL file may have different columns: a batch has those that are in it. Errors
    as of `load`.
    """
    path, stop = _place(source), sys.maxsize if stop is None else stop
    if parquet := _parquet_files(path):
        yield from _stream_parquet(parquet, rows, start, stop)
    elif _is_jsonl(path):
        yield from _stream_jsonl(path, rows, texts, start, stop)
    elif path.is_file():
        yield from tables.batches(load(source, texts=texts)[start:stop], rows)
    else:
        found = _dataset(source, split)
        for first in range(start, min(stop, len(found)), rows):
            yield _frame(found, first, min(first + rows, stop, len(found)))


def _place(source: str | Path) -> Path:
    """The source, which is there and not empty, or may be on the hub."""
    check(source)
    path = Path(source)
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{source}: the file is empty")
    return path


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet file, or those of a folder in the order in which `scan` reads them; none if it is another source."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()
    return [file for file in files if file.suffix == ".parquet"]


@contextmanager
def _opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, of which a piece at a time is read where polars reads row groups, several at once."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_PIECE) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from None


def _stream_parquet(parquet: list[Path], rows: int, start: int, stop: int) -> Iterator[pl.DataFrame]:
    before = 0
    for path in parquet:
        with _opened_parquet(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes, initial=before))
            wanted = [group for group in range(len(sizes)) if ends[group] < stop and ends[group + 1] > start]
            at = ends[wanted[0]] if wanted else before
            for batch in file.iter_batches(rows, row_groups=wanted):
                first, last = max(start - at, 0), min(stop - at, len(batch))
                if first < last:
                    yield _polars(batch.slice(first, last - first), path, at + first - before)
                at += len(batch)
        before = ends[-1]


def _polars(batch: pa.RecordBatch, path: Path, before: int) -> pl.DataFrame:
    """The batch for polars, which trusts that texts are UTF-8; ValueError names the row of one that is not."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(batch)):
            try:
                batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: row {before + row + 1}: not valid UTF-8 ({error})") from None
        raise
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_jsonl(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return path.is_file() and name.suffix in (".jsonl", ".ndjson")


@contextmanager
def _opened_lines(path: Path) -> Iterator[IO[bytes]]:
    opened: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opened(path, "rb") as file:
            yield file
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: broken {path.suffix[1:]} file ({error})") from None


def _is_blank(data: bytes) -> bool:
    return not data.removeprefix(_BOM).strip()


def _stream_jsonl(path: Path, rows: int, texts: Sequence[str], start: int, stop: int) -> Iterator[pl.DataFrame]:
    with _opened_lines(path) as file:
        at = seen = 0
        while at < start and (line := file.readline()):
            at, seen = at + (not _is_blank(line)), seen + 1
        while at < stop and (lines := list(islice(file, rows))):
            data = b"".join(lines)
            frame = _load_jsonl(path, data, texts, (at, seen)) if not _is_blank(data) else pl.DataFrame()
            if frame.height:
                yield frame[: stop - at]
            at, seen = at + frame.height, seen + len(lines)


def _names_hub_dataset(source: str) -> bool:
    """Whether what is no file can be `name` or `owner/name`: neither a path nor something with a file's suffix."""
    looks_like_file = re.search(r"\.[A-Za-z][A-Za-z0-9]{0,7}$", source)
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)) and not looks_like_file


def _dataset(source: str | Path, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise LibraryError("Hugging Face datasets need `pip install mipo[train]`") from None
    try:
        saved = Path(source).is_dir()
        found = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), split=split)
    except (OSError, ValueError) as error:
        raise NotThereError(f"{source}: neither a file nor a dataset that can be loaded ({error})") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{source}: no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    return found


def _frame(dataset: Any, start: int, stop: int) -> pl.DataFrame:
    """Rows of a dataset."""
    frame = pl.from_arrow(dataset.with_format("arrow")[start:stop])
    assert isinstance(frame, pl.DataFrame)
    return frame


def _unpack(path: Path) -> bytes:
    try:
        with lzma.open(path) if path.suffix == ".xz" else gzip.open(path) as file:
            return file.read()
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: broken {path.suffix[1:]} file ({error})") from None


def _load_parquet(source: str | Path, data: bytes | None) -> pl.DataFrame:
    try:
        return pl.read_parquet(source, glob=False) if data is None else pl.read_parquet(data)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: not a readable parquet file ({error})") from None


def _load_csv(source: str | Path, data: bytes | None) -> pl.DataFrame:
    data = Path(source).read_bytes() if data is None else data
    if not data.removeprefix(_BOM).strip():
        raise InputError(f"{source}: the file is empty")
    if (wrong := _invalid_utf8(data)) is not None:
        line = data.count(b"\n", 0, wrong) + 1
        raise InputError(f"{source}: line {line}: {_not_utf8(data[wrong])}")
    try:
        return pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: not a readable csv file ({error})") from None


def _load_jsonl(
    source: str | Path, data: bytes | None, texts: Sequence[str], before: tuple[int, int] = (0, 0)
) -> pl.DataFrame:
    """The table in a file, or in the part of it that comes after so many rows and lines."""
    try:
        frame = _read_ndjson(source if data is None else data)
    except pl.exceptions.PolarsError as error:
        data = (Path(source).read_bytes() if data is None else data).removeprefix(_BOM)
        if not data.strip():
            raise InputError(f"{source}: the file is empty") from None
        frame = _parse(data, source, str(error), before)
    checked = [column for column in texts if column in frame.columns]
    suspects = frame.select(pl.any_horizontal(pl.lit(False), *(_suspect(frame, c) for c in checked))).to_series()
    if suspects.any():
        written = Path(source).read_bytes() if data is None else data
        _check_written(frame, set(suspects.arg_true()), _lines(written.removeprefix(_BOM), source, before), checked)
    return frame


def _read_ndjson(file: Any) -> pl.DataFrame:
    return pl.read_ndjson(file, infer_schema_length=None)


def _parse(data: bytes, source: str | Path, complaint: str, before: tuple[int, int]) -> pl.DataFrame:
    """The table that polars refused: names the row that is broken, or reads it where only polars minds."""
    rows = []
    for place, line in _lines(data, source, before):
        if (wrong := _invalid_utf8(line)) is not None:
            raise InputError(f"{place}: {_not_utf8(line[wrong])}")
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, came {_called(row)}")
        rows.append(row)
    try:
        return _read_ndjson(data)  # without its byte order mark
    except pl.exceptions.PolarsError:
        pass
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InputError(f"{source}: no table can be made of its rows ({complaint}; {error})") from None


def _lines(data: bytes, source: str | Path, before: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Each row's line, and how to name it: rows leave out blank lines."""
    row, lines = before
    for number, line in enumerate(data.split(b"\n"), start=lines + 1):
        if line.strip():
            row += 1
            yield f"{source}: row {row}" + (f" (line {number})" if number != row else ""), line


def _invalid_utf8(data: bytes) -> int | None:
    """Where the first byte is that is no UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def _not_utf8(byte: int) -> str:
    return f"not valid UTF-8 (byte 0x{byte:02x}); convert the file"


def _suspect(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Whether a row's text may be polars' doing."""
    kind = frame.schema[column]
    if kind == pl.String:
        return pl.col(column).str.contains(_SUSPECT).fill_null(False)
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        names = [field.name for field in kind.inner.fields if field.dtype == pl.String]
        fields = [pl.element().struct.field(name).str.contains(_SUSPECT).fill_null(False) for name in names]
        return pl.col(column).list.eval(pl.any_horizontal(pl.lit(False), *fields)).list.any().fill_null(False)
    return pl.lit(False)


def _check_written(
    frame: pl.DataFrame, suspects: set[int], lines: Iterable[tuple[str, bytes]], columns: Sequence[str]
) -> None:
    for row, (place, line) in enumerate(lines):
        if row not in suspects:
            continue
        written = json.loads(line)
        for column in columns:
            if not _equal(written.get(column), frame[column][row]):
                raise InputError(f"{place}: column {column!r}: expected text, came {_shown(written[column])}")


def _equal(written: Any, read: Any) -> bool:
    """Whether a value was read as it is written; a field that is not there was read as null."""
    if isinstance(read, dict):
        return isinstance(written, dict) and all(_equal(written.get(name), value) for name, value in read.items())
    if isinstance(read, list | pl.Series):
        return isinstance(written, list) and len(written) == len(read) and all(map(_equal, written, read))
    return type(written) is type(read) and bool(written == read)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return "half of a surrogate pair, which is no character"
    said = json.dumps(value)
    return f"{_called(value)}: {said if len(said) < 80 else said[:80] + '…'}"


def _called(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
