"""Document: settings as a YAML file, to plain values and back; ambiguous YAML is refused with its line.

Knows YAML, and no setting. A name stands once in its mapping; aliases are followed up to a limit; dates are text, tags
are refused, and 5e-7 is a number, as in YAML 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mipo.errors import InputError, NotThereError

BYTES = 65_536  # a recipe has a few lines; PyYAML takes a second for 100 kB
DEPTH = 20
VALUES = 10_000  # an alias counts for all that it stands for
LIMITS = f"expected at most {DEPTH} levels and {VALUES:,} values, got more (an alias counts as what it stands for)"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}
_NUMBER = ("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
# In a recipe, which is copied into run folders and shown in reports, a secret would be published.
_SECRET_NAME = re.compile(
    r"token|(.*_)?(hub_token|auth_token|access_token|bearer_token|api_?key|access_key|secret_?key|private_key)"
    r"|(.*_)?(password|passwd|secret|credentials)"
)
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[opsu]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|://[^/\s:@]*:[^/\s@]+@"
)


class _Loader(yaml.SafeLoader):
    """The safe loader without dates."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes a text that `_Loader` would read as a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(*_NUMBER)
_Dumper.add_implicit_resolver(*_NUMBER)


def read(path: Path) -> dict[Any, Any]:
    """The settings in a YAML file. Raises NotThereError without one, InputError for anything but plain values."""
    if not path.is_file():
        raise NotThereError(f"{path}: no such recipe")
    if (size := path.stat().st_size) > BYTES:
        raise InputError(f"{path}: expected a recipe of at most {BYTES:,} bytes, got {size:,}; name a YAML file")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _check(node)
        values = loader.construct_document(node) if node else {}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: {LIMITS}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected settings as `name: value`, got {type(values).__name__}")
    return values


def write(settings: dict[str, Any]) -> str:
    """Plain values as YAML, from which `read` gives the same values."""
    text: str = yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def secrets(values: Any, at: str = "") -> Iterator[str]:
    """The full names of settings that hold a secret, recognized by the name or by the form of the value."""
    if isinstance(values, dict):
        for name, value in values.items():
            path = f"{at}.{name}" if at else str(name)
            if isinstance(value, str | int | float) and _SECRET_NAME.fullmatch(str(name).lower()):
                yield path
            else:
                yield from secrets(value, path)
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from secrets(value, f"{at}[{place}]")
    elif isinstance(values, str) and _SECRET.search(values):
        yield at


def _check(node: Any) -> None:
    """Refuses a name that stands twice, a tag, and aliases that contain themselves or too much."""
    seen = 0

    def walk(node: Any, depth: int) -> None:
        nonlocal seen
        seen += 1
        if depth > DEPTH or seen > VALUES:
            raise _at(node.start_mark, LIMITS)
        if node.tag not in _TAGS:
            raise _at(node.start_mark, f"expected a plain value, got the tag {node.tag}")
        if isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value, depth + 1)
        elif isinstance(node, yaml.MappingNode):
            names = set()
            for name, value in node.value:
                if isinstance(name, yaml.ScalarNode) and (name.tag, name.value) in names:
                    raise _at(name.start_mark, f"expected each setting once, got {name.value!r} again")
                names.add((name.tag, name.value) if isinstance(name, yaml.ScalarNode) else id(name))
                walk(name, depth + 1)
                walk(value, depth + 1)

    if node:
        walk(node, 0)


def _at(mark: Any, message: str) -> InputError:
    return InputError(f"line {mark.line + 1}: {message}")
