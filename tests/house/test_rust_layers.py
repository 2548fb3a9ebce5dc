"""The one way through rust/: a module names only the modules before it, so there is no circle among them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"
# A folder's own name stands for its mod.rs, which only exports what is in the files before it.
ORDER = [
    "error", "random", "checksum",
    "negatives::source", "negatives::record", "negatives::rule", "negatives::sort", "negatives::shifts",
    "negatives::exchange", "negatives::independent", "negatives::draw", "negatives::blocks", "negatives::remainder",
    "negatives::segment", "negatives::within", "negatives",
    "prompts::ngrams", "prompts::forest", "prompts::duplicates", "prompts::overlap", "prompts",
    "tokenizer::config", "tokenizer::seams", "tokenizer::engine", "tokenizer::probe", "tokenizer::open",
    "tokenizer::table", "tokenizer::encoder", "tokenizer::pytext", "tokenizer::filters", "tokenizer::template",
    "tokenizer",
    "tokens::texts", "tokens::groups", "tokens::distinct", "tokens::interner", "tokens",
    "python::arrays", "python::arrow", "python::checksum", "python::negatives", "python::prompts",
    "python::tokenizer", "python::tokens", "python",
    "lib",
]  # fmt: skip

NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\bb?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\u\{\w*\}|\\.|[^'\\])'""",
    re.DOTALL | re.VERBOSE,
)
TOKEN = re.compile(r"::|\w+|\S")


def modules(root: Path) -> dict[str, Path]:
    """The modules of a crate and their files; build.rs is no module of it."""
    files = [path.relative_to(root) for path in root.rglob("*.rs") if path != root / "build.rs"]
    name = {path: "::".join(path.with_suffix("").parts).removesuffix("::mod") for path in files}
    return {name[path]: root / path for path in files}


def code(path: Path) -> str:
    """A file without its comments, documentation and literals."""
    return NOT_CODE.sub(" ", path.read_text())


def paths(text: str) -> set[tuple[str, ...]]:
    """Every path that begins with `crate::`, without it; `crate::{a::b, c}` is two."""
    named = set()
    for match in re.finditer(r"\bcrate\s*::", text):
        tokens = (token.group() for token in TOKEN.finditer(text, match.end()))
        named |= set(branches(next(tokens), tokens)[0])
    return named


def branches(token: str, tokens: Iterator[str]) -> tuple[list[tuple[str, ...]], str]:
    """The paths of a tree of imports that begins with `token`, and the token after it."""
    if token == "{":
        several, token = [], next(tokens)
        while token != "}":
            branch, token = branches(token, tokens)
            several += branch
            while token not in ("}", ","):  # `as other`
                token = next(tokens)
            token = next(tokens) if token == "," else token
        return several, next(tokens, "")
    if not token.isidentifier():  # `*`, or `<` of a type
        return [()], next(tokens, "")
    after = next(tokens, "")
    if after != "::":
        return [(token,)], after
    rest, after = branches(next(tokens), tokens)
    return [(token, *path) for path in rest], after


def imports(root: Path) -> dict[str, set[str]]:
    """Of each module the modules that it names anywhere: of each path the longest part that is a module, else `lib`."""
    names = modules(root)

    def resolve(path: tuple[str, ...]) -> str:
        prefixes = ("::".join(path[:length]) for length in range(len(path), 0, -1))
        return next((prefix for prefix in prefixes if prefix in names), "lib")

    return {name: {resolve(path) for path in paths(code(file))} for name, file in names.items()}


def out_of_order(graph: dict[str, set[str]], order: list[str]) -> list[tuple[str, str]]:
    return [(name, other) for name in graph for other in graph[name] if order.index(other) >= order.index(name)]


def test_every_module_has_its_place():
    assert set(modules(RUST)) == set(ORDER)


def test_paths_between_modules_are_absolute():
    for path in modules(RUST).values():
        assert not re.search(r"\b(?:super|self)\s*::", code(path)), f"{path}: write crate::…"


def test_a_module_names_only_modules_before_it():
    graph = imports(RUST)
    assert out_of_order(graph, ORDER) == []
    assert sum(map(len, graph.values())) > 50, "the imports were read"


def test_no_test_is_in_the_library():
    # Cargo.toml has `test = false` for it: such a test would never run.
    for path in modules(RUST).values():
        assert not re.search(r"#\[(?:cfg\()?test\b", code(path)), f"{path}: move the test to tests/rust"


@pytest.mark.parametrize(
    "back",
    [
        "use crate::negatives::within::Near;",
        "use crate::{error::Error, negatives::{draw, within::{Near, Rule}}};",
        "use crate :: {\n    negatives::{\n        within::*,\n    },\n};",
        "fn f() -> usize { crate::negatives::within::CODE_BITS }",
        "pub(crate) use crate::negatives::within as other;",
    ],
)
def test_the_check_sees_a_circle(tmp_path, back):
    (tmp_path / "negatives").mkdir()
    (tmp_path / "lib.rs").write_text("mod error;\nmod negatives;\n")
    (tmp_path / "error.rs").write_text("pub struct Error;\n")
    (tmp_path / "negatives/mod.rs").write_text("mod draw;\nmod near;\nmod within;\n")
    (tmp_path / "negatives/draw.rs").write_text("")
    (tmp_path / "negatives/within.rs").write_text("use crate::negatives::near::blocks;\n")
    (tmp_path / "negatives/near.rs").write_text(back)
    graph = imports(tmp_path)
    assert graph["negatives::within"] == {"negatives::near"}
    assert "negatives::within" in graph["negatives::near"]
    others = ["error", "negatives::draw"]
    for circle in (["negatives::near", "negatives::within"], ["negatives::within", "negatives::near"]):
        assert out_of_order(graph, [*others, *circle, "negatives", "lib"])


def test_comments_and_literals_import_nothing(tmp_path):
    (tmp_path / "lib.rs").write_text(
        """//! use crate::a::b;
/* crate::a */ const A: &str = "crate::a \\" crate::b"; const B: &str = r#"crate::a " crate::b"#;
const C: [char; 3] = ['"', '\\'', '\\u{22}']; fn f<'a>(x: &'a str) -> &'a str { x }
use crate::c::d;
"""
    )
    (tmp_path / "c.rs").write_text("use crate::missing;")
    assert imports(tmp_path) == {"lib": {"c"}, "c": {"lib"}}


def test_a_file_within_a_folder_does_not_import_the_folder():
    graph = {name: set() for name in ORDER} | {"negatives::draw": {"negatives"}}
    assert out_of_order(graph, ORDER) == [("negatives::draw", "negatives")]
