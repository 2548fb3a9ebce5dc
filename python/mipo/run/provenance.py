"""Provenance: what a run was made with; for each stage, the files that it writes and everything they depend on.

Knows the recipe, the model and the installed libraries. Knows nothing of what a stage does.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

from mipo.io import checksum, records, sources
from mipo.models.model import Model
from mipo.responses.engines.choice import of_settings
from mipo.responses.scoring import scorer
from mipo.run.recipe import Recipe, dump
from mipo.run.stages import RunFolder
from mipo.run.training_settings import trainer_fields

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "polars", "pyarrow", "numpy", "tokenizers",
)  # fmt: skip
# The files and folders that each stage writes; the stages in their order.
OUTPUTS = {
    "prompts": ("prompts.parquet", "test.parquet", "overlaps.parquet"),
    "contrast": ("counterparts.parquet",),
    "responses": ("responses", "links.parquet"),
    "pairs": ("pairs.parquet",),
    "tokens": ("tokens",),
    "baseline": ("evaluation/responses", "evaluation/pairs.parquet", "evaluation/tokens", "evaluation/before.json",
                 "evaluation/before.parquet"),
    "train": ("model", "training.json", "checkpoints"),
    "evaluate": ("evaluation/after.json", "evaluation/after.parquet", "evaluation.json"),
}  # fmt: skip


def describe(recipe: Recipe, model: Model) -> dict[str, Any]:
    """What the manifest says of the whole run: versions, command, seed, control and model."""
    template = model.tokenizer.chat_template
    return {
        "mipo": importlib.metadata.version("mipo"),
        "command": shlex.join(["mipo", *sys.argv[1:]]),
        "seed": recipe.seed,
        "control": recipe.control,
        "versions": {"python": platform.python_version(), **{library: _version(library) for library in LIBRARIES}},
        "model": {"name": model.name, **model.content},
        "responses": {"engine": recipe.responses.engine, "token_ids": recipe.responses.token_ids},
        "recipe_checksum": checksum.of_bytes(dump(recipe).encode()),
        "template_checksum": None if template is None else checksum.of_value(str(template)),
        "tokenizer_fingerprint": model.tokenizer_fingerprint,
    }


def inputs(stage: str, recipe: Recipe, model: Model, run: RunFolder) -> dict[str, Any]:
    """Everything that the outputs of a stage depend on, as plain values; if any of it changes, the stage runs again."""
    plain, tokenizer = records.settings(recipe), model.tokenizer_fingerprint
    sampling = records.settings(recipe.responses.sampling) | {"reasoning": recipe.responses.reasoning}
    evaluation = {
        "settings": plain["evaluation"],
        "contrast": plain["contrast"],
        "sampling": sampling,
        "tokenizer": tokenizer,
    }
    if recipe.judge:  # one that changes between the two sides would change the figures
        evaluation["engine"] = scorer(of_settings(recipe.judge)).precision(model)
    match stage:
        case "prompts":
            section = recipe.prompts
            content = {"source": sources.content(section.source, section.split)}
            if section.test:
                content["test"] = sources.content(section.test, section.held_out_split)
            own: dict[str, Any] = {"settings": plain["prompts"], "sources": content, "model": model.content,
                   "new_tokens": recipe.responses.max_new_tokens}  # fmt: skip
        case "contrast":
            own = {"settings": plain["contrast"], "files": run.checksums("prompts")}
        case "responses":
            files = run.checksums("prompts", "contrast")
            asked = {"samples": recipe.responses.samples, "fresh": recipe.responses.fresh}
            own = {"settings": sampling | asked, "model": model.content, "files": files}
        case "pairs":
            files = run.checksums("prompts", "contrast", "responses")
            own = {"shuffled": recipe.control == "shuffled", "choose": recipe.responses.choose, "files": files}
        case "tokens":
            files = run.checksums("pairs", "responses")
            return {"max_length": recipe.tokens.max_length, "tokenizer": tokenizer, "files": files}
        case "baseline":
            own = {**evaluation, "test": _test_checksum(run), "model": model.content}
        case "train":
            own = {"trainer": trainer_fields(recipe), "lora": recipe.lora, "model": model.content,
                   "files": run.checksums("tokens")}  # fmt: skip
            if recipe.launch:
                own["launch"] = plain["launch"]
        case "evaluate":
            own = {**evaluation, "test": _test_checksum(run), "files": run.checksums("baseline", "train")}
        case _:
            raise AssertionError(f"no such stage: {stage}")
    return {"seed": recipe.seed, **own}


def _test_checksum(run: RunFolder) -> dict[str, str]:
    return {name: digest for name, digest in run.checksums("prompts").items() if name == "test.parquet"}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
