"""Kinds: what values an expression of a chat template can have when messages are texts, and what Python does with them.

Knows the fields of messages, Jinja2's tests by kind, and constants in the syntax of the normal form. Knows nothing of
syntax trees, tokenizers or texts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

REQUIRED = ("role", "content")  # texts in every message
OPTIONAL = ("reasoning_content", "thinking", "reasoning", "name")  # a text or absent; any other field is absent
# Lists and what they hold; a chat has a first message, messages may have none.
LISTS = {"chat": "message", "messages": "message", "strings": "string", "integers": "integer"}
NOTHING = {"undefined", "none"}
PRINTED = {"string", "integer", "boolean", "none", "undefined"}
VALUES = {*PRINTED, "message", *LISTS}  # what may be tested, stored and handed on
FAILS = {"string", "undefined", "none"}  # a method of str, or + with one, raises in both languages for the last two
OWN_ATTRIBUTES = set(dir(dict)) | set(dir(str))  # names that Jinja2 would find on a value itself, before its items
COMPARED: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "eq": ("==", operator.eq), "ne": ("!=", operator.ne), "lt": ("<", operator.lt), "lteq": ("<=", operator.le),
    "gt": (">", operator.gt), "gteq": (">=", operator.ge),
}  # fmt: skip
# The kinds for which a test of Jinja2 is true. What is undefined can be iterated and counted, as nothing.
TESTS = {
    "defined": {"string", "integer", "boolean", "none", "message", *LISTS},
    "undefined": {"undefined"},
    "none": {"none"},
    "string": {"string"},
    "mapping": {"message"},
    "iterable": {"string", "undefined", "message", *LISTS},
    "sequence": {"string", "undefined", "message", *LISTS},
    "number": {"integer", "boolean"},
    "integer": {"integer"},
    "boolean": {"boolean"},
    "float": set(),
}  # fmt: skip
# Methods and filters from text to text: name → the name in Rust, by number of arguments, which are texts.
METHODS = {
    ("strip", 0): "py_strip", ("lstrip", 0): "py_lstrip", ("rstrip", 0): "py_rstrip",
    ("strip", 1): "py_strip", ("lstrip", 1): "py_lstrip", ("rstrip", 1): "py_rstrip",
    ("replace", 2): "py_replace", ("upper", 0): "py_upper", ("lower", 0): "py_lower",
    ("capitalize", 0): "py_capitalize", ("title", 0): "py_title",
    ("removeprefix", 1): "py_removeprefix", ("removesuffix", 1): "py_removesuffix",
}  # fmt: skip
ANSWERS = {
    ("startswith", 1): ("py_startswith", "boolean"), ("endswith", 1): ("py_endswith", "boolean"),
    ("find", 1): ("py_find", "integer"), ("count", 1): ("py_count", "integer"), ("split", 0): ("py_split", "strings"),
    ("split", 1): ("py_split", "strings"),
}  # fmt: skip
FILTERS = {("trim", 0): "py_strip", ("trim", 1): "py_strip", ("upper", 0): "py_upper", ("lower", 0): "py_lower",
           ("capitalize", 0): "py_capitalize", ("replace", 2): "py_replace"}  # fmt: skip


LOOPED = "what is looped over"  # no name of a template
NEIGHBOURS = {"previtem": "-", "nextitem": "+"}
GLOBALS = ("range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now")
LOOP = {"index": "integer", "index0": "integer", "revindex": "integer", "revindex0": "integer", "length": "integer",
        "first": "boolean", "last": "boolean"}  # fmt: skip


class Refused(Exception):
    """Why a template is left to transformers: the construct, and its line where it is known."""

    def __init__(self, construct: str, line: int | None = None) -> None:
        super().__init__(construct)
        self.construct, self.line = construct, line

    def __str__(self) -> str:
        return self.construct if self.line is None else f"{self.construct} in line {self.line}"

    def at(self, line: int) -> Refused:
        """The same, in this line unless an inner construct has named its own."""
        return self if self.line is not None else Refused(self.construct, line)


class Undefined:
    """The constant that a name without a value has."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED = Undefined()


@dataclass(frozen=True)
class Term:
    """Code of the normal form, the kinds of its values, and whether it never raises; `known` holds the only value."""

    code: str
    kinds: frozenset[str]
    pure: bool = True
    known: tuple[Any, ...] = ()


@dataclass
class Macro:
    """A macro: its parameters with their constant defaults, and the kinds of what it has been called with."""

    names: list[str]
    defaults: dict[str, Term]
    given: dict[str, frozenset[str]] = field(default_factory=dict)


@dataclass
class Facts:
    """What is found out about a template: it grows from pass to pass until it holds for every statement."""

    absent: set[str] = field(default_factory=set)
    attributes: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    created: dict[str, frozenset[str]] = field(default_factory=dict)
    macros: dict[str, Macro] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)


Scope = dict[str, Term]


def some(code: str, *kinds: str, pure: bool = True) -> Term:
    """A term whose value is not known."""
    return Term(code, frozenset(kinds), pure)


def constant(value: Any) -> Term:
    """A term with the one value."""
    kinds = {str: "string", bool: "boolean", int: "integer", type(None): "none", Undefined: "undefined"}
    if type(value) not in kinds:
        raise Refused(f"a constant of type {type(value).__name__}")
    kind = kinds[type(value)]
    if kind == "integer" and abs(value) >= 2**31:
        raise Refused("an integer of more than 31 bits")
    fixed = {"none": "none", "undefined": "undef", "boolean": str(value).lower(), "integer": f"({value})"}
    made = quoted(value) if kind == "string" else fixed[kind]
    return Term(made, frozenset([kind]), True, (value,))


def quoted(text: str) -> str:
    """A string of the normal form; all but plain characters stand as they are, which its lexer allows."""
    for char, escape in {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\u0000"}.items():
        text = text.replace(char, escape)
    return f'"{text}"'


def truth(term: Term) -> bool | None:
    """Whether the term counts as true, where that is known without evaluating it."""
    if term.known:
        return False if term.known[0] is UNDEFINED else bool(term.known[0])
    if term.pure and term.kinds and term.kinds <= {"message", "chat"}:
        return True
    return False if term.pure and term.kinds and term.kinds <= NOTHING else None


def either(one: Term, other: Term, code: str) -> Term:
    """A term that has the value of one of two."""
    same = one.known and other.known and type(one.known[0]) is type(other.known[0]) and one.known == other.known
    return Term(code, one.kinds | other.kinds, one.pure and other.pure, one.known if same else ())


def demand(term: Term, kinds: Iterable[str], what: str) -> Term:
    """The term, if its values are of the kinds; else it is refused."""
    if wrong := term.kinds - set(kinds):
        raise Refused(f"{what} of {' or '.join(sorted(wrong))}")
    return term
