"""Run: the whole way from a recipe to a report, stage by stage, in one folder.

Knows every room and which stage feeds which. Knows nothing of how a stage is made safe to resume (`mipo.run.stages`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mipo.errors import InputError
from mipo.evaluation import figures, measurement
from mipo.io import files, records, tables
from mipo.models.loading import context_length, load_model, load_tokenizer
from mipo.negatives.draw import contrast
from mipo.pairing.controls import shuffle
from mipo.pairing.join import dropped, join, judge, keep
from mipo.prompts import rows as prompt_rows
from mipo.prompts.compose import compose, is_chat, render
from mipo.prompts.overlap import overlaps, reasons
from mipo.prompts.split import hold_out
from mipo.report import page
from mipo.responses.ask import ask, counter_prompts
from mipo.responses.generation import generate, lengths
from mipo.run import recipe
from mipo.run.stages import Rows, Run
from mipo.run.training_settings import load_checked
from mipo.tokenizer.encoder import fingerprint
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
    loaded = load_checked(path, folder, seed=seed, control=control)
    walk = _Walk(folder, records.settings(loaded), Path(reuse) if reuse else None)
    files.write_text(folder / "recipe.yaml", recipe.dump(loaded))
    for name in STAGES[: STAGES.index(until) + 1 if until else None]:
        getattr(walk, name)()
    if until is None:
        written = page.write(folder, beside=beside or {})
        print(f"\n{page.table(folder, beside=beside or {})}\n\nreport: {written}")
    return folder


def dry_run(path: str | Path, *, seed: int | None = None, rows: int = 3) -> str:
    """The first pairs as the model will see them, and what the run will cost, before anything costs anything."""
    settings = records.settings(load_checked(path, Path("runs") / Path(path).stem, seed=seed))
    tokenizer = load_tokenizer(settings["model"], trust_remote_code=settings["trust_remote_code"])
    train, test, rows_read = read_prompts(settings, tokenizer)
    train, rows_read, _ = separated(settings, train, test, rows_read)
    measurement.check(test, negatives=settings["evaluation"]["negatives"], rule=settings["evaluation"]["rule"])
    drawn = contrast(train, seed=settings["seed"], **settings["contrast"])
    own, counter = composed(train, drawn, is_chat(tokenizer))
    lines = []
    shown = [row for row in range(drawn.height) if counter[row] is not None][:rows]
    for row in shown:
        at = row // settings["contrast"]["negatives"]
        lines += [
            f"── pair {row + 1}: the prompt of both responses, and what the chosen one answers",
            *render([own[at]], tokenizer),
            "── what the rejected one answers",
            *render([counter[row]], tokenizer),
            "",
        ]
    asked = ask(own, counter).height
    given = settings["responses"]["max_new_tokens"]
    lines += [
        f"prompts: {rows_read.describe()}",
        f"{train.height:,} prompts, {drawn['reason'].null_count():,} pairs of kind {settings['contrast']['kind']}, "
        f"{asked:,} responses to generate of at most {given:,} tokens each; {test.height:,} held-out prompts",
    ]
    return "\n".join(lines)


def read_prompts(settings: dict[str, Any], tokenizer: Any) -> tuple[pl.DataFrame, pl.DataFrame, Rows]:
    """Training and held-out prompts of a recipe, and what became of the rows; without a look at overlaps."""
    given = settings["prompts"]
    how = {"prompt": given["prompt"], "context": given["context"], "split": given["split"]}
    read = _fitting(prompt_rows.read(given["source"], **how), settings, tokenizer)
    if given["test"]:
        test = _fitting(prompt_rows.read(given["test"], **how), settings, tokenizer)
        lost = {r: read.dropped.get(r, 0) + test.dropped.get(r, 0) for r in read.dropped | test.dropped}
        first = test.first | read.first
        rows = Rows(read.rows_in + test.rows_in, read.frame.height + test.frame.height, lost, first)
        return read.frame, test.frame, rows
    held = min(512, max(2, read.frame.height // 10)) if given["holdout"] is None else given["holdout"]
    train, test_rows = hold_out(read.frame, held, seed=settings["seed"], by=given["holdout_by"])
    return train, test_rows, Rows(read.rows_in, train.height + test_rows.height, read.dropped, read.first)


def separated(
    settings: dict[str, Any], train: pl.DataFrame, test: pl.DataFrame, rows: Rows
) -> tuple[pl.DataFrame, Rows, pl.DataFrame | None]:
    """The training prompts less those that occur among the held-out ones, if the recipe says so; those, a row each."""
    given = settings["prompts"]
    if given["overlap_share"] is None:
        return train, rows, None
    found = overlaps(train, test, words=given["overlap_words"], share=given["overlap_share"])
    why = reasons(train, found)
    kept = train.filter(why.is_null()).drop("prompt_id")
    if kept.height < 2:
        raise InputError(f"prompts: {found.height} of {train.height} training prompts occur in the held-out set")
    lost = rows.dropped | dropped(why.to_frame())
    kept = prompt_rows.numbered(kept).select(train.columns)
    return kept, Rows(rows.rows_in, rows.rows_out - found.height, lost, rows.first), found


def composed(frame: pl.DataFrame, drawn: pl.DataFrame, chat: bool) -> tuple[pl.Series, pl.Series]:
    """What the model is asked: each row's own prompt, and each drawn counter-prompt."""
    own = compose(frame["prompt"], frame["context"] if "context" in frame.columns else None, chat=chat)
    return own, counter_prompts(frame, drawn, chat=chat)


def _fitting(read: prompt_rows.Prompts, settings: dict[str, Any], tokenizer: Any) -> prompt_rows.Prompts:
    room = _room(settings)
    if room is None:
        return read
    own = compose(
        read.frame["prompt"], read.frame["context"] if "context" in read.frame.columns else None,
        chat=is_chat(tokenizer),
    )  # fmt: skip
    long = pl.Series(lengths(own, tokenizer) > room)
    return prompt_rows.drop(read, f"longer than the {room} tokens that the model's context leaves", long)


def _room(settings: dict[str, Any]) -> int | None:
    """How many tokens a prompt may have: the model's context less what a response may take."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(settings["model"], trust_remote_code=settings["trust_remote_code"])
    seen = context_length(config)
    if seen is None:
        return None
    new: int = settings["responses"]["max_new_tokens"]
    if new >= seen:
        raise InputError(f"responses.max_new_tokens is {new}, but the model's whole context is {seen} tokens; lower it")
    return seen - new


@dataclass
class _Walk:
    """One walk through the stages; each method does one of them."""

    folder: Path
    settings: dict[str, Any]
    reuse: Path | None

    def __post_init__(self) -> None:
        settings = self.settings
        self.trust: bool = settings["trust_remote_code"]
        self.tokenizer = load_tokenizer(settings["model"], trust_remote_code=self.trust)
        self.chat = is_chat(self.tokenizer)
        self.sampling = {k: settings["responses"][k] for k in ("temperature", "top_p", "max_new_tokens", "batch_size")}
        self.seed: int = settings["seed"]
        self.model = _model_hash(settings["model"], self.trust)
        about = {
            "mipo": importlib.metadata.version("mipo"),
            "command": " ".join(["mipo", *sys.argv[1:]]),
            "seed": self.seed,
            "control": settings["control"],
            "versions": {"python": platform.python_version(), **{lib: _version(lib) for lib in LIBRARIES}},
            "model": {"name": settings["model"], **self.model},
            "template_sha256": _text_hash(self.tokenizer.chat_template),
            "tokenizer_sha256": fingerprint(self.tokenizer),
        }
        self.run = Run(self.folder, settings, about=about, reuse=self.reuse)

    def prompts(self) -> None:
        given = self.settings["prompts"]
        sources = {name: _source_hash(given[name]) for name in ("source", "test") if given[name]}

        def work() -> Rows:
            train, test, rows = read_prompts(self.settings, self.tokenizer)
            train, rows, found = separated(self.settings, train, test, rows)
            given = self.settings["evaluation"]
            measurement.check(test, negatives=given["negatives"], rule=given["rule"])
            self._write(train, "prompts.parquet")
            self._write(test, "test.parquet")
            if found is not None:
                self._write(found, "overlaps.parquet")
            return rows

        new = self.sampling["max_new_tokens"]
        inputs = {"settings": given, "seed": self.seed, "sources": sources, "model": self.model, "new_tokens": new}
        self.run.stage("prompts", inputs, ("prompts.parquet", "test.parquet", "overlaps.parquet"), work)

    def contrast(self) -> None:
        def work() -> Rows:
            drawn = contrast(self._read("prompts.parquet"), seed=self.seed, **self.settings["contrast"])
            self._write(drawn, "counterparts.parquet")
            return Rows(drawn.height, drawn.height)

        inputs = {"settings": self.settings["contrast"], "seed": self.seed, "files": self.run.hashes("prompts")}
        self.run.stage("contrast", inputs, ("counterparts.parquet",), work)

    def responses(self) -> None:
        def work() -> Rows:
            train, drawn = self._read("prompts.parquet"), self._read("counterparts.parquet")
            asked = self._ask(train, drawn)
            made = self._generate(asked, self.folder / "responses", self.seed, "responses")
            return Rows(asked.height, made.height)

        files_in = self.run.hashes("prompts", "contrast")
        inputs = {"settings": self.sampling, "seed": self.seed, "model": self.model, "files": files_in}
        self.run.stage("responses", inputs, ("responses",), work)

    def pairs(self) -> None:
        shuffled = self.settings["control"] == "shuffled"

        def work() -> Rows:
            made = self.folder / "pairs.parquet"
            rows = Rows(*join(self._scan("prompts.parquet"), self._scan("counterparts.parquet"),
                              self._scan("responses/*.parquet"), made))  # fmt: skip
            if not rows.rows_out:
                made.unlink()
                raise InputError(f"pairs: none of {rows.rows_in} rows is a pair ({rows.dropped})")
            if shuffled:
                self._write(shuffle(self._read(made.name), seed=self.seed), made.name)
            return rows

        inputs = {"shuffled": shuffled, "seed": self.seed, "files": self.run.hashes("prompts", "contrast", "responses")}
        self.run.stage("pairs", inputs, ("pairs.parquet",), work)

    def tokens(self) -> None:
        max_length = self.settings["tokens"]["max_length"]

        def work() -> Rows:
            pairs, folder = [self.folder / "pairs.parquet"], self.folder / "tokens"
            told = prepare(pairs, self.tokenizer, folder, max_length=max_length)
            if not told["groups"]:
                raise InputError(f"tokens: no pair is left ({told['dropped']})")
            return Rows(told["rows_in"], told["rows_in"] - sum(told["dropped"].values()), told["dropped"])

        inputs = {"max_length": max_length, "tokenizer": self._tokenizer(), "files": self.run.hashes("pairs")}
        self.run.stage("tokens", inputs, ("tokens",), work)

    def baseline(self) -> None:
        folder = self.folder / "evaluation"

        def work() -> Rows:
            test = self._read("test.parquet")
            kind = self.settings["contrast"] | {"negatives": 1}
            drawn = contrast(test, seed=self.seed, **kind)
            asked = self._ask(test, drawn)
            made = self._generate(asked, folder / "responses", self.seed + 1, "held-out responses")
            judged = judge(test, drawn, made)
            held_out = keep(judged)
            if not held_out.height:
                raise InputError("evaluation: no held-out row became a pair; hold out more rows")
            self._write(held_out, "evaluation/pairs.parquet")
            store, lost = tokenize(held_out, self.tokenizer, max_length=self.settings["tokens"]["max_length"])
            if not len(store):
                raise InputError(f"evaluation: no held-out pair is left ({lost})")
            store.save(folder / "tokens")
            self._evaluate("before", self.settings["model"], store, made)
            return Rows(judged.height, held_out.height - sum(lost.values()), dropped(judged) | lost)

        inputs = {**self._evaluation_inputs(), "model": self.model}
        self.run.stage("baseline", inputs, ("evaluation/responses", "evaluation/pairs.parquet", "evaluation/tokens",
                       "evaluation/before.json", "evaluation/before.parquet"), work)  # fmt: skip

    def train(self) -> None:
        def work() -> None:
            from mipo.trainer.config import MIPOConfig
            from mipo.trainer.training import train

            fields = {"seed": self.seed, "trust_remote_code": self.trust, **self.settings["trainer"], **sft}
            args = MIPOConfig(output_dir=str(self.folder / "checkpoints"), **fields)
            store = PairStore.open(self.folder / "tokens")
            model, output = self.settings["model"], self.folder / "model"
            log = train(store, model, self.tokenizer, output, args=args, lora=self.settings["lora"])
            files.write_json(self.folder / "training.json", log)

        sft = {"loss_type": ["sft"]} if self.settings["control"] == "sft" else {}
        given = {"trainer": {**self.settings["trainer"], **sft}, "lora": self.settings["lora"], "seed": self.seed}
        inputs = {**given, "model": self.model, "files": self.run.hashes("tokens")}
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
        test, given = self._read("test.parquet"), self.settings["evaluation"]
        loaded = load_model(model, dtype=self._dtype(), trust_remote_code=self.trust)
        side, said = measurement.evaluate(
            loaded, self.tokenizer, test, store, kind=self.settings["contrast"]["kind"], negatives=self._negatives(),
            rows=given["rows"], rule=given["rule"], answers=answers, seed=self.seed + 1, progress=name,
            **self.sampling,
        )  # fmt: skip
        self._write(said, f"evaluation/{name}.parquet")
        files.write_json(self.folder / "evaluation" / f"{name}.json", side)

    def _dtype(self) -> str:
        """The reference model's dtype for both sides on an accelerator: a trained model is saved in float32."""
        import torch
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.settings["model"], trust_remote_code=self.trust)
        known = torch.accelerator.is_available() and config.dtype is not None
        return str(config.dtype).removeprefix("torch.") if known else "auto"

    def _negatives(self) -> int:
        given: int | None = self.settings["evaluation"]["negatives"]
        return min(31, self._read("test.parquet").height - 1) if given is None else given

    def _evaluation_inputs(self) -> dict[str, Any]:
        test = {name: digest for name, digest in self.run.hashes("prompts").items() if name == "test.parquet"}
        return {"settings": self.settings["evaluation"], "contrast": self.settings["contrast"], "seed": self.seed,
                "sampling": self.sampling, "test": test, "tokenizer": self._tokenizer()}  # fmt: skip

    def _ask(self, frame: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
        """The distinct prompts and counter-prompts, less those too long for the model: their pairs have no response."""
        asked = ask(*composed(frame, drawn, self.chat))
        room = _room(self.settings)
        if room is not None:
            asked = asked.filter(pl.Series(lengths(asked["prompt"], self.tokenizer) <= room))
        return asked

    def _generate(self, asked: pl.DataFrame, folder: Path, seed: int, progress: str) -> pl.DataFrame:
        return generate(
            asked, self.settings["model"], tokenizer=self.tokenizer, folder=folder, seed=seed, progress=progress,
            trust_remote_code=self.trust, **self.sampling,
        )  # fmt: skip

    def _tokenizer(self) -> str:
        return fingerprint(self.tokenizer)

    def _read(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / name)

    def _scan(self, name: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.folder / name)

    def _write(self, frame: pl.DataFrame, name: str) -> None:
        tables.write_frame(frame, self.folder / name)


def _model_hash(model: str, trust_remote_code: bool) -> dict[str, str | None]:
    if Path(model).is_dir():
        digest = hashlib.sha256()
        for path in sorted(Path(model).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(model)} {files.sha256(path)}\n".encode())
        return {"sha256": digest.hexdigest()}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    return {"revision": getattr(config, "_commit_hash", None)}


def _source_hash(source: str) -> str:
    path = Path(source)
    if path.is_file():
        return files.sha256(path)
    return _text_hash(source) or "" if not path.is_dir() else str(_model_hash(source, False)["sha256"])


def _text_hash(text: Any) -> str | None:
    return hashlib.sha256(str(text).encode()).hexdigest() if text is not None else None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
