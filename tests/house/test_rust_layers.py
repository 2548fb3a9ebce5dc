"""The one way through rust/: a module names no module that names it, and a folder only the folders before it."""

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"
ORDER = [
    "error",
    "interrupt",
    "memory",
    "random",
    "checksum",
    "negatives",
    "prompts",
    "tokenizer",
    "tokens",
    "python",
    "lib",
]

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
    """Of each module the modules that it names anywhere: of each path the longest part that is a module, else `lib`.

    A folder's own name stands for its mod.rs, which exports what is in its files.
    """
    names = modules(root)

    def resolve(path: tuple[str, ...]) -> str:
        prefixes = ("::".join(path[:length]) for length in range(len(path), 0, -1))
        return next((prefix for prefix in prefixes if prefix in names), "lib")

    graph = {name: {resolve(path) for path in paths(code(file))} for name, file in names.items()}
    for name in names:
        graph[name] |= {other for other in names if other.startswith(f"{name}::")}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def top(name: str) -> str:
    return name.partition("::")[0]


def test_every_folder_has_its_place():
    assert {top(name) for name in modules(RUST)} == set(ORDER)


def test_paths_between_modules_are_absolute():
    for path in modules(RUST).values():
        assert not re.search(r"\b(?:super|self)\s*::", code(path)), f"{path}: write crate::…"


def test_no_module_names_one_that_names_it():
    graph = imports(RUST)
    assert circle(graph) == []
    assert graph["negatives::within"] >= {"negatives::segment", "negatives::rule", "error"}, "the imports were read"


@pytest.mark.parametrize("folder", ORDER)
def test_a_folder_names_only_folders_before_it(folder):
    named = {top(other) for name, others in imports(RUST).items() if top(name) == folder for other in others}
    assert named - {folder} <= set(ORDER[: ORDER.index(folder)])


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
        "pub(crate) use crate::negatives::{draw as other, within as another};",
        "use crate::negatives::Near;",
    ],
)
def test_the_check_sees_a_circle(tmp_path, back):
    (tmp_path / "negatives").mkdir()
    (tmp_path / "lib.rs").write_text("mod error;\nmod negatives;\n")
    (tmp_path / "error.rs").write_text("pub struct Error;\n")
    (tmp_path / "negatives/mod.rs").write_text("mod draw;\nmod near;\nmod within;\n")
    (tmp_path / "negatives/draw.rs").write_text("")
    (tmp_path / "negatives/within.rs").write_text("use crate::negatives::near::blocks;\n")
    (tmp_path / "negatives/near.rs").write_text("use crate::error::Error;\n")
    assert circle(imports(tmp_path)) == []
    (tmp_path / "negatives/near.rs").write_text(back)
    assert "negatives::near" in circle(imports(tmp_path))


def test_comments_and_literals_name_nothing(tmp_path):
    (tmp_path / "lib.rs").write_text(
        """//! use crate::a::b;
/* crate::a */ const A: &str = "crate::a \\" crate::b"; const B: &str = r#"crate::a " crate::b"#;
const C: [char; 3] = ['"', '\\'', '\\u{22}']; fn f<'a>(x: &'a str) -> &'a str { x }
use crate::c::d;
"""
    )
    (tmp_path / "c.rs").write_text("use crate::missing;")
    assert imports(tmp_path) == {"lib": {"c"}, "c": {"lib"}}
