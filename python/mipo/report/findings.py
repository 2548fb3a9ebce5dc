"""Findings: what the figures of a run support, in sentences. Knows no page, no plot and no pairs.

Every word about a change follows one rule: it is "up" or "down" where its 95 % interval excludes zero, and "not
distinguishable" otherwise. Before and after are compared row by row (`Results.paired`). If nothing pairs the rows, as
in two runs side by side, the interval of the change reaches from far end to far end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from mipo.evaluation.figures import Figure
from mipo.report.results import Results

Direction = Literal["up", "down", "not distinguishable"]
UNCLEAR: Literal["not distinguishable"] = "not distinguishable"
FAR_ENDS = "at least 95 %, all that the intervals of the two sides allow"

INFORMATION_ABOUT = {
    "random": "between prompt and response",
    "partial": "between prompt and response",
    "context": "between the user's context and the response, given the question",
    "dropped": "between the user's context and the response, given the question",
}
# The changes from each end of the information before to each end after: only if all agree did the information change.
_ENDS = {
    "infonce": ("infonce", "infonce"),
    "leave_one_out": ("leave_one_out", "leave_one_out"),
    "information_at_least": ("leave_one_out", "infonce"),
    "information_at_most": ("infonce", "leave_one_out"),
}


class Measure(NamedTuple):
    """How one figure of evaluation.json is named and written; `unit` is "nats", "share" or "tokens"."""

    label: str
    unit: str
    decimals: int


MEASURES = {
    "infonce": Measure("InfoNCE, lower bound (nats)", "nats", 3),
    "leave_one_out": Measure("leave-one-out, upper estimate (nats)", "nats", 3),
    "accuracy": Measure("accuracy, sampled as in training", "share", 1),
    "accuracy_greedy": Measure("accuracy, greedy", "share", 1),
    "malformed": Measure("malformed answers", "share", 1),
    "logps_chosen": Measure("log-prob of chosen (nats/response)", "nats", 2),
    "logps_rejected": Measure("log-prob of rejected (nats/response)", "nats", 2),
    "margin": Measure("margin, chosen - rejected (nats)", "nats", 2),
    "response_tokens": Measure("response length (tokens)", "tokens", 1),
    "truncated": Measure("truncated responses", "share", 1),
}


def far_ends(before: Figure, after: Figure) -> Figure:
    """The change between two figures of different rows: its interval excludes zero exactly where theirs are apart.

    It covers at least 95 %, however the errors of the two are correlated (as long as they are normal).
    """
    rows = min(before.rows, after.rows)
    return Figure(after.value - before.value, after.low - before.high, after.high - before.low, FAR_ENDS, rows)


def change(run: Results, name: str) -> Figure | None:
    """How much a figure changed: row by row if the run has that, else far end to far end; None if a side lacks it."""
    old, new = _ENDS.get(name, (name, name))
    if old not in run.before or new not in run.after:
        return None
    return run.paired.get(name) or far_ends(run.before[old], run.after[new])


def direction(change: Figure) -> Direction:
    """Which way a change goes, which it does only if its interval excludes zero."""
    if change.low > 0:
        return "up"
    return "down" if change.high < 0 else UNCLEAR


def direction_of(run: Results, name: str) -> Direction | None:
    """Which way a figure of a run went; None if a side lacks it."""
    difference = change(run, name)
    return direction(difference) if difference else None


def state(run: Results, controls: Mapping[str, Results], about: str | None) -> list[str]:
    """States what changed and what did not, claiming no more than the intervals allow."""
    sentences = [describe_control(run), _state_information(run, about), _state_accuracy(run)]
    sentences += [_state_beside(run, name, control) for name, control in controls.items()]
    unclear = [
        MEASURES[name].label.partition(" (")[0]
        for name in ("malformed", "logps_chosen", "logps_rejected", "response_tokens", "truncated")
        if direction_of(run, name) == UNCLEAR
    ]
    sentences += [f"Not distinguishable from before: {', '.join(unclear)}."] if unclear else []
    return [sentence for sentence in sentences if sentence]


def describe_control(run: Results) -> str:
    """Says in one sentence that a run is a control, and of what; empty for a run of the method itself."""
    if run.control is None:
        return ""
    difference = {
        "shuffled": "its pairs were shuffled, so which of two answers was chosen says nothing about the prompt",
        "sft": "it was trained on the chosen responses alone, without rejected ones",
    }.get(run.control, "see the recipe")
    return f"This is a control run ({run.control}): {difference}. What changes here changes without the method."


def _state_information(run: Results, about: str | None) -> str:
    name = f"The information {about}{',' if ',' in about else ''}" if about else "The information"
    old, new = (
        f"between {side['infonce'].value:.3f} and {side['leave_one_out'].value:.3f} nats"
        for side in (run.before, run.after)
    )
    values = f"{old} before, {new} after"
    changes = {end: difference for end in _ENDS if (difference := change(run, end))}
    directions = {end: direction(difference) for end, difference in changes.items()}
    if {*directions.values()} in ({"up"}, {"down"}):
        value, interval = cell("infonce", min(changes.values(), key=lambda step: abs(step.value)), signed=True)
        closest = f"Between the closest bounds, the change is {value} nats {interval}."
        return f"{name} is {directions['infonce']}: {values}. {closest}"
    if directions["infonce"] == directions["leave_one_out"] != UNCLEAR:
        return (
            f"{name} is not distinguishable from before, although both of its bounds are {directions['infonce']}: "
            f"{values}. The two are too close together to tell."
        )
    return f"{name} is not distinguishable from before: {values}."


def _state_accuracy(run: Results) -> str:
    name = "accuracy"
    difference = change(run, name)
    if difference is None:
        return "No rule judged answers here, so accuracy is not known."
    word = direction(difference)
    old, new = (" ".join(cell(name, side[name])) for side in (run.before, run.after))
    return (
        f"Accuracy, sampled as in training, is {word}{' from before' if word == UNCLEAR else ''}: "
        f"{old} before, {new} after, a change of {' '.join(cell(name, difference, signed=True))}."
    )


def _state_beside(run: Results, name: str, control: Results) -> str:
    parts = []
    for key, label in (("infonce", "InfoNCE"), ("accuracy", "sampled accuracy")):
        if key in run.after and key in control.after:
            here, there = (cell(key, side.after[key])[0] for side in (run, control))
            parts.append(f"{label} {against(run, control, key)} ({here} against {there})")
    kind = "control" if control.control else "run"
    return f"Compared with the {kind} {name} after training, {' and '.join(parts)}."


def against(run: Results, control: Results, name: str) -> str:
    """How a figure after training compares with a control's, side by side."""
    word = direction(far_ends(control.after[name], run.after[name]))
    return {"up": "is higher", "down": "is lower"}.get(word, "is not distinguishable")


def measure(name: str) -> Measure:
    """How to write a figure; an unknown one keeps its own name and number."""
    return MEASURES.get(name, Measure(name, "", 3))


def cell(name: str, figure: Figure | None, *, signed: bool = False) -> tuple[str, str]:
    """A figure as (value, interval) in text; `signed` writes a change, and shares then in percentage points.

    A change gets enough decimals to show which side of zero it is on, or how far its interval reaches.
    """
    if figure is None:
        return "-", ""
    _, unit, decimals = measure(name)
    scale, mark = (100, " pts" if signed else " %") if unit == "share" else (1, "")
    if signed:
        ends = abs(figure.low), abs(figure.high)
        telling = scale * (max(ends) if direction(figure) == UNCLEAR else min(ends))
        while telling and round(telling, decimals) == 0 and decimals < 6:
            decimals += 1
    sign = "+" if signed else ""
    value, low, high = (f"{scale * part:{sign}z.{decimals}f}" for part in (figure.value, figure.low, figure.high))
    return f"{value}{mark}", f"[{low}, {high}]"


def before_and_after(run: Results, name: str) -> str:
    """The values of a figure, without intervals."""
    old, new = (cell(name, side.get(name))[0] for side in (run.before, run.after))
    return f"{old} before, {new} after"
