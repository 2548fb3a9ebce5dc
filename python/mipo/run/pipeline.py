"""The pipeline: from a recipe to a report, stage by stage, in one folder.

Knows every folder of mipo, and which stage follows which. What a stage depends on is in `mipo.run.provenance`, and how
it is made safe to resume in `mipo.run.stages`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import polars as pl

from mipo import reasons
from mipo.errors import InputError
from mipo.evaluation import figures, measurement
from mipo.evaluation.selection import select_best
from mipo.io import files, outputs, records, sources, tables
from mipo.io.rowfile import READ_ROWS
from mipo.io.streams import of_parquet
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.pairing.controls import shuffle
from mipo.pairing.filter import BATCH_ROWS, ResponseStates, add_reasons, dropped, keep, write_with_reasons
from mipo.pairing.stored import StoredPairs
from mipo.report import page
from mipo.responses.answers import FILE
from mipo.responses.engines.choice import of_settings
from mipo.responses.engines.contract import Engine
from mipo.responses.generation import generate, generate_to
from mipo.responses.requests import Requests, compose_requests, link
from mipo.responses.scoring import scorer
from mipo.responses.stored_requests import open_requests
from mipo.run import provenance
from mipo.run.prompts import read_prompts
from mipo.run.recipe import Recipe, dump, run_folder
from mipo.run.stages import Rows, RunFolder
from mipo.run.training import launch, train_run
from mipo.run.training_settings import load_checked
from mipo.tokens.groups import tokenize
from mipo.tokens.preparation import prepare
from mipo.tokens.store import PairStore

STAGES = tuple(provenance.OUTPUTS)


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
    """Takes the recipe in `path` from prompts to `report.html` and returns the run folder.

    By default this is `runs/<recipe>`, with `-seed-<seed>` and `-<control>` after it where they are named here.

    A run that was stopped continues where it stopped; a finished one repeats only the stages whose inputs changed.
    `seed` and `control` replace the recipe's. `reuse` is another run folder: its stages with equal inputs are taken
    over. `until` is the last stage to run. `beside` names control runs for the report. Raises InputError for a folder
    that holds a run with other settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "a run is one process, which starts those of its training: do `mipo run RECIPE` without a launcher, and "
            "name their number in the recipe, for example launch: {processes: 8}"
        )
    if until is not None and until not in STAGES:
        raise InputError(f"until: expected one of {', '.join(STAGES)}, got {until!r}")
    page.read_beside(beside or {})
    folder = run_folder(path, output, seed, control)
    recipe = load_checked(path, folder, seed=seed, control=control)
    model = Model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    with outputs.claim(folder, "run"):
        run = RunFolder(folder, recipe, provenance.describe(recipe, model), reuse=Path(reuse) if reuse else None)
        files.write_text(folder / "recipe.yaml", dump(recipe))
        pipeline = _Pipeline(folder, recipe, model, Path(reuse) if reuse else None)
        for stage in STAGES[: STAGES.index(until) + 1 if until else None]:
            inputs = provenance.inputs(stage, recipe, model, run)
            run.do(stage, inputs, provenance.OUTPUTS[stage], getattr(pipeline, stage))
        if until is None:
            written = page.write(folder, beside=beside or {})
            print(f"\n{page.table(folder, beside=beside or {})}\n\nreport: {written}")
    return folder


@dataclass(frozen=True)
class _Pipeline:
    """The stages in their order. Each reads files of earlier stages, writes its own, and counts its rows."""

    folder: Path
    recipe: Recipe
    model: Model
    reuse: Path | None = None

    def prompts(self) -> Rows:
        """Reads the prompts and holds some of them out."""
        train, test, overlaps, rows = read_prompts(self.recipe, self.model)
        evaluation = self.recipe.evaluation
        measurement.check(test, negatives=evaluation.negatives, rule=evaluation.rule, at="evaluation.")
        self._write(train, "prompts.parquet")
        self._write(test, "test.parquet")
        if overlaps is not None:
            self._write(overlaps, "overlaps.parquet")
        return rows

    def contrast(self) -> Rows:
        """Draws the counterparts of each prompt."""
        drawn = contrast(self._read("prompts.parquet"), seed=self.recipe.seed, **records.settings(self.recipe.contrast))
        self._write(drawn, "counterparts.parquet")
        return Rows(drawn.height, drawn.height)

    def responses(self) -> Rows:
        """Links pairs to responses, and lets the model answer each distinct prompt."""
        settings, engine = self.recipe.responses, of_settings(self.recipe.responses)
        if settings.choose == "best":
            scorer(engine).check_scoring(self.model)
        prompts, drawn = self.folder / "prompts.parquet", self.folder / "counterparts.parquet"
        each = self.recipe.contrast.negatives  # rows of counterparts that a prompt has, and that stay together
        with open_requests(
            of_parquet(prompts, READ_ROWS), of_parquet(drawn, READ_ROWS), chat=self.model.is_chat,
            samples=settings.samples, fresh=settings.fresh, folder=self.folder,
        ) as requests:  # fmt: skip
            batches = of_parquet(drawn, max(tables.ROW_GROUP // each, 1) * each)
            tables.write(requests.links(batches), self.folder / "links.parquet")
            rows, failed = generate_to(
                self.folder / "responses", requests, self._sampler, settings.sampling,
                database=self.folder / FILE, engine=engine, reuse=self._reusable(), seed=self.recipe.seed,
                reasoning=settings.reasoning, max_failures=settings.max_failures, progress="responses",
            )  # fmt: skip
        return Rows(rows, rows - sum(failed.values()), failed)

    def pairs(self) -> Rows:
        """Decides which links are pairs; a shuffled control then swaps chosen and rejected in half of them."""
        responses, path = sources.scan(self.folder / "responses"), self.folder / "pairs.parquet"
        is_best = self.recipe.responses.choose == "best"
        links = self._links_of_best() if is_best else tables.scan(self.folder / "links.parquet")
        rows = Rows(*write_with_reasons(links, ResponseStates.of(responses, BATCH_ROWS), path))
        if not rows.rows_out:
            path.unlink()
            raise InputError(f"pairs: none of {rows.rows_in} rows is a pair ({rows.dropped})")
        if self.recipe.control == "shuffled":
            self._write(shuffle(self._read(path.name), seed=self.recipe.seed), path.name)
        self.__dict__.pop("_sampler", None)  # its weights would stay in memory beside the model's
        return rows

    def _links_of_best(self) -> pl.DataFrame:
        """The links, with a reason for the rows of all samples but the best one of their prompt."""
        links, responses = self._read("links.parquet"), sources.scan(self.folder / "responses").lazy().collect()
        stated = add_reasons(links, ResponseStates.of(responses, BATCH_ROWS))
        engine = of_settings(self.recipe.responses)
        best = select_best(
            stated, responses, self._sampler, engine=engine, database=self.folder / FILE, reuse=self._reusable()
        )
        return links.with_columns(reason=pl.coalesce("reason", pl.when(~best).then(pl.lit(reasons.ANOTHER_SAMPLE))))

    def tokens(self) -> Rows:
        """Tokenizes the pairs into a store."""
        manifest = prepare(
            [self.folder], self.model.tokenizer, self.folder / "tokens", max_length=self.recipe.tokens.max_length
        )
        drops = manifest["dropped"]
        if not manifest["groups"]:
            raise InputError(f"tokens: no pair is left ({drops})")
        return Rows(manifest["rows_in"], manifest["rows_in"] - sum(drops.values()), drops)

    def baseline(self) -> Rows:
        """Makes pairs of the held-out prompts, and measures the model before training."""
        test, folder = self._read("test.parquet"), self.folder / "evaluation"
        settings = records.settings(self.recipe.contrast) | {"negatives": 1}
        drawn = contrast(test, seed=self.recipe.seed, **settings)
        requests = compose_requests(test, drawn, chat=self.model.is_chat)
        # In the dtype of the answers after training, not in that of `responses`.
        name, judge = "evaluation/responses", self._judge()
        responses = self._generate(requests, name, self.model, judge, self.recipe.seed + 1, "held-out responses")
        links = add_reasons(link(test, drawn, requests), ResponseStates.of(responses, BATCH_ROWS))
        if not keep(links).height:
            raise InputError("evaluation: no held-out row became a pair; hold out more rows")
        self._write(links, "evaluation/pairs.parquet")
        pairs = pl.concat(StoredPairs(folder).batches(BATCH_ROWS))
        store, too_long = tokenize(pairs, self.model.tokenizer, max_length=self.recipe.tokens.max_length)
        if not len(store):
            raise InputError(f"evaluation: no held-out pair is left ({too_long})")
        store.save(folder / "tokens")
        self._measure("before", self.model.name, store, responses)
        return Rows(links.height, pairs.height - sum(too_long.values()), dropped(links) | too_long)

    def train(self) -> None:
        """Trains the model on the store, in this process or in several."""
        if self.recipe.launch:
            self.model.let_go()
            launch(self.folder, self.recipe.launch, self.reuse)
        else:
            train_run(self.folder, self.recipe, self.model, self.reuse)

    def evaluate(self) -> None:
        """Measures the model after training, and how much each figure changed."""
        store = PairStore.open(self.folder / "evaluation" / "tokens")
        self._measure("after", str(self.folder / "model"), store)
        sides = {name: files.read_json(self.folder / "evaluation" / f"{name}.json") for name in ("before", "after")}
        before, after = (self._read(f"evaluation/{name}.parquet") for name in ("before", "after"))
        changes = {name: asdict(f) for name, f in figures.change(before, after, seed=self.recipe.seed).items()}
        evaluation = {**sides, "change": changes, "negatives": self._negatives(), "rows": after.height}
        files.write_json(self.folder / "evaluation.json", evaluation)

    def _measure(self, side: str, name: str, store: PairStore, responses: pl.DataFrame | None = None) -> None:
        """Writes the figures of one side, "before" or "after", and the table that they rest on."""
        evaluation = self.recipe.evaluation
        # The reference model's dtype for both sides: a trained model is saved in float32.
        model = Model(name, trust_remote_code=self.model.trust_remote_code, dtype=self.model.saved_dtype)
        # The seed of the held-out responses again: both sides draw the same random numbers, so that what differs
        # between them is the model.
        measured, table = measurement.evaluate(
            model, self._read("test.parquet"), store, kind=self.recipe.contrast.kind, negatives=self._negatives(),
            rows=evaluation.rows, rule=evaluation.rule, responses=responses, engine=self._judge(),
            database=self.folder / FILE, reuse=self._reusable(), seed=self.recipe.seed + 1,
            reasoning=self.recipe.responses.reasoning, progress=side,
            **records.settings(self.recipe.responses.sampling),
        )  # fmt: skip
        self._write(table, f"evaluation/{side}.parquet")
        files.write_json(self.folder / "evaluation" / f"{side}.json", measured)

    def _negatives(self) -> int:
        return measurement.negatives_of(self.recipe.evaluation.negatives, self._read("test.parquet").height)

    def _judge(self) -> Engine | None:
        """The engine of `recipe.judge`, in the dtype of the model before training on both sides.

        vLLM's `auto` is bfloat16 for a model that is saved in float32, as the trained one is.
        """
        judge, dtype = self.recipe.judge, self.model.config.dtype
        if judge and judge.dtype == "auto" and dtype is not None:
            judge = msgspec.structs.replace(judge, dtype=str(dtype).removeprefix("torch."))
        return of_settings(judge) if judge else None

    @cached_property
    def _sampler(self) -> Model:
        """The model in the dtype that it answers in, loaded once for the responses and the choice among them."""
        return self.model.with_dtype(self.recipe.responses.dtype)

    def _generate(
        self, requests: Requests, name: str, model: Model, engine: Engine | None, seed: int, progress: str
    ) -> pl.DataFrame:
        """The responses to all requests; prompts without one have the reason."""
        return generate(
            requests.prompts, model, folder=self.folder / name, database=self.folder / FILE, engine=engine,
            reuse=self._reusable(), seed=seed, progress=progress, **self.recipe.responses.options,
        )  # fmt: skip

    def _reusable(self) -> Path | None:
        """The folder whose answers are taken over, if it has any."""
        return self.reuse if self.reuse and (self.reuse / FILE).exists() else None

    def _read(self, name: str) -> pl.DataFrame:
        return tables.scan(self.folder / name).collect()

    def _write(self, frame: pl.DataFrame, name: str) -> None:
        tables.write([frame], self.folder / name)
