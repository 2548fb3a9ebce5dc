"""Report of a run: one page for people, one table for terminals; knows a run folder's files, and measures nothing.

`write` makes a page that needs nothing but itself, `table` the same figures as text. What may be said about them is
decided in mipo/findings.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from mipo.errors import InputError
from mipo.io.files import read_json, write_text
from mipo.pairing.stored import StoredPairs
from mipo.report import plots
from mipo.report.findings import (
    INFORMATION_ABOUT,
    MEASURES,
    Estimate,
    Moved,
    Run,
    cell,
    measure,
    moved,
    name_control,
    read,
    refuse,
    state,
    watch,
)

# Longest text shown of one turn in the sample, in characters: 200 pairs of long chains of thought would weigh 20 MB.
_SHOWN_CHARACTERS = 10_000


@dataclass(frozen=True)
class Row:
    """One line of the table; each cell is (value, interval) in text."""

    label: str
    before: tuple[str, str]
    after: tuple[str, str]
    change: tuple[str, str]
    moved: Moved | None
    beside: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """Evenly spaced pairs out of `total`, as the page's script reads them, and the kinds of negative among all."""

    total: int
    kinds: list[str]
    pairs: list[dict[str, Any]]


def write(folder: Path, *, beside: Mapping[str, Path] | None = None, sample: int = 200) -> Path:
    """Write `report.html` into a run folder and return its path.

    `beside` names control runs whose figures stand beside this run's; `sample` is the most pairs that the page carries.
    The same files give the same bytes. Raises FileNotFoundError without manifest.json or evaluation.json, and
    ValueError for a file that is not what a run writes.
    """
    run, controls = _read_all(folder, beside)
    page = _environment().from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    target = run.folder / "report.html"
    write_text(target, page.render(_contents(run, controls, sample)))
    return target


def table(folder: Path, *, beside: Mapping[str, Path] | None = None) -> str:
    """Return the run's figures as aligned text: measure, before, after, change, then each control's `after`.

    Raises as `write` does.
    """
    run, controls = _read_all(folder, beside)
    head = ["measure", "before", "after", "change", *(f"{name} (after)" for name in controls)]
    lines = [[row.label, row.before, row.after, row.change, *row.beside] for row in _rows(run, controls)]
    columns = [_column(title, cells) for title, *cells in zip(head, *lines, strict=True)]
    body = "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
    notes = (
        f"{run.rows:,} held-out rows, K = {run.negatives} negatives, cap of InfoNCE log(K+1) = {run.cap:.3f} nats.\n"
        "In brackets: 95 % intervals; that of a change spans all that its two intervals allow."
    )
    return "\n\n".join(part for part in (name_control(run), body, notes) if part)


def _rows(run: Run, controls: Mapping[str, Run]) -> list[Row]:
    names = dict.fromkeys([*MEASURES, *run.before, *run.after])
    return [_row(name, run, controls) for name in names if name in run.before or name in run.after]


def _row(name: str, run: Run, controls: Mapping[str, Run]) -> Row:
    before, after = run.before.get(name), run.after.get(name)
    change = None
    if before and after:
        # The far ends: an interval of at least 95 %, however the two estimates' (normal) errors are correlated.
        change = Estimate(after.value - before.value, after.low - before.high, after.high - before.low)
    beside = tuple(cell(name, control.after.get(name)) for control in controls.values())
    cells = cell(name, before), cell(name, after), cell(name, change, signed=True)
    return Row(measure(name).label, *cells, moved(before, after) if before and after else None, beside)


def _column(title: str, cells: list[Any]) -> list[str]:
    if isinstance(cells[0], str):
        width = max(map(len, [title, *cells]))
        return [text.ljust(width) for text in [title, *cells]]
    left, right = (max(len(cell[part]) for cell in cells) for part in (0, 1))
    lines = [f"{value:>{left}} {interval:>{right}}" for value, interval in cells]
    return [text.rjust(max(len(title), left + right + 1)) for text in [title, *lines]]


def _read_all(folder: Path, beside: Mapping[str, Path] | None) -> tuple[Run, dict[str, Run]]:
    return read(Path(folder)), {name: read(Path(other)) for name, other in (beside or {}).items()}


def _read_sample(folder: Path, sample: int) -> Sample | None:
    if not (folder / "pairs.parquet").is_file():
        return None
    try:
        stored = StoredPairs.find(folder)
        if stored is None:
            raise InputError("it holds no row numbers beside a folder of responses")
        total, kinds = stored.height(), stored.kinds()
        places = [index * total // min(sample, total) for index in range(min(sample, total))]
        shown = stored.take(places).with_columns(row=polars.Series(places)).to_dicts()
    except (polars.exceptions.PolarsError, InputError) as error:
        raise InputError(
            f"{folder / 'pairs.parquet'}: expected the pairs of a run, but {error}; run `mipo run` again to remake it"
        ) from error
    return Sample(total, kinds, [_pair(row) for row in shown])


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    about = "row {row} · prompt {prompt_id} · {kind} negative {negative} · chosen {chosen_id} · rejected {rejected_id}"
    texts = {name: _turns(row[name]) for name in ("prompt", "chosen", "rejected")}
    return {"about": about.format(**row), **texts}


def _turns(text: Any) -> list[tuple[str, str]]:
    turns = [("", text)] if isinstance(text, str) else [(turn["role"], turn["content"]) for turn in text or ()]
    return [
        (role, _clipped(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)))
        for role, content in turns
    ]


def _clipped(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… (cut here; {len(text):,} characters in all)"


def _contents(run: Run, controls: Mapping[str, Run], sample: int) -> dict[str, Any]:
    recipe, training = run.folder / "recipe.yaml", run.folder / "training.json"
    pairs = _read_sample(run.folder, sample)
    about = INFORMATION_ABOUT.get(pairs.kinds[0]) if pairs and len(pairs.kinds) == 1 else None
    logs = read_json(training) if training.is_file() else None
    if logs is not None and not (isinstance(logs, list) and all(isinstance(entry, dict) for entry in logs)):
        refuse(training, "a list of objects, TRL's log history", logs)
    return {
        "run": run,
        "finished": _finished(run),
        "controls": controls,
        "sentences": state(run, controls, about),
        "watch": watch(run, controls),
        "rows": _rows(run, controls),
        "pictures": _pictures(run, controls),
        "curves": None if logs is None else plots.curves(logs),
        "pairs": pairs,
        "about": about,
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
        "intervals": _ways(run),
    }


def _pictures(run: Run, controls: Mapping[str, Run]) -> list[plots.Plot]:
    sides = {"before": run.before, "after": run.after, **{name: other.after for name, other in controls.items()}}
    ends = {name: (side["infonce"], side["leave_one_out"]) for name, side in sides.items()}
    groups = {
        label: {name: side[key] for name, side in sides.items() if key in side}
        for label, key in (("sampled", "accuracy"), ("greedy", "accuracy_greedy"))
    }
    judged = {label: bars for label, bars in groups.items() if bars}
    return [plots.information(ends, run.cap), *([plots.accuracies(judged)] if judged else [])]


def _finished(run: Run) -> str:
    last = max((str(stage.get("finished") or "") for stage in run.manifest.get("stages", {}).values()), default="")
    return last.replace("T", " ").replace("+00:00", " UTC")


def _ways(run: Run) -> dict[str, list[str]]:
    ways: dict[str, list[str]] = {}
    for name, estimate in run.after.items():
        ways.setdefault(estimate.interval or "not recorded", []).append(measure(name).label.partition(" (")[0])
    return ways


def _environment() -> Any:
    from jinja2 import Environment

    # Prompts and responses are strangers' text: escaped everywhere, and `tojson` closes no <script>.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["set"] = _set
    return environment


def _set(text: str) -> str:
    # As a typesetter would: a true minus before a number that is no part of a name, no break within a value.
    text = re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d) (?=%)|(?<=\d,) (?=[^\s\]]*\])", "\N{NO-BREAK SPACE}", text)
