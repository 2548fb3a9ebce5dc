"""Derivatives of the fused head: right by finite differences, or refused."""

from collections.abc import Callable

import pytest
import torch
from kernel_checks import CASES, Case, arguments, leaves, make
from torch import Tensor
from torch.autograd import forward_ad

from mipo.fused.operators import linear_logps, linear_preference_loss

MODES = ["M1", "M2", "M3", "M4"]
# torch's own decompositions for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def score(params: dict[str, Tensor], targets: Tensor, mode: str) -> Tensor:
    """The log-probs, or in mode M2 the loss of one group."""
    if mode != "M2":
        return linear_logps(**arguments(params), targets=targets, mode=mode)
    lengths, ref_logps = torch.tensor([[5, 6]]), torch.full((1, 2), -20.0)
    return linear_preference_loss(
        **arguments(params), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode
    ).loss


@pytest.mark.parametrize("mode", ["M1", "M3", "M4"])
def test_gradcheck_of_the_log_probs(mode: str) -> None:
    case = Case(tokens=4, width=3, vocabulary=7, bias=True, rank=1, softcap=5.0, scale=1.7, temperature=1.3)
    inputs, targets = make(case, "cpu", torch.float64)
    params = leaves(inputs, ("hidden", "down") if mode == "M1" else case.inputs)

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(case.inputs, tensors, strict=True))
        return linear_logps(**arguments(named), targets=targets, **case.options, mode=mode, chunk_bytes=128)

    assert torch.autograd.gradcheck(function, tuple(params.values()))


@pytest.mark.parametrize("lengths", [[[2, 1], [1, 2]], [[1, 1, 2], [1, 0, 1]]])
def test_gradcheck_of_the_loss(lengths: list[list[int]]) -> None:
    case = Case(tokens=6, width=3, vocabulary=7, bias=True, rank=1, softcap=5.0, scale=1.7, temperature=1.3)
    inputs, targets = make(case, "cpu", torch.float64)
    counted = torch.tensor(lengths)
    ref_logps = -counted.double() * 2

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(case.inputs, tensors, strict=True))
        return linear_preference_loss(
            **arguments(named), targets=targets, lengths=counted, ref_logps=ref_logps, **case.options, chunk_bytes=512,
            mode="M2",
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(function, tuple(leaves(inputs, case.inputs).values()))


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_are_refused(mode: str) -> None:
    inputs, targets = make(CASES["plain"], "cpu")
    params = leaves(inputs, ("hidden",) if mode == "M1" else ("hidden", "weight"))
    value = score(params, targets, mode).sum()

    def twice() -> None:
        (gradient,) = torch.autograd.grad(value, params["hidden"], create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError, match="first derivatives only"):
        twice()


@pytest.mark.parametrize("mode", ["M0", "M1", "M3", "M4"])
@pytest.mark.parametrize("transform", [torch.func.jvp, lambda f, x, t: torch.func.jacfwd(f)(*x)], ids=["jvp", "jacfwd"])
def test_forward_mode_is_refused(transform: Callable[..., object], mode: str) -> None:
    """A registered operator would lose the tangent and answer 0."""
    inputs, targets = make(CASES["plain"], "cpu")
    h = inputs["hidden"]
    with pytest.raises(RuntimeError, match="backward derivatives only"):
        transform(lambda hidden: score(inputs | {"hidden": hidden}, targets, mode), (h,), (torch.ones_like(h),))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dual", ["hidden", "upstream"])
def test_tangents_are_refused_on_both_ways(mode: str, dual: str) -> None:
    inputs, targets = make(CASES["plain"], "cpu")
    params = leaves(inputs, ("hidden",) if mode == "M1" else ("hidden", "weight"))
    value = score(params, targets, mode)
    with forward_ad.dual_level():
        x = params["hidden"] if dual == "hidden" else torch.ones_like(value)
        x = forward_ad.make_dual(x, torch.ones_like(x))
        ways = {
            "hidden": lambda: score(params | {"hidden": x}, targets, mode),
            "upstream": lambda: torch.autograd.grad(value, params["hidden"], x),
        }
        with pytest.raises(RuntimeError, match="backward derivatives only"):
            ways[dual]()
