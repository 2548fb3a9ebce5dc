"""Jinja2's templates, written anew for minijinja: Jinja2 reads them, Rust runs them.

Knows Jinja2's syntax tree, and by which names Rust has Python's operations (rust/tokenizer/filters.rs). Knows nothing
of tokenizers, and renders nothing.

Jinja2's own parser decides white space, escapes and precedence; what is written here is in parentheses, and every
operation in which the two languages differ is a filter of ours. What has no such form becomes a call that fails where
it is reached. So a branch on tools, which no chat of texts takes, costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mipo.io.lazy import lazy

if TYPE_CHECKING:
    from jinja2 import nodes
else:
    nodes = lazy("jinja2.nodes")

GLOBALS = ("range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now")
LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")
# Names that a template may read but not set, since Jinja2 gives them a meaning of their own.
RESERVED = ("self", "super", "caller", "loop", "varargs", "kwargs")
OPERATORS = {"eq": "==", "ne": "!="}
ORDERED = {"lt": "lt", "lteq": "le", "gt": "gt", "gteq": "ge"}
COMPARISONS = {
    "eq": "eq", "equalto": "eq", "==": "eq", "ne": "ne", "!=": "ne", "in": "in",
    "lt": "lt", "<": "lt", "lessthan": "lt", "le": "lteq", "<=": "lteq",
    "gt": "gt", ">": "gt", "greaterthan": "gt", "ge": "gteq", ">=": "gteq",
}  # fmt: skip
TESTS = ("defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "boolean",
         "true", "false")  # fmt: skip
METHODS = ("strip", "lstrip", "rstrip", "split", "startswith", "endswith", "upper", "lower", "title", "capitalize",
           "replace", "find", "count", "removeprefix", "removesuffix", "join", "get")  # fmt: skip
# Filters by the names of their arguments, and those of them whose result can be read only once.
FILTERS: dict[str, tuple[str, ...]] = {
    "trim": ("chars",), "upper": (), "lower": (), "capitalize": (), "replace": ("old", "new"),
    "string": (), "tojson": (), "default": ("default_value", "boolean"), "length": (), "list": (), "first": (),
    "last": (), "join": ("d",), "map": ("attribute",), "selectattr": ("attr", "test", "value"),
    "rejectattr": ("attr", "test", "value"),
}  # fmt: skip
TEXTS = ("trim", "upper", "lower", "capitalize", "replace", "string", "tojson", "join")  # filters that give a text
ALIASES = {"d": "default", "count": "length"}
ONCE = ("map", "selectattr", "rejectattr")
READERS = ("list", "first", "join", *ONCE)
# What Jinja2 would find on a value itself, before its items.
OWN_ATTRIBUTES = set(dir(dict)) | set(dir(str)) | set(dir(list)) | set(dir(int))


def translate(tree: nodes.Template) -> str:
    """A parsed template for minijinja, its variables as `v_NAME`; `left(CONSTRUCT)` where it has no such form."""
    stored = Counter(name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param"))
    macros: dict[str, nodes.Macro | None] = {}
    for macro in tree.find_all(nodes.Macro):
        stored[macro.name] += 1
        macros[macro.name] = macro if macro.name not in macros and macro in tree.body else None
    if wrong := sorted(name for name in stored if not name.isascii() or name in RESERVED):
        return f"{{{{ {_left(f'a variable named {wrong[0]!r}')} }}}}"
    spaces = Counter(
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _calls(assign.node, "namespace")
    )
    return _Writer(stored, macros, {name for name in spaces if spaces[name] == stored[name]}).body(tree.body)


class _Writer:
    """Statements and expressions of one template."""

    def __init__(self, stored: Collection[str], macros: Mapping[str, nodes.Macro | None], spaces: set[str]) -> None:
        self.stored, self.macros, self.spaces = stored, macros, spaces
        self.in_loop = False  # whether `break` and `continue` would leave nothing but a loop

    # Statements

    def body(self, body: Iterable[nodes.Node]) -> str:
        """Statements, one after another."""
        return "".join(self.statement(node) for node in body)

    def scope(self, body: list[nodes.Node], start: str = "") -> str:
        """Statements whose variables end with them, after some assignments."""
        outer, self.in_loop = self.in_loop, False  # minijinja's `break` would stay in the scope
        text = self.body(body)
        self.in_loop = outer
        return f"{{% with %}}{start}{text}{{% endwith %}}"

    def statement(self, node: nodes.Node) -> str:
        """One statement."""
        write = getattr(self, f"_{type(node).__name__.lower()}", None)
        if write is None or not isinstance(node, nodes.Stmt):
            return f"{{{{ {_left(f'a statement of the type {type(node).__name__}', node)} }}}}"
        return write(node)  # type: ignore[no-any-return]

    def _output(self, node: nodes.Output) -> str:
        return "".join(self.printed(child) for child in node.nodes)

    def _if(self, node: nodes.If) -> str:
        text, start = "", "if"
        for branch in (node, *node.elif_):
            text += f"{{% {start} {self.term(branch.test)} %}}{self.body(branch.body)}"
            start = "elif"
        return f"{text}{{% else %}}{self.body(node.else_)}{{% endif %}}"

    def _for(self, node: nodes.For) -> str:
        if node.recursive or not isinstance(node.target, nodes.Name):
            return self._refused("a recursive loop" if node.recursive else "a loop over tuples", node)
        test = "" if node.test is None else f" if {self.term(node.test)}"
        if node.test is not None:
            read = {name.name for name in _names(node.test)}
            if "loop" in read:
                return self._refused("a loop whose condition counts", node)
            # Jinja2 looks at each item when its turn comes, minijinja at all of them before the first.
            if any(part.find(nodes.NSRef) for part in node.body) and read & set(self.stored) - {node.target.name}:
                return self._refused("a loop whose condition may change", node)
        start = f"{{% for v_{node.target.name} in {self.term(node.iter, once=True)}|items{test} %}}"
        # minijinja has one scope for all rounds of a loop; in Jinja2 each begins with the variables around it.
        names = sorted(_assigned(node.body) - {node.target.name})
        around = "".join(f"{{% set o_{name} = v_{name} %}}" for name in names)
        start += "".join(f"{{% set v_{name} = o_{name} %}}" for name in names)
        outer, self.in_loop = self.in_loop, not node.else_  # Jinja2 runs `else` after a round that `continue` left
        body = self.body(node.body)
        self.in_loop = outer
        other = f"{{% else %}}{self.scope(node.else_)}" if node.else_ else ""
        loop = f"{start}{body}{other}{{% endfor %}}"
        return f"{{% with %}}{around}{loop}{{% endwith %}}" if names else loop

    def _break(self, node: nodes.Break) -> str:
        return "{% break %}" if self.in_loop else self._refused("a break within a scope", node)

    def _continue(self, node: nodes.Continue) -> str:
        return "{% continue %}" if self.in_loop else self._refused("a continue within a scope", node)

    def _assign(self, node: nodes.Assign) -> str:
        if isinstance(node.target, nodes.NSRef):
            return f"{{% set v_{node.target.name}.{node.target.attr} = {self.term(node.node)} %}}"
        if not isinstance(node.target, nodes.Name):
            return self._refused("an assignment to several names", node)
        return f"{{% set v_{node.target.name} = {self.term(node.node)} %}}"

    def _assignblock(self, node: nodes.AssignBlock) -> str:
        if node.filter is not None or not isinstance(node.target, nodes.Name):
            return self._refused("a set block with a filter", node)
        return f"{{% set v_{node.target.name} %}}{self.scope(node.body)}{{% endset %}}"

    def _callblock(self, node: nodes.CallBlock) -> str:
        called = node.call.node
        if not isinstance(called, nodes.ExtensionAttribute) or called.name != "_generation_support" or node.args:
            return self._refused("a call block", node)
        return self.scope(node.body)  # `{% generation %}` only marks its text

    def _with(self, node: nodes.With) -> str:
        # All values are those of the scope around, so other names stand for them in between.
        first, then = "", ""
        for target, value in zip(node.targets, node.values, strict=True):
            if not isinstance(target, nodes.Name):
                return self._refused("a with that unpacks", node)
            first += f"{{% set w_{target.name} = {self.term(value)} %}}"
            then += f"{{% set v_{target.name} = w_{target.name} %}}"
        return self.scope(node.body, first + then)

    def _macro(self, node: nodes.Macro) -> str:
        constant = all(isinstance(default, nodes.Const) for default in node.defaults)
        if self.macros[node.name] is not node or not constant:
            return self._refused("such a macro", node)
        if any(name.name in RESERVED[2:] and name.name != "loop" for name in node.find_all(nodes.Name)):
            return self._refused("a macro that asks for its caller or other arguments", node)
        names = ", ".join(f"v_{argument.name}" for argument in node.args)
        return f"{{% macro v_{node.name}({names}) %}}{self.body(node.body)}{{% endmacro %}}"

    def _refused(self, construct: str, node: nodes.Node) -> str:
        return f"{{{{ {_left(construct, node)} }}}}"

    # Expressions

    def term(self, node: nodes.Node, *, once: bool = False) -> str:
        """An expression; `once`: its result is read from start to end, here and nowhere else."""
        if isinstance(node, nodes.Filter) and node.name in ONCE and not once:
            return _left(f"the filter {node.name!r} whose result is kept", node)
        if _calls(node, "range") and not once:
            return _left("a range that is kept", node)  # it is no list, though it is one in minijinja
        if isinstance(node, nodes.Add):
            return f"(({self.term(node.left)})|plus({self.term(node.right)}))"
        if isinstance(node, nodes.BinExpr) and node.operator in ("-", "*", "//", "%"):
            return f"({self.term(node.left)} {node.operator} {self.term(node.right)})"
        write = getattr(self, f"_{type(node).__name__.lower()}", None)
        if write is None or not isinstance(node, nodes.Expr):
            return _left(f"an expression of the type {type(node).__name__}", node)
        return write(node)  # type: ignore[no-any-return]

    def printed(self, node: nodes.Node, *, strict: bool = False) -> str:
        """Statements that put out an expression, piece by piece; `strict`: it fails for all but a text."""
        if isinstance(node, nodes.TemplateData):
            return _text(str(node.data))
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            return _text(node.value)
        if isinstance(node, nodes.Concat):
            return "".join(self.printed(part) for part in node.nodes)
        if isinstance(node, nodes.Add) and (strict or _adds_text(node)):
            return self.printed(node.left, strict=True) + self.printed(node.right, strict=True)
        if isinstance(node, nodes.Filter) and node.name == "safe" and node.node is not None and not strict:
            return self.printed(node.node)  # it changes nothing here
        checked = strict and not (isinstance(node, nodes.Filter) and node.name in TEXTS)
        return f"{{{{ ({self.term(node)})|text }}}}" if checked else f"{{{{ {self.term(node)} }}}}"

    def _const(self, node: nodes.Const) -> str:
        value = node.value
        if isinstance(value, str):
            return _quoted(value)
        if value is None or isinstance(value, bool):
            return str(value).lower()
        return str(value) if isinstance(value, int) and value < 2**31 else _left(f"the constant {value!r}", node)

    def _name(self, node: nodes.Name) -> str:
        if node.name in GLOBALS or node.name in RESERVED or node.name in self.macros:
            return _left(f"the name {node.name!r}", node)
        return f"v_{node.name}"

    def _list(self, node: nodes.List) -> str:
        return f"[{', '.join(self.term(item) for item in node.items)}]"

    def _tuple(self, node: nodes.Tuple) -> str:
        return f"({''.join(self.term(item) + ', ' for item in node.items)})"

    def _and(self, node: nodes.And) -> str:
        return f"({self.term(node.left)} and {self.term(node.right)})"

    def _or(self, node: nodes.Or) -> str:
        return f"({self.term(node.left)} or {self.term(node.right)})"

    def _not(self, node: nodes.Not) -> str:
        return f"(not {self.term(node.node)})"

    def _neg(self, node: nodes.Neg) -> str:
        return f"(0 - {self.term(node.node)})"

    def _condexpr(self, node: nodes.CondExpr) -> str:
        other = "undefined" if node.expr2 is None else self.term(node.expr2)
        return f"({self.term(node.expr1)} if {self.term(node.test)} else {other})"

    def _concat(self, node: nodes.Concat) -> str:
        return f"({' ~ '.join(self.text(part) for part in node.nodes)})"

    def text(self, node: nodes.Node) -> str:
        """An expression as `str` makes text of it."""
        term = self.term(node)
        return term if isinstance(node, nodes.Const) and isinstance(node.value, str) else f"({term})|string"

    def _compare(self, node: nodes.Compare) -> str:
        if len(node.ops) != 1:
            return _left("a chain of comparisons", node)
        return self.comparison(node.expr, node.ops[0].op, node.ops[0].expr)

    def comparison(self, left: nodes.Node, op: str, right: nodes.Node) -> str:
        """Two expressions compared."""
        one, other = self.term(left), self.term(right)
        if op in OPERATORS:
            return f"({one} {OPERATORS[op]} {other})"
        if op in ORDERED:
            return f"(({one})|{ORDERED[op]}({other}))"
        return f"(({one})|isin({other}))" if op == "in" else f"(not ({one})|isin({other}))"

    def _test(self, node: nodes.Test) -> str:
        if node.kwargs or node.dyn_args or node.dyn_kwargs:
            return _left(f"the test {node.name!r} with such arguments", node)
        if node.name in COMPARISONS and len(node.args) == 1:
            return self.comparison(node.node, COMPARISONS[node.name], node.args[0])
        if node.name not in TESTS or node.args:
            return _left(f"the test {node.name!r}", node)
        inner = node.node
        if isinstance(inner, nodes.Name) and node.name in ("defined", "undefined"):
            if inner.name in GLOBALS and inner.name not in self.stored:
                return str(node.name == "defined").lower()
            if inner.name == "loop":
                return f"(loop is {node.name})"
        return f"({self.term(inner)} is {node.name})"

    def _getattr(self, node: nodes.Getattr) -> str:
        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return f"loop.{node.attr}" if node.attr in LOOP else _left(f"loop.{node.attr}", node)
        return self._field(node.node, node.attr)

    def _getitem(self, node: nodes.Getitem) -> str:
        key = node.arg
        if isinstance(key, nodes.Slice):
            bounds = ["none" if part is None else self.term(part) for part in (key.start, key.stop, key.step)]
            return f"({self.term(node.node)})|slice({', '.join(bounds)})"
        if isinstance(key, nodes.Const) and isinstance(key.value, str):
            return self._field(node.node, key.value)
        return f"({self.term(node.node)})|item({self.term(key)})"

    def _field(self, of: nodes.Node, name: str) -> str:
        own = name in OWN_ATTRIBUTES and not (isinstance(of, nodes.Name) and of.name in self.spaces)
        if own or name.startswith("_") or not (name.isascii() and name.isidentifier()):
            return _left(f"the attribute {name!r}", of)
        return f"({self.term(of)}).{name}"

    def _call(self, node: nodes.Call) -> str:
        called, named = node.node, {pair.key: self.term(pair.value) for pair in node.kwargs}
        if node.dyn_args or node.dyn_kwargs:
            return _left("a call with a list of arguments", node)
        args = [self.term(arg) for arg in node.args]
        if isinstance(called, nodes.Getattr):
            if called.attr not in METHODS or named:
                return _left(f"the method {called.attr!r}", node)
            return f"({self.term(called.node)})|str_{called.attr}({', '.join(args)})"
        name = called.name if isinstance(called, nodes.Name) else ""
        if (macro := self.macros.get(name)) is not None:
            return self._macro_call(macro, node, args, named)
        if name in ("raise_exception", "range") and name not in self.stored and not named:
            return f"{name}({', '.join(args)})"
        if name == "namespace" and name not in self.stored and not args:
            return f"namespace({', '.join(f'{key}={value}' for key, value in named.items())})"
        return _left(f"the function {name!r}" if name else "such a call", node)

    def _macro_call(self, macro: nodes.Macro, node: nodes.Call, args: list[str], named: dict[str, str]) -> str:
        names = [argument.name for argument in macro.args]
        values = dict(zip(names, args, strict=False))
        if len(args) > len(names) or named.keys() - set(names) or named.keys() & values.keys():
            return _left(f"such arguments of the macro {macro.name!r}", node)
        defaults = dict(zip(reversed(names), map(self.term, reversed(macro.defaults)), strict=False))
        values = {**dict.fromkeys(names, "undefined"), **defaults, **values, **named}
        return f"v_{macro.name}({', '.join(values[name] for name in names)})"

    def _filter(self, node: nodes.Filter) -> str:
        name = ALIASES.get(node.name, node.name)
        if node.node is None or node.dyn_args or node.dyn_kwargs or name not in FILTERS:
            return _left(f"the filter {node.name!r}", node)
        named: dict[str, nodes.Expr] = {str(pair.key): pair.value for pair in node.kwargs}
        if name == "tojson" and isinstance(found := named.get("ensure_ascii"), nodes.Const) and found.value is False:
            named.pop("ensure_ascii")  # this is what transformers does anyway
        args = list(node.args)
        for argument in FILTERS[name][len(args) :]:
            if argument not in named:
                break
            args.append(named.pop(argument))
        most = 0 if name == "map" else len(FILTERS[name])  # map('upper') maps a filter
        if named or len(node.args) > most:
            return _left(f"the filter {node.name!r} with such arguments", node)
        given = ", ".join(self.term(arg) for arg in args)
        return f"({self.term(node.node, once=name in READERS)})|{name}({given})"


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names in an expression, itself included."""
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


def _adds_text(node: nodes.Node) -> bool:
    """Whether a constant text is among what is added, so that all of it must be text."""
    if isinstance(node, nodes.Add):
        return _adds_text(node.left) or _adds_text(node.right)
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _calls(node: nodes.Node, name: str) -> bool:
    """Whether an expression is a call of this function."""
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == name


def _assigned(body: Iterable[nodes.Node]) -> set[str]:
    """The variables that statements set in their own scope."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, nodes.If):
            names |= _assigned([*node.body, *node.elif_, *node.else_])
        elif isinstance(node, nodes.Assign | nodes.AssignBlock) and isinstance(node.target, nodes.Name):
            names.add(node.target.name)
    return names


def _left(construct: str, node: nodes.Node | None = None) -> str:
    """An expression that fails where it is evaluated."""
    return f"left({_quoted(construct if node is None else f'{construct} in line {node.lineno}')})"


def _text(text: str) -> str:
    """What stands outside of tags; as a constant where it would begin one."""
    return f"{{{{ {_quoted(text)} }}}}" if "{" in text else text


def _quoted(text: str) -> str:
    """A string constant; all but these characters stand as they are."""
    for char, escape in {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\u0000"}.items():
        text = text.replace(char, escape)
    return f'"{text}"'
