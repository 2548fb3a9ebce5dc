"""Sources: reads the table in a JSONL, Parquet or CSV file or a Hugging Face dataset exactly, or refuses it.

Knows file formats and how they break. Knows nothing of prompts or chat messages.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

from mipo.errors import InputError, LibraryError, NotThereError
from mipo.io import columns, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pa, pl, pq

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")
_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once
_BOM = b"\xef\xbb\xbf"
NO_TEXTS: Mapping[str, Kind] = {}
TOO_DEEP = "its JSON is nested too deeply to be read; give it flatter"
# Texts that polars may have converted from a number, a truth value, an object or a list in the JSON, or from half of a
# surrogate pair, which it turns into \0. Few real texts look like this; only these are compared with the file.
_SUSPECT = r'^(?:-?\d[\d.eE+-]*|true|false)$|^(?:\{["}]|\[(?:[\[{\]"\d-]|true|false|null))|\x00'


def load(source: str | Path, *, split: str = "train", texts: Mapping[str, Kind] = NO_TEXTS) -> pl.DataFrame:
    """The table in a JSONL, Parquet or CSV file (also .gz, .xz), or a Hugging Face dataset (saved folder or hub name).

    `split` is for datasets that have several. CSV columns are all text. In the columns `texts` of the kinds text and
    chat, a JSONL file must hold text or lists in every row; a value that polars would convert to text is refused.
    NaN in JSON is null; Infinity is refused.
    Raises NotThereError for a missing source, and InputError for a broken one, with the file and, where known, the row.
    """
    check(source)
    path = Path(source)
    if path.is_dir() or not path.exists():
        dataset = _dataset(source, split)
        return _frame(dataset, 0, len(dataset))
    suffix = next((s for s in reversed(path.suffixes) if s in SUFFIXES), None)
    if suffix is None or path.suffix not in (suffix, ".gz", ".xz"):
        raise InputError(f"{source}: expected a file named {', '.join(SUFFIXES)} (or .gz, .xz of one), or a dataset")
    data = None
    if path.suffix != suffix:
        with _open_lines(path) as file:
            data = file.read()
    if data == b"" or path.stat().st_size == 0:
        raise InputError(f"{source}: the file is empty")
    if suffix == ".parquet":
        return _load_parquet(source, data)
    return _load_csv(source, data) if suffix == ".csv" else _load_jsonl(source, data, texts)


def check(source: str | Path) -> None:
    """NotThereError for a source that does not exist and cannot be the name of a dataset."""
    path = Path(source)
    if not path.exists() and not _names_hub_dataset(str(source)):
        raise NotThereError(f"{source}: no such file")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{source}: expected a file or a folder, got a pipe or a device; write it to a file first")


def scan(source: str | Path, texts: Mapping[str, Kind] = NO_TEXTS) -> pl.DataFrame | pl.LazyFrame:
    """The table in a Parquet file or a folder of them, read lazily; any other source as `load` reads it."""
    parts = _parquet_files(Path(source))
    if not parts or not all(part.stat().st_size for part in parts):
        return load(source, texts=texts)
    for part in parts:
        tables.verify(part)
    try:
        for part in parts:
            _check_schema(pq.read_schema(part), part)
        lazy_frame = pl.scan_parquet(parts, glob=False)
        lazy_frame.collect_schema()
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise InputError(f"{source}: not a readable parquet file ({' '.join(str(error).split())})") from None
    return lazy_frame


def height(source: str | Path, *, split: str = "train") -> int:
    """How many rows `stream` yields: counted in JSONL and Parquet files and in datasets; other files are read."""
    path = _checked(source)
    if parquet := _parquet_files(path):
        rows = 0
        for part in parquet:
            with _open_parquet(part) as file:
                rows += file.metadata.num_rows
        return rows
    if _is_jsonl(path):
        with _open_lines(path) as lines:
            return sum(not _is_blank(line) for line in lines)
    return load(source).height if path.is_file() else len(_dataset(source, split))


def is_streamed(source: str | Path) -> bool:
    """Whether `stream` reads a source piece by piece, instead of loading all of it."""
    path = Path(source)
    return _is_jsonl(path) or bool(_parquet_files(path)) or not path.is_file()


def stream(
    source: str | Path,
    rows: int,
    *,
    start: int = 0,
    stop: int | None = None,
    split: str = "train",
    texts: Mapping[str, Kind] = NO_TEXTS,
) -> Iterator[pl.DataFrame]:
    """Rows `start` to `stop` of the table that `load` reads, in order, at most `rows` at a time.

    Of Parquet and JSONL files, folders of Parquet files, and datasets, little more than a batch is held in memory;
    lines before `start` are read, too. A batch of a JSONL file has only the columns that occur in it, so batches may
    differ. Raises the errors of `load`.
    """
    path, stop = _checked(source), sys.maxsize if stop is None else stop
    if parquet := _parquet_files(path):
        yield from _stream_parquet(parquet, rows, start, stop)
    elif _is_jsonl(path):
        yield from _stream_jsonl(path, rows, texts, start, stop)
    elif path.is_file():
        yield from tables.batches(load(source, texts=texts)[start:stop], rows)
    else:
        dataset = _dataset(source, split)
        for first in range(start, min(stop, len(dataset)), rows):
            yield _frame(dataset, first, min(first + rows, stop, len(dataset)))


def _checked(source: str | Path) -> Path:
    """The source as a path; InputError for an empty file, and the errors of `check`."""
    check(source)
    path = Path(source)
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{source}: the file is empty")
    return path


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet file, or those of a folder in the order in which `scan` reads them; none for any other source."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()
    return [file for file in files if file.suffix == ".parquet"]


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, read in small pieces; polars would read several row groups at once."""
    tables.verify(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            _check_schema(file.schema_arrow, path)
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})") from None


def _check_schema(schema: pa.Schema, source: object) -> None:
    """InputError for two columns of one name, and for a column with list views, of which polars panics."""
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{source}: expected each column once, got {twice[0]!r} more than once; rename one")
    for field in schema:
        if "list_view<" in str(field.type):
            raise InputError(
                f"{source}: column {field.name!r}: expected lists, got Arrow's list views; cast it to lists"
            )


def _stream_parquet(parquet: list[Path], rows: int, start: int, stop: int) -> Iterator[pl.DataFrame]:
    before = 0
    for path in parquet:
        with _open_parquet(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes, initial=before))
            wanted = [group for group in range(len(sizes)) if ends[group] < stop and ends[group + 1] > start]
            row = ends[wanted[0]] if wanted else before
            for batch in file.iter_batches(rows, row_groups=wanted):
                first, last = max(start - row, 0), min(stop - row, len(batch))
                if first < last:
                    yield _valid_frame(batch.slice(first, last - first), path, row + first - before)
                row += len(batch)
        before = ends[-1]


def _valid_frame(batch: pa.RecordBatch, path: Path, before: int) -> pl.DataFrame:
    """The batch as a frame. polars trusts that texts are UTF-8, so InputError names the row of one that is not."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(batch)):
            try:
                batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: row {before + row + 1}: not valid UTF-8 ({error})") from None
        raise
    return tables.from_arrow(batch)


def _is_jsonl(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return path.is_file() and name.suffix in (".jsonl", ".ndjson")


@contextmanager
def _open_lines(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            yield file
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: broken {path.suffix[1:]} file ({error})") from None


def _is_blank(data: bytes) -> bool:
    return not data.removeprefix(_BOM).strip()


def _stream_jsonl(path: Path, rows: int, texts: Mapping[str, Kind], start: int, stop: int) -> Iterator[pl.DataFrame]:
    with _open_lines(path) as file:
        row = number = 0
        while row < start and (line := file.readline()):
            row, number = row + (not _is_blank(line)), number + 1
        while row < stop and (lines := list(islice(file, rows))):
            data = b"".join(lines)
            frame = _load_jsonl(path, data, texts, (row, number)) if not _is_blank(data) else pl.DataFrame()
            if frame.height:
                yield frame[: stop - row]
            row, number = row + frame.height, number + len(lines)


def _names_hub_dataset(source: str) -> bool:
    """Whether a source that does not exist can be a dataset, `name` or `owner/name`: no path, and no file's suffix."""
    looks_like_file = re.search(r"\.[A-Za-z][A-Za-z0-9]{0,7}$", source)
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)) and not looks_like_file


def _dataset(source: str | Path, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise LibraryError("Hugging Face datasets need `pip install mipo[train]`") from None
    try:
        saved = Path(source).is_dir()
        dataset = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), split=split)
    except IndexError:
        raise InputError(f"{source}: expected a data set with rows, got one without any") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # its files may be anything
        raise NotThereError(f"{source}: neither a file nor a dataset that can be loaded ({error})") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{source}: no split {split!r}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    return dataset


def _frame(dataset: Any, start: int, stop: int) -> pl.DataFrame:
    """Rows `start` to `stop` of a dataset."""
    return tables.from_arrow(dataset.with_format("arrow")[start:stop])


def _load_parquet(source: str | Path, data: bytes | None) -> pl.DataFrame:
    if data is None:
        tables.verify(Path(source))
    try:
        _check_schema(pq.read_schema(source if data is None else pa.BufferReader(data)), source)
        return pl.read_parquet(source, glob=False) if data is None else pl.read_parquet(data)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise InputError(f"{source}: not a readable parquet file ({' '.join(str(error).split())})") from None


def _load_csv(source: str | Path, data: bytes | None) -> pl.DataFrame:
    data = Path(source).read_bytes() if data is None else data
    if not data.removeprefix(_BOM).strip():
        raise InputError(f"{source}: the file is empty")
    if (error := _utf8_error(data)) is not None:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}: line {line}: {_not_utf8(error)}")
    try:
        frame = pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as problem:
        raise InputError(f"{source}: not a readable csv file ({' '.join(str(problem).split())})") from None
    for name in frame.columns:  # polars gives the second of two equal names this end
        if name.endswith("_duplicated_0") and (twice := name.removesuffix("_duplicated_0")) in frame.columns:
            raise InputError(f"{source}: expected each column once, got {twice!r} more than once; rename one")
    return frame


def _load_jsonl(
    source: str | Path, data: bytes | None, texts: Mapping[str, Kind], before: tuple[int, int] = (0, 0)
) -> pl.DataFrame:
    """The table in a file, or in the part of it after so many rows and lines."""
    texts = {column: kind for column, kind in texts.items() if kind in ("text", "chat", "data")}
    try:
        frame = _read_ndjson(source if data is None else data)
    except pl.exceptions.PolarsError as error:
        data = (Path(source).read_bytes() if data is None else data).removeprefix(_BOM)
        if not data.strip():
            raise InputError(f"{source}: the file is empty") from None
        return _parse(data, source, str(error), before, texts)
    names = [column for column in texts if column in frame.columns]
    free = {column for column in names if texts[column] == "data" or columns.is_nested(frame.schema[column])}
    suspects = frame.select(pl.any_horizontal(pl.lit(False), *(_suspect(frame, c) for c in names))).to_series()
    if free or suspects.any():
        data = (Path(source).read_bytes() if data is None else data).removeprefix(_BOM)
        free |= _converted(frame, set(suspects.arg_true()), _lines(data, source, before), set(names) - free)
    if free:
        # The values of these columns as the file has them, without the fields of other rows.
        places, lines = zip(*_lines(data or b"", source, before), strict=True)
        rows = [json.loads(line) for line in lines]
        for column in free:
            own = columns.of_values([row.get(column) for row in rows], column, texts[column], places.__getitem__)
            frame = frame.with_columns(own)
    return frame


def _read_ndjson(source: str | Path | bytes) -> pl.DataFrame:
    if isinstance(source, bytes):
        return pl.read_ndjson(source, infer_schema_length=None)
    with Path(source).open("rb") as file:  # of a path, polars makes a pattern
        return pl.read_ndjson(file, infer_schema_length=None)


def _parse(
    data: bytes, source: str | Path, complaint: str, before: tuple[int, int], texts: Mapping[str, Kind]
) -> pl.DataFrame:
    """The table of a file that polars refused with `complaint`; InputError names the row that is broken, if one is."""
    rows, places, constants = [], list[str](), list[str]()
    for place, line in _lines(data, source, before):
        known = len(constants)
        if (problem := _utf8_error(line)) is not None:
            raise InputError(f"{place}: {_not_utf8(problem)}")
        try:
            row = json.loads(line, parse_constant=constants.append)  # NaN is null: what pandas means by it
        except ValueError as error:
            raise InputError(f"{place}: not valid JSON ({error})") from None
        except RecursionError:
            raise InputError(f"{place}: {TOO_DEEP}") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, got {columns.kind_of(row)}")
        if len(constants) > known:
            _check_constants(json.loads(line), place, texts)
        rows.append(row)
        places.append(place)
    own = [
        columns.of_values([row.get(column) for row in rows], column, kind, places.__getitem__)
        for column, kind in texts.items()
        if any(column in row for row in rows)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    others = [{name: value for name, value in row.items() if name not in texts} for row in rows]
    frame = _table_of(others, source, complaint) if len(names) > len(own) else pl.DataFrame(height=len(rows))
    return frame.with_columns(own).select(*names)


def _table_of(rows: list[dict[str, Any]], source: str | Path, complaint: str) -> pl.DataFrame:
    """The table of rows, where polars refused their lines with `complaint`."""
    try:
        return _read_ndjson(b"\n".join(json.dumps(row).encode() for row in rows))
    except pl.exceptions.PolarsError:
        pass
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InputError(f"{source}: its rows do not form a table ({complaint}; {error})") from None


def _check_constants(row: dict[str, Any], place: str, texts: Mapping[str, Kind]) -> None:
    """InputError for Infinity, which JSON does not have, and for NaN within a chat, where null is no missing value."""
    for column, value in row.items():
        wrong = [number for number in _floats(value) if not math.isfinite(number)]
        if column in texts and wrong and (isinstance(value, list) or not math.isnan(wrong[0])):
            raise columns.refused(place, column, texts[column], value)
        if infinite := [number for number in wrong if math.isinf(number)]:
            shown = json.dumps(infinite[0])
            raise InputError(f"{place}: column {column!r}: expected a finite number, got {shown}; write null")


def _floats(value: Any) -> Iterator[float]:
    """The floats in a JSON value, at any depth."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _floats(inner)


def _lines(data: bytes, source: str | Path, before: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Each row's name in messages, and its line; blank lines are not rows."""
    row, lines = before
    for number, line in enumerate(data.split(b"\n"), start=lines + 1):
        if line.strip():
            row += 1
            yield f"{source}: row {row}" + (f" (line {number})" if number != row else ""), line


def _utf8_error(data: bytes) -> UnicodeDecodeError | None:
    """The error of decoding data that is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file"


def _suspect(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Whether polars may have converted a row's text from another type."""
    kind = frame.schema[column]
    if kind == pl.String:
        return pl.col(column).str.contains(_SUSPECT).fill_null(False)
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        names = [field.name for field in kind.inner.fields if field.dtype == pl.String]
        fields = [pl.element().struct.field(name).str.contains(_SUSPECT).fill_null(False) for name in names]
        return pl.col(column).list.eval(pl.any_horizontal(pl.lit(False), *fields)).list.any().fill_null(False)
    return pl.lit(False)


def _converted(
    frame: pl.DataFrame, suspects: set[int], lines: Iterable[tuple[str, bytes]], names: Iterable[str]
) -> set[str]:
    """Those of the columns in which one of the rows `suspects` has another value in its line than in the table."""
    converted = set[str]()
    for row, (_, line) in enumerate(lines):
        if row in suspects:
            values = json.loads(line)
            converted |= {name for name in names if not _equal(values.get(name), frame[name][row])}
    return converted


def _equal(value: Any, cell: Any) -> bool:
    """Whether a cell of the table is the JSON value; a missing field is null in the table."""
    if isinstance(cell, dict):
        return isinstance(value, dict) and all(_equal(value.get(name), inner) for name, inner in cell.items())
    if isinstance(cell, list | pl.Series):
        return isinstance(value, list) and len(value) == len(cell) and all(map(_equal, value, cell))
    return type(value) is type(cell) and bool(value == cell)
