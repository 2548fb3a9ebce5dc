"""Verification: the operators pass on a device where they are right, and an error of a tenth is noticed."""

from typing import Any

import pytest
import torch

from mipo.errors import InputError
from mipo.fused import verification
from mipo.fused.verification import verify


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.usefixtures("uninitialised_memory_is_nan")  # an odd number of words, whose rows are padded
def test_right_operators_pass(dtype: torch.dtype, softcap: float | None) -> None:
    verify("cpu", dtype, 9_001, softcap)


@pytest.mark.parametrize("name", ["loss", "gradient of the states", "gradient of the head"])
def test_wrong_figures_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verification.linear_preference_loss

    def wrong(hidden: Any, weight: Any, *args: Any, **options: Any) -> Any:
        """A loss, or a gradient, that is a tenth too large."""
        scaled = {"gradient of the states": hidden, "gradient of the head": weight}.get(name)
        if scaled is not None and scaled.requires_grad:
            scaled.register_hook(lambda gradient: 1.1 * gradient)
        out = right(hidden, weight, *args, **options)
        return out._replace(loss=1.1 * out.loss) if scaled is None else out

    monkeypatch.setattr(verification, "linear_preference_loss", wrong)
    with pytest.raises(InputError, match=rf"got the {name} 10% off in mode M\d; train with fused_loss: false"):
        verify("cpu", torch.float32, 61)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_mode_that_a_trainer_may_choose_is_tried(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, right = [], verification.linear_preference_loss

    def noted(*args: Any, mode: str, **options: Any) -> Any:
        modes.append(mode)
        return right(*args, mode=mode, **options)

    monkeypatch.setattr(verification, "linear_preference_loss", noted)
    verify("cpu", dtype, 61)
    assert modes == ["M0", "M1", *(["M2"] if dtype != torch.float16 else []), "M3", "M4"]
