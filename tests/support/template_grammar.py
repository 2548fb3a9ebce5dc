# ruff: noqa: E501 (templates stand in one line)
"""Random chat templates, for tests: whatever Jinja2 takes, whether Rust does or not."""

from __future__ import annotations

import random

NAMES = [
    "a",
    "b",
    "c",
    "ns.n",
    "ns.s",
    "messages",
    "tools",
    "bos_token",
    "add_generation_prompt",
    "m",
    "i",
    "a",
    "ns.s",
]
TEXTS = ["''", "'a'", "' x\\n'", "'</think>'", "'user'", "'{{'", "'é'", "'\\\\'"]
FIELDS = ["role", "content", "reasoning_content", "thinking", "name", "tool_calls", "reasoning"]
FILTERS = ["trim", "upper", "lower", "capitalize", "string", "tojson", "default('d')", "default('d', true)",
           "default(boolean=true)", "d(default_value='d', boolean=true)", "trim('a')", "trim(chars='\\n')", "length",
           "tojson(ensure_ascii=false)", "join('-')", "first", "last", "list",
           "replace('a', 'b')"]  # fmt: skip
LISTED = ["messages|length", "(messages + messages)|length", "range(2) + ['a']", "range(2)|list + [b]", "('a', 'b') * 2", "['a'] + ['b']", "('a', 'b')", "messages[0].get('name', 'd')",
          "messages|rejectattr('role', 'eq', 'user')|first", "messages|map(attribute='role')|list|last", "[a, b][i]", "m.content.split('a')|join('-')", "messages|map(attribute='content')|join('')", "messages|first",
          "messages|selectattr('role', 'equalto', 'user')|list|length", "(messages|last).content", "messages[1:]|length"]  # fmt: skip
METHODS = ["strip()", "lstrip()", "rstrip('\\n x')", "split('a')", "split()", "startswith('a')", "endswith('\\n')", "upper()",
           "replace('a', 'bc')", "title()", "find('a')", "count('a')", "removeprefix('a')"]  # fmt: skip
TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean", "true", "false",
         "equalto('a')", "integer", "not none", "not string"]  # fmt: skip
BINARY = ["+", "+", "~", "~", "==", "!=", "==", "and", "or", "and", "or", "in", "not in"]
NUMERIC = ["-", "*", "<", ">=", "%", "//", "+", "/", "=="]


def template(rng: random.Random) -> str:
    """A template of a few statements; it begins with what most have."""
    start = (
        "{% set ns = namespace(n=0, s='') %}{% set a = messages[0].content %}{% set b = 'b' %}{% set m = messages[-1] %}{% set i = 1 %}{% set c = none %}"
        if rng.random() < 0.8
        else ""
    )
    macro = "{% macro f(a, m='d') %}" + block(rng, 1, False) + "{% endmacro %}" if rng.random() < 0.3 else ""
    return start + macro + "".join(statement(rng, 3, False) for _ in range(rng.randint(1, 4)))


def block(rng: random.Random, depth: int, loop: bool) -> str:
    return "".join(statement(rng, depth, loop) for _ in range(rng.randint(1, 3)))


def statement(rng: random.Random, depth: int, loop: bool) -> str:
    cut, end = rng.choice(["", "", "-"]), rng.choice(["", "", "-"])
    kind = rng.choice(
        [
            "out",
            "out",
            "out",
            "set",
            "set",
            "if",
            "for",
            "for",
            "text",
            "ns",
            "generation",
            "with",
            "block",
            "leave",
            "cut",
        ]
    )
    if kind == "out" or (depth <= 0 and kind not in ("set", "text", "ns")):
        return f"{{{{{cut} {expression(rng, 3, loop)} {end}}}}}"
    if kind == "text":
        return rng.choice(["\n", "  x ", "<|im|>\n", "{", " \t\n\n", "}}", "#}", "\r\n"])
    if kind == "set":
        return f"{{%{cut} set {rng.choice('abcmi')} = {expression(rng, 3, loop)} {end}%}}"
    if kind == "ns":
        return f"{{% set ns.{rng.choice('ns')} = {expression(rng, 2, loop)} %}}"
    if kind == "leave" or (kind == "cut" and not loop):
        return ""
    if kind == "cut":  # Jinja2 refuses it outside of a loop
        return "{% if " + expression(rng, 1, loop) + " %}{% " + rng.choice(["break", "continue"]) + " %}{% endif %}"
    body = block(rng, depth - 1, (loop and kind != "generation") or kind == "for")
    if kind == "if":
        other = rng.choice(
            [
                "",
                "{% else %}" + block(rng, depth - 1, loop),
                f"{{% elif {expression(rng, 2, loop)} %}}" + block(rng, 0, loop),
            ]
        )
        return f"{{%{cut} if {expression(rng, 3, loop)} {end}%}}{body}{other}{{%{cut} endif {end}%}}"
    if kind == "for":
        over = rng.choice(
            [
                "messages",
                "messages[1:]",
                "messages[::-1]",
                "messages",
                "messages",
                expression(rng, 2, loop),
                "['a', 'b']",
                "range(3)",
            ]
        )
        only = f" if {expression(rng, 2, loop)}" if rng.random() < 0.1 else ""
        other = "{% else %}" + block(rng, 0, loop) if rng.random() < 0.2 else ""
        return f"{{%{cut} for {rng.choice('mmmai')} in {over}{only} {end}%}}{body}{other}{{% endfor %}}"
    if kind == "with":
        return f"{{% with a = {expression(rng, 2, loop)}, b = a %}}{body}{{% endwith %}}"
    if kind == "block":
        return f"{{% set {rng.choice('abc')} %}}{body}{{% endset %}}"
    return f"{{% generation %}}{body}{{% endgeneration %}}"


def expression(rng: random.Random, depth: int, loop: bool) -> str:
    kind = rng.random()
    if depth <= 0 or kind < 0.15:
        return rng.choice([rng.choice(NAMES), rng.choice(TEXTS), str(rng.randint(0, 3)), "none", "true", "false"])
    if kind < 0.4:
        of = rng.choice(
            [
                "m",
                "m",
                "m",
                "messages[0]",
                "messages[-1]",
                *(["messages[loop.index0 - 1]", "loop.previtem"] if loop else ["messages[1]"]),
            ]
        )
        return rng.choice(
            [f"{of}.{rng.choice(FIELDS)}", f"{of}['{rng.choice(FIELDS)}']", f"{of}.content", f"{of}['role']"]
        )
    inner = expression(rng, depth - 1, loop)
    if kind < 0.44:  # operators that only numbers have
        number = rng.choice(
            ["loop.index" if loop else "i", "messages|length", "m.content|length", "ns.n", "2", "-3", "true", inner]
        )
        return f"{number} {rng.choice(NUMERIC)} {rng.choice(['loop.index0' if loop else 'i', '1', '2', 'messages|length', '(-2)', inner])}"
    if kind < 0.55:
        joined = f"{inner} {rng.choice(BINARY)} {expression(rng, depth - 1, loop)}"
        return f"({joined})" if rng.random() < 0.6 else joined  # precedence decides
    if kind < 0.6:
        name = "loop" if loop or rng.random() < 0.02 else "messages[0]"
        return f"{name}.{rng.choice(['index', 'index0', 'first', 'last', 'length', 'revindex', 'nextitem'])}"
    text = rng.choice([inner, "m.content", "a", "m.role", "messages[0].content"])
    if kind < 0.7:
        return f"({text})|{rng.choice(FILTERS)}" if rng.random() < 0.6 else f"{text}|{rng.choice(FILTERS)}"
    if kind < 0.8:
        return f"({text}).{rng.choice(METHODS)}"
    if kind < 0.87:
        return f"({inner} is {rng.choice(TESTS)})" if rng.random() < 0.6 else f"{inner} is {rng.choice(TESTS)}"
    if kind < 0.91:
        return f"({inner} if {expression(rng, depth - 1, loop)} else {expression(rng, depth - 1, loop)})"
    if kind < 0.93:
        return f"(not {inner})" if rng.random() < 0.6 else f"not {inner}"
    if kind < 0.95:
        return rng.choice(LISTED)
    if kind < 0.97:
        return f"({inner})[{rng.choice(['0', '-1', '1:', ':-1', '::-1', '1:2', 'loop.index0' if loop else 'i', expression(rng, 0, loop)])}]"
    return rng.choice([f"f({inner})", f"f({inner}, m={expression(rng, 0, loop)})", f"raise_exception({inner})"])
