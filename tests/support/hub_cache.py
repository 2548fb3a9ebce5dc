"""A cache of the `datasets` library with data sets of the hub in it, as downloads leave them; no test needs the hub."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest


class HubCache:
    """Data sets that `datasets.load_dataset` finds by their names, offline."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        self.folder, self.published = folder, 0
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")

    def publish(self, name: str, revision: str, **splits: list[dict[str, Any]]) -> None:
        """Puts one more revision of a data set into the cache; the latest one is loaded."""
        import datasets

        self.published += 1
        source = self.folder / str(self.published) / name.rpartition("/")[2]
        source.mkdir(parents=True)
        for split, rows in splits.items():
            (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = datasets.load_dataset(str(source), cache_dir=str(self.folder / "made"))
        made = Path(next(iter(loaded.values())).cache_files[0]["filename"]).parent
        place = self.folder / "cache" / name.replace("/", "___") / "default" / "0.0.0" / revision
        shutil.copytree(made, place)
        os.utime(place, (self.published * 10**6, self.published * 10**6))
