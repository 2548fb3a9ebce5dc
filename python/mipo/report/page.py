"""The page: a run's report as one HTML file, and its figures as a table. Knows a run folder's files; measures nothing.

`write` writes a page that needs no other file, `table` returns the same figures as text. What the figures support is
decided in `findings` and `watch`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io.files import read_json, write_text
from mipo.io.lazy import pl
from mipo.pairing.stored import StoredPairs
from mipo.report import paths, plots
from mipo.report.findings import (
    FAR_ENDS,
    INFORMATION_ABOUT,
    MEASURES,
    Direction,
    cell,
    change,
    describe_control,
    direction,
    measure,
    state,
)
from mipo.report.results import Results, read, refuse
from mipo.report.watch import changed, watch

# Longest text shown of one turn in the sample, in characters: 200 pairs of long chains of thought would weigh 20 MB.
_SHOWN_CHARACTERS = 10_000
SIDES = ("before", "after", "change")  # of a run itself

Cell = tuple[str, str]

RULE = (
    "In brackets: 95 % intervals. A change compares each held-out row after training with the same row before; it is "
    "up or down where its interval excludes zero."
)
RULE_FAR_ENDS = (
    "* Not compared row by row in this run: the interval spans all that the intervals before and after allow, and "
    "excludes zero only where these are apart."
)
RULE_BESIDE = "Two runs side by side are called different only where their intervals are apart."


@dataclass(frozen=True)
class Row:
    """One line of the table; a cell is (value, interval) in text; `paired`: the change was computed row by row."""

    label: str
    before: Cell
    after: Cell
    change: Cell
    direction: Direction | None
    paired: bool
    beside: tuple[Cell, ...]


@dataclass(frozen=True)
class Sample:
    """Evenly spaced pairs out of `total`, as the page's script reads them, and the kinds of negative among all."""

    total: int
    kinds: list[str]
    pairs: list[dict[str, Any]]


def write(folder: Path, *, beside: Mapping[str, Path] | None = None, sample: int = 200) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    `beside` names control runs whose figures stand beside this run's; the page has at most `sample` pairs. The same
    files give the same bytes. Raises NotThereError without manifest.json or evaluation.json, and InputError for a file
    that is not as a run writes it.
    """
    run, controls = _read_all(folder, beside)
    page = _environment().from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    target = run.folder / "report.html"
    write_text(target, page.render(_contents(run, controls, sample)))
    return target


def table(folder: Path, *, beside: Mapping[str, Path] | None = None) -> str:
    """The run's figures as aligned text: measure, before, after, change, then each control's `after`.

    Raises as `write` does.
    """
    run, controls = _read_all(folder, beside)
    rows = _rows(run, controls)
    head = ["measure", "before", "after", "change", *(f"{name} (after)" for name in controls)]
    lines = [[row.label, row.before, row.after, row.change, *row.beside] for row in rows]
    columns = [_column(title, cells) for title, *cells in zip(head, *lines, strict=True)]
    body = "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
    counts = f"{run.rows:,} held-out rows, K = {run.negatives} negatives, cap of InfoNCE log(K+1) = {run.cap:.3f} nats."
    notes = "\n".join(textwrap.fill(note, 100) for note in (counts, *_rules(rows, controls), changed(run)) if note)
    return "\n\n".join(part for part in (describe_control(run), body, notes) if part)


def _rules(rows: list[Row], controls: Mapping[str, Results]) -> list[str]:
    """How to read the intervals of these rows, in sentences."""
    return [RULE, *([] if all(row.paired for row in rows) else [RULE_FAR_ENDS]), *([RULE_BESIDE] if controls else [])]


def _rows(run: Results, controls: Mapping[str, Results]) -> list[Row]:
    names = dict.fromkeys([*MEASURES, *run.before, *run.after])
    return [_row(name, run, controls) for name in names if name in run.before or name in run.after]


def _row(name: str, run: Results, controls: Mapping[str, Results]) -> Row:
    difference = change(run, name)
    value, interval = cell(name, difference, signed=True)
    paired = difference is None or difference.interval != FAR_ENDS
    sides = cell(name, run.before.get(name)), cell(name, run.after.get(name)), (value, interval + "*" * (not paired))
    beside = tuple(cell(name, control.after.get(name)) for control in controls.values())
    return Row(measure(name).label, *sides, direction(difference) if difference else None, paired, beside)


def _column(title: str, cells: list[Any]) -> list[str]:
    if isinstance(cells[0], str):
        width = max(map(len, [title, *cells]))
        return [text.ljust(width) for text in [title, *cells]]
    if any(interval.endswith("*") for _, interval in cells):
        cells = [(value, interval if interval.endswith("*") else f"{interval} ") for value, interval in cells]
    left, right = (max(len(cell[part]) for cell in cells) for part in (0, 1))
    lines = [f"{value:>{left}} {interval:>{right}}" for value, interval in cells]
    return [text.rjust(max(len(title), left + right + 1)) for text in [title, *lines]]


def _read_all(folder: Path, beside: Mapping[str, Path] | None) -> tuple[Results, dict[str, Results]]:
    return read(Path(folder)), read_beside(beside or {})


def read_beside(beside: Mapping[str, Path]) -> dict[str, Results]:
    """The results of the runs that stand beside one; InputError for a name that the run's own figures have."""
    if taken := [name for name in beside if name in SIDES]:
        raise InputError(f"beside: expected another name than {', '.join(SIDES)}, got {taken[0]!r}; name the run apart")
    return {name: read(Path(other)) for name, other in beside.items()}


def _read_sample(folder: Path, sample: int) -> Sample | None:
    if not (folder / "pairs.parquet").is_file():
        return None
    try:
        stored = StoredPairs.find(folder)
        if stored is None:
            raise InputError("a table without row numbers, or no folder of responses beside it")
        total, kinds = stored.height(), stored.kinds()
        places = [index * total // min(sample, total) for index in range(min(sample, total))]
        pairs = stored.take(places).with_columns(row=pl.Series(places)).to_dicts()
    except (pl.exceptions.PolarsError, InputError) as error:
        raise InputError(
            f"{folder / 'pairs.parquet'}: expected the pairs of a run, got {error}; delete the file and run `mipo run` "
            "again to remake it"
        ) from error
    return Sample(total, kinds, [_pair(row) for row in pairs])


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


def _contents(run: Results, controls: Mapping[str, Results], sample: int) -> dict[str, Any]:
    recipe, training = run.folder / "recipe.yaml", run.folder / "training.json"
    pairs = _read_sample(run.folder, sample)
    about = INFORMATION_ABOUT.get(pairs.kinds[0]) if pairs and len(pairs.kinds) == 1 else None
    rows = _rows(run, controls)
    logs = read_json(training) if training.is_file() else None
    if logs is not None and not (isinstance(logs, list) and all(isinstance(entry, dict) for entry in logs)):
        refuse(training, "a list of objects, TRL's log history", logs)
    return {
        "run": run,
        "finished": _finished(run),
        "controls": controls,
        "sentences": state(run, controls, about),
        "watch": watch(run, controls),
        "rows": rows,
        "rules": _rules(rows, controls),
        "pictures": _pictures(run, controls),
        "curves": None if logs is None else plots.curves(logs),
        "pairs": pairs,
        "about": about,
        "command_line": paths.shorten_command(str(run.manifest.get("command") or "not recorded"), run.folder),
        "recipe": _read_recipe(recipe, run.folder),
        "short": lambda text: paths.shorten(str(text), run.folder),
        "methods": _methods(run),
    }


def _pictures(run: Results, controls: Mapping[str, Results]) -> list[plots.Plot]:
    sides = {"before": run.before, "after": run.after, **{name: other.after for name, other in controls.items()}}
    ends = {name: (side["infonce"], side["leave_one_out"]) for name, side in sides.items()}
    groups = {
        label: {name: side[key] for name, side in sides.items() if key in side}
        for label, key in (("sampled", "accuracy"), ("greedy", "accuracy_greedy"))
    }
    judged = {label: bars for label, bars in groups.items() if bars}
    return [plots.information(ends, run.cap), *([plots.accuracies(judged)] if judged else [])]


def _finished(run: Results) -> str:
    last = max((str(stage.get("finished") or "") for stage in run.manifest.get("stages", {}).values()), default="")
    return last.replace("T", " ").replace("+00:00", " UTC")


def _read_recipe(path: Path, run: Path) -> str | None:
    return paths.shorten_recipe(path.read_text(encoding="utf-8", errors="replace"), run) if path.is_file() else None


def _methods(run: Results) -> list[tuple[str, str]]:
    """Each way of computing an interval with the names of its figures, changes last."""
    changes = {name: difference for name in run.after if (difference := change(run, name))}
    lines = []
    for figures, prefix in ((run.after, ""), (changes, "change of ")):
        names: dict[str, dict[str, None]] = {}
        for name, figure in figures.items():
            noun = re.split(r",| \(", measure(name).label)[0]
            names.setdefault(figure.interval or "not recorded", {})[noun] = None
        lines += [(method, prefix + ", ".join(nouns)) for method, nouns in names.items()]
    return lines


def _environment() -> Any:
    from jinja2 import Environment

    # Prompts and responses are strangers' text: escaped everywhere, and `tojson` closes no <script>.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["set"] = _set
    return environment


def _set(text: str) -> str:
    # Like a typesetter: a true minus before a number that is no part of a name, no break within a value.
    text = re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d) (?=%)|(?<=\d,) (?=[^\s\]]*\])", "\N{NO-BREAK SPACE}", text)
