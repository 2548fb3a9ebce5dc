"""The watch list: what contradicts a run's headline, or must be read with it. Knows findings and the manifest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mipo.report.findings import UNCLEAR, against, before_and_after, change, direction_of
from mipo.report.results import Results

_LENGTH_CHANGE, _TRUNCATED, _NEAR_CAP = 0.2, 0.05, 0.85
_FEW_ROWS = 30  # with fewer rows, a bootstrap's intervals are more than 4 % too narrow


@dataclass(frozen=True)
class Item:
    """Something to look at before believing the headline; `grave` if it contradicts the run."""

    title: str
    text: str
    grave: bool = False
    commands: tuple[str, ...] = ()


def watch(run: Results, controls: Mapping[str, Results]) -> list[Item]:
    """What to watch: over-optimisation first, then what limits the figures, then bookkeeping."""
    signs = list(_over_optimisation(run))
    items = [*_chosen_fell(run, signs), *signs, *_near_cap(run), *_few_rows(run), *_greedy(run, controls)]
    return [*items, *_unlike(run, controls), *_bookkeeping(run)]


def _over_optimisation(run: Results) -> Iterator[Item]:
    if direction_of(run, "malformed") == "up":
        yield Item("Malformed answers rose", f"{before_and_after(run, 'malformed')}.", grave=True)
    before, after = run.before.get("response_tokens"), run.after.get("response_tokens")
    if before and after and before.value > 0 and abs(after.value / before.value - 1) > _LENGTH_CHANGE:
        unclear = direction_of(run, "response_tokens") == UNCLEAR
        percent = f"{100 * (after.value / before.value - 1):+.0f} %{', but not distinguishable' if unclear else ''}"
        text = f"{before_and_after(run, 'response_tokens')} tokens ({percent})."
        yield Item("Response length changed", text, grave=True)
    if (truncated := run.after.get("truncated")) and truncated.value > _TRUNCATED:
        text = f"{before_and_after(run, 'truncated')}. A response that is cut off has no end to learn from; "
        title = f"More than {100 * _TRUNCATED:.0f} % of the responses were cut off"
        yield Item(title, f"{text}allow more new tokens.", grave=True)


def _chosen_fell(run: Results, signs: list[Item]) -> Iterator[Item]:
    if direction_of(run, "logps_chosen") != "down":
        return
    fall = run.before["logps_chosen"].value - run.after["logps_chosen"].value
    here = "; ".join(sign.title.lower() for sign in signs) if signs else "none of the three"
    unjudged = "" if "malformed" in run.after else " (malformed answers were not measured)"
    yield Item(
        "The log-prob of chosen responses fell",
        f"By {fall:.2f} nats per response ({before_and_after(run, 'logps_chosen')}). DPO usually lowers it, since it "
        "only has to widen the margin. It has gone too far when malformed answers rise, when the response length "
        f"changes by more than {100 * _LENGTH_CHANGE:.0f} %, or when more than {100 * _TRUNCATED:.0f} % of the "
        f"responses are cut off. In this run: {here}{unjudged}.",
        grave=bool(signs),
    )


def _near_cap(run: Results) -> Iterator[Item]:
    if run.after["infonce"].high > _NEAR_CAP * run.cap:
        yield Item(
            "InfoNCE is close to its cap",
            f"With K = {run.negatives} it cannot exceed {run.cap:.2f} nats, so it may hide a difference. "
            "Evaluate with more negatives.",
        )


def _few_rows(run: Results) -> Iterator[Item]:
    rows = min(figure.rows for figure in run.after.values())
    if rows < _FEW_ROWS:
        text = f"Some figures rest on {rows} rows. With fewer than {_FEW_ROWS}, the intervals are too narrow."
        yield Item("Few held-out rows", f"{text} Hold out more rows.")


def _greedy(run: Results, controls: Mapping[str, Results]) -> Iterator[Item]:
    name = "accuracy_greedy"
    if run.control or change(run, name) is None:
        return
    shuffled = {key: other for key, other in controls.items() if other.control == "shuffled" and change(other, name)}
    text = "Training on shuffled pairs can move greedy accuracy too, so compare it with that of a shuffled control."
    text += f" Here: {before_and_after(run, name)}"
    for key, control in shuffled.items():
        text += f"; {key}: {before_and_after(control, name)} (this run {against(run, control, name)})"
    if shuffled:
        yield Item("Greedy accuracy needs a control", f"{text}.")
    else:
        text += ". To get that control, in the folder that holds this run:"
        yield Item("Greedy accuracy needs a control", text, commands=_control_commands(run))


def _control_commands(run: Results) -> tuple[str, str]:
    folder, other, recipe = map(shlex.quote, (run.name, f"{run.name}-shuffled", f"{run.name}/recipe.yaml"))
    return (
        f"mipo run {recipe} --control shuffled --output {other} --reuse {folder}",
        f"mipo report {folder} --beside shuffled={other}",
    )


def _unlike(run: Results, controls: Mapping[str, Results]) -> Iterator[Item]:
    for name, control in controls.items():
        if control.control is None:
            yield Item(f"{name} is not a control", "Its manifest calls it a run of the method itself.")
        ours, theirs = ((r.negatives, r.rows, _model(r)) for r in (run, control))
        words = ("number of negatives K", "number of held-out rows", "model")
        differences = [word for word, this, that in zip(words, ours, theirs, strict=True) if this != that]
        if differences:
            text = f"They differ in {', '.join(differences)}, so compare them with care."
            yield Item(f"{name} is not like this run", text, grave=True)


def _model(run: Results) -> object:
    """What identifies a model: its checksum or revision, since a folder may have any name."""
    return run.model.get("checksum") or (run.model.get("name"), run.model.get("revision"))


def changed(run: Results) -> str:
    """Which files are not as the run wrote them, in a sentence; nothing where all are."""
    names = ", ".join(run.changed)
    return f"Not as the run wrote them: {names}. Run `mipo run` again to make them anew." if names else ""


def _bookkeeping(run: Results) -> Iterator[Item]:
    if run.changed:
        yield Item("Files changed since the run", changed(run), grave=True)
    for name, stage in run.manifest.get("stages", {}).items():
        rows_in, rows_out, dropped = stage.get("rows_in"), stage.get("rows_out"), stage.get("dropped") or {}
        if stage.get("state", "done") != "done":
            yield Item(f"Stage {name} is not done", f"Its state is {stage['state']!r}.", grave=True)
        if total := sum(dropped.values()):
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
            yield Item(f"Rows dropped in {name}", f"{total:,} of {rows_in or 0:,} ({reasons}).")
        if None not in (rows_in, rows_out) and rows_in != rows_out + total:
            text = f"{rows_in:,} rows in, {rows_out:,} rows out, and {total:,} dropped for a named reason."
            yield Item(f"Rows of {name} do not add up", text, grave=True)
