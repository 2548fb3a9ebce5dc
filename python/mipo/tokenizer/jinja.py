"""Jinja2's templates in a normal form that Rust renders as Jinja2 would, or the construct that forbids it.

Knows Jinja2's statements and scopes, and what transformers hands to a chat template: messages whose fields are texts,
no tools, no documents. Knows nothing of tokenizers, and renders nothing.

What is certain before a message is seen (tools are none, a content is a string) is decided here, so a branch that no
chat of texts can reach demands nothing. The rest is written in so small a part of the language, every variable and
operation of a known kind (`terms`, `kinds`), that minijinja and Jinja2 have no room to differ: white space is
cut, literals are joined, precedence is in parentheses, Python's methods are filters of ours (rust/filters.rs).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy
from mipo.tokenizer.kinds import (
    LISTS,
    LOOPED,
    NEIGHBOURS,
    PRINTED,
    UNDEFINED,
    VALUES,
    Facts,
    Macro,
    Refused,
    Scope,
    Term,
    constant,
    demand,
    either,
    quoted,
    some,
    truth,
)
from mipo.tokenizer.terms import Terms

if TYPE_CHECKING:
    from jinja2 import nodes
else:
    nodes = lazy("jinja2.nodes")

MARKS = ("{{", "{%", "{#", "\r")


@dataclass(frozen=True)
class Normal:
    """A template in the normal form; messages with one of the fields `absent` are not its to render."""

    source: str
    absent: list[str]


def normal(tree: nodes.Template, variables: Mapping[str, Any]) -> Normal:
    """The normal form of a parsed template; `variables` are constants. Raises `Refused` with what has no such form."""
    facts, said = Facts(), None
    while said is None or said != _told(facts):
        said, facts.absent = _told(facts), set()
        code = _Statements(facts, tree, variables).template(tree)
    return Normal(code, sorted(facts.absent))


def _told(facts: Facts) -> Any:
    given = {name: dict(macro.given) for name, macro in facts.macros.items()}
    return copy.deepcopy((facts.attributes, facts.created, facts.read, given))


class _Statements:
    """One pass over the statements, with the facts of those before it."""

    def __init__(self, facts: Facts, tree: nodes.Template, variables: Mapping[str, Any]) -> None:
        self.facts, self.terms = facts, Terms(facts)
        known = {"tools": None, "documents": None, **variables}
        self.context: Scope = {name: constant(value) for name, value in known.items()}
        self.context |= {"messages": some("messages", "chat"), "add_generation_prompt": some(PROMPT, "boolean")}
        stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        for name in stored | {macro.name for macro in tree.find_all(nodes.Macro)}:
            if not name.isascii() or name in ("self", "super", "caller", "loop", "varargs", "kwargs"):
                raise Refused(f"the variable {name!r}")
        # A macro sees the template's variables as they are when it is called, so those that change are not for it.
        self.hidden = {name: some("v_", "unknown") for name in stored}
        self.macros: Scope = {}
        self.loops = 0

    def template(self, tree: nodes.Template) -> str:
        """The whole template."""
        return _written(self.body(tree.body, dict(self.context), top=True))

    def body(self, body: Iterable[nodes.Node], scope: Scope, *, top: bool = False) -> list[Any]:
        """The pieces of statements, in a scope that they change."""
        pieces: list[Any] = []
        for node in body:
            name = f"_{type(node).__name__.lower()}"
            try:
                if isinstance(node, nodes.If):
                    pieces += self._if([node, *node.elif_], node.else_, scope)
                elif isinstance(node, nodes.Macro) and top:
                    pieces += self._macro(node, scope)
                elif name in ("_output", "_for", "_assign", "_assignblock", "_callblock", "_with", "_scope"):
                    pieces += getattr(self, name)(node, scope)
                else:
                    raise Refused(f"a statement of the type {type(node).__name__}")
            except Refused as refused:
                raise refused.at(node.lineno) from None
        return pieces

    def _output(self, node: nodes.Output, scope: Scope) -> list[Any]:
        terms = [term for child in node.nodes for term in self.terms.printed(child, scope)]
        return [("text", term.known[0]) if term.known else ("code", f"{{{{ {term.code} }}}}") for term in terms]

    def _if(self, chain: list[nodes.If], last: list[nodes.Node], scope: Scope) -> list[Any]:
        if not chain:
            return self.body(last, scope)
        test = demand(self.terms.term(chain[0].test, scope), VALUES, "the truth")
        if (known := truth(test)) is not None:
            return self.body(chain[0].body, scope) if known else self._if(chain[1:], last, scope)
        yes, no = dict(scope), dict(scope)
        then = self.body(chain[0].body, yes)
        other = self._if(chain[1:], last, no)
        for name in sorted(yes.keys() | no.keys()):
            one, two = yes.get(name, constant(UNDEFINED)), no.get(name, constant(UNDEFINED))
            if one != two:
                then, other = then + self._stored(name, one), other + self._stored(name, two)
                scope[name] = either(one, two, f"v_{name}")
            else:
                scope[name] = one
        start, between = f"{{% if {test.code} %}}", [("code", "{% else %}")] if other else []
        return [("code", start), *then, *between, *other, ("code", "{% endif %}")]

    def _stored(self, name: str, term: Term) -> list[Any]:
        """The assignment that brings a value under its variable's name, if it is read and not there yet."""
        if term.code == f"v_{name}" or term.known == (UNDEFINED,) or name not in self.facts.read:
            return []
        return [("code", f"{{% set v_{name} = {term.code} %}}")]

    def _for(self, node: nodes.For, scope: Scope) -> list[Any]:
        if node.recursive or not isinstance(node.target, nodes.Name):
            raise Refused("a recursive loop" if node.recursive else "a loop over tuples")
        over = self.terms.term(node.iter, scope)
        if over.known == (UNDEFINED,):
            return _inner(self.body(node.else_, dict(scope)))
        demand(over, LISTS, "a loop")
        within, name = dict(scope), node.target.name
        within[name] = some(f"v_{name}", *(LISTS[kind] for kind in over.kinds))
        if node.test is None:
            within["loop"] = some("loop", "loop")
        elif any(found.name == "loop" for part in node.body for found in part.find_all(nodes.Name)) or node.else_:
            raise Refused("a filtered loop that counts or has an else")
        test = None if node.test is None else demand(self.terms.term(node.test, within), PRINTED, "the truth")
        self.loops += 1
        first = []
        if NEIGHBOURS.keys() & {found.attr for part in node.body for found in part.find_all(nodes.Getattr)}:
            first.append(("code", f"{{% set i_{self.loops} = {over.code} %}}"))
            within[LOOPED] = some(f"i_{self.loops}", *over.kinds)
        body = self.body(node.body, within)
        if test is not None and not test.known:
            body = [("code", f"{{% if {test.code} %}}"), *body, ("code", "{% endif %}")]
        elif test is not None and not truth(test):
            body = []
        body = _inner(body) if _assigned(node.body) else body
        other = self.body(node.else_, dict(scope))
        end = [("code", "{% else %}"), *_inner(other)] if other else []
        return [*first, ("code", f"{{% for v_{name} in {over.code} %}}"), *body, *end, ("code", "{% endfor %}")]

    def _assign(self, node: nodes.Assign, scope: Scope) -> list[Any]:
        if isinstance(node.target, nodes.NSRef):
            return self._attribute(node.target, node.node, scope)
        if not isinstance(node.target, nodes.Name):
            raise Refused("an assignment to several names")
        name, value = node.target.name, node.node
        if isinstance(value, nodes.Call) and isinstance(value.node, nodes.Name) and value.node.name == "namespace":
            return self._namespace(name, value, scope)
        term = demand(self.terms.term(value, scope), VALUES, "a variable")
        scope[name] = Term(f"v_{name}", term.kinds, True, term.known)
        kept = name in self.facts.read or not term.pure
        return [("code", f"{{% set v_{name} = {term.code} %}}")] if kept else []

    def _namespace(self, name: str, node: nodes.Call, scope: Scope) -> list[Any]:
        if node.args or node.dyn_args or node.dyn_kwargs or "namespace" in scope:
            raise Refused("such a namespace")
        space, given = f"namespace {name}", {pair.key: self.terms.term(pair.value, scope) for pair in node.kwargs}
        for key, term in given.items():
            self._join(space, key, term)
        self.facts.created[space] = self.facts.created.get(space, frozenset(given)) & set(given)
        scope[name] = some(f"v_{name}", space)
        said = ", ".join(f"{key}={term.code}" for key, term in given.items())
        return [("code", f"{{% set v_{name} = namespace({said}) %}}")]

    def _attribute(self, target: nodes.NSRef, value: nodes.Node, scope: Scope) -> list[Any]:
        if scope.get(target.name, constant(UNDEFINED)).kinds != {f"namespace {target.name}"}:
            raise Refused(f"an attribute of {target.name!r}, which is not surely a namespace")
        term = self.terms.term(value, scope)
        self._join(f"namespace {target.name}", target.attr, term)
        return [("code", f"{{% set v_{target.name}.{target.attr} = {term.code} %}}")]

    def _join(self, space: str, key: str, term: Term) -> None:
        """One more value of a namespace's attribute, whose kinds hold wherever it is read."""
        if key.startswith("_") or not key.isascii():
            raise Refused(f"the attribute {key!r} of a namespace")
        demand(term, VALUES, "an attribute")
        self.facts.attributes[space, key] = self.facts.attributes.get((space, key), frozenset()) | term.kinds

    def _assignblock(self, node: nodes.AssignBlock, scope: Scope) -> list[Any]:
        if node.filter is not None or not isinstance(node.target, nodes.Name):
            raise Refused("a set block with a filter")
        name, pieces = node.target.name, self.body(node.body, dict(scope))
        scope[name] = some(f"v_{name}", "string")
        return [("code", f"{{% set v_{name} %}}"), *_inner(pieces), ("code", "{% endset %}")]

    def _callblock(self, node: nodes.CallBlock, scope: Scope) -> list[Any]:
        called = node.call.node
        if not isinstance(called, nodes.ExtensionAttribute) or called.name != "_generation_support" or node.args:
            raise Refused("a call block")
        # `{% generation %}` only marks its text; what is set within it stays there.
        return _inner(self.body(node.body, dict(scope)))

    def _with(self, node: nodes.With, scope: Scope) -> list[Any]:
        within, sets = dict(scope), []
        for target, value in zip(node.targets, node.values, strict=True):
            if not isinstance(target, nodes.Name):
                raise Refused("a with that unpacks")
            term = demand(self.terms.term(value, scope), VALUES, "a variable")
            within[target.name] = Term(f"v_{target.name}", term.kinds, True, term.known)
            sets.append((target.name, term.code))
        # Values are those of the scope around, so names stand for them in between.
        first = [("code", f"{{% set w_{name} = {code} %}}") for name, code in sets]
        then = [("code", f"{{% set v_{name} = w_{name} %}}") for name, _ in sets]
        return _inner([*first, *then, *self.body(node.body, within)])

    def _macro(self, node: nodes.Macro, scope: Scope) -> list[Any]:
        name, names = node.name, [argument.name for argument in node.args]
        if name in self.macros or name in self.context:
            raise Refused(f"a second {name!r}")
        given = {argument: constant(UNDEFINED) for argument in names}
        for argument, default in zip(reversed(names), reversed(node.defaults), strict=False):
            given[argument] = self.terms.term(default, {})
            if not given[argument].known:
                raise Refused("a default that is no constant")
        macro = self.facts.macros.setdefault(name, Macro(names, given))
        self.macros[name] = scope[name] = some(f"v_{name}", f"macro {name}")
        if (not macro.given and names) or any(part.name == "caller" for part in node.find_all(nodes.Name)):
            return []
        within = self.context | self.hidden | self.macros
        nothing = {frozenset(["undefined"]): constant(UNDEFINED), frozenset(["none"]): constant(None)}
        for argument in names:
            kinds = macro.given[argument]
            within[argument] = nothing.get(kinds, Term(f"v_{argument}", kinds))
        body = self.body(node.body, within)
        start = f"{{% macro v_{name}({', '.join(f'v_{argument}' for argument in names)}) %}}"
        return [("code", start), *body, ("code", "{% endmacro %}")]


PROMPT = "add_generation_prompt"


def _inner(pieces: list[Any]) -> list[Any]:
    """The pieces in a scope of their own, where they set anything."""
    sets = any(kind == "code" and said.startswith("{% set ") for kind, said in pieces)
    return [("code", "{% with %}"), *pieces, ("code", "{% endwith %}")] if sets else pieces


def _assigned(body: Iterable[nodes.Node]) -> set[str]:
    """The variables that statements set in their own scope."""
    made: set[str] = set()
    for node in body:
        if isinstance(node, nodes.If):
            made |= _assigned([*node.body, *node.elif_, *node.else_])
        elif isinstance(node, nodes.Assign | nodes.AssignBlock) and isinstance(node.target, nodes.Name):
            made.add(node.target.name)
    return made


def _written(pieces: list[Any]) -> str:
    """The pieces as one source; texts that meet become one."""
    made, text = [], ""
    for kind, said in [*pieces, ("end", "")]:
        if kind == "text":
            text += said
            continue
        # As text it would begin a tag, be changed, or end in a line break that is cut off the source.
        literal = any(mark in text for mark in MARKS) or text.endswith("{") or (kind == "end" and text[-1:].isspace())
        made += [f"{{{{ {quoted(text)} }}}}" if literal else text, said]
        text = ""
    return "".join(made)
