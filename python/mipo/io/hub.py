"""Data sets of the `datasets` library: those on the Hugging Face hub, saved ones, and folders that only it can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mipo.errors import InputError, LibraryError, NotThereError


def is_name(source: str) -> bool:
    """Whether a source that does not exist can be a data set, `name` or `owner/name`: no path, and no file's suffix."""
    looks_like_file = re.search(r"\.[A-Za-z][A-Za-z0-9]{0,7}$", source)
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source)) and not looks_like_file


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    one = (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
    return one or (folder / "dataset_dict.json").exists()


def load(source: str | Path, split: str) -> Any:
    """A split of a data set; NotThereError for one that cannot be loaded, InputError for a split that it has not."""
    try:
        import datasets
    except ImportError:
        raise LibraryError("Hugging Face datasets need `pip install mipo[train]`") from None
    saved = is_saved(Path(source))
    try:
        dataset = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), split=split)
    except IndexError:
        raise InputError(f"{source}: expected a data set with rows, got one without any") from None
    # Its files may be anything.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, datasets.exceptions.DatasetsError) as error:
        if str(error).startswith("Unknown split"):
            names = re.findall(r"'([^']*)'", str(error).partition("one of")[2])
            raise InputError(f"{source}: no split {split!r}; it has {', '.join(names)}") from None
        cause = " ".join(str(error.__cause__ or error).split())
        raise NotThereError(f"{source}: neither a file nor a dataset that can be loaded ({cause})") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{source}: no split {split!r}; it has {', '.join(dataset)}")
        return dataset[split]
    if saved and split not in ("train", str(dataset.split)):
        raise InputError(f"{source}: no split {split!r}; it was saved as one split, {dataset.split or 'train'}")
    return dataset


def fingerprint(dataset: Any) -> str:
    """What identifies the rows of a data set: its name, configuration and split, and the revision on the hub."""
    name: str = dataset._fingerprint
    return name
