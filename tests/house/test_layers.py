"""The order of folders: one imports only the folders before it, and a file imports no file that imports it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "python" / "mipo"
ORDER = [
    "_native", "kernels", "io", "tokenizer", "models", "prompts", "negatives", "responses", "pairing", "tokens",
    "loss", "fused", "trainer", "evaluation", "report", "run", "demo", "cli",
]  # fmt: skip


def imported(path: Path, relative: bool = False, types: bool = True) -> set[str]:
    """Every module that a file imports, anywhere in it, also for types; a relative one begins with a dot."""
    names = set()
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or (relative and node.level == 1), f"{path}: imports are absolute"
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def folders_of(path: Path) -> set[str]:
    """The folders of mipo that a file imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("mipo.")} & set(ORDER)


def files_of(folder: str) -> list[Path]:
    return sorted((HOUSE / folder).rglob("*.py"))


def modules() -> dict[str, Path]:
    """Every module of mipo by its dotted name."""
    names = {}
    for path in (path for folder in ORDER if folder != "kernels" for path in files_of(folder)):
        parts = path.relative_to(HOUSE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_every_folder_has_its_place():
    folders = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert folders == set(ORDER) - {"_native"}
    assert {path.name for path in HOUSE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py", "reasons.py"}


@pytest.mark.parametrize("folder", [folder for folder in ORDER if folder not in ("_native", "kernels")])
def test_a_folder_imports_only_folders_before_it(folder):
    allowed = {*ORDER[: ORDER.index(folder) + 1]}
    for path in files_of(folder):
        assert folders_of(path) <= allowed, f"{path} may import from {sorted(allowed)}"


def test_no_file_imports_in_a_circle():
    """Within a folder too; an `__init__` only names what its folder exports, so it is left out."""
    known = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    graph = {name: (imported(path) & known.keys()) - {name} for name, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_the_checks_see_a_wrong_import(tmp_path):
    wrong = tmp_path / "rows.py"
    wrong.write_text("def f():\n    from mipo.run.pipeline import run_recipe\n    import mipo.cli\n")
    assert folders_of(wrong) == {"run", "cli"}


def test_no_public_function_shares_its_name_with_a_package():
    import mipo

    packages = {path.parent.name for path in HOUSE.rglob("__init__.py")}
    functions = set(mipo.__all__)
    for path in modules().values():
        functions |= {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert not packages & functions


def test_kernels_know_torch_triton_and_each_other_alone():
    for path in (ROOT / "kernels").glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path, relative=True)}
        assert tops <= {"torch", "triton", "math", "collections", "dataclasses", "typing", "contextlib", "functools",
                        "itertools", "__future__", "os", "inspect", ""}, path  # fmt: skip
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"


def test_the_definition_of_the_loss_needs_only_torch():
    """The types of its tensors are jaxtyping's, which type checkers import, and tests; see test_public.py."""
    for path in files_of("loss"):
        tops = {name.split(".")[0] for name in imported(path, types=False)}
        assert tops <= {"torch", "math", "typing", "collections", "__future__", "mipo"}
        assert folders_of(path) <= {"loss"}


def test_the_report_knows_figures_and_stored_pairs_alone():
    for path in files_of("report"):
        assert folders_of(path) <= {"report", "io", "pairing", "evaluation"}
        assert {name for name in imported(path) if name.startswith("mipo.evaluation.")} <= {
            "mipo.evaluation.figures", "mipo.evaluation.figures.Figure",
        }  # fmt: skip


def test_a_world_needs_only_the_standard_library():
    assert not {name for name in imported(HOUSE / "demo" / "world.py") if name.split(".")[0] in ("mipo", "torch")}
