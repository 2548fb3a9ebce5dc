"""Calls: methods and filters of Jinja2's templates on terms, as filters that rust/filters.rs has.

Knows which of them do the same in Rust, for which kinds of values, and what comes out. Knows no syntax tree.
"""

from __future__ import annotations

from mipo.tokenizer.kinds import (
    ANSWERS,
    FAILS,
    FILTERS,
    LISTS,
    METHODS,
    NOTHING,
    PRINTED,
    REQUIRED,
    UNDEFINED,
    Refused,
    Term,
    constant,
    demand,
    some,
    truth,
)


def soft(term: Term) -> Term:
    """The term as text, as `str` makes it of Python's value."""
    demand(term, PRINTED, "the text")
    if term.known:
        return constant("" if term.known[0] is UNDEFINED else str(term.known[0]))
    return term if term.kinds <= {"string"} else some(f"({term.code})|soft", "string", pure=term.pure)


def item(items: Term, key: Term, place: str = "at") -> Term:
    """The item of a list at a place, or the character of a text; undefined outside."""
    demand(items, {*LISTS, "string"}, "an item")
    kinds = {LISTS.get(kind, "string") for kind in items.kinds}
    if not (items.kinds == {"chat"} and key.known and key.known[0] in (0, -1)):
        kinds.add("undefined")
    return some(f"({items.code})|{place}({key.code})", *kinds, pure=items.pure and key.pure)


def default(found: Term, other: Term, *, falsy: bool = False) -> Term:
    """The term, or another one where it is undefined (`falsy`: or counts as false)."""
    if falsy and (known := truth(found)) is not None:
        return found if known else other
    if not falsy and found.pure and "undefined" not in found.kinds and found.kinds:
        return found
    if not falsy and found.known == (UNDEFINED,):
        return other
    kinds = (found.kinds - (NOTHING if falsy else {"undefined"})) | other.kinds
    code = f"({found.code})|py_default({other.code}, {str(falsy).lower()})"
    return Term(code, kinds, found.pure and other.pure)


def method(name: str, of: Term, args: list[Term]) -> Term:
    """`of.name(*args)` of a text."""
    demand(of, FAILS, f"the method {name!r}")
    pure = of.pure and of.kinds == {"string"} and all(arg.pure for arg in args)
    made = METHODS.get((name, len(args)), ""), "string"
    if not made[0]:
        made = ANSWERS.get((name, len(args)), ("", ""))
    if name == "join" and len(args) == 1 and args[0].kinds <= {"strings"}:
        return some(f"({args[0].code})|py_join({demand(of, {'string'}, 'join').code})", "string", pure=pure)
    if not made[0]:
        raise Refused(f"the method {name!r} with {len(args)} argument(s)")
    for arg in args:
        demand(arg, {"string"}, f"the method {name!r}")
    if name == "split" and args and not (args[0].known and args[0].known[0]):
        raise Refused("split by something else than a constant text")
    return some(f"({of.code})|{made[0]}({', '.join(arg.code for arg in args)})", made[1], pure=pure)


def filtered(name: str, of: Term, args: list[Term], named: dict[str, Term]) -> Term:
    """`of | name(*args, **named)`."""
    if name == "tojson" and named.keys() <= {"ensure_ascii"} and all(v.known == (False,) for v in named.values()):
        named = {}
    if name == "map" and named.keys() == {"attribute"} and of.kinds <= {"chat", "messages"} and not args:
        attribute = named["attribute"].known
        if attribute and attribute[0] in REQUIRED:
            return some(f"({of.code})|py_map({named['attribute'].code})", "strings", pure=of.pure)
    if named:
        raise Refused(f"the filter {name!r} with named arguments")
    if (name, len(args)) in FILTERS:
        for arg in args:
            demand(arg, {"string"}, f"the filter {name!r}")
        text = soft(demand(of, PRINTED, f"the filter {name!r}"))
        pure = text.pure and all(arg.pure for arg in args)
        code = f"({text.code})|{FILTERS[name, len(args)]}({', '.join(arg.code for arg in args)})"
        return some(code, "string", pure=pure)
    return _filtered(name, of, args)


def _filtered(name: str, of: Term, args: list[Term]) -> Term:
    pure = of.pure and all(arg.pure for arg in args)
    if name == "string" and not args:
        return soft(of)
    if name in ("default", "d") and 0 < len(args) < 3 and (len(args) == 1 or args[1].known):
        falsy = len(args) == 2 and bool(args[1].known[0])
        return default(of, args[0], falsy=falsy)
    if name in ("length", "count") and not args:
        demand(of, {"string", "undefined", *LISTS}, f"the filter {name!r}")
        return some(f"({of.code})|py_length", "integer", pure=pure)
    if name == "list" and not args and of.kinds <= LISTS.keys():
        return of
    if name in ("first", "last") and not args and of.kinds <= LISTS.keys():
        return item(of, constant(0 if name == "first" else -1))
    if name == "join" and len(args) < 2 and of.kinds <= {"strings"}:
        by = demand(args[0], {"string"}, "join").code if args else '""'
        return some(f"({of.code})|py_join({by})", "string", pure=pure)
    if name == "tojson" and not args:
        demand(of, {"string", "boolean", "integer", "none"}, "tojson")
        return some(f"({of.code})|py_json", "string", pure=pure)
    if name in ("selectattr", "rejectattr") and len(args) == 3 and of.kinds <= {"chat", "messages"}:
        known = [arg.known[0] if arg.known else None for arg in args[:2]]
        if known[0] in REQUIRED and known[1] in ("equalto", "eq", "==") and args[2].kinds <= {"string"}:
            keep = str(name == "selectattr").lower()
            code = f"({of.code})|py_select({args[0].code}, {args[2].code}, {keep})"
            return some(code, "messages", pure=pure)
    raise Refused(f"the filter {name!r} with {len(args)} argument(s) on {' or '.join(sorted(of.kinds))}")
