"""Plots of a run as inline SVG. Knows figures, training logs and colours; knows no files and no page.

The same input gives the same bytes: matplotlib's defaults whatever the user's matplotlibrc says, a fixed hash salt, no
date. Every colour is written as `var(--plot-…, #light)`, so that a page can restyle a plot for a dark background.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any, NamedTuple

from mipo.evaluation.figures import Figure

INK, MUTED, GRID = "#1f2329", "#5f6772", "#dde1e6"
BEFORE, AFTER, CONTROL = "#8c96a3", "#1d5fbf", "#b7791f"
REJECTED = "#c2410c"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BEFORE: "before",
    AFTER: "after",
    CONTROL: "control",
    REJECTED: "rejected",
}

# Text stays text (searchable, in the page's own font), and a `$` in a name is a dollar.
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "mipo",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.8,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_WIDTH = 4.7  # inches; about 450 CSS pixels, which a phone shrinks by a quarter

# log key, title, unit, colour; keys that share a title share a panel
_CURVES = (
    ("loss", "Loss", "nats", AFTER),
    ("rewards/margins", "Reward margin", "nats", AFTER),
    ("rewards/accuracies", "Reward accuracy", "share of pairs", AFTER),
    ("logps/chosen", "Log-probs of chosen and rejected", "nats per response", AFTER),
    ("logps/rejected", "Log-probs of chosen and rejected", "nats per response", REJECTED),
)


class Plot(NamedTuple):
    """One drawing: what it shows, and its `<svg>` element."""

    title: str
    svg: str


def information(intervals: Mapping[str, tuple[Figure, Figure]], cap: float) -> Plot:
    """Draws one bar [InfoNCE, leave-one-out] per name, a whisker at either end, and InfoNCE's cap, all in nats."""
    top = max(end.high for ends in intervals.values() for end in ends)
    # A cap far off would squeeze the bars into a corner; then the axis is broken, and marked as broken.
    broken = cap > 1.8 * max(top, 0.01)
    with _style():
        canvas = _canvas(0.95 + 0.42 * len(intervals))
        axes, cap_axes = canvas.subplots(1, 2, sharey=True, width_ratios=[9, 1]) if broken else (canvas.subplots(),) * 2
        for row, (name, ends) in enumerate(intervals.items()):
            _interval_bar(axes, row, ends, _colour(name))
        _name_rows(axes, list(intervals))
        lowest = min(0.0, *(end.low for ends in intervals.values() for end in ends))
        axes.set_xlim(lowest * 1.05, (top if broken else max(top, cap)) * 1.12)
        axes.set_xlabel("nats")
        _draw_cap(canvas, axes, cap_axes, cap, broken)
        text = "; ".join(f"{name} {_describe(low)} to {_describe(high)}" for name, (low, high) in intervals.items())
        return _plot(canvas, "information", "Information interval", f"{text}; cap of InfoNCE {cap:.2f} nats")


def accuracies(groups: Mapping[str, Mapping[str, Figure]]) -> Plot:
    """Draws one bar with its whisker per name (before, after, controls) within each group (sampled, greedy); shares."""
    bars = [(group, name, share) for group, names in groups.items() for name, share in names.items()]
    with _style():
        canvas = _canvas(0.75 + 0.3 * len(bars) + 0.2 * len(groups))
        axes = canvas.subplots()
        places, place = [], 0.0
        for index, (group, name, share) in enumerate(bars):
            place += 0.7 if index and bars[index - 1][0] != group else 0.0
            places.append(place)
            axes.barh(place, 100 * share.value, height=0.62, color=_colour(name))
            _whisker(axes, place, 100 * share.low, 100 * share.high)
            place += 1.0
        axes.set_yticks(places, [f"{group}, {name}" for group, name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of answers that are right")
        _clean(axes)
        text = "; ".join(f"{group}, {name} {_describe(share)}" for group, name, share in bars)
        return _plot(canvas, "accuracies", "Accuracy", f"{text}, as shares")


def curves(logs: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Draws what a trainer logged against its steps, one panel per logged quantity."""
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for key, title, unit, colour in _CURVES:
        if any(_is_number(entry.get(key)) for entry in logs):
            panels.setdefault(title, []).append((key, unit, colour))
    return [_curve(title, lines, logs) for title, lines in panels.items()]


def _curve(title: str, lines: list[tuple[str, str, str]], logs: Sequence[Mapping[str, Any]]) -> Plot:
    with _style():
        canvas = _canvas(2.5)
        axes = canvas.subplots()
        parts = []
        for key, unit, colour in lines:
            points = [(e["step"], e[key]) for e in logs if _is_number(e.get("step")) and _is_number(e.get(key))]
            steps, values = [step for step, _ in points], [value for _, value in points]
            label = key.rpartition("/")[2]
            axes.plot(steps, values, color=colour, marker="o" if len(steps) < 25 else "", markersize=3.5, label=label)
            axes.set_ylabel(unit)
            if points:
                ends = f"from {values[0]:.3g} to {values[-1]:.3g}"
                parts.append(f"{label} {ends} over {len(values)} logged steps")
        axes.set_xlabel("optimizer step")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(axis="y", labelcolor=MUTED, length=0)
        axes.spines["left"].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False)
        return _plot(canvas, re.sub(r"\W+", "-", title.lower()), title, "; ".join(parts))


def _style() -> Any:
    import matplotlib.style

    return matplotlib.style.context(["default", _STYLE])


def _canvas(height: float) -> Any:
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(_WIDTH, height))


def _colour(name: str) -> str:
    return {"before": BEFORE, "after": AFTER}.get(name, CONTROL)


def _interval_bar(axes: Any, row: int, ends: tuple[Figure, Figure], colour: str) -> None:
    infonce, leave_one_out = ends
    left, right = sorted((infonce.value, leave_one_out.value))
    axes.barh(row, right - left, left=left, height=0.5, color=colour, alpha=0.45)
    for end, down in ((infonce, 0.13), (leave_one_out, -0.13)):
        axes.plot([end.value, end.value], [row - 0.25, row + 0.25], color=colour, linewidth=2.2, solid_capstyle="butt")
        _whisker(axes, row + down, end.low, end.high)


def _whisker(axes: Any, place: float, low: float, high: float) -> None:
    axes.plot([low, high], [place, place], color=INK, linewidth=1.0, marker="|", markersize=5)


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _draw_cap(canvas: Any, axes: Any, cap_axes: Any, cap: float, broken: bool) -> None:
    cap_axes.axvline(cap, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    name = f"cap of InfoNCE, log(K+1) = {cap:.2f}"
    canvas.suptitle(name, x=0.99, ha="right", fontsize=10.5, color=MUTED)
    if not broken:
        return
    cap_axes.set_xlim(cap - 0.1, cap + 0.1)
    cap_axes.set_xticks([cap], [f"{cap:.2f}"])
    cap_axes.tick_params(axis="y", length=0, labelleft=False)
    cap_axes.spines["left"].set_visible(False)
    slash = {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 8, "color": MUTED, "clip_on": False, "linestyle": "none"}
    axes.plot([1], [0], transform=axes.transAxes, **slash)
    cap_axes.plot([0], [0], transform=cap_axes.transAxes, **slash)


def _describe(figure: Figure) -> str:
    return f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plot(canvas: Any, name: str, title: str, description: str) -> Plot:
    output = StringIO()
    canvas.savefig(output, format="svg", metadata=_NO_METADATA, transparent=True)
    # Without the XML prolog; an SVG inside HTML needs no namespace either, and a self-contained page names no address.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", output.getvalue().partition("<svg")[2])
    svg = svg.replace("xlink:href", "href")
    # Plots share a page, so their ids must differ.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--plot-{variable}, {colour})")
    opening, _, drawing = svg.partition(">")
    label = f' role="img" aria-labelledby="{name}-title {name}-description"'
    head = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    return Plot(title, f"<svg{label}{opening}>{head}{drawing.rstrip()}")
