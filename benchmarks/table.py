"""Markdown tables of the results, and the targets as met, not met or not measured.

Knows rows of plain values, as in a result file. Runs nothing.
"""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# Targets on an H100 or H200: the least ratio of the peer's time to ours.
TRL_TRAINED = 1.35
TRL_FROZEN = 1.5
FLOOR_SHARE = 0.85
# Ours and TRL's, both without statistics and both with those that TRL's DPO trainer logs.
SIDES = (("", "ours", "trl"), (", statistics", "ours+statistics", "trl+statistics"))

COLUMNS = (
    "head",
    "FLOPs / F",
    "forward ms",
    "backward ms",
    "total ms",
    "fastest-slowest",
    "x ours",
    "floor / this",
    "extra MiB",
    "kept MiB",
    "err loss",
    "err dH",
    "err dW",
)


def judge(rows: Sequence[Row], *, measured: bool) -> list[dict[str, str]]:
    """The targets on one point's rows, each with a verdict and the number behind it."""
    verdicts = []
    for setting, least in (("trained", TRL_TRAINED), ("frozen", TRL_FROZEN)):
        mine = {r["name"]: r for r in rows if r["setting"] == setting and r.get("failure") is None}
        for what, name, peer in SIDES:
            ours, trl, floor = (mine.get(one, {}) for one in (name, peer, "floor"))
            head = f"{setting} head{what}"
            ratio = _quotient(trl.get("total_ms"), ours.get("total_ms")) if measured else None
            verdicts.append(_verdict(f"{head}: at least {least} times as fast as TRL", ratio, least))
            spare = _difference(trl.get("extra_bytes"), ours.get("extra_bytes")) if measured else None
            verdicts.append(_verdict(f"{head}: MiB less than TRL, at least 0", spare, 0))
            share = _quotient(floor.get("total_ms"), ours.get("total_ms")) if measured else None
            verdicts.append(_verdict(f"{head}: at least {FLOOR_SHARE} of the floor's speed", share, FLOOR_SHARE))
    return verdicts


def render_point(result: dict[str, Any]) -> str:
    """Everything about one point, in Markdown."""
    lines = [f"## {result['title']}", "", *_facts(result["facts"]), ""]
    for setting in ("trained", "frozen"):
        rows = [r for r in result["rows"] if r["setting"] == setting]
        if rows:
            lines += [f"### Head {setting}", "", *_grid(COLUMNS, [_cells(r, rows) for r in rows]), ""]
            lines += [f"- {r['label']}: {r['failure']}" for r in rows if r["failure"]]
            lines += [""] * any(r["failure"] for r in rows)
    lines += [f"- left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    lines += [f"- **broken**: {name}: {reason}" for name, reason in result["broken"].items()]
    lines += [f"- target, {t['target']}: {t['verdict']}" for t in result["targets"]]
    lines += [f"- {name}: " + ", ".join(f"{k} {v}" for k, v in seen.items()) for name, seen in _clocks(result)]
    return "\n".join(lines) + "\n"


def render_steps(result: dict[str, Any]) -> str:
    """The table of `train_step.py`."""
    columns = ("step", *COLUMNS[2:7], "extra MiB", "err loss", "err gradients")
    lines = [f"## One DPO step: {result['title']}", ""]
    for setting in ("trained", "frozen"):
        rows = [r for r in result["rows"] if r["setting"] == setting]
        cells = [_step_cells(r, rows) for r in rows]
        lines += [f"### Head {setting}", "", *_grid(columns, cells), ""]
        lines += [f"- {r['label']}: {r['failure']}" for r in rows if r["failure"]]
    lines += [f"- left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines) + "\n"


def render_summary(record: dict[str, Any]) -> str:
    """The last lines to read: ours against TRL and the floor, one row for each point and setting."""
    columns = ("point", "head", "ours ms", "TRL / ours", "floor / ours", "ours MiB", "TRL MiB", "not green")
    cells = []
    for point in record.get("fused_head", []):
        for setting in ("trained", "frozen"):
            mine = {r["name"]: r for r in point["rows"] if r["setting"] == setting and r["failure"] is None}
            red = [r["name"] for r in point["rows"] if r["setting"] == setting and r["failure"]]
            for what, name, peer in SIDES:
                ours, trl, floor = (mine.get(one, {}) for one in (name, peer, "floor"))
                ratios = [_quotient(of.get("total_ms"), ours.get("total_ms")) for of in (trl, floor)]
                memory = [_mib(of.get("extra_bytes")) for of in (ours, trl)]
                # A ratio of times on a CPU would be quoted one day.
                times = [_ms(ours.get("total_ms")), *map(_number, ratios)] if not record["self_check"] else [""] * 3
                head = f"{setting}{what}"
                cells.append([point["title"], head, *times, *memory, ", ".join(red or point["broken"]) or "-"])
    targets = f"Targets: TRL / ours at least {TRL_TRAINED} trained, {TRL_FROZEN} frozen; floor / ours at least "
    return "\n".join(["## Summary", "", *_grid(columns, cells), "", f"{targets}{FLOOR_SHARE}; no more MiB than TRL."])


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    of = {r["name"]: r.get("total_ms") for r in rows if r.get("failure") is None}
    total = row.get("total_ms")
    spread = f"{_ms(row['fastest_ms'])}-{_ms(row['slowest_ms'])}" if "fastest_ms" in row else ""
    flops = "" if row.get("flops") is None else f"{row['flops']:.2f}" + "*" * bool(row.get("counted_as"))
    times = [_ms(row.get(f"{part}_ms")) for part in ("forward", "backward", "total")]
    ratios = [_number(_quotient(total, of.get("ours"))), _number(_quotient(of.get("floor"), total))]
    memory = [_mib(row.get(f"{part}_bytes")) for part in ("extra", "kept")]
    errors = [_error(row.get(f"{part}_error")) for part in ("loss", "hidden", "weight")]
    return [row["label"], flops, *times, spread, *ratios, *memory, *errors]


def _step_cells(row: Row, rows: Sequence[Row]) -> list[str]:
    label, _, *times, ratio, _, extra, _, loss, _, _ = _cells(row, rows)
    return [label, *times, ratio, extra, loss, _error(row.get("gradient_error"))]


def _facts(facts: dict[str, float]) -> list[str]:
    if not facts:
        return []
    return [
        f"Inputs: log p of the targets {facts['mean_logp']:.2f} on average, {facts['median_logp']:.2f} in the middle, "
        f"{facts['logp_of_the_hardest_tenth']:.2f} at the hardest tenth; "
        f"{facts['share_of_probabilities_above_filter']:.4%} of the probabilities and "
        f"{facts['share_of_tiles_above_filter']:.1%} of the 128 x 128 tiles are above 2^-12 (benchmarks/inputs.py)."
    ]


def _clocks(result: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    names = ("GPU before timing", "GPU after the trained head", "GPU after the frozen head")
    return [(n, seen) for n, seen in zip(names, result["clocks"], strict=False) if seen]


def _grid(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    table = [columns, *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _verdict(target: str, number: float | None, least: float) -> dict[str, str]:
    if number is None:
        return {"target": target, "verdict": "not measured"}
    return {"target": target, "verdict": f"{'met' if number >= least else 'NOT met'} ({number:.2f})"}


def _quotient(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _difference(a: int | None, b: int | None) -> float | None:
    return None if a is None or b is None else (a - b) / 2**20


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
