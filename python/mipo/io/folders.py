"""Folders of data files: which files belong to which split, as `datasets.load_dataset` takes them.

Knows the names of files, and the YAML in front of a data set's README.md. Opens no data file.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io.outputs import MARK

FORMATS = {
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "json": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv", ".tsv"),
}
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# In this order, those of folders first.
_KEYWORD_PATTERNS = (
    ("**/{0}/**", "**/{0}[{1}]*/**", "**/*[{1}]{0}/**", "**/*[{1}]{0}[{1}]*/**"),
    ("**/{0}[{1}]*", "**/*[{1}]{0}[{1}]*"),
)
_BETWEEN_WORDS = "-._ 0-9"
_SHARD = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*"
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_IGNORED = {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
# What a configuration may say; how to read its files, for example with `sep`, is for the `datasets` library alone.
_KNOWN_SETTINGS = {"config_name", "data_files", "data_dir", "default", "description"}
_FRONT = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r?\n|$)", re.DOTALL)
_TOKEN = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def files(folder: Path, split: str) -> list[Path] | None:
    """The data files of a split, in `load_dataset`'s order, each once; None where only `datasets` can read them.

    Raises InputError for a folder without data files or without this split, with the splits that it has.
    """
    config = _config(folder)
    splits = _splits(folder, config)
    if not any(splits.values()):
        raise InputError(f"{folder}: expected data files (Parquet, JSON Lines or CSV), got none")
    if split not in splits:
        raise InputError(f"{folder}: no split {split!r}; it has {', '.join(splits)}")
    if not splits[split]:
        raise InputError(f"{folder}: expected data files in the split {split!r}, got none")
    chosen = _of_one_format(splits[split])
    if config.keys() - _KNOWN_SETTINGS or any(name.endswith((".json", ".arrow", ".tsv")) for name in chosen):
        if re.search(r"[*?[]", str(folder.resolve())):
            raise InputError(
                f"{folder}: {chosen[0]} is for the library datasets, which takes *, ? and [ in the path of a folder "
                "for a pattern; rename the folder, or write the rows as JSON Lines (.jsonl)"
            )
        return None
    return [folder / name for name in chosen]


def visible(folder: Path) -> list[str]:
    """The files in a folder, sorted by their names relative to it.

    Without hidden ones and those in `__…` folders, behind links to folders, and in folders that mipo made.
    """
    return sorted(_walk(folder, ""))


def _walk(folder: Path, inside: str) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield f"{inside}{path.name}"
        elif path.is_dir() and not path.is_symlink() and not path.name.startswith("__") and not (path / MARK).exists():
            yield from _walk(path, f"{inside}{path.name}/")


def _splits(folder: Path, config: dict[str, Any]) -> dict[str, list[str]]:
    """The names of the data files of each split."""
    base = str(config.get("data_dir") or "")
    names = [name for name in visible(folder) if _is_data(name)]
    if (stated := config.get("data_files")) is not None:
        return {split: _stated(folder, names, base, those) for split, those in _patterns(folder, stated).items()}
    inside = posixpath.normpath(base) + "/" if base else ""
    found = _by_name(folder, [name.removeprefix(inside) for name in names if name.startswith(inside)])
    return {split: [inside + name for name in chosen] for split, chosen in found.items()}


def _is_data(name: str) -> bool:
    own = name.rpartition("/")[2]
    known = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
    return own not in _IGNORED and any(f".{word}" in known for word in own.split(".")[1:])


def _by_name(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """The splits that the names tell: shards in data/, else folders, else files named by split, else all is train."""
    shards = _matching(names, [f"data/*{_SHARD}"])
    if shards:
        named = {re.sub(r"-\d{5}-of-\d{5}.*", "", name.removeprefix("data/")) for name in shards}
        if wrong := [split for split in sorted(named) if not _SPLIT_NAME.fullmatch(split)]:
            raise InputError(
                f"{folder}: data/{wrong[0]}-…: expected the name of a split before the number of the shard, got "
                f"{wrong[0]!r}; a split has letters, digits, _ and dots"
            )
        order = [split for split in KEYWORDS if split in named] + sorted(named - KEYWORDS.keys())
        return {split: _matching(names, [f"data/{split}{_SHARD}"]) for split in order}
    for patterns in _KEYWORD_PATTERNS:
        found = {
            split: _matching(names, [pattern.format(word, _BETWEEN_WORDS) for word in words for pattern in patterns])
            for split, words in KEYWORDS.items()
        }
        if any(found.values()):
            return {split: chosen for split, chosen in found.items() if chosen}
    return {"train": names}


def _matching(names: list[str], patterns: list[str]) -> list[str]:
    """The names that match one of the patterns, by pattern; `load_dataset` reads a name twice that matches two."""
    matching = (name for pattern in patterns for regex in [_regex(pattern)] for name in names if regex.fullmatch(name))
    return list(dict.fromkeys(matching))


def _regex(pattern: str) -> re.Pattern[str]:
    """The names that a pattern stands for: * within a name, ** across folders, ? and [a-z] for a character."""
    *folders, last = pattern.split("/")
    parts = ["(?:.+/)?" if part == "**" else _part(part) + "/" for part in folders]
    return re.compile("".join([*parts, ".*" if last == "**" else _part(last)]), re.DOTALL)


def _part(part: str) -> str:
    def translated(token: str) -> str:
        if token[0] == "*":
            return "[^/]*" if part.strip("*") else "[^/]+"
        if token == "?":
            return "[^/]"
        if len(token) > 1:
            inside = re.sub(r"([\\^\[])", r"\\\1", token[1:-1].removeprefix("!"))
            return f"[^/{inside}]" if token[1] == "!" else f"[{inside}]"
        return re.escape(token)

    return "".join(translated(match[0]) for match in _TOKEN.finditer(part))


def _of_one_format(names: list[str]) -> list[str]:
    """Those of the most frequent format; among equals Parquet, then as in FORMATS."""
    order = [suffix for suffixes in FORMATS.values() for suffix in suffixes]
    suffixes = Counter(f".{word}".lower() for name in names for word in name.rpartition("/")[2].split(".")[1:])
    best = max(order, key=lambda suffix: (suffixes[suffix], -order.index(suffix)))
    kept = next(group for group in FORMATS.values() if best in group)
    return [name for name in names if re.search(rf"({'|'.join(map(re.escape, kept))})(\..+)?$", name)]


def _config(folder: Path) -> dict[str, Any]:
    """The configuration that `load_dataset` takes without a name; empty where none is stated."""
    configs = _card(folder).get("configs")
    if not configs:
        return {}
    where = f"{folder}: configs in README.md"
    if not isinstance(configs, list) or not all(isinstance(c, dict) and "config_name" in c for c in configs):
        raise InputError(f"{where}: expected a list of settings, each with a config_name")
    default = [c for c in configs if len(configs) == 1 or c["config_name"] == "default" or c.get("default")]
    if len(default) != 1:
        names = ", ".join(str(config["config_name"]) for config in configs)
        raise InputError(f"{where}: expected one default configuration, got {names}; name the folder of one, or a file")
    return dict(default[0])


def _card(folder: Path) -> dict[str, Any]:
    """The YAML in front of README.md, and that of .huggingface.yaml, which has the last word."""
    texts = []
    if (readme := folder / "README.md").is_file():
        front = _FRONT.match(readme.read_text(encoding="utf-8", errors="replace"))
        texts += [(readme, front[1])] if front and "configs" in front[1] else []
    if (own := folder / ".huggingface.yaml").is_file():
        texts.append((own, own.read_text(encoding="utf-8", errors="replace")))
    card: dict[str, Any] = {}
    for path, text in texts:
        import yaml

        try:
            values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
        card |= values if isinstance(values, dict) else {}
    return card


def _patterns(folder: Path, stated: Any) -> dict[str, list[str]]:
    """The patterns of each split that `data_files` states."""
    entries = stated if isinstance(stated, list) else [stated]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        patterns: list[Any] = path if isinstance(path, list) else [path]
        if not isinstance(split, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(
                f"{folder}: data_files in README.md: expected a name, a list of names, or a list of "
                f"{{split, path}}, got {str(entry)[:80]}"
            )
        splits.setdefault(split, []).extend(patterns)
    return splits


def _stated(folder: Path, names: list[str], base: str, patterns: list[str]) -> list[str]:
    """The data files that the patterns of README.md stand for; InputError for a name that is not there."""
    chosen: list[str] = []
    for stated in patterns:
        pattern = posixpath.normpath(posixpath.join(base, stated))
        if pattern.startswith(("/", "../")) or "://" in stated:
            raise InputError(f"{folder}: README.md names {stated!r}, which is not inside it; name the files themselves")
        found = _matching(names, [pattern])
        if not found and not re.search(r"[*?[]", stated):
            raise InputError(f"{folder}: README.md names {stated!r}, which is not a data file in it")
        chosen += found
    return list(dict.fromkeys(chosen))
