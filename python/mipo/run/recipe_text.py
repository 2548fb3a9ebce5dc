"""Recipe text: what a recipe may hold, as a commented recipe with every default, and as a JSON Schema for editors.

Both are written from the records of `mipo.run.recipe` and from the fields of TRL's and PEFT's configs.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml
from msgspec import UNSET, Meta, structs
from msgspec.structs import FieldInfo

from mipo.io import records
from mipo.run.recipe import Recipe
from mipo.run.training_fields import Config, Field, fields_of, paper_fields

WIDTH = 120
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TRAINING: dict[str, Config] = {"trainer": "MIPOConfig", "lora": "LoraConfig"}
HEAD = """A recipe with every setting of mipo, its default, and what it may be. Only required settings, and those that
differ from the default, have to be there. `mipo run FILE --dry-run` shows the first pairs; `mipo run FILE` runs it."""


def commented() -> str:
    """A recipe with all defaults and a comment on each setting; a setting without a default has an example."""
    return "\n".join([*_comment(HEAD, 0), *_lines(Recipe, 0)]) + "\n"


def schema() -> str:
    """The JSON Schema of a recipe, which editors apply to YAML; with TRL's and PEFT's fields if they are installed."""
    whole = msgspec.json.schema(Recipe)
    properties = whole["$defs"]["Recipe"]["properties"]
    for section, config in TRAINING.items():
        fields = fields_of(config)
        if fields is not None:
            known = {"properties": {name: _field_schema(field) for name, field in fields.items()}}
            arms = properties[section].get("anyOf", [properties[section]])
            next(arm for arm in arms if arm.get("type") == "object").update(known, additionalProperties=False)
    for section in ("trainer", *(field.name for field in structs.fields(Recipe) if records.record_in(field.type))):
        properties[section] = {"anyOf": [properties[section], {"type": "null"}]}  # a section may be left empty
    return json.dumps({"$schema": DIALECT, "title": "A recipe of mipo", **whole}, indent=2, ensure_ascii=False) + "\n"


def _lines(record: type[records.Record], indent: int) -> Iterator[str]:
    for field in structs.fields(record):
        meta, inner = records.meta(field), records.record_in(field.type)
        optional = inner is not None and not field.required and field.default is None
        if inner and not optional:
            yield ""
            yield from _comment(inner.__doc__ or "", indent)
            yield f"{field.name}:"
            yield from _lines(inner, indent + 2)
            continue
        if indent == 0:
            yield ""
        yield from _comment(_described(field, meta), indent)
        value = "" if field.name == "trainer" else f" {_flow(_value(field, meta))}"
        yield f"{' ' * indent}{field.name}:{value}"
        if inner:
            yield from (f"{' ' * indent}# {line}" for line in _example(field.name, inner))
        if field.name == "trainer":
            for name, paper in paper_fields().items():
                yield f"  # {name}: {_flow(_default(paper))}  # {paper.help}"


def _described(field: FieldInfo, meta: Meta) -> str:
    text = str(meta.description)
    parts = [f"{text[0].upper()}{text[1:]}."]
    if field.required:
        parts.insert(0, "Required.")
    elif not records.record_in(field.type) and field.name not in TRAINING:
        parts.append(f"Allowed: {records.allowed(field.type)}.")
    if meta.examples and not field.required:
        parts.append(f"For example {field.name}: {_flow(meta.examples[0])}")
    return " ".join(parts)


def _example(name: str, record: type[records.Record]) -> Iterator[str]:
    """An optional record with its examples, as the lines of a comment."""
    yield f"{name}:"
    for field in structs.fields(record):
        meta = records.meta(field)
        value = _flow(meta.examples[0]) if meta.examples else "null"
        yield f"  {field.name}: {value}  # {meta.description}"


def _value(field: FieldInfo, meta: Meta) -> Any:
    if field.required:
        return meta.examples[0] if meta.examples else None
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return msgspec.to_builtins(default)


def _field_schema(field: Field) -> dict[str, Any]:
    default = _default(field)
    described = {} if field.help is None else {"description": field.help}
    return {**described, **msgspec.json.schema(field.kind), **({} if default is UNSET else {"default": default})}


def _default(field: Field) -> Any:
    """A field's default, if its source is a plain value."""
    try:
        return UNSET if field.default is None else ast.literal_eval(field.default)
    except ValueError:
        return UNSET


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=start, subsequent_indent=start)
