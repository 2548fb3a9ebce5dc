"""Terms: what an expression of Jinja2 is in a normal form that Rust evaluates as Jinja2 would.

Knows Jinja2's expressions, and which operations rust/filters.rs has. Knows nothing of statements, tokenizers or texts.

A term is code with the kinds of values that it can have. Where only one value is possible it is that constant; where an
operation is not the same in Rust for every kind that may come, the term is refused with its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.io.lazy import lazy
from mipo.tokenizer.calls import default, filtered, item, method, soft
from mipo.tokenizer.kinds import (
    COMPARED,
    FAILS,
    GLOBALS,
    LISTS,
    LOOP,
    LOOPED,
    NEIGHBOURS,
    NOTHING,
    OPTIONAL,
    OWN_ATTRIBUTES,
    PRINTED,
    REQUIRED,
    TESTS,
    UNDEFINED,
    VALUES,
    Facts,
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

if TYPE_CHECKING:
    from jinja2 import nodes
else:
    nodes = lazy("jinja2.nodes")


class Terms:
    """Turns expressions into terms, with the variables of a scope."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def term(self, node: nodes.Node, scope: Scope) -> Term:
        """The expression in the normal form; `Refused` with the name of what has none."""
        name = type(node).__name__.lower()
        if isinstance(node, nodes.BinExpr | nodes.UnaryExpr) and name not in ("and", "or", "not", "pow", "pos", "div"):
            name = "neg" if isinstance(node, nodes.Neg) else "arithmetic"
        make = getattr(self, f"_{name}", None)
        if make is None:
            raise Refused(f"an expression of the type {type(node).__name__}", node.lineno)
        try:
            return make(node, scope)  # type: ignore[no-any-return]
        except Refused as refused:
            raise refused.at(node.lineno) from None

    def printed(self, node: nodes.Node, scope: Scope) -> list[Term]:
        """The pieces of text that an expression puts out, one after another; sums of texts are never built."""
        if isinstance(node, nodes.Add):
            sides = node.left, node.right
            # Of a side that may be no text the sum raises, which its text alone would not.
            if all(self.term(side, scope).kinds == {"string"} for side in sides):
                return [part for side in sides for part in self.printed(side, scope)]
        if isinstance(node, nodes.Concat):
            return [part for child in node.nodes for part in self.printed(child, scope)]
        if isinstance(node, nodes.Filter) and node.name == "safe" and node.node is not None:
            return self.printed(node.node, scope)
        if isinstance(node, nodes.CondExpr) and (known := truth(self.term(node.test, scope))) is not None:
            chosen = node.expr1 if known else node.expr2
            return [] if chosen is None else self.printed(chosen, scope)
        return [soft(self.term(node, scope))]

    def _templatedata(self, node: nodes.TemplateData, scope: Scope) -> Term:
        return constant(str(node.data))

    def _const(self, node: nodes.Const, scope: Scope) -> Term:
        return constant(node.value)

    def _name(self, node: nodes.Name, scope: Scope) -> Term:
        if self._is_global(node, scope):
            raise Refused(f"the function {node.name!r}")
        found = scope.get(node.name, constant(UNDEFINED))
        if "unknown" in found.kinds:
            raise Refused(f"the variable {node.name!r} of the template within a macro")
        if found.known:
            return constant(found.known[0])
        self.facts.read.add(node.name)
        return found

    def _list(self, node: nodes.List, scope: Scope) -> Term:
        items = [demand(self.term(item, scope), {"string"}, "a list") for item in node.items]
        return some(f"[{', '.join(item.code for item in items)}]", "strings", pure=all(item.pure for item in items))

    _tuple = _list

    def _and(self, node: nodes.And, scope: Scope) -> Term:
        left = demand(self.term(node.left, scope), VALUES, "the truth")
        if (known := truth(left)) is not None:
            return self.term(node.right, scope) if known else left
        right = self.term(node.right, scope)
        kinds = (left.kinds - {"message", "chat"}) | right.kinds
        return Term(f"({left.code} and {right.code})", kinds, left.pure and right.pure)

    def _or(self, node: nodes.Or, scope: Scope) -> Term:
        left = demand(self.term(node.left, scope), VALUES, "the truth")
        if (known := truth(left)) is not None:
            return left if known else self.term(node.right, scope)
        right = self.term(node.right, scope)
        return Term(f"({left.code} or {right.code})", (left.kinds - NOTHING) | right.kinds, left.pure and right.pure)

    def _not(self, node: nodes.Not, scope: Scope) -> Term:
        inner = demand(self.term(node.node, scope), VALUES, "the truth")
        if (known := truth(inner)) is not None:
            return constant(not known)
        return some(f"(not {inner.code})", "boolean", pure=inner.pure)

    def _condexpr(self, node: nodes.CondExpr, scope: Scope) -> Term:
        test = demand(self.term(node.test, scope), VALUES, "the truth")
        known = truth(test)
        # Only the side that is chosen is evaluated, so the other demands nothing.
        sides = [
            constant(UNDEFINED) if side is None else self.term(side, scope)
            for side, taken in ((node.expr1, True), (node.expr2, False))
            if known in (None, taken)
        ]
        if len(sides) == 1:
            return sides[0]
        made = either(sides[0], sides[1], f"({sides[0].code} if {test.code} else {sides[1].code})")
        return made if test.pure else Term(made.code, made.kinds, False)

    def _neg(self, node: nodes.Neg, scope: Scope) -> Term:
        inner = demand(self.term(node.node, scope), {"integer"}, "minus")
        return constant(-inner.known[0]) if inner.known else some(f"(-{inner.code})", "integer", pure=inner.pure)

    def _arithmetic(self, node: nodes.BinExpr, scope: Scope) -> Term:
        left, right, sign = self.term(node.left, scope), self.term(node.right, scope), node.operator
        pure = left.pure and right.pure
        texts = (left.kinds <= FAILS and right.kinds <= FAILS) or {"string"} in (left.kinds, right.kinds)
        if sign == "+" and texts and left.kinds | right.kinds <= PRINTED:
            if left.known and right.known and left.kinds == right.kinds == {"string"}:
                return constant(left.known[0] + right.known[0])
            # Where a side is no text both languages raise, so what is left is text.
            pure = pure and left.kinds == right.kinds == {"string"}
            return some(f"({left.code} + {right.code})", "string", pure=pure)
        if sign == "*" and {*left.kinds} == {"string"} and {*right.kinds} == {"integer"}:
            return some(f"({left.code})|py_times({right.code})", "string", pure=pure)
        demand(left, {"integer"}, repr(sign)), demand(right, {"integer"}, repr(sign))
        if sign in ("%", "//") and not (right.known and right.known[0] > 0):
            raise Refused(f"{sign!r} by something else than a constant above 0")
        if sign not in ("+", "-", "*", "%", "//"):
            raise Refused(f"the operator {sign!r}")
        return some(f"({left.code} {sign} {right.code})", "integer", pure=pure)

    def _concat(self, node: nodes.Concat, scope: Scope) -> Term:
        parts = self.printed(node, scope)
        if all(part.known for part in parts):
            return constant("".join(part.known[0] for part in parts))
        code = " ~ ".join(part.code if part.known else f"({part.code})" for part in parts)
        return some(f"({code})", "string", pure=all(part.pure for part in parts))

    def _compare(self, node: nodes.Compare, scope: Scope) -> Term:
        if len(node.ops) != 1:
            raise Refused("a chain of comparisons")
        left, right, op = self.term(node.expr, scope), self.term(node.ops[0].expr, scope), node.ops[0].op
        if op in ("in", "notin"):
            held = self._in(left, right)
            if op == "in":
                return held
            return constant(not held.known[0]) if held.known else some(f"(not {held.code})", "boolean", pure=held.pure)
        sign, compare = COMPARED[op]
        pure, kinds = left.pure and right.pure, left.kinds | right.kinds
        if op not in ("eq", "ne"):
            if not (kinds <= {"integer"} or kinds <= {"string"}):
                raise Refused(f"{sign!r} of {' or '.join(sorted(kinds))}")
        elif {"integer", "boolean"} <= kinds or not kinds <= PRINTED:
            raise Refused(f"{sign!r} of {' or '.join(sorted(kinds))}")
        if left.known and right.known:
            return constant(compare(left.known[0], right.known[0]))
        if op in ("eq", "ne") and pure and kinds and not left.kinds & right.kinds:
            return constant(op == "ne")
        return some(f"({left.code} {sign} {right.code})", "boolean", pure=pure)

    def _in(self, left: Term, right: Term) -> Term:
        pure = left.pure and right.pure
        if right.kinds == {"message"} and left.known and left.kinds == {"string"}:
            name = left.known[0]
            if name in REQUIRED and pure:
                return constant(True)
            if name not in REQUIRED + OPTIONAL and pure:
                self.facts.absent.add(name)
                return constant(False)
            return some(f"(({right.code}).{name} is of('string'))", "boolean", pure=pure)
        if right.kinds == {"strings"} and left.kinds <= {"string", "undefined"}:
            return some(f"({left.code} in {right.code})", "boolean", pure=pure)
        if right.kinds == {"string"} and left.kinds == {"string"}:
            if left.known and right.known:
                return constant(left.known[0] in right.known[0])
            return some(f"(({right.code})|py_contains({left.code}))", "boolean", pure=pure)
        if right.known == (UNDEFINED,) and left.pure:
            return constant(False)
        raise Refused(f"'in' of {' or '.join(sorted(left.kinds))} and {' or '.join(sorted(right.kinds))}")

    def _test(self, node: nodes.Test, scope: Scope) -> Term:
        if node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise Refused(f"the test {node.name!r} with such arguments")
        signs = {"eq": "eq", "equalto": "eq", "==": "eq", "ne": "ne", "!=": "ne", "in": "in"}
        if node.name in signs and len(node.args) == 1:
            operand = nodes.Operand(signs[node.name], node.args[0])
            return self._compare(nodes.Compare(node.node, [operand], lineno=node.lineno), scope)
        if node.name in ("defined", "undefined") and self._is_global(node.node, scope):
            return constant(node.name == "defined")
        inner = self.term(node.node, scope)
        if node.name in ("true", "false") and not node.args:
            if inner.pure and "boolean" not in inner.kinds and inner.kinds:
                return constant(False)
            demand(inner, {"boolean"}, f"the test {node.name!r}")
            if inner.known:
                return constant(inner.known[0] is (node.name == "true"))
            return inner if node.name == "true" else some(f"(not {inner.code})", "boolean", pure=inner.pure)
        if node.name not in TESTS or node.args:
            raise Refused(f"the test {node.name!r}")
        demand(inner, VALUES, f"the test {node.name!r}")
        verdicts = {kind in TESTS[node.name] for kind in inner.kinds}
        if inner.pure and len(verdicts) == 1:
            return constant(verdicts.pop())
        return some(f"({inner.code} is of({quoted(' '.join(sorted(TESTS[node.name])))}))", "boolean", pure=inner.pure)

    def _is_global(self, node: nodes.Node, scope: Scope) -> bool:
        return isinstance(node, nodes.Name) and node.name in GLOBALS and node.name not in scope

    def _getattr(self, node: nodes.Getattr, scope: Scope) -> Term:
        if isinstance(node.node, nodes.Name) and node.node.name == "loop" and node.attr in NEIGHBOURS:
            items = scope.get(LOOPED, constant(UNDEFINED))
            if not items.known:
                return item(items, some(f"(loop.index0 {NEIGHBOURS[node.attr]} 1)", "integer"), "nth")
        return self._field(self.term(node.node, scope), node.attr)

    def _getitem(self, node: nodes.Getitem, scope: Scope) -> Term:
        if isinstance(node.arg, nodes.Slice):
            return self._slice(self.term(node.node, scope), node.arg, scope)
        key = self.term(node.arg, scope)
        if key.known and isinstance(key.known[0], str):
            return self._field(self.term(node.node, scope), key.known[0])
        demand(key, {"integer"}, "an item")
        ends = {0: "py_first", -1: "py_last"}
        if (
            isinstance(node.node, nodes.Call)
            and isinstance(node.node.node, nodes.Getattr)
            and node.node.node.attr == "split"
            and len(node.node.args) == 1
            and key.known
            and key.known[0] in ends
        ):
            whole = self.term(node.node, scope)  # checks the arguments
            text, by = self.term(node.node.node.node, scope), self.term(node.node.args[0], scope)
            return some(f"({text.code})|{ends[key.known[0]]}({by.code})", "string", pure=whole.pure)
        return item(self.term(node.node, scope), key)

    def _slice(self, items: Term, node: nodes.Slice, scope: Scope) -> Term:
        demand(items, {*LISTS, "string"}, "a slice")
        bounds = [
            constant(None) if part is None else self.term(part, scope) for part in (node.start, node.stop, node.step)
        ]
        for bound in bounds:
            demand(bound, {"integer", "none"}, "a slice by bounds")
        if bounds[2].known not in ((None,), (1,), (-1,)):
            raise Refused("a slice with another step than 1 or -1")
        whole = bounds[0].known == bounds[1].known == (None,)
        kinds = {"messages" if kind == "chat" and not whole else kind for kind in items.kinds}
        code = f"({items.code})|py_slice({', '.join(bound.code for bound in bounds)})"
        return some(code, *kinds, pure=items.pure and all(bound.pure for bound in bounds))

    def _field(self, of: Term, name: str) -> Term:
        if name.startswith("_") or not (name.isascii() and name.isidentifier()):
            raise Refused(f"the attribute {name!r}")
        spaces = {kind for kind in of.kinds if kind.startswith("namespace ")}
        if spaces == of.kinds and len(spaces) == 1:
            (space,) = spaces
            kinds = self.facts.attributes.get((space, name), frozenset())
            unset = name not in self.facts.created.get(space, ())
            return Term(f"{of.code}.{name}", kinds | {"undefined"} if unset else kinds)
        if of.kinds == {"loop"}:
            if name not in LOOP:
                raise Refused(f"loop.{name}")
            return some(f"loop.{name}", LOOP[name])
        if name in OWN_ATTRIBUTES:
            raise Refused(f"the attribute {name!r}")
        demand(of, {"message", "string", "none", "undefined"}, f"the attribute {name!r}")
        if of.pure and of.kinds and of.kinds <= {"string", "none"}:
            return constant(UNDEFINED)
        pure, code = of.pure and of.kinds == {"message"}, f"({of.code}).{name}"
        if of.kinds <= {"string", "undefined"}:
            return some(code, "undefined", pure=False)
        demand(of, {"message", "undefined"}, f"the attribute {name!r}")
        if name in REQUIRED:
            return some(code, "string", pure=pure)
        if name in OPTIONAL:
            return some(code, "string", "undefined", pure=pure)
        self.facts.absent.add(name)
        return constant(UNDEFINED) if pure else some(code, "undefined", pure=False)

    def _call(self, node: nodes.Call, scope: Scope) -> Term:
        if node.dyn_args or node.dyn_kwargs:
            raise Refused("a call with * or **")
        if isinstance(node.node, nodes.Getattr):
            if node.kwargs:
                raise Refused(f"the method {node.node.attr!r} with named arguments")
            return self._method(node.node, [self.term(arg, scope) for arg in node.args], scope)
        if not isinstance(node.node, nodes.Name):
            raise Refused("a call of something else than a name")
        name = node.node.name
        if name == "raise_exception" and name not in scope and len(node.args) == 1 and not node.kwargs:
            said = demand(self.term(node.args[0], scope), {"string"}, "raise_exception")
            return some(f"raise_exception({said.code})", pure=False)
        if name == "range" and name not in scope and 0 < len(node.args) < 4 and not node.kwargs:
            bounds = [demand(self.term(arg, scope), {"integer"}, "range") for arg in node.args]
            if len(bounds) < 3 or bounds[2].known in ((1,), (-1,)):
                bounds = [constant(0), *bounds] if len(bounds) == 1 else bounds
                code = ", ".join(bound.code for bound in bounds)
                return some(f"py_range({code})", "integers", pure=all(bound.pure for bound in bounds))
        if scope.get(name, constant(UNDEFINED)).kinds == {f"macro {name}"}:
            return self._macro(name, node, scope)
        raise Refused(f"the function {name!r}")

    def _macro(self, name: str, node: nodes.Call, scope: Scope) -> Term:
        macro = self.facts.macros[name]
        given = dict(zip(macro.names, (self.term(arg, scope) for arg in node.args), strict=False))
        named = {str(pair.key): self.term(pair.value, scope) for pair in node.kwargs}
        if len(node.args) > len(macro.names) or set(named) - set(macro.names) or set(named) & set(given):
            raise Refused(f"such arguments of the macro {name!r}")
        given |= named
        for other in macro.names:
            term = demand(given.setdefault(other, macro.defaults[other]), VALUES, "an argument")
            macro.given[other] = macro.given.get(other, frozenset()) | term.kinds
        return some(f"v_{name}({', '.join(given[other].code for other in macro.names)})", "string", pure=False)

    def _method(self, node: nodes.Getattr, args: list[Term], scope: Scope) -> Term:
        of, name = self.term(node.node, scope), node.attr
        if name == "get" and of.kinds == {"message"} and args and args[0].known and isinstance(args[0].known[0], str):
            if len(args) > 2:
                raise Refused("get with such arguments")
            return default(self._field(of, args[0].known[0]), args[1] if len(args) > 1 else constant(None))
        return method(name, of, args)

    def _filter(self, node: nodes.Filter, scope: Scope) -> Term:
        if node.node is None or node.dyn_args or node.dyn_kwargs:
            raise Refused(f"the filter {node.name!r} so used")
        named = {str(pair.key): self.term(pair.value, scope) for pair in node.kwargs}
        return filtered(node.name, self.term(node.node, scope), [self.term(arg, scope) for arg in node.args], named)
