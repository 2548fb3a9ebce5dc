"""Records: frozen, typed settings, read from plain values; each wrong value is refused by its full name.

Knows types (msgspec's), and no setting. A field's type, range and description are in its annotation; what is refused,
how the message reads, and the JSON Schema all follow from it.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct
from msgspec.structs import FieldInfo

from mipo.errors import InputError

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
# The seeds that NumPy and transformers accept.
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
LISTED = 16  # names that a message lists; if there are more, it shows only the nearest one


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """A record. Its `__post_init__` may check several fields together; its InputError begins with the name of one."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read(kind: type[AnyRecord], values: object, *, at: str = "") -> AnyRecord:
    """The record of `kind` that `values` describes, a mapping of names to plain values.

    A name that is left out has its default; a record within may be empty (None). Only whole numbers are converted, to
    floats, and NumPy's numbers. `at` is the name of the record, which precedes the name of each field. Raises
    InputError with a line for each wrong value: its full name, what is allowed, and what it got.
    """
    record, problems = examine(kind, values, at=at)
    refuse(problems)
    assert record is not None
    return record


def examine(kind: type[AnyRecord], values: object, *, at: str = "") -> tuple[AnyRecord | None, list[str]]:
    """As `read`, but returns the problems, a line each, instead of raising; the record is None if there are any."""
    problems: list[str] = []
    return _record(kind, values, at, problems), problems


def refuse(problems: list[str]) -> None:
    """Raises InputError if there are problems, a line each."""
    if problems:
        one = len(problems) == 1
        raise InputError(problems[0] if one else "\n  ".join([f"{len(problems)} settings are wrong:", *problems]))


def problem(kind: Any, value: object, at: str) -> str | None:
    """What is wrong with the value of the setting `at`: what is allowed, and what it got; None for a valid value."""
    return None if _is_valid(kind, value) else _problem(kind, value, at)


def unknown(name: object, names: Iterable[str], at: str = "") -> str:
    """The message that there is no setting `name` among `names`, with the nearest one."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=1)
    hints = [f"did you mean {_join(at, near[0])}?"] if near else []
    hints += [f"there are {', '.join(names)}"] if not near and len(names) <= LISTED else []
    return "; ".join([f"{_join(at, name)}: no such setting", *hints])


def allowed(kind: Any) -> str:
    """What a type allows, in words: "a whole number of at least 1, or null"."""
    return _allowed(msgspec.json.schema(kind))


def settings(record: Record) -> dict[str, Any]:
    """The record as plain values for JSON and YAML, from which `read` makes an equal record."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """The settings in which two mappings differ, a line each."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{at}{name}.")
        elif a != b:
            lines.append(f"{at}{name}: {a!r} there, {b!r} now")
    return lines


def record_in(kind: Any) -> type[Record] | None:
    """The kind of record that a field's type is, or may be; None for any other type."""
    return next((arm for arm in _arms(kind) if isinstance(arm, type) and issubclass(arm, Record)), None)


def meta(field: FieldInfo) -> Meta:
    """The description and the examples of a record's field."""
    metas = typing.get_args(field.type)[1:] if typing.get_origin(field.type) is Annotated else ()
    return next((meta for meta in metas if isinstance(meta, Meta) and meta.description), Meta())


def _record(kind: type[AnyRecord], values: object, at: str, problems: list[str]) -> AnyRecord | None:
    """The record, or None after adding what is wrong to `problems`."""
    if not isinstance(values, Mapping):
        problems.append(f"{at}: expected settings as `name: value`, got {_shown(values)}".removeprefix(": "))
        return None
    before, fields = len(problems), {field.name: field for field in msgspec.structs.fields(kind)}
    problems += [unknown(name, fields, at) for name in values if name not in fields]
    converted = {name: _field(field, values, _join(at, name), problems) for name, field in fields.items()}
    if len(problems) > before:
        return None
    try:
        return kind(**{name: value for name, value in converted.items() if value is not UNSET})
    except InputError as error:
        problems.append(_join(at, error))
        return None


def _field(field: FieldInfo, values: Mapping[str, Any], at: str, problems: list[str]) -> Any:
    inner, value = record_in(field.type), values.get(field.name, UNSET)
    if inner and (field.required if value is UNSET else value is None and not _is_valid(field.type, None)):
        return _record(inner, {}, at, problems)
    if value is UNSET:
        problems += [f"{at}: is missing; expected {allowed(field.type)}"] if field.required else []
        return UNSET
    if inner and value is not None:
        return _record(inner, value, at, problems)
    if _is_valid(field.type, value):
        return _converted(field.type, value)
    problems.append(_problem(field.type, value, at))
    return UNSET


def _converted(kind: Any, value: object) -> Any:
    if isinstance(value, Real) and not isinstance(value, bool):
        value = int(value) if isinstance(value, Integral) else float(value)  # NumPy's numbers, too
    return msgspec.convert(value, kind)


def _is_valid(kind: Any, value: object) -> bool:
    try:
        return _is_finite(_converted(kind, value))
    except msgspec.ValidationError:
        return False


def _is_finite(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _problem(kind: Any, value: object, at: str) -> str:
    """The message for a wrong value; in a mapping or list that is itself allowed, for its first wrong entry."""
    for inner, entry, name in _entries(kind, value, at):
        if not _is_valid(inner, entry):
            return _problem(inner, entry, name)
    # In YAML 1.1 a bare no is false, and everyone writes `save_strategy: no`.
    bare = value is False and any("no" in typing.get_args(arm) for arm in _arms(kind))
    hint = "; a bare no is false in YAML, so write 'no'" if bare else ""
    return f"{at}: expected {allowed(kind)}, got {_shown(value)}{hint}"


def _entries(kind: Any, value: object, at: str) -> Iterator[tuple[Any, object, str]]:
    """The entries of a mapping or list, each with its type and name."""
    for arm in _arms(kind):
        origin, inner = typing.get_origin(arm), typing.get_args(arm)
        if origin is dict and isinstance(value, dict):
            yield from ((inner[1], entry, _join(at, name)) for name, entry in value.items())
        elif (origin is list or inner[1:] == (...,)) and isinstance(value, list | tuple):
            yield from ((inner[0], entry, f"{at}[{place}]") for place, entry in enumerate(value))


def _arms(kind: Any) -> list[Any]:
    """The types in a union, or the type itself, without annotations."""
    if typing.get_origin(kind) is Annotated:
        return _arms(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [arm for inner in typing.get_args(kind) for arm in _arms(inner)]
    return [kind]


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return _or([words for arm in schema["anyOf"] for words in (arm.get("enum") or [_allowed(arm)])])
    if "enum" in schema:
        return _or([str(value) for value in schema["enum"]])
    if "prefixItems" in schema:
        return f"[{', '.join(map(_allowed, schema['prefixItems']))}]"
    kind = schema.get("type")
    if kind == "array":
        items = _allowed(schema.get("items", {}))
        return f"a list of {items.removeprefix('a ')}s" if items in ("text", "a number", "a whole number") else "a list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"settings as {{name: {_allowed(values)}}}" if isinstance(values, dict) and values else "settings"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return words.get(str(kind), "null" if kind == "null" else "a value") + _range(schema)


def _or(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _range(schema: Mapping[str, Any]) -> str:
    low, above, high, below = (
        schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    )
    if low is not None and high is not None:
        return f" from {low} to {high}"
    limits = ((low, "of at least"), (above, "above"), (high, "at most"), (below, "below"))
    bounds = [f"{words} {limit}" for limit, words in limits if limit is not None]
    return f" {' and '.join(bounds)}" if bounds else ""


def _shown(value: object) -> str:
    """A value, shortened if it is long, with YAML's words for null, true and false."""
    words = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return words if len(words) <= 80 else f"{words[:79]}…"


def _join(at: str, name: object) -> str:
    return f"{at}.{name}" if at else str(name)
