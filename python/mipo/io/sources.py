"""Sources: reads the table in a JSONL, Parquet or CSV file or a Hugging Face dataset exactly, or refuses it.

Knows file formats and how they break. Knows nothing of prompts or chat messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mipo.errors import InputError, NotThereError
from mipo.io import checksum, columns, folders, hub, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pa, pl, pq
from mipo.io.lines import BOM, unpacked

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")
NO_TEXTS: Mapping[str, Kind] = {}
# Texts that polars may have converted from a number, a truth value, an object or a list in the JSON, or from half of a
# surrogate pair, which it turns into \0. Few real texts look like this; only these are compared with the file.
_SUSPECT = r'^(?:-?\d[\d.eE+-]*|true|false)$|^(?:\{["}]|\[(?:[\[{\]"\d-]|true|false|null))|\x00'


def load(source: str | Path, *, split: str = "train", texts: Mapping[str, Kind] = NO_TEXTS) -> pl.DataFrame:
    """The table in a JSONL, Parquet or CSV file (also .gz, .xz), a folder of such files, or a Hugging Face dataset.

    A folder is read as `datasets.load_dataset` reads it: the files of `split` alone. A file has one split, train. CSV
    columns are all text. In the columns `texts` of the kinds text and chat, a JSONL file must hold text or lists in
    every row; a value that polars would convert to text is refused. NaN in JSON is null; Infinity is refused.
    Raises NotThereError for a missing source, and InputError for a broken one, with the file and, where known, the row.
    """
    files = files_of(source, split)
    if files is None:
        dataset = hub.load(source, split)
        return frame_of(dataset, 0, len(dataset))
    frames = [load_file(file, texts) for file in files]
    check_same(files, [frame.columns for frame in frames], texts)
    try:
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: its files do not form a table ({error})") from None


def load_file(path: Path, texts: Mapping[str, Kind] = NO_TEXTS) -> pl.DataFrame:
    """The table in one file."""
    suffix = next((s for s in reversed(path.suffixes) if s in SUFFIXES), None)
    if suffix is None or path.suffix not in (suffix, ".gz", ".xz"):
        raise InputError(f"{path}: expected a file named {', '.join(SUFFIXES)} (or .gz, .xz of one), or a dataset")
    data = None
    if path.suffix != suffix:
        with unpacked(path) as file:
            data = file.read()
    if data == b"" or path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if suffix == ".parquet":
        return _load_parquet(path, data)
    return _load_csv(path, data) if suffix == ".csv" else load_jsonl(path, data, texts)


def check(source: str | Path) -> None:
    """NotThereError for a source that does not exist and cannot be the name of a dataset."""
    if not Path(source).exists() and not hub.is_name(str(source)):
        raise NotThereError(f"{source}: no such file")


def files_of(source: str | Path, split: str) -> list[Path] | None:
    """The files that hold the rows of a split; None for a dataset, which only the `datasets` library can read.

    Raises the errors of `check`, and InputError for a split that is not there.
    """
    check(source)
    path = Path(source)
    if path.is_dir() or not path.exists():
        return folders.files(path, split) if path.is_dir() and not hub.is_saved(path) else None
    if split != "train":
        raise InputError(f"{source}: no split {split!r}; a file has one split, train, so leave the split out")
    return [path]


def content(source: str | Path, split: str = "train") -> str:
    """What a split holds, whatever its name is: the checksum of its files, or the fingerprint of a dataset."""
    path, files = Path(source), files_of(source, split)
    if path.is_file():
        return checksum.of_file(path)
    if not path.is_dir():
        return hub.fingerprint(hub.load(source, split))
    inside = [path / name for name in folders.visible(path)] if files is None else files
    return checksum.of_value([(file.relative_to(path).as_posix(), checksum.of_file(file)) for file in inside])


def scan(
    source: str | Path, texts: Mapping[str, Kind] = NO_TEXTS, *, split: str = "train"
) -> pl.DataFrame | pl.LazyFrame:
    """The table in a Parquet file or a folder of them, read lazily; any other source as `load` reads it."""
    files = files_of(source, split)
    if files is None or not all(file.suffix == ".parquet" and file.stat().st_size for file in files):
        return load(source, split=split, texts=texts)
    try:
        if len(files) > 1:
            check_same(files, (pq.read_schema(file).names for file in files))
        lazy_frame = pl.scan_parquet(files, glob=False)
        lazy_frame.collect_schema()
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise InputError(f"{source}: not a readable parquet file ({error})") from None
    return lazy_frame


def check_same(files: Sequence[Path], columns_of: Iterable[Iterable[str]], sought: Collection[str] = ()) -> None:
    """InputError where the files of a split have different columns; of JSON Lines only those sought are compared."""
    known = [
        {column for column in names if column in sought or not is_jsonl(file)}
        for file, names in zip(files, columns_of, strict=True)
    ]
    for file, names in zip(files, known, strict=True):
        if differing := names ^ known[0]:
            column = min(differing)
            raise InputError(
                f"{file}: has {'a' if column in names else 'no'} column {column!r}, unlike {files[0].name}; the files "
                "of a split have the same columns, so name one of them, or put the split into their names (train-…)"
            )


def is_jsonl(path: Path) -> bool:
    """Whether a file has a row in each line."""
    name = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return name.suffix in (".jsonl", ".ndjson")


def frame_of(dataset: Any, start: int, stop: int) -> pl.DataFrame:
    """Rows `start` to `stop` of a dataset."""
    return tables.from_arrow(dataset.with_format("arrow")[start:stop])


def _load_parquet(source: str | Path, data: bytes | None) -> pl.DataFrame:
    try:
        return pl.read_parquet(source, glob=False) if data is None else pl.read_parquet(data)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: not a readable parquet file ({error})") from None


def _load_csv(source: str | Path, data: bytes | None) -> pl.DataFrame:
    data = Path(source).read_bytes() if data is None else data
    if not data.removeprefix(BOM).strip():
        raise InputError(f"{source}: the file is empty")
    if (error := _utf8_error(data)) is not None:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}: line {line}: {_not_utf8(error)}")
    try:
        return pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as problem:
        raise InputError(f"{source}: not a readable csv file ({problem})") from None


def load_jsonl(
    source: str | Path, data: bytes | None, texts: Mapping[str, Kind], before: tuple[int, int] = (0, 0)
) -> pl.DataFrame:
    """The table in a file, or in the part of it after so many rows and lines."""
    texts = {column: kind for column, kind in texts.items() if kind in ("text", "chat")}
    try:
        frame = _read_ndjson(source if data is None else data)
    except pl.exceptions.PolarsError as error:
        data = (Path(source).read_bytes() if data is None else data).removeprefix(BOM)
        if not data.strip():
            raise InputError(f"{source}: the file is empty") from None
        frame = _parse(data, source, str(error), before, texts)
    names = [column for column in texts if column in frame.columns]
    suspects = frame.select(pl.any_horizontal(pl.lit(False), *(_suspect(frame, c) for c in names))).to_series()
    if suspects.any():
        data = Path(source).read_bytes() if data is None else data
        _check_suspects(frame, set(suspects.arg_true()), _lines(data.removeprefix(BOM), source, before), texts)
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
    rows, constants = [], list[str]()
    for place, line in _lines(data, source, before):
        known = len(constants)
        if (problem := _utf8_error(line)) is not None:
            raise InputError(f"{place}: {_not_utf8(problem)}")
        try:
            row = json.loads(line, parse_constant=constants.append)  # NaN is null: what pandas means by it
        except ValueError as error:
            raise InputError(f"{place}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, got {columns.kind_of(row)}")
        if len(constants) > known:
            _check_constants(json.loads(line), place, texts)
        for column, kind in texts.items():
            if not isinstance(row.get(column), str | list | None):
                raise columns.refused(place, column, kind, row[column])
        rows.append(row)
    if constants:
        data = b"\n".join(json.dumps(row).encode() for row in rows)
    try:
        return _read_ndjson(data)  # without its byte order mark
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


def _check_suspects(
    frame: pl.DataFrame, suspects: set[int], lines: Iterable[tuple[str, bytes]], texts: Mapping[str, Kind]
) -> None:
    """InputError for the first of the rows `suspects` whose line has another value than the table."""
    for row, (place, line) in enumerate(lines):
        if row not in suspects:
            continue
        values = json.loads(line, parse_constant=lambda _: None)
        for column, kind in texts.items():
            if column in frame.columns and not _equal(values.get(column), frame[column][row]):
                raise columns.refused(place, column, kind, values[column])


def _equal(value: Any, cell: Any) -> bool:
    """Whether a cell of the table is the JSON value; a missing field is null in the table."""
    if isinstance(cell, dict):
        return isinstance(value, dict) and all(_equal(value.get(name), inner) for name, inner in cell.items())
    if isinstance(cell, list | pl.Series):
        return isinstance(value, list) and len(value) == len(cell) and all(map(_equal, value, cell))
    return type(value) is type(cell) and bool(value == cell)
