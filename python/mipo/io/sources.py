"""Sources: reads the table in a JSONL, Parquet or CSV file or a Hugging Face dataset exactly, or refuses it.

Knows file formats and how they break. Knows nothing of prompts or chat messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mipo.errors import InputError, NotThereError
from mipo.io import checksum, folders, hub, jsonl, nested, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pa, pl, pq
from mipo.io.lines import BOM, not_utf8, unpacked, utf8_error

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")
NO_TEXTS: Mapping[str, Kind] = {}


def load(
    source: str | Path, *, split: str = "train", texts: Mapping[str, Kind] = NO_TEXTS, marks_halves: bool = False
) -> pl.DataFrame:
    """The table in a JSONL, Parquet or CSV file (also .gz, .xz), a folder of such files, or a Hugging Face dataset.

    A folder is read as `datasets.load_dataset` reads it: the files of `split` alone. A file has one split, train. CSV
    columns are all text. In the columns `texts` of the kinds text and chat, a JSONL file must hold text or lists in
    every row; a value that polars would convert to text is refused. NaN in JSON is null; Infinity is refused. For
    `marks_halves` see `mipo.io.jsonl.load`. Raises NotThereError for a missing source, and InputError for a broken one,
    with the file and, where known, the row.
    """
    files = files_of(source, split)
    if files is None:
        dataset = hub.load(source, split)
        return frame_of(dataset, 0, len(dataset))
    frames = [load_file(file, texts, marks_halves=marks_halves) for file in files]
    check_same(files, [frame.columns for frame in frames], texts)
    try:
        return nested.concat(frames)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{source}: its files do not form a table ({error})") from None


def load_file(path: Path, texts: Mapping[str, Kind] = NO_TEXTS, *, marks_halves: bool = False) -> pl.DataFrame:
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
    return _load_csv(path, data) if suffix == ".csv" else jsonl.load(path, data, texts, marks_halves=marks_halves)


def check(source: str | Path) -> None:
    """NotThereError for a source that does not exist and cannot be the name of a dataset; InputError for a device."""
    path = Path(source)
    if not path.exists() and not hub.is_name(str(source)):
        raise NotThereError(f"{source}: no such file")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{source}: expected a file or a folder, got a pipe or a device; write it to a file first")


def files_of(source: str | Path, split: str) -> list[Path] | None:
    """The files that hold the rows of a split; None for a dataset, which only the `datasets` library can read.

    Raises the errors of `check`, and InputError for a split that is not there.
    """
    check(source)
    path = Path(source)
    if not path.is_file():
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
    for file in files:
        tables.verify(file)
    try:
        schemas = [pq.read_schema(file) for file in files]
        for file, schema in zip(files, schemas, strict=True):
            check_schema(schema, file)
        check_same(files, (schema.names for schema in schemas))
        lazy_frame = pl.scan_parquet(files, glob=False)
        lazy_frame.collect_schema()
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise InputError(f"{source}: not a readable parquet file ({' '.join(str(error).split())})") from None
    return lazy_frame


def check_schema(schema: pa.Schema, source: object) -> None:
    """InputError for two columns of one name, and for a column with list views, of which polars panics."""
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{source}: expected each column once, got {twice[0]!r} more than once; rename one")
    for field in schema:
        if "list_view<" in str(field.type):
            raise InputError(
                f"{source}: column {field.name!r}: expected lists, got Arrow's list views; cast it to lists"
            )


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
    if data is None:
        tables.verify(Path(source))
    try:
        check_schema(pq.read_schema(source if data is None else pa.BufferReader(data)), source)
        return pl.read_parquet(source, glob=False) if data is None else pl.read_parquet(data)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise InputError(f"{source}: not a readable parquet file ({' '.join(str(error).split())})") from None


def _load_csv(source: str | Path, data: bytes | None) -> pl.DataFrame:
    data = Path(source).read_bytes() if data is None else data
    if not data.removeprefix(BOM).strip():
        raise InputError(f"{source}: the file is empty")
    if (error := utf8_error(data)) is not None:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}: line {line}: {not_utf8(error)}")
    try:
        frame = pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as problem:
        raise InputError(f"{source}: not a readable csv file ({' '.join(str(problem).split())})") from None
    for name in frame.columns:  # polars gives the second of two equal names this end
        if name.endswith("_duplicated_0") and (twice := name.removesuffix("_duplicated_0")) in frame.columns:
            raise InputError(f"{source}: expected each column once, got {twice!r} more than once; rename one")
    return frame
