"""Forward, backward and peak memory of LM heads under a preference loss: ours, peers, naive logits, the floor.

    python benchmarks/fused_head.py --out result.json             # on a GPU
    python benchmarks/fused_head.py --out result.json --tiny      # everything small on a CPU; its times mean nothing

Loss and gradients of every head are compared with fp32 first, on the inputs that are timed after; a wrong head is
reported and not timed. Each size runs in a process of its own, and a head that takes the process down is named and
left out of a second try. Exit status: 0, or 1 if a head of ours is wrong, fails or is missing, or if on a GPU a head
of `NEEDED` was not timed and not left out by --without either.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import heads
import record
import table
import torch
from inputs import POINTS, TINY_POINTS, Batch, Point, Truth, compute_truth, make
from stopwatch import Contender, LostDevice, failure_of, measure, tidy
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

# Norm of the error over norm of the truth. In fp32 sums of a few thousand terms lose some units of 6e-8. Logits around
# 16 are rounded to 1/16 in bf16, so a probability p carries 0.04 p of error, and G = p - 1 with it: naive bf16 logits
# have 2e-2 on the tiny point.
GRADIENT_RTOL = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
# Nats. A sum over 256 tokens is off by up to 0.35 in bf16, times beta = 0.1.
LOSS_ATOL = {torch.float32: 2e-5, torch.bfloat16: 3.5e-2}
# A filter for bf16 drops probabilities under 2^-12 and with them as much of the gradient as they weigh.
FILTER_RTOL = 1e-1

# Without them there is nothing to judge ours by.
NEEDED = ("trl", "trl+statistics")

COUNTED = Point("counted", 64, 48, 997, torch.float32)


def main() -> int:
    arguments = _parse()
    if arguments.points is not None:
        return _run_points(arguments)
    deadline = time.monotonic() + arguments.seconds
    # One process for the tiny points: importing TRL takes longer than they do.
    groups = [TINY_POINTS] if arguments.tiny else [(point,) for point in POINTS]
    results: list[dict[str, Any]] = []
    for i, points in enumerate(groups):
        # Half of a point's time is imports and compilers, the other half grows with its tokens.
        shares = [1 + group[0].tokens / 8192 for group in groups[i:]]
        share = (deadline - time.monotonic()) * shares[0] / sum(shares)
        results += _run_in_a_process(points, max(share, 30.0), arguments)
        print(*map(table.render_point, results[-len(points) :]), sep="\n", flush=True)
        # After every point, so that an interrupted run keeps its results.
        arguments.out.write_text(json.dumps({"fused_head": results}, indent=1) + "\n")
    untimed = [] if arguments.tiny or "trl" in arguments.without.split(",") else _untimed(results)
    print(*(f"NOT TIMED, and was to be: {what}; --without trl allows it" for what in untimed), sep="\n")
    return int(any(r["broken"] for r in results) or bool(untimed))


def _untimed(results: Sequence[dict[str, Any]]) -> list[str]:
    """Needed heads without a time, by point and setting, with the reason where there is one."""
    return [
        f"{name} at {result['point']}, head {setting}: {result['left_out'].get('trl', 'see its row')}"
        for result in results
        for setting in heads.BOTH
        for name in NEEDED
        if not any((r["name"], r["setting"]) == (name, setting) and "total_ms" in r for r in result["rows"])
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds")
    parser.add_argument("--seconds", type=float, default=330.0, help="time for everything; fewer rounds when short")
    parser.add_argument("--without", default="", help="heads to leave out, comma-separated")
    parser.add_argument("--points", help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, got none; --tiny checks everything on the CPU, with meaningless times")
    return arguments


def _run_in_a_process(points: Sequence[Point], seconds: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of points; heads that crash the process are left out of the next try."""
    without = dict.fromkeys(filter(None, arguments.without.split(",")), "left out by --without")
    deadline = time.monotonic() + seconds
    names = ",".join(p.name for p in points)
    with tempfile.TemporaryDirectory() as folder:
        out, progress = Path(folder, "out.json"), Path(folder, "progress")
        while True:
            progress.write_text("")
            left = deadline - time.monotonic()
            command: list[str | Path] = [sys.executable, __file__, "--points", names, "--out", out]
            command += ["--progress", progress, "--without", ",".join(without), *["--tiny"] * arguments.tiny]
            command += ["--rounds", str(arguments.rounds), "--seconds", str(max(0.8 * left, 10.0))]
            end = _end_of(command, max(left, 20.0))
            culprit = (progress.read_text().split() or ["the inputs"])[-1]
            if end is None:
                break
            print(f"{names}: {culprit} took the process down: {end}", flush=True)
            if culprit in without or culprit == "the inputs" or time.monotonic() + 20 > deadline:
                break
            without[culprit] = f"took the process down: {end}"
        results: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    results += [_nothing(point) for point in points[len(results) :]]
    for result in results:
        result["left_out"] |= without
        result["broken"] |= {name: reason for name, reason in without.items() if name in heads.OURS}
        # Earlier results stay, but they must not look complete.
        result["broken"] |= {} if end is None else {culprit: end}
    return results


def _end_of(command: Sequence[str | Path], seconds: float) -> str | None:
    """How the process ended; None for success."""
    try:
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end in {seconds:.0f} s"
    if run.returncode == 0:
        return None
    lines = run.stderr.strip().splitlines()
    return f"exit status {run.returncode}, {lines[-1] if lines else 'no message'}"


def _nothing(point: Point) -> dict[str, Any]:
    lists: dict[str, list[Any]] = {name: [] for name in ("rows", "targets", "clocks")}
    return {"point": point.name, "title": point.title, "facts": {}, "left_out": {}, "broken": {}} | lists


def _run_points(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    device = "cpu" if arguments.tiny else "cuda"
    # The truth is fp32 everywhere, whatever the environment says.
    torch.backends.cuda.matmul.allow_tf32 = False
    points = [p for p in (*POINTS, *TINY_POINTS) if p.name in arguments.points.split(",")]
    present, absent = heads.find(device, arguments.without.split(","))

    def announce(name: str) -> None:
        with arguments.progress.open("a") as file:
            print(name, file=file)

    flops = _count_flops(present, announce)
    results: list[dict[str, Any]] = []
    try:
        for i, point in enumerate(points, 1):
            deadline = start + arguments.seconds * i / len(points)
            results.append(_nothing(point))
            for rows, batch, clocks in _run_point(point, device, present, arguments.rounds, deadline, announce):
                for row in rows:
                    row.setdefault("flops", flops.get((row["name"], row["setting"])))
                results[-1] = _result(point, batch, rows, absent, clocks)
                arguments.out.write_text(json.dumps(results))
    except LostDevice as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def _run_point(
    point: Point, device: str, present: Sequence[heads.Head], rounds: int, deadline: float, announce: Any
) -> Iterator[tuple[list[dict[str, Any]], Batch, list[dict[str, str]]]]:
    """Rows, batch and clocks, more complete each time: after the comparison, the trained head, the frozen one."""
    batch = make(point, device)
    truth = compute_truth(batch)
    rows = [_check(h, s, batch, truth, announce) for s in heads.BOTH for h in present if s in h.settings]
    del truth
    clocks = [record.clocks()]
    for setting, share in zip(heads.BOTH, (0.5, 1.0), strict=True):
        yield rows, batch, clocks
        now = time.monotonic()
        _time(rows, present, setting, batch, rounds, now + share * (deadline - now), announce)
        clocks.append(record.clocks())
    yield rows, batch, clocks


def _check(head: heads.Head, setting: str, batch: Batch, truth: Truth, announce: Any) -> dict[str, Any]:
    """A row with the head's distance from the truth, and a failure if that is too far."""
    announce(head.name)
    row: dict[str, Any] = {"name": head.name, "label": head.label, "setting": setting, "is_ours": head.is_ours}
    row |= {"counted_as": head.counted_as, "failure": None, "wrong": False}
    try:
        contender = heads.contend(head, batch, setting)
        loss = contender.forward()
        gradients = contender.backward(loss)
        row["loss_error"] = abs(float(loss.detach()) - truth.loss)
        row["hidden_error"] = _distance(gradients[0], truth.hidden)
        if setting == "trained":
            row["weight_error"] = _distance(gradients[1], truth.weight)
    except Exception as error:
        row["failure"] = failure_of(error)
    contender = loss = gradients = None  # type: ignore[assignment]
    tidy(batch.hidden.device.type)
    if row["failure"] is None:
        row["failure"] = _disagreement(row, head, batch.hidden.dtype)
        row["wrong"] = row["failure"] is not None
    return row


def _disagreement(row: dict[str, Any], head: heads.Head, dtype: torch.dtype) -> str | None:
    rtol = FILTER_RTOL if head.filters else GRADIENT_RTOL[dtype]
    limits = {"loss_error": LOSS_ATOL[dtype], "hidden_error": rtol, "weight_error": rtol}
    # Not <=: NaN is too far.
    far = [f"{k} {row[k]:.1e} > {limit:.1e}" for k, limit in limits.items() if k in row and not row[k] <= limit]
    return f"wrong, not timed: {', '.join(far)}" if far else None


def _distance(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference over norm of the truth, in slices: a second fp32 copy of a weight may not fit."""
    slices = [slice(start, start + 8192) for start in range(0, len(truth), 8192)]
    off = sum(float((ours[s].float() - truth[s]).double().square().sum()) for s in slices)
    size = sum(float(truth[s].double().square().sum()) for s in slices)
    return float((off / size) ** 0.5)


def _time(
    rows: list[dict[str, Any]],
    present: Sequence[heads.Head],
    setting: str,
    batch: Batch,
    rounds: int,
    deadline: float,
    announce: Any,
) -> None:
    """Adds times and memory to this setting's rows, and the row of the floor."""
    device = batch.hidden.device.type
    mine = {r["name"]: r for r in rows if r["setting"] == setting and r["failure"] is None}
    contenders: list[Contender] = [heads.contend(h, batch, setting) for h in present if h.name in mine]
    factor = 3 if setting == "trained" else 2
    mine["floor"] = {"name": "floor", "label": f"bare products, {factor}F", "setting": setting, "is_ours": False}
    mine["floor"] |= {"counted_as": "", "failure": None, "wrong": False, "flops": float(factor)}
    rows.append(mine["floor"])
    try:
        contenders.append(heads.floor(batch, setting))
    except Exception as error:
        mine["floor"]["failure"] = failure_of(error)
    for name, reading in measure(contenders, device, rounds=rounds, deadline=deadline, announce=announce).items():
        mine[name] |= reading.summary() | {"failure": reading.failure}


def _count_flops(present: Sequence[heads.Head], announce: Any) -> dict[tuple[str, str], float]:
    """GEMM FLOPs of forward and backward in units of F, by head and setting, counted on a CPU at a small size."""

    def add_product(_: Any, a: Sequence[int], b: Sequence[int], **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    # TRL accumulates its products in place, which the counter of torch 2.15 does not count.
    unknown = {torch.ops.aten.addmm_: add_product}
    batch = make(COUNTED, "cpu")
    counts = {}
    for head, setting in [(h, s) for h in present if h.counted_as is not None for s in h.settings]:
        announce(head.name)
        contender = heads.contend(head, batch, setting)
        # What fails here fails again in `_check`, which says why.
        with contextlib.suppress(Exception), FlopCounterMode(display=False, custom_mapping=unknown) as counter:
            contender.backward(contender.forward())
            counts[head.name, setting] = counter.get_total_flops() / COUNTED.product_flops
    return counts


def _result(
    point: Point,
    batch: Batch,
    rows: list[dict[str, Any]],
    absent: dict[str, str],
    clocks: list[dict[str, str]],
) -> dict[str, Any]:
    device = batch.hidden.device.type
    return {
        "point": point.name,
        "title": point.title,
        "device": device,
        "facts": batch.facts,
        "rows": rows,
        "left_out": absent,
        "broken": {f"{r['name']}, {r['setting']}": r["failure"] for r in rows if r["failure"] and r["is_ours"]},
        "targets": table.judge(rows, measured=device == "cuda"),
        "clocks": clocks,
    }


if __name__ == "__main__":
    sys.exit(main())
