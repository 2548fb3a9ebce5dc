"""Run: the whole way from a recipe to a report, stage by stage, in one folder.

Knows every room and which stage feeds which. Knows nothing of how a stage is made safe to resume (`mipo.run.stages`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mipo.errors import InputError
from mipo.evaluation import figures, measurement
from mipo.io import checksum, files, records, sources, tables
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.pairing.answers import Answers
from mipo.pairing.controls import shuffle
from mipo.pairing.judge import BATCH_ROWS, dropped, judge, keep, write_judged
from mipo.pairing.stored import StoredPairs
from mipo.report import page
from mipo.responses.ask import Requests, ask, link
from mipo.responses.generation import generate
from mipo.run.inputs import fits, read_prompts, separate
from mipo.run.recipe import Recipe, dump
from mipo.run.stages import Rows, Run
from mipo.run.training_settings import build, load_checked, trainer_fields
from mipo.tokens.groups import tokenize
from mipo.tokens.preparation import prepare
from mipo.tokens.store import PairStore

STAGES = ("prompts", "contrast", "responses", "pairs", "tokens", "baseline", "train", "evaluate")
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "polars",
    "pyarrow",
    "numpy",
    "tokenizers",
)


def run_recipe(
    path: str | Path,
    *,
    output: str | Path | None = None,
    seed: int | None = None,
    control: str | None = None,
    reuse: str | Path | None = None,
    until: str | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Path:
    """Takes the recipe in `path` from prompts to `report.html` and returns the run folder (default `runs/<recipe>`).

    Run again, it goes on where it was stopped, and does again only what other inputs made stale. `seed` and `control`
    replace the recipe's. `reuse` is another run folder, whose stages with equal inputs are taken over; `until` names
    the last stage to do; `beside` control runs for the report. Raises ValueError for a folder made with other settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "a run is one process; on several GPUs do `mipo run RECIPE --until baseline`, then train with "
            "`accelerate launch -m mipo train --tokens RUN/tokens …`"
        )
    if until is not None and until not in STAGES:
        raise InputError(f"until: expected one of {', '.join(STAGES)}, came {until!r}")
    folder = Path(output or Path("runs") / Path(path).stem)
    recipe = load_checked(path, folder, seed=seed, control=control)
    walk = _Walk(folder, recipe, Path(reuse) if reuse else None)
    files.write_text(folder / "recipe.yaml", dump(recipe))
    for name in STAGES[: STAGES.index(until) + 1 if until else None]:
        getattr(walk, name)()
    if until is None:
        written = page.write(folder, beside=beside or {})
        print(f"\n{page.table(folder, beside=beside or {})}\n\nreport: {written}")
    return folder


@dataclass
class _Walk:
    """One walk through the stages; each method does one of them."""

    folder: Path
    recipe: Recipe
    reuse: Path | None

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.model = Model(recipe.model, trust_remote_code=recipe.trust_remote_code)
        self.sampling = records.settings(recipe.responses)
        self.seed = recipe.seed
        about = {
            "mipo": importlib.metadata.version("mipo"),
            "command": shlex.join(["mipo", *sys.argv[1:]]),
            "seed": self.seed,
            "control": recipe.control,
            "versions": {"python": platform.python_version(), **{lib: _version(lib) for lib in LIBRARIES}},
            "model": {"name": self.model.name, **self.model.content},
            "template_checksum": _checksum(self.model.tokenizer.chat_template),
            "tokenizer_fingerprint": self.model.tokenizer_fingerprint,
        }
        self.run = Run(self.folder, recipe, about=about, reuse=self.reuse)

    def prompts(self) -> None:
        section = self.recipe.prompts
        contents = {n: _source_hash(path) for n, path in (("source", section.source), ("test", section.test)) if path}

        def work() -> Rows:
            train, test, rows = read_prompts(self.recipe, self.model)
            train, rows, found = separate(self.recipe, train, test, rows)
            evaluation = self.recipe.evaluation
            measurement.check(test, negatives=evaluation.negatives, rule=evaluation.rule)
            self._write(train, "prompts.parquet")
            self._write(test, "test.parquet")
            if found is not None:
                self._write(found, "overlaps.parquet")
            return rows

        inputs = {"settings": records.settings(section), "seed": self.seed, "sources": contents}
        inputs |= {"model": self.model.content, "new_tokens": self.recipe.responses.max_new_tokens}
        self.run.stage("prompts", inputs, ("prompts.parquet", "test.parquet", "overlaps.parquet"), work)

    def contrast(self) -> None:
        section = records.settings(self.recipe.contrast)

        def work() -> Rows:
            drawn = contrast(self._read("prompts.parquet"), seed=self.seed, **section)
            self._write(drawn, "counterparts.parquet")
            return Rows(drawn.height, drawn.height)

        inputs = {"settings": section, "seed": self.seed, "files": self.run.hashes("prompts")}
        self.run.stage("contrast", inputs, ("counterparts.parquet",), work)

    def responses(self) -> None:
        def work() -> Rows:
            train, drawn = self._read("prompts.parquet"), self._read("counterparts.parquet")
            asked = ask(train, drawn, chat=self.model.is_chat)
            self._write(link(train, drawn, asked), "links.parquet")
            made = self._generate(asked, self.folder / "responses", self.seed, "responses")
            return Rows(made.height, made.height)

        files_in = self.run.hashes("prompts", "contrast")
        inputs = {"settings": self.sampling, "seed": self.seed, "model": self.model.content, "files": files_in}
        self.run.stage("responses", inputs, ("responses", "links.parquet"), work)

    def pairs(self) -> None:
        shuffled = self.recipe.control == "shuffled"

        def work() -> Rows:
            path = self.folder / "pairs.parquet"
            answers = Answers.of(sources.scan(self.folder / "responses"), BATCH_ROWS)
            rows = Rows(*write_judged(pl.scan_parquet(self.folder / "links.parquet", glob=False), answers, path))
            if not rows.rows_out:
                path.unlink()
                raise InputError(f"pairs: none of {rows.rows_in} rows is a pair ({rows.dropped})")
            if shuffled:
                self._write(shuffle(self._read(path.name), seed=self.seed), path.name)
            return rows

        inputs = {"shuffled": shuffled, "seed": self.seed, "files": self.run.hashes("prompts", "contrast", "responses")}
        self.run.stage("pairs", inputs, ("pairs.parquet",), work)

    def tokens(self) -> None:
        max_length = self.recipe.tokens.max_length

        def work() -> Rows:
            told = prepare([self.folder], self.model.tokenizer, self.folder / "tokens", max_length=max_length)
            if not told["groups"]:
                raise InputError(f"tokens: no pair is left ({told['dropped']})")
            return Rows(told["rows_in"], told["rows_in"] - sum(told["dropped"].values()), told["dropped"])

        inputs = {"max_length": max_length, "tokenizer": self.model.tokenizer_fingerprint,
                  "files": self.run.hashes("pairs", "responses")}  # fmt: skip
        self.run.stage("tokens", inputs, ("tokens",), work)

    def baseline(self) -> None:
        folder = self.folder / "evaluation"

        def work() -> Rows:
            test = self._read("test.parquet")
            drawn = contrast(test, seed=self.seed, **records.settings(self.recipe.contrast) | {"negatives": 1})
            asked = ask(test, drawn, chat=self.model.is_chat)
            made = self._generate(asked, folder / "responses", self.seed + 1, "held-out responses")
            judged = judge(link(test, drawn, asked), Answers.of(made, BATCH_ROWS))
            if not keep(judged).height:
                raise InputError("evaluation: no held-out row became a pair; hold out more rows")
            self._write(judged, "evaluation/pairs.parquet")
            held_out = pl.concat(StoredPairs(folder).batches(BATCH_ROWS))
            store, lost = tokenize(held_out, self.model.tokenizer, max_length=self.recipe.tokens.max_length)
            if not len(store):
                raise InputError(f"evaluation: no held-out pair is left ({lost})")
            store.save(folder / "tokens")
            self._evaluate("before", self.model.name, store, made)
            return Rows(judged.height, held_out.height - sum(lost.values()), dropped(judged) | lost)

        inputs = {**self._evaluation_inputs(), "model": self.model.content}
        self.run.stage("baseline", inputs, ("evaluation/responses", "evaluation/pairs.parquet", "evaluation/tokens",
                       "evaluation/before.json", "evaluation/before.parquet"), work)  # fmt: skip

    def train(self) -> None:
        def work() -> None:
            from mipo.trainer.training import train

            args, _ = build(self.recipe, self.folder)
            store = PairStore.open(self.folder / "tokens")
            model, output = self.model.name, self.folder / "model"
            log = train(store, model, self.model.tokenizer, output, args=args, lora=self.recipe.lora)
            files.write_json(self.folder / "training.json", log)

        inputs = {"trainer": trainer_fields(self.recipe), "lora": self.recipe.lora, "seed": self.seed}
        inputs |= {"model": self.model.content, "files": self.run.hashes("tokens")}
        self.run.stage("train", inputs, ("model", "training.json", "checkpoints"), work)

    def evaluate(self) -> None:
        def work() -> None:
            store = PairStore.open(self.folder / "evaluation" / "tokens")
            self._evaluate("after", str(self.folder / "model"), store)
            sides = {name: files.read_json(self.folder / "evaluation" / f"{name}.json") for name in ("before", "after")}
            before, after = (self._read(f"evaluation/{name}.parquet") for name in ("before", "after"))
            moved = {n: asdict(f) for n, f in figures.change(before, after, seed=self.seed).items()}
            about = {"change": moved, "negatives": self._negatives(), "rows": after.height}
            files.write_json(self.folder / "evaluation.json", {**sides, **about})

        inputs = {**self._evaluation_inputs(), "files": self.run.hashes("baseline", "train")}
        made = ("evaluation/after.json", "evaluation/after.parquet", "evaluation.json")
        self.run.stage("evaluate", inputs, made, work)

    # The seed of the held-out responses again: before and after draw the same random numbers, so that what differs
    # between them is the model.
    def _evaluate(self, name: str, model: str, store: PairStore, answers: pl.DataFrame | None = None) -> None:
        test, section = self._read("test.parquet"), self.recipe.evaluation
        # The reference model's dtype for both sides: a trained model is saved in float32.
        side_model = Model(model, trust_remote_code=self.model.trust_remote_code, dtype=self.model.saved_dtype)
        side, said = measurement.evaluate(
            side_model, test, store, kind=self.recipe.contrast.kind, negatives=self._negatives(),
            rows=section.rows, rule=section.rule, answers=answers, seed=self.seed + 1, progress=name,
            **self.sampling,
        )  # fmt: skip
        self._write(said, f"evaluation/{name}.parquet")
        files.write_json(self.folder / "evaluation" / f"{name}.json", side)

    def _negatives(self) -> int:
        negatives = self.recipe.evaluation.negatives
        return min(31, self._read("test.parquet").height - 1) if negatives is None else negatives

    def _evaluation_inputs(self) -> dict[str, Any]:
        test = {name: digest for name, digest in self.run.hashes("prompts").items() if name == "test.parquet"}
        sections = {"settings": self.recipe.evaluation, "contrast": self.recipe.contrast}
        plain = {name: records.settings(section) for name, section in sections.items()}
        return {**plain, "seed": self.seed, "sampling": self.sampling, "test": test,
                "tokenizer": self.model.tokenizer_fingerprint}  # fmt: skip

    def _generate(self, asked: Requests, folder: Path, seed: int, progress: str) -> pl.DataFrame:
        """Responses to what is asked, less what is too long for the model: such pairs have no response."""
        prompts = asked.prompts.filter(fits(asked.prompts["prompt"], self.model, self.recipe.responses.max_new_tokens))
        return generate(prompts, self.model, folder=folder, seed=seed, progress=progress, **self.sampling)

    def _read(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / name, glob=False)

    def _write(self, frame: pl.DataFrame, name: str) -> None:
        tables.write_frame(frame, self.folder / name)


def _source_hash(source: str) -> str:
    path = Path(source)
    if path.is_file():
        return checksum.of_file(path)
    return checksum.of_folder(path) if path.is_dir() else checksum.of_value(source)


def _checksum(text: Any) -> str | None:
    return None if text is None else checksum.of_value(str(text))


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
