"""Verification: the operators pass on a device where they are right, and an error of a tenth is noticed."""

from typing import Any

import pytest
import torch

from mipo.errors import InputError
from mipo.fused import verification
from mipo.fused.verification import verify


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_right_operators_pass(dtype: torch.dtype, softcap: float | None) -> None:
    verify("cpu", dtype, 9_001, softcap)


@pytest.mark.parametrize("name", ["loss", "gradient of the states", "gradient of the head"])
def test_wrong_figures_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verification.linear_preference_loss

    def wrong(hidden: Any, weight: Any, *args: Any, **options: Any) -> Any:
        """A loss, or a gradient, that is a tenth too large."""
        scaled = {"gradient of the states": hidden, "gradient of the head": weight}.get(name)
        if scaled is not None:
            scaled.register_hook(lambda gradient: 1.1 * gradient)
        out = right(hidden, weight, *args, **options)
        return out._replace(loss=1.1 * out.loss) if scaled is None else out

    monkeypatch.setattr(verification, "linear_preference_loss", wrong)
    with pytest.raises(InputError, match=f"got the {name} 10% off; train with fused_loss: false"):
        verify("cpu", torch.float32, 61)
