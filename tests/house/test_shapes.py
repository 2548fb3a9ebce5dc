"""Shapes as types: every tensor in a signature of `loss/` and `fused/` has one, and under pytest it is checked."""

import ast
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from mipo.fused.heads import Adapter, Head
from mipo.fused.operators import FusedPreferenceLoss
from mipo.loss import implicit_rewards, logps

HOUSE = Path(__file__).parents[2] / "python" / "mipo"
FILES = sorted(path for folder in ("loss", "fused") for path in (HOUSE / folder).glob("*.py"))


def annotations(path: Path) -> list[ast.expr]:
    """What is written about the arguments and results of functions, and the fields of records."""
    written = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            written.append(node.returns)
        elif isinstance(node, ast.arg):
            written.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            written += [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
    return [annotation for annotation in written if annotation is not None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_tensor_has_a_shape(path: Path) -> None:
    for annotation in annotations(path):
        text = ast.unparse(annotation)
        assert text.count("Tensor") == text.count("[Tensor, '"), f"{path.name}: {text}"


def test_a_wrong_shape_is_refused() -> None:
    """Where the function itself would go on: `gather` takes fewer targets than there are rows."""
    every, targets = torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.int64)
    assert every.gather(-1, targets[..., None]).shape == (2, 2, 1)
    with pytest.raises(TypeCheckError, match="parameter 'targets'"):
        logps._gather(every, targets)
    with pytest.raises(TypeCheckError, match="parameter 'targets'"):
        logps._gather(every, torch.zeros(2, 3, dtype=torch.int32))


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of a record as well: one axis has one length among them all."""
    hidden, weight, targets = torch.zeros(3, 4), torch.zeros(7, 4), torch.zeros(3, dtype=torch.int64)
    monkeypatch.setattr(logps, "_gather", lambda every, targets: every)
    with pytest.raises(TypeCheckError, match="return value"):
        logps.token_logps(hidden, weight, targets)
    with pytest.raises(TypeCheckError, match=r"TokenStatistics\.entropy"):
        logps.token_statistics(hidden, weight, targets)


def test_a_function_s_own_refusal_comes_first() -> None:
    with pytest.raises(ValueError, match="expected logps and ref_logps of one shape"):
        implicit_rewards(torch.zeros(3, 4), torch.zeros(3, 5))


def test_methods_are_checked() -> None:
    for method in (FusedPreferenceLoss.forward, Head.__call__, Head.of, Adapter.project):
        assert hasattr(method, "__wrapped__"), method
