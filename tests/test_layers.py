"""The one way through the house: a room imports only the rooms before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "python" / "mipo"
ORDER = [
    "lazy", "files", "tables", "_native", "kernels", "arrow", "sources", "prompts", "kinds", "calls", "terms", "jinja",
    "templates", "overlap", "contrast", "cluster", "responses", "pairs", "tokens", "shards", "store", "groups",
    "preparation", "logps", "loss", "heads", "fused", "trl_head", "preference_head", "trainer", "evaluation",
    "findings", "plots", "report", "recipe", "stages", "run", "demo", "doctor", "options", "console", "cli",
]  # fmt: skip


def imported(path: Path, relative: bool = False) -> set[str]:
    """Every module that a file imports, anywhere in it, also for types; a relative one begins with a dot."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or (relative and node.level == 1), f"{path}: imports are absolute"
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("mipo.") and name.split(".")[1] in ORDER}


def test_every_room_has_its_place():
    found = {p.stem for p in HOUSE.glob("*.py")} | {p.parent.name for p in HOUSE.glob("*/__init__.py")}
    assert found - {"__init__", "__main__"} == set(ORDER) - {"_native"}


@pytest.mark.parametrize("room", [room for room in ORDER if room not in ("_native", "kernels", "demo")])
def test_a_room_imports_only_rooms_before_it(room):
    before = set(ORDER[: ORDER.index(room)])
    assert rooms_of(HOUSE / f"{room}.py") <= before, f"{room} may import {sorted(before)}"


def test_the_check_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "prompts.py"
    wrong.write_text("def f():\n    from mipo.run import run\n    import mipo.cli\n")
    assert rooms_of(wrong) == {"run", "cli"}


def test_kernels_know_torch_triton_and_each_other_alone():
    for path in (ROOT / "kernels").glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path, relative=True)}
        assert tops <= {"torch", "triton", "math", "collections", "dataclasses", "typing", "contextlib", "functools",
                        "itertools", "__future__", "os", ""}, path  # fmt: skip
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"


def test_the_definition_of_the_loss_needs_only_torch():
    for room, others in (("logps", set()), ("loss", {"logps"})):
        tops = {name.split(".")[0] for name in imported(HOUSE / f"{room}.py")}
        assert tops <= {"torch", "math", "typing", "collections", "__future__", "mipo"}
        assert rooms_of(HOUSE / f"{room}.py") == others


def test_a_world_needs_only_the_standard_library():
    assert not {name for name in imported(HOUSE / "demo" / "world.py") if name.split(".")[0] in ("mipo", "torch")}
