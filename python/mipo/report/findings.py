"""Findings of a run: what its numbers allow to be said, and what to watch; knows no page, no plot and no pairs.

Every word about a change follows one rule: two estimates differ when their 95 % intervals are apart, and are "not
distinguishable" otherwise.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from mipo.errors import InputError, NotThereError
from mipo.io.files import read_json

# Thresholds of the watch list.
_LENGTH_CHANGE, _TRUNCATED, _NEAR_CAP = 0.2, 0.05, 0.85


INFORMATION_ABOUT = {
    "random": "between prompt and response",
    "partial": "between prompt and response",
    "context": "between the user's context and the response, given the question",
    "dropped": "between the user's context and the response, given the question",
}


class Estimate(NamedTuple):
    """One measured value, the ends of its 95 % interval, and how that interval was got."""

    value: float
    low: float
    high: float
    interval: str = ""


Side = dict[str, Estimate]
Moved = Literal["up", "down", "not distinguishable"]


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


@dataclass(frozen=True)
class Run:
    """One run folder's manifest and evaluation, as read; `negatives` is K, `rows` counts held-out rows."""

    folder: Path
    manifest: dict[str, Any]
    before: Side
    after: Side
    negatives: int
    rows: int

    @property
    def cap(self) -> float:
        """The largest value that InfoNCE can take, log(K+1), in nats."""
        return math.log(self.negatives + 1)

    @property
    def control(self) -> str | None:
        """What this run is a control of: "shuffled", "sft", or None for a run of the method itself."""
        return self.manifest.get("control")


@dataclass(frozen=True)
class Watch:
    """One thing that a reader should look at before believing the headline; `grave` when it speaks against the run."""

    title: str
    text: str
    grave: bool = False
    commands: tuple[str, ...] = ()


def read(folder: Path) -> Run:
    """Read what every report needs, manifest.json and evaluation.json; raise as `write` does."""
    manifest, path = _read_required(folder / "manifest.json"), folder / "evaluation.json"
    evaluation = _read_required(path)
    stages = manifest.get("stages", {}) if isinstance(manifest, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        refuse(folder / "manifest.json", 'an object whose "stages" is an object of objects', manifest)
    if not isinstance(evaluation, dict):
        refuse(path, 'an object with "before", "after", "negatives" and "rows"', evaluation)
    negatives, rows = (_read_count(path, name, evaluation.get(name)) for name in ("negatives", "rows"))
    before, after = (_read_side(path, name, evaluation.get(name)) for name in ("before", "after"))
    return Run(folder, manifest, before, after, negatives, rows)


def moved(before: Estimate, after: Estimate) -> Moved:
    """Say which way an estimate went, which it did only when the two 95 % intervals are apart."""
    if after.low > before.high:
        return "up"
    return "down" if after.high < before.low else "not distinguishable"


def state(run: Run, controls: Mapping[str, Run], about: str | None) -> list[str]:
    """State in sentences what changed and what did not, claiming no more than the intervals allow."""
    sentences = [name_control(run), _state_information(run, about), _state_accuracy(run)]
    sentences += [_state_beside(run, name, control) for name, control in controls.items()]
    still = [
        MEASURES[name].label.partition(" (")[0]
        for name in ("malformed", "logps_chosen", "logps_rejected", "response_tokens", "truncated")
        if _moved(run, name) == "not distinguishable"
    ]
    return [s for s in [*sentences, f"Not distinguishable from before: {', '.join(still)}." if still else ""] if s]


def watch(run: Run, controls: Mapping[str, Run]) -> list[Watch]:
    """List what speaks against the headline or must be read with it: over-optimisation first, then bookkeeping."""
    signs = list(_over_optimisation(run))
    found = [*_chosen_fell(run, signs), *signs, *_near_cap(run), *_greedy(run, controls)]
    return [*found, *_unlike(run, controls), *_bookkeeping(run)]


def _state_information(run: Run, about: str | None) -> str:
    ends = [(side["infonce"], side["leave_one_out"]) for side in (run.before, run.after)]
    was, now = (f"[{low.value:.3f}, {high.value:.3f}]" for low, high in ends)
    whole = [Estimate(low.value, min(low.low, high.low), max(low.high, high.high)) for low, high in ends]
    name, values = "The information interval" + (f" {about}" if about else ""), f"{was} nats before, {now} nats after"
    direction = moved(*whole)
    if direction != "not distinguishable":
        return f"{name} is {direction}: {values}, apart even at the far ends of their 95 % intervals."
    both = [_moved(run, end) for end in ("infonce", "leave_one_out")]
    if both[0] == both[1] != "not distinguishable":
        word = "higher" if both[0] == "up" else "lower"
        return (
            f"{name} has both ends {word}, but still overlaps the one before: {values}. "
            "So whether the information itself changed is not distinguishable."
        )
    return f"{name} is not distinguishable from the one before: {values}, and they overlap within their 95 % intervals."


def _state_accuracy(run: Run) -> str:
    name = "accuracy"
    if (direction := _moved(run, name)) is None:
        return "No rule judged answers here, so nothing is said about accuracy."
    how = "not distinguishable from before" if direction == "not distinguishable" else direction
    was, now = (" ".join(cell(name, side.get(name))) for side in (run.before, run.after))
    return f"Accuracy, sampled as in training, is {how}: {was} before, {now} after."


def _state_beside(run: Run, name: str, control: Run) -> str:
    parts = []
    for key, label in (("infonce", "InfoNCE"), ("accuracy", "sampled accuracy")):
        here, there = run.after.get(key), control.after.get(key)
        if here and there:
            word = {"up": "above it", "down": "below it"}.get(moved(there, here), "not distinguishable from it")
            parts.append(f"{word} in {label} ({cell(key, here)[0]} against {cell(key, there)[0]})")
    return f"Beside the {'control' if control.control else 'run'} {name}, this run ends {' and '.join(parts)}."


def name_control(run: Run) -> str:
    """Say in one sentence that a run is a control, and of what; empty for a run of the method itself."""
    if run.control is None:
        return ""
    what = {
        "shuffled": "its pairs were shuffled, so that which of two answers was chosen says nothing about the prompt",
        "sft": "it was trained on the chosen responses alone, with no rejected ones",
    }.get(run.control, "see the recipe")
    return f"This is a control run ({run.control}): {what}. What moves here moves without the method."


def _over_optimisation(run: Run) -> Iterator[Watch]:
    if _moved(run, "malformed") == "up":
        yield Watch("Malformed answers rose", f"{_went(run, 'malformed')}.", grave=True)
    before, after = run.before.get("response_tokens"), run.after.get("response_tokens")
    if before and after and before.value > 0 and abs(after.value / before.value - 1) > _LENGTH_CHANGE:
        apart = "" if moved(before, after) != "not distinguishable" else ", though their 95 % intervals overlap"
        percent = f"{100 * (after.value / before.value - 1):+.0f} %"
        yield Watch(
            "Response length changed", f"{_went(run, 'response_tokens')} tokens ({percent}{apart}).", grave=True
        )
    if (cut := run.after.get("truncated")) and cut.value > _TRUNCATED:
        text = f"{_went(run, 'truncated')}. A cut response has no end to learn from; allow more new tokens."
        yield Watch(f"More than {_TRUNCATED:.0%} of the responses were cut off".replace("%", " %"), text, grave=True)


def _chosen_fell(run: Run, signs: list[Watch]) -> Iterator[Watch]:
    if _moved(run, "logps_chosen") != "down":
        return
    fall = run.before["logps_chosen"].value - run.after["logps_chosen"].value
    seen = "; ".join(sign.title.lower() for sign in signs) if signs else "none of these was seen"
    blind = "" if "malformed" in run.after else " (malformed answers were not measured)"
    yield Watch(
        "Chosen log-prob fell",
        f"By {fall:.2f} nats per response ({_went(run, 'logps_chosen')}). DPO lowers it as a rule: it widens the "
        "margin, also at the cost of both sides. It is too much when malformed answers rise, when the response "
        f"length changes by more than 20 %, or when more than 5 % of the responses are cut off. "
        f"In this run: {seen}{blind}.",
        grave=bool(signs),
    )


def _near_cap(run: Run) -> Iterator[Watch]:
    if run.after["infonce"].high > _NEAR_CAP * run.cap:
        yield Watch(
            "InfoNCE is close to its cap",
            f"With K = {run.negatives} it cannot exceed {run.cap:.2f} nats, so it may hide a difference. "
            "Evaluate with more negatives.",
        )


def _greedy(run: Run, controls: Mapping[str, Run]) -> Iterator[Watch]:
    name = "accuracy_greedy"
    if _moved(run, name) is None:
        return
    shuffled = {key: c for key, c in controls.items() if c.control == "shuffled" and _moved(c, name) is not None}
    text = f"Shuffled pairs move greedy accuracy too, so read it beside its control. Here {_went(run, name)}"
    for key, control in shuffled.items():
        against = moved(control.after[name], run.after[name])
        word = {"up": "above it", "down": "below it"}.get(against, "not distinguishable from it")
        text += f"; {key} {_went(control, name)}, and this run ends {word}"
    commands = () if shuffled or run.control else _control_commands(run)
    yield Watch(
        "Greedy accuracy is no clean measure",
        text + ("." if not commands else ". To get the control:"),
        False,
        commands,
    )


def _control_commands(run: Run) -> tuple[str, str]:
    this, other = shlex.quote(str(run.folder)), shlex.quote(f"{run.folder}-shuffled")
    recipe = shlex.quote(str(run.folder / "recipe.yaml"))
    return (
        f"mipo run {recipe} --control shuffled --output {other} --reuse {this}",
        f"mipo report {this} --beside shuffled={other}",
    )


def _unlike(run: Run, controls: Mapping[str, Run]) -> Iterator[Watch]:
    for name, control in controls.items():
        if control.control is None:
            yield Watch(f"{name} is not a control", "Its manifest calls it a run of the method itself.")
        ours, theirs = ((r.negatives, r.rows, r.manifest.get("model")) for r in (run, control))
        words = ("number of negatives K", "number of held-out rows", "model")
        unlike = [word for word, this, that in zip(words, ours, theirs, strict=True) if this != that]
        if unlike:
            yield Watch(
                f"{name} is not like this run", f"They differ in {', '.join(unlike)}; compare them with care.", True
            )


def _bookkeeping(run: Run) -> Iterator[Watch]:
    for name, stage in run.manifest.get("stages", {}).items():
        rows_in, rows_out, dropped = stage.get("rows_in"), stage.get("rows_out"), stage.get("dropped") or {}
        if stage.get("state", "done") != "done":
            yield Watch(f"Stage {name} is not done", f"Its state is {stage['state']!r}.", grave=True)
        if gone := sum(dropped.values()):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
            yield Watch(f"Rows dropped in {name}", f"{gone:,} of {rows_in or 0:,}: {reasons}.")
        if None not in (rows_in, rows_out) and rows_in != rows_out + gone:
            text = f"{rows_in:,} came in, {rows_out:,} went out, {gone:,} were dropped for a named reason."
            yield Watch(f"Rows of {name} do not add up", text, grave=True)


def measure(name: str) -> Measure:
    """How a figure is written; one that is not ours keeps its own name and number."""
    return MEASURES.get(name, Measure(name, "", 3))


def cell(name: str, estimate: Estimate | None, *, signed: bool = False) -> tuple[str, str]:
    """Write an estimate as (value, interval); `signed` writes it as a change, shares then in percentage points."""
    if estimate is None:
        return "-", ""
    _, unit, decimals = measure(name)
    scale, mark = (100, " pts" if signed else " %") if unit == "share" else (1, "")
    value, low, high = (f"{scale * part:{'+' if signed else ''}.{decimals}f}" for part in estimate[:3])
    return f"{value}{mark}", f"[{low}, {high}]"


def _moved(run: Run, name: str) -> Moved | None:
    before, after = run.before.get(name), run.after.get(name)
    return moved(before, after) if before and after else None


def _went(run: Run, name: str) -> str:
    was, now = (cell(name, side.get(name))[0] for side in (run.before, run.after))
    return f"{was} before, {now} after"


def _read_required(path: Path) -> Any:
    if not path.is_file():
        raise NotThereError(f"{path}: expected this file of a finished run, found none; let `mipo run` finish first")
    return read_json(path)


def _read_count(path: Path, name: str, count: Any) -> int:
    if not isinstance(count, int) or count < 1:
        refuse(path, f'a whole number above 0 as "{name}"', count)
    return count


def _read_side(path: Path, name: str, side: Any) -> Side:
    if not isinstance(side, dict) or not {"infonce", "leave_one_out"} <= side.keys():
        refuse(path, f'at least the figures infonce and leave_one_out under "{name}"', side)
    return {key: _read_estimate(path, f"{name}.{key}", value) for key, value in side.items()}


def _read_estimate(path: Path, name: str, figure: Any) -> Estimate:
    parts: list[Any] = [figure.get(key) if isinstance(figure, dict) else None for key in ("value", "low", "high")]
    if not all(isinstance(part, int | float) and math.isfinite(part) for part in parts) or parts[1] > parts[2]:
        refuse(path, f'finite numbers "value" and "low" <= "high" as {name}', figure)
    value, low, high = map(float, parts)
    return Estimate(value, low, high, str(figure.get("interval", "")))


def refuse(path: Path, expected: str, came: Any) -> NoReturn:
    """Raise the ValueError that says what a run's file should hold, what it holds, and what to do."""
    shown = repr(came)
    shown = shown if len(shown) < 120 else f"{shown[:120]}..."
    raise InputError(
        f"{path}: expected {expected}, came {shown}; delete the file and run `mipo run` again to remake it"
    )
