"""Times and peak memory of contenders, side by side in one process.

Knows clocks and the allocator. Does not know what it times.

On a GPU: CUDA events around the forward and the backward, warm-up rounds first, then rounds in which every contender
runs once, forwards and backwards in turn, and the median. The GPU is kept busy for HEAD_START before each measurement,
as by the body of the model in a training step, so that the host may run ahead of it: what counts is the GPU's time
and whatever waiting for the host a contender causes itself. On a CPU the times are taken and mean nothing.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Cycles, about 2 ms at 1.98 GHz.
HEAD_START = 4_000_000
WARM_UPS = 3


@dataclass
class Contender:
    """Something to time: `backward` gets what `forward` returned and returns what would remain, the gradients."""

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], Sequence[Tensor]]


@dataclass
class Reading:
    """The measurements of one contender: milliseconds per round, bytes, or why there are none."""

    forward_ms: list[float] = field(default_factory=list)
    backward_ms: list[float] = field(default_factory=list)
    # Peak of allocated bytes during forward and backward, minus those before and minus the returned gradients.
    extra_bytes: int | None = None
    # Bytes kept from the end of the forward to the backward.
    kept_bytes: int | None = None
    # Times the allocator had to ask the driver during timed rounds: should be 0, or the times are not the contender's.
    driver_allocations: int = 0
    failure: str | None = None

    def summary(self) -> dict[str, Any]:
        totals = [f + b for f, b in zip(self.forward_ms, self.backward_ms, strict=True)]
        seen: dict[str, Any] = {"extra_bytes": self.extra_bytes, "kept_bytes": self.kept_bytes, "rounds": len(totals)}
        if totals:
            seen["forward_ms"] = statistics.median(self.forward_ms)
            seen["backward_ms"] = statistics.median(self.backward_ms)
            seen["total_ms"] = statistics.median(totals)
            seen["fastest_ms"], seen["slowest_ms"] = min(totals), max(totals)
            seen["driver_allocations"] = self.driver_allocations
        return seen


class LostDevice(RuntimeError):
    """A CUDA error after which this process can compute nothing."""


def measure(
    contenders: Sequence[Contender], device: str, *, rounds: int, deadline: float, announce: Callable[[str], None]
) -> dict[str, Reading]:
    """A reading per contender; one that fails is dropped and the others continue.

    Args:
        contenders: distinct names.
        device: "cuda" or "cpu".
        rounds: timed rounds; fewer when `deadline` comes first, never fewer than one.
        deadline: on the clock of `time.monotonic`, seconds.
        announce: called with a contender's name before each run, so that a crash can be explained.

    Raises:
        LostDevice: the GPU's context is gone.
    """
    readings = {c.name: Reading() for c in contenders}
    for turn in range(WARM_UPS + rounds):
        if turn > WARM_UPS and time.monotonic() > deadline:
            break
        for contender in contenders if turn % 2 == 0 else contenders[::-1]:
            reading = readings[contender.name]
            if reading.failure is None:
                announce(contender.name)
                _run(contender, reading, device, memory=turn == WARM_UPS - 1, timed=turn >= WARM_UPS)
    return readings


def failure_of(error: Exception) -> str:
    """One line about an exception, and LostDevice if it took the GPU's context with it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit: out of memory"
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if "CUDA error" in text or type(error).__name__ == "AcceleratorError":
        raise LostDevice(text) from error
    return text


def tidy(device: str) -> None:
    """Returns unreferenced memory to the GPU."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _run(contender: Contender, reading: Reading, device: str, *, memory: bool, timed: bool) -> None:
    try:
        if device == "cuda":
            _run_on_gpu(contender, reading, memory, timed)
        else:
            _run_on_cpu(contender, reading, timed)
    except Exception as error:
        reading.failure = failure_of(error)
    if reading.failure is not None:
        # Outside the handler, where the traceback no longer holds the tensors.
        tidy(device)


def _run_on_gpu(contender: Contender, reading: Reading, memory: bool, timed: bool) -> None:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    driver = _driver_allocations()
    torch.cuda._sleep(HEAD_START)
    marks[0].record()
    state = contender.forward()
    marks[1].record()
    kept = torch.cuda.memory_allocated() - before
    remaining = contender.backward(state)
    marks[2].record()
    torch.cuda.synchronize()
    if memory:
        returned = sum(t.untyped_storage().nbytes() for t in remaining)
        reading.kept_bytes = kept
        reading.extra_bytes = torch.cuda.max_memory_allocated() - before - returned
    if timed:
        reading.forward_ms.append(marks[0].elapsed_time(marks[1]))
        reading.backward_ms.append(marks[1].elapsed_time(marks[2]))
        reading.driver_allocations += _driver_allocations() - driver


def _run_on_cpu(contender: Contender, reading: Reading, timed: bool) -> None:
    start = time.perf_counter()
    state = contender.forward()
    middle = time.perf_counter()
    contender.backward(state)
    end = time.perf_counter()
    if timed:
        reading.forward_ms.append(1e3 * (middle - start))
        reading.backward_ms.append(1e3 * (end - middle))


def _driver_allocations() -> int:
    return int(torch.cuda.memory_stats().get("num_device_alloc", 0))
