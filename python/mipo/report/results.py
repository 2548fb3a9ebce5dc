"""Results: the manifest and the evaluation of a run folder. Knows files, and not what the figures support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mipo.errors import InputError, NotThereError
from mipo.evaluation.figures import Figure
from mipo.io import checksum
from mipo.io.files import inside, read_json
from mipo.report.paths import last_part

SHOWN = ("evaluation.json", "training.json", "recipe.yaml", "pairs.parquet")
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Results:
    """The results of a finished run: its figures before and after training, and their paired changes, where measured.

    `paired` has the mean of after − before over rows, `negatives` is K, `rows` counts held-out rows. `changed`
    are the files that the report shows and that are no longer as the run wrote them.
    """

    folder: Path
    manifest: dict[str, Any]
    before: Figures
    after: Figures
    paired: Figures
    negatives: int
    rows: int
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name, that of its folder."""
        return self.folder.resolve().name

    @property
    def model(self) -> dict[str, Any]:
        """The manifest's entry of the model; a model in a folder is named by the last part of its path."""
        model = self.manifest.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            return {}
        return {**model, "name": last_part(model["name"], folder="checksum" in model)}

    @property
    def cap(self) -> float:
        """The largest value that InfoNCE can take, log(K+1), in nats."""
        return math.log(self.negatives + 1)

    @property
    def control(self) -> str | None:
        """What this run is a control of: "shuffled", "sft", or None for a run of the method itself."""
        return self.manifest.get("control")


def read(folder: Path) -> Results:
    """Reads manifest.json and evaluation.json.

    Raises NotThereError if one is missing, and InputError for one that is not as a run writes it.
    """
    manifest, path = _read_required(folder / "manifest.json"), folder / "evaluation.json"
    evaluation = _read_required(path)
    stages = manifest.get("stages", {}) if isinstance(manifest, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        refuse(folder / "manifest.json", 'an object whose "stages" is an object of objects', manifest)
    if not isinstance(evaluation, dict):
        refuse(path, 'an object with "before", "after", "negatives" and "rows"', evaluation)
    negatives, rows = (_read_count(path, name, evaluation.get(name)) for name in ("negatives", "rows"))
    before, after = (_read_side(path, name, evaluation.get(name)) for name in ("before", "after"))
    paired = _read_figures(path, "change", evaluation.get("change", {}))
    return Results(folder, manifest, before, after, paired, negatives, rows, _changed(folder, manifest))


def _changed(folder: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """The files that a report shows and that differ from their checksums in the manifest, or the manifest itself."""
    if not checksum.is_signed(manifest):
        return ("manifest.json",)
    written = {name: digest for stage in manifest["stages"].values() for name, digest in stage.get("files", {}).items()}
    written["recipe.yaml"] = manifest.get("recipe_checksum")
    shown = [name for name in written if name in SHOWN or name.startswith("responses/")]
    return tuple(
        name
        for name in shown
        if not (path := inside(folder, name)).is_file() or checksum.of_file(path) != written[name]
    )


def refuse(path: Path, expected: str, value: Any) -> NoReturn:
    """Raises the InputError that says what a run's file should hold, what it holds, and what to do."""
    text = repr(value)
    text = text if len(text) < 120 else f"{text[:120]}..."
    raise InputError(f"{path}: expected {expected}, got {text}; delete the file and run `mipo run` again to remake it")


def _read_required(path: Path) -> Any:
    if not path.is_file():
        raise NotThereError(f"{path}: expected this file of a finished run, got none; let `mipo run` finish first")
    return read_json(path)


def _read_count(path: Path, name: str, count: Any) -> int:
    if not isinstance(count, int) or count < 1:
        refuse(path, f'a whole number above 0 as "{name}"', count)
    return count


def _read_side(path: Path, name: str, figures: Any) -> Figures:
    if not isinstance(figures, dict) or not {"infonce", "leave_one_out"} <= figures.keys():
        refuse(path, f'at least the figures infonce and leave_one_out under "{name}"', figures)
    return _read_figures(path, name, figures)


def _read_figures(path: Path, name: str, figures: Any) -> Figures:
    if not isinstance(figures, dict):
        refuse(path, f'an object of figures as "{name}"', figures)
    return {key: _read_figure(path, f"{name}.{key}", value) for key, value in figures.items()}


def _read_figure(path: Path, name: str, figure: Any) -> Figure:
    fields: dict[str, Any] = figure if isinstance(figure, dict) else {}
    ends: list[Any] = [fields.get(part) for part in ("value", "low", "high")]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in ends) or ends[1] > ends[2]:
        refuse(path, f'finite numbers "value" and "low" <= "high" as {name}', figure)
    interval, rows = fields.get("interval"), fields.get("rows")
    if not isinstance(interval, str) or not isinstance(rows, int):
        refuse(path, f'a text "interval" and a whole number "rows" in {name}', figure)
    value, low, high = map(float, ends)
    return Figure(value, low, high, interval, rows)
