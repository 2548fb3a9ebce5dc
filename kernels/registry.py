"""Registration of operators with torch.library, whose schemas know no records: arguments are flattened on the way.

Knows torch. Knows nothing of what an operator computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Operator:
    """A function as an operator of torch: one node for torch.compile. Its parameters may be NamedTuples, nested too.

    `op` is the operator of torch, with the fields of every record as its own arguments, and `flat` the function with
    such arguments.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function)
        returns = hints.pop("return")
        self.kinds = tuple(hints.values())

        def flat(*values: Any) -> Any:
            return function(*self.records(values))

        fields = [
            inspect.Parameter(f, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=k) for f, k in _fields(hints)
        ]
        flat.__signature__ = inspect.Signature(fields, return_annotation=returns)  # type: ignore[attr-defined]
        self.flat = flat
        # torch.library.custom_op without its wrapper, which imports torch._dynamo at the first call: 3.8 s on two
        # cores, 2026-11-24.
        torch.library.define(name, torch.library.infer_schema(flat, mutates_args=()))
        torch.library.impl(name, "CompositeExplicitAutograd", flat)
        self.op = getattr(torch.ops.mipo, name.removeprefix("mipo::"))

    def __call__(self, *arguments: Any) -> Any:
        """Calls the operator; raises RuntimeError where an argument carries a tangent."""
        values = list(_values(arguments))
        refuse_tangents(*values)
        return self.op(*values)

    def records(self, values: Any) -> list[Any]:
        """The arguments of the function, of the operator's own."""
        left = iter(values)
        return [_record(kind, left) for kind in self.kinds]


def refuse_second_order(*_: Any) -> None:
    """Raises RuntimeError: the gradient of a gradient."""
    raise RuntimeError(
        "expected one differentiation, got a second one (create_graph=True): mipo's fused ops have first derivatives "
        "only; use mipo.loss, which has derivatives of any order"
    )


def refuse_tangents(*arguments: Any) -> None:
    """Raises RuntimeError where a tensor has a tangent, which a registered operator would lose without a sign."""
    if forward_ad._current_level < 0:
        return
    dual = (forward_ad.unpack_dual(x) for x in arguments if isinstance(x, Tensor))  # type: ignore[no-untyped-call]
    if any(x.tangent is not None for x in dual):
        raise RuntimeError(
            "expected tensors without tangents, got forward-mode differentiation (torch.func.jvp, jacfwd, "
            "forward_ad): mipo's fused ops have backward derivatives only; use mipo.loss, which has both"
        )


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "_fields")


def _fields(hints: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, kind in hints.items():
        if _is_record(kind):
            yield from _fields(get_type_hints(kind))
        else:
            yield name, kind


def _record(kind: Any, values: Iterator[Any]) -> Any:
    if not _is_record(kind):
        return next(values)
    return kind(*[_record(inner, values) for inner in get_type_hints(kind).values()])


def _values(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if _is_record(type(argument)):
            yield from _values(argument)
        else:
            yield argument
