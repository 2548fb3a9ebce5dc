"""Which rows the tests of this folder run."""

import pytest

from mipo.kernels import rows


@pytest.fixture(autouse=True)
def pytorch_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch, uninitialised_memory_is_nan: None) -> None:
    # In this process the interpreter stays away, also where somebody has exported TRITON_INTERPRET.
    runs_triton = rows.runs_triton
    monkeypatch.setattr(rows, "runs_triton", lambda logits: logits.is_cuda and runs_triton(logits))
