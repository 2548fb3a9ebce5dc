"""Shapes as types, checked at every call: a loader that puts jaxtyping's check on each function of some packages.

`mipo.loss` and `mipo.fused` must run where torch is and jaxtyping is not, so they name its types under TYPE_CHECKING
alone. Within a test run such blocks are executed, and a tensor of another shape or dtype than a signature says is a
TypeCheckError. What a function refuses by itself it still refuses in its own words.
"""

import ast
import functools
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any


def check_calls(*packages: str) -> None:
    """Check every function of these packages, none of which may be imported yet."""
    loaded = sorted(name for name in packages if name in sys.modules)
    assert not loaded, f"imported before their shapes could be checked: {', '.join(loaded)}"
    sys.meta_path.insert(0, CheckingFinder(packages))


class CheckingFinder:
    """Finds the modules of some packages where Python does, and has them loaded with their checks."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(f"{name}.".startswith(f"{package}.") for package in self.packages):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = CheckingLoader(spec.loader.name, spec.loader.path)
        return spec


class CheckingLoader(SourceFileLoader):
    """Compiles a module with its checks, and keeps no bytecode: that would be found by runs without them."""

    def get_code(self, fullname: str) -> CodeType:
        tree = Decorator().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class Decorator(ast.NodeTransformer):
    """Takes TYPE_CHECKING for true, and puts `checked` below a function's own decorators."""

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.test = ast.copy_location(ast.Constant(True), node.test)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list.append(ast.parse(f"__import__({__name__!r}).checked", mode="eval").body)
        return self.generic_visit(node)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments and its result checked, and the fields of a result that has such."""
    import torch
    from beartype import BeartypeConf, beartype
    from jaxtyping import TypeCheckError, jaxtyped

    # An int is a float, as it is for mypy.
    typed: Callable[..., Any] = jaxtyped(function, typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            result = typed(*args, **kwargs)
        except TypeCheckError:
            with unchecked():
                function(*args, **kwargs)  # raises the error of its own, if it has one
            raise
        check_fields(result)
        return result

    return call


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing is checked within."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def check_fields(result: Any) -> None:
    """The fields of a NamedTuple or dataclass are what it says; an axis of one name has one length among them."""
    from beartype.door import is_bearable
    from jaxtyping import TypeCheckError, jaxtyped

    kind = type(result)
    if not (hasattr(kind, "_fields") or hasattr(kind, "__dataclass_fields__")):
        return
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)
    with jaxtyped("context"):
        for name, hint in hints.items():
            if not is_bearable(value := getattr(result, name), hint):
                raise TypeCheckError(f"expected {kind.__name__}.{name} to be {hint}, got {value!r}")
