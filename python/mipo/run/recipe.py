"""Recipes: what a run is made of, as a YAML file, with every default, checked before anything costs anything.

Knows names and defaults. Runs nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from mipo.errors import InputError, NotThereError

REQUIRED = "(required)"
CONTROLS = ("shuffled", "sft")
DEFAULTS: dict[str, Any] = {
    "model": REQUIRED,  # a folder, or a name on the Hugging Face hub
    "prompts": {
        "source": REQUIRED,  # JSONL, Parquet, CSV, or a Hugging Face dataset
        "prompt": "prompt",  # the column with the prompt: text or chat messages
        "context": None,  # the column with the user's context
        "split": "train",
        "test": None,  # a file of held-out prompts; without one, `holdout` rows are held out
        "holdout": None,  # rows; default a tenth, at most 512
        "holdout_by": None,  # a column of which no value is on both sides, as a user
        "overlap_share": None,  # drops training prompts that share this much of a held-out prompt's words, as 0.5,
        "overlap_words": 8,  # in runs of so many words, or that equal one
    },
    "contrast": {
        "kind": "random",
        "negatives": 1,
        "match": [],
        "differ": [],
        "near": None,  # [COLUMN, TOLERANCE]
        "near_duplicates": None,  # a Jaccard similarity as 0.8
    },
    "responses": {"temperature": 0.1, "top_p": 0.9, "max_new_tokens": 512, "batch_size": 64},
    "tokens": {"max_length": 15_360},
    "trainer": {},  # any field of mipo.trainer.MIPOConfig
    "lora": None,  # any field of peft.LoraConfig; without it all weights are trained
    "evaluation": {"negatives": None, "rows": 512, "rule": None},  # negatives: default 31, or all other rows
    "seed": 0,
    "control": None,  # shuffled: chosen and rejected swapped at random; sft: the chosen responses alone
    "max_dropped": 0.01,  # the share of rows that may be dropped; or {reason: share, …}, others 0.01
    "trust_remote_code": False,
}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, to which 5e-7 is a number as in YAML 1.2; in 1.1 it is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load(path: str | Path, **overrides: Any) -> dict[str, Any]:
    """The recipe in `path` with all defaults, file names made absolute; overrides that are not None replace its values.

    Raises FileNotFoundError or ValueError, which name the setting, for what cannot be run.
    """
    path = Path(path)
    if not path.is_file():
        raise NotThereError(f"{path}: no such recipe")
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected settings as `name: value`, came {type(given).__name__}")
    recipe = _fill({**given, **{name: value for name, value in overrides.items() if value is not None}}, str(path))
    _check(recipe, str(path))
    for section, name in ((recipe, "model"), (recipe["prompts"], "source"), (recipe["prompts"], "test")):
        if isinstance(section[name], str) and (path.parent / section[name]).exists():
            section[name] = str((path.parent / section[name]).resolve())
    return recipe


def dump(settings: dict[str, Any]) -> str:
    """A loaded recipe as YAML: every setting, overrides in it and file names absolute, so that it repeats the run."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """The settings in which two recipes differ, a line each."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{at}{name}.")
        elif a != b:
            lines.append(f"{at}{name}: {a!r} there, {b!r} now")
    return lines


def _fill(given: dict[str, Any], where: str) -> dict[str, Any]:
    recipe = copy.deepcopy(DEFAULTS)
    for name, value in given.items():
        _known(name, DEFAULTS, where)
        default = DEFAULTS[name]
        if not isinstance(default, dict):
            recipe[name] = value
            continue
        if not isinstance(value, dict | None):
            raise InputError(f"{where}: {name}: expected settings as `name: value`, came {value!r}")
        for inner in value or {}:
            if default:
                _known(inner, default, f"{where}: {name}")
        recipe[name] |= value or {}
    return recipe


def _known(name: str, among: Any, where: str) -> None:
    if name not in among:
        near = difflib.get_close_matches(str(name), among, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(among)}"
        raise InputError(f"{where}: no setting {name!r}{hint}")


def _check(recipe: dict[str, Any], where: str) -> None:
    for name, value in (("model", recipe["model"]), ("prompts.source", recipe["prompts"]["source"])):
        if not isinstance(value, str) or value == REQUIRED:
            raise InputError(f"{where}: {name} is missing; name a file, a folder or a name on the hub")
    if recipe["control"] not in (None, *CONTROLS):
        raise InputError(f"{where}: control: expected {' or '.join(CONTROLS)}, came {recipe['control']!r}")
    _check_types(recipe, where)
    rule = recipe["evaluation"]["rule"]
    if rule is not None and ("answer" not in rule or len(rule.keys() & {"pattern", "pattern_column"}) != 1):
        raise InputError(
            f"{where}: evaluation.rule: expected answer (a column) and pattern (a regular expression with a group "
            f"`answer`) or pattern_column, came {rule!r}"
        )


# What the settings are that a YAML file gets wrong easily; null is allowed where the default is null.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "seed": (int, "a whole number"),
    "max_dropped": ((int, float, dict), "a share as 0.01, or {reason: share}"),
    "lora": (dict, "settings as `r: 16`"),
    "prompts.holdout": (int, "a whole number of rows"),
    "prompts.overlap_share": ((int, float), "a share as 0.5"),
    "prompts.overlap_words": (int, "a whole number of words"),
    "contrast.negatives": (int, "a whole number"),
    "contrast.near": (list, "[COLUMN, TOLERANCE]"),
    "contrast.near_duplicates": ((int, float), "a similarity as 0.8"),
    "responses.temperature": ((int, float), "a number, 0 for greedy"),
    "responses.top_p": ((int, float), "a number from 0 to 1"),
    "responses.max_new_tokens": (int, "a whole number of tokens"),
    "responses.batch_size": (int, "a whole number"),
    "tokens.max_length": (int, "a whole number of tokens"),
    "evaluation.negatives": (int, "a whole number"),
    "evaluation.rows": (int, "a whole number"),
    "evaluation.rule": (dict, "settings as `answer: COLUMN`"),
}


def _check_types(recipe: dict[str, Any], where: str) -> None:
    for name, (kind, wanted) in TYPES.items():
        section, _, inner = name.partition(".")
        value, default = (recipe[section][inner], DEFAULTS[section][inner]) if inner else (recipe[name], DEFAULTS[name])
        if value is None and (default is None or name == "tokens.max_length"):
            continue
        if isinstance(value, bool) or not isinstance(value, kind):
            raise InputError(f"{where}: {name}: expected {wanted}, came {value!r}")
        if isinstance(value, int | float) and value < 0:
            raise InputError(f"{where}: {name}: expected {wanted}, not below 0, came {value!r}")


def check_trainer(recipe: dict[str, Any]) -> None:
    """Raises ValueError for a trainer or lora setting that does not exist. Loads TRL."""
    from peft import LoraConfig

    from mipo.trainer.config import MIPOConfig

    for section, config in (("trainer", MIPOConfig), ("lora", LoraConfig)):
        fields = [field.name for field in dataclasses.fields(config)]
        for name in recipe[section] or {}:
            _known(name, fields, section)
