"""What the documents name exists: folders in their order, files, functions, headings, and terms with their files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIPO = ROOT / "python" / "mipo"
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]
    if path.name != "LOG.md"  # history: it names what was there on its day
}
SOURCES = {path.name for top in ("python", "rust", "kernels", "benchmarks", "examples", "tests")
           for path in (ROOT / top).rglob("*.*")}  # fmt: skip
WIDTH = 120


def order() -> list[str]:
    """The folders of python/mipo in the order of test_layers.py."""
    for node in ast.parse((Path(__file__).parent / "test_layers.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return [name for name in ast.literal_eval(node.value) if name != "_native"]
    raise AssertionError("test_layers.py has no ORDER")


def tree() -> dict[str, dict[str, str]]:
    """The README's tree: for each top folder its folders and files, with their descriptions."""
    block = DOCUMENTS["README.md"].split("## The source")[1].split("```")[1]
    folders: dict[str, dict[str, str]] = {}
    for line in block.strip().splitlines():
        name, _, about = line.strip().partition(" ")
        if not line.startswith(" "):
            folders[name] = {}
        else:
            folders[[*folders][-1]][name] = about.strip()
    return folders


def spans(document: str) -> list[str]:
    """What a document has in backticks, outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DOCUMENTS[document], flags=re.DOTALL))


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module of mipo, or something that a module of mipo has."""
    place, parts = MIPO.parent, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    files = [place / f"{parts[0]}{ending}" for ending in (".py", ".pyi")] if parts else []
    source = next((file for file in files if file.is_file()), None)
    body = ast.parse((source or place / "__init__.py").read_text()).body
    rest = parts[1:] if source else parts
    while rest:
        owner = next((node for node in statements(body) if rest[0] in names_of(node)), None)
        if isinstance(owner, ast.ImportFrom):
            return is_defined(".".join([str(owner.module), *rest]))
        if owner is None:
            return False
        body, rest = getattr(owner, "body", []), rest[1:]
    return True


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, with those under an `if`, for example TYPE_CHECKING."""
    for node in body:
        yield from statements([*node.body, *node.orelse]) if isinstance(node, ast.If) else [node]


def names_of(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return {ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])}
    return set()


def test_the_tree_of_the_readme_is_that_of_the_folders():
    folders = tree()
    named = [name.rstrip("/") for name in folders["python/mipo/"] if name.endswith("/")]
    assert named == order()
    assert {name for name in folders["python/mipo/"] if name.endswith(".py")} == {"errors.py", "reasons.py"}
    assert {name.rstrip("/") for name in folders["rust/"]} == {
        path.name for path in (ROOT / "rust").iterdir() if path.is_dir()
    }
    assert all((ROOT / name).is_dir() for name in folders)
    assert all(about for inner in folders.values() for about in inner.values())


def test_the_table_of_the_design_is_in_the_order_of_the_folders():
    table = DOCUMENTS["DESIGN.md"].split("## Folders")[1].split("\n##")[0]
    assert re.findall(r"^\| `(\w+)` \| \S", table, flags=re.MULTILINE) == [
        name for name in order() if name != "kernels"
    ]


def test_every_decision_has_a_problem_and_a_choice():
    decisions = re.split(r"^### ", DOCUMENTS["DESIGN.md"], flags=re.MULTILINE)[1:]
    assert len(decisions) > 40
    for decision in decisions:
        parts = re.findall(r"^\*\*(Problem|Choice|Rejected)", decision, flags=re.MULTILINE)
        assert parts in (["Problem", "Choice"], ["Problem", "Choice", "Rejected"]), decision.splitlines()[0]


def test_every_term_of_the_glossary_has_a_file():
    terms = re.findall(
        r"^- \*\*(.+?)\*\*: (.+?)(?=\n- |\n\n|\Z)", DOCUMENTS["GLOSSARY.md"], flags=re.MULTILINE | re.DOTALL
    )
    assert len(terms) > 40
    assert len({term for term, _ in terms}) == len(terms)
    for term, about in terms:
        place = re.search(r"`([^`]+)`\Z", about.strip())
        assert place, f"{term}: no file at its end"
        assert any((top / place[1]).is_file() for top in (MIPO, ROOT)), f"{term}: {place[1]}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document):
    for span in spans(document):
        if re.fullmatch(r"[\w./-]+\.(py|rs|sh)", span):
            tops = (ROOT, MIPO, (ROOT / document).parent)
            assert span in SOURCES or any((top / span).is_file() for top in tops), f"{document}: {span}"
        elif re.fullmatch(r"(python|rust|tests|kernels|benchmarks|examples)/[\w./-]*", span):
            assert (ROOT / span).exists(), f"{document}: {span}"
        elif name := re.match(r"mipo(\.\w+)+", span):
            assert is_defined(name[0]), f"{document}: {name[0]}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_is_there(document):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", DOCUMENTS[document]):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_prose_fits_the_line(document):
    for number, line in enumerate(DOCUMENTS[document].splitlines(), start=1):
        assert len(line) <= WIDTH or line.startswith("|") or line.startswith("accelerate"), f"{document}:{number}"


def test_the_checks_see_what_is_not_there():
    assert is_defined("mipo.tokens.groups.tokenize")
    assert is_defined("mipo.fused.heads.Head.of")
    assert is_defined("mipo.contrast")
    assert is_defined("mipo._native")
    assert not is_defined("mipo.tokens.groups.tokenise")
    assert not is_defined("mipo.fused.heads.Head.off")
    assert not is_defined("mipo.rooms")
