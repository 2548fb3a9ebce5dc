"""Training fields: the settings in `trainer` and `lora` of a recipe, with types, defaults and descriptions.

They are the fields of `MIPOConfig`, which extends TRL's `DPOConfig`, and of PEFT's `LoraConfig`. Both are read from the
source of the installed libraries, not imported: an import takes 9 s of CPU, reading the source 0.03 s (2026-11-28). If
a source does not look as expected, nothing is refused here, and building the configs decides (`mipo.trainer.config`).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_origin

from msgspec import Meta

from mipo.io.records import Count, Seed

Config = Literal["MIPOConfig", "LoraConfig"]
SOURCES: dict[Config, tuple[tuple[str, str], ...]] = {
    "MIPOConfig": (
        ("mipo", "trainer/config.py"),
        ("trl", "trainer/dpo_config.py"),
        ("trl", "trainer/base_config.py"),
        ("transformers", "training_args.py"),
        ("transformers", "trainer_utils.py"),
    ),
    "LoraConfig": (("peft", "tuners/lora/config.py"), ("peft", "config.py")),
}
WITHOUT_FIELDS = {"PushToHubMixin"}
# Types that replace a source's annotation: it allows less than the library takes, or more than training can use.
_NotNegative = Annotated[float, Meta(ge=0)]
OURS: dict[str, Any] = {
    "loss_type": str | list[str],
    "fsdp": bool | str | list[str] | None,
    "learning_rate": _NotNegative,
    "beta": _NotNegative,
    "weight_decay": _NotNegative,
    "max_grad_norm": _NotNegative,
    "warmup_steps": _NotNegative,
    "num_train_epochs": Annotated[float, Meta(gt=0)],
    "per_device_train_batch_size": Count,
    "precompute_ref_batch_size": Count | None,
    "gradient_accumulation_steps": Count,
    "seed": Seed,
    "data_seed": Seed | None,
    "ref_model_sync_steps": Count,
    "truncation_mode": Literal["keep_start", "keep_end"],
    "dataloader_num_workers": Annotated[int, Meta(ge=0)],
    "parallelism_config": None,  # an object, which no YAML value is
    "r": Count,
    "lora_alpha": Count,
    "lora_dropout": Annotated[float, Meta(ge=0, lt=1)],
}
_PLAIN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "None": None, "Any": Any, "dict": dict, "list": list,
}  # fmt: skip


class Unknown:
    """The type of a library's own classes, which no YAML value has."""


@dataclass(frozen=True)
class Field:
    """A field of a config: the type of its value in YAML, the source code of its default, and its description."""

    kind: Any
    default: str | None
    help: str | None


class _Class(NamedTuple):
    bases: list[str]
    fields: dict[str, Field]


@functools.cache
def fields_of(config: Config) -> dict[str, Field] | None:
    """The fields of a config, its own before inherited ones; None if a class is not in the sources."""
    classes = _classes(config)
    fields: dict[str, Field] = {}
    names: list[str] = [config]
    for name in names:
        if name not in classes:
            return None
        for field, declared in classes[name].fields.items():
            nearer = fields.setdefault(field, declared)
            if nearer.kind is str and get_origin(declared.kind) is Literal:  # a class that only changes the default
                fields[field] = replace(nearer, kind=declared.kind)
        names += [base for base in classes[name].bases if base not in WITHOUT_FIELDS]
    return fields


def paper_fields() -> dict[str, Field]:
    """The fields that `MIPOConfig` adds to TRL's, and those for which it has the paper's default instead of TRL's."""
    return _classes("MIPOConfig")["MIPOConfig"].fields


@functools.cache
def _classes(config: Config) -> dict[str, _Class]:
    trees = [_parsed(library, file) for library, file in SOURCES[config]]
    nodes = [node for tree in trees if tree for node in tree.body if isinstance(node, ast.ClassDef)]
    enums = {node.name: _choices(node) for node in nodes if any("Enum" in ast.unparse(base) for base in node.bases)}
    return {node.name: _Class([ast.unparse(base) for base in node.bases], _fields(node, enums)) for node in nodes}


def _parsed(library: str, file: str) -> ast.Module | None:
    spec = importlib.util.find_spec(library)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.is_file():
        return None
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return None


def _choices(node: ast.ClassDef) -> tuple[str, ...]:
    """The values of an enum of texts."""
    values = [line.value for line in node.body if isinstance(line, ast.Assign)]
    return tuple(value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _fields(node: ast.ClassDef, enums: dict[str, tuple[str, ...]]) -> dict[str, Field]:
    fields = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name, kind = line.target.id, _kind(line.annotation, enums)
            fields[name] = Field(OURS.get(name, Any if kind is Unknown else kind), *_declared(line.value))
    return fields


def _declared(value: ast.expr | None) -> tuple[str | None, str | None]:
    """The source code of a field's default, and its help."""
    if not isinstance(value, ast.Call):
        return (ast.unparse(value) if value else None), None
    words = {keyword.arg: keyword.value for keyword in value.keywords}
    factory, metadata = words.get("default_factory"), words.get("metadata")
    default = words.get("default", factory.body if isinstance(factory, ast.Lambda) else None)
    entries = dict(zip(metadata.keys, metadata.values, strict=True)) if isinstance(metadata, ast.Dict) else {}
    texts = [text for name, text in entries.items() if isinstance(name, ast.Constant) and name.value == "help"]
    text = texts[0].value if texts and isinstance(texts[0], ast.Constant) else None
    return ast.unparse(default) if default else None, " ".join(str(text).split()) if text else None


def _kind(node: ast.expr, enums: dict[str, tuple[str, ...]]) -> Any:
    """The type that an annotation means for a value in YAML; `Unknown` for one that no such value has."""
    if isinstance(node, ast.Constant):
        return None if node.value is None else Unknown
    if isinstance(node, ast.Name):
        choices = enums.get(node.id)
        return Literal[choices] if choices else _PLAIN.get(node.id, Unknown)
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right], enums)
    if not isinstance(node, ast.Subscript):
        return Unknown
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outer = ast.unparse(node.value)
    if outer == "Literal":
        values = tuple(value.value for value in inner if isinstance(value, ast.Constant))
        # "pissa_niter_[number of iters]" stands for many values.
        listed = all(isinstance(value, str) and "[" not in value for value in values)
        return Literal[values] if listed else bool if set(values) <= {True, False} else str
    if outer in ("Optional", "Union"):
        return _union([*inner, *([ast.Constant(None)] if outer == "Optional" else [])], enums)
    kinds = [Any if (kind := _kind(part, enums)) is Unknown else kind for part in inner]
    if outer == "list":
        return list[kinds[0]]  # type: ignore[valid-type]
    if outer == "tuple":
        return tuple[tuple(kinds)]  # type: ignore[misc]
    return dict[kinds[0], kinds[1]] if outer == "dict" else Unknown  # type: ignore[valid-type]


def _union(parts: list[ast.expr], enums: dict[str, tuple[str, ...]]) -> Any:
    """The union without types that no YAML value has, and without `str` beside an enum that lists the choices."""
    kinds = [_kind(part, enums) for part in parts]
    known = [kind for kind in kinds if kind is not Unknown]
    if all(kind is None for kind in known):
        return Unknown
    if any(isinstance(part, ast.Name) and part.id in enums for part in parts):
        known = [kind for kind in known if kind is not str]
    return Union[tuple(known)]  # noqa: UP007  # of a list
