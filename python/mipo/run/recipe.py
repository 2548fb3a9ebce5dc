"""Recipes: the settings of a run, as a YAML file: each with its type, range, default and description.

The records here are the one source of what is refused, of what `mipo recipe` prints (`mipo.run.recipe_text`), and of
the `--help` of options. Loads no torch and reads no data, so that a wrong value costs a second. Runs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mipo import reasons
from mipo.errors import InputError
from mipo.evaluation.rule import Rule
from mipo.io import records
from mipo.io.records import Count, Record, Seed, Share, Text
from mipo.negatives.draw import Kind, check_kind
from mipo.responses.sampling import Responses
from mipo.run import document
from mipo.run.training_fields import fields_of

HoldoutRows = Annotated[int, Meta(ge=2)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]
Tolerance = Annotated[float, Meta(ge=0)]
Words = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NO_SECRET = (
    "expected no secret in a recipe, which is copied into run folders; set it in the environment, for example HF_TOKEN"
)


class Prompts(Record, frozen=True, kw_only=True):
    """Where the prompts are, and which of them are held out, to be measured on only."""

    source: Annotated[
        Text, Meta(description="JSONL, Parquet, CSV, or a Hugging Face dataset", examples=["prompts.jsonl"])
    ]
    prompt: Annotated[Text, Meta(description="column with the prompt: text or chat messages")] = "prompt"
    context: Annotated[Text | None, Meta(description="column with the user's context", examples=["context"])] = None
    split: Annotated[Text, Meta(description="split of a Hugging Face dataset, or of a folder")] = "train"
    test: Annotated[Text | None, Meta(description="source of the held-out prompts; null holds out rows of source")] = (
        None
    )
    test_split: Annotated[
        Text | None, Meta(description="split of the source `test`; null for the same as split", examples=["test"])
    ] = None
    holdout: Annotated[
        HoldoutRows | None, Meta(description="number of rows to hold out; null for a tenth, at most 512")
    ] = None
    holdout_by: Annotated[
        Text | None,
        Meta(description="column whose values are either trained on or held out, never both", examples=["user"]),
    ] = None
    overlap_share: Annotated[
        PositiveShare | None,
        Meta(
            description="drops training prompts that share this much of a held-out prompt's words, or that equal one",
            examples=[0.5],
        ),
    ] = None
    overlap_words: Annotated[Words, Meta(description="words in a run that counts as shared with a held-out prompt")] = 8

    def __post_init__(self) -> None:
        if self.test_split and not self.test:
            raise InputError(f"test_split: expected a source test with it, got {self.test_split!r} and no test")

    @property
    def held_out_split(self) -> str:
        """The split of `test`."""
        return self.test_split or self.split


class Contrast(Record, frozen=True, kw_only=True):
    """Which prompt a rejected response answers: a counterpart, drawn from the prompts."""

    kind: Annotated[
        Kind,
        Meta(
            description="the answer to another prompt (random), to part of the prompt (partial), to it under another "
            "user's context (context), or without its context (dropped)"
        ),
    ] = "random"
    negatives: Annotated[Count, Meta(description="K, rejected responses for each prompt")] = 1
    match: Annotated[
        Text | tuple[Text, ...],
        Meta(description="columns in which a counterpart equals its row", examples=[["task"]]),
    ] = ()
    differ: Annotated[
        Text | tuple[Text, ...],
        Meta(description="columns in which a counterpart differs from its row", examples=[["user"]]),
    ] = ()
    near: Annotated[
        tuple[Text, Tolerance] | None,
        Meta(
            description="a column, and how far a counterpart's number in it may be; of a text its length",
            examples=[["prompt", 50]],
        ),
    ] = None
    near_duplicates: Annotated[
        PositiveShare | None,
        Meta(
            description="Jaccard similarity from which two rows, or rows linked by such rows, never face each other",
            examples=[0.8],
        ),
    ] = None

    def __post_init__(self) -> None:
        check_kind(
            self.kind, self.negatives, match=self.match, differ=self.differ,
            near=self.near, near_duplicates=self.near_duplicates,
        )  # fmt: skip


class Tokens(Record, frozen=True, kw_only=True):
    """How pairs become token ids."""

    max_length: Annotated[
        Count | None, Meta(description="longest prompt and response, in tokens; longer pairs are dropped by name")
    ] = 15_360


class Launch(Record, frozen=True, kw_only=True):
    """In how many processes the model is trained, and how they share it."""

    processes: Annotated[
        Count | None,
        Meta(description="processes on this machine; null for one on each GPU, or those of your config", examples=[8]),
    ] = None
    config: Annotated[
        Text | None,
        Meta(
            description="a file for accelerate, or TRL's of a name, as zero3; null copies the model to each process",
            examples=["fsdp2"],
        ),
    ] = None


class Evaluation(Record, frozen=True, kw_only=True):
    """What is measured on the held-out prompts, before and after training."""

    negatives: Annotated[
        Count | None, Meta(description="K of the information interval; null for 31, or all other rows")
    ] = None
    rows: Annotated[Count, Meta(description="held-out rows whose information is measured, at most")] = 512
    rule: Annotated[
        Rule | None, Meta(description="reads an answer from each response; only measures, training never sees it")
    ] = None


class Recipe(Record, frozen=True, kw_only=True):
    """A run from prompts to a report. File names are relative to the recipe's folder."""

    model: Annotated[
        Text, Meta(description="a folder, or a name on the Hugging Face hub", examples=["Qwen/Qwen2.5-0.5B-Instruct"])
    ]
    prompts: Prompts
    contrast: Contrast = Contrast()
    responses: Responses = Responses()
    tokens: Tokens = Tokens()
    trainer: Annotated[
        dict[str, Any], Meta(description="fields of mipo.trainer.MIPOConfig, which are those of trl.DPOConfig")
    ] = msgspec.field(default_factory=dict)
    lora: Annotated[
        dict[str, Any] | None,
        Meta(
            description="fields of peft.LoraConfig; null trains all weights",
            examples=[{"r": 16, "target_modules": "all-linear"}],
        ),
    ] = None
    launch: Annotated[
        Launch | None,
        Meta(
            description="trains in several processes; null trains in one. A step has per_device_train_batch_size "
            "groups of each",
            examples=[{"processes": 8}],
        ),
    ] = None
    evaluation: Evaluation = Evaluation()
    seed: Annotated[Seed, Meta(description="the same seed gives the same result")] = 0
    control: Annotated[
        Literal["shuffled", "sft"] | None,
        Meta(description="a control run: shuffled (chosen and rejected swapped at random) or sft (chosen ones alone)"),
    ] = None
    max_dropped: Annotated[
        Share | dict[str, Share],
        Meta(
            description="share of rows that may be dropped; or the share for each reason, with 0.01 for all others",
            examples=[{"chosen and rejected are equal": 0.5}],
        ),
    ] = 0.01
    redo_after_upgrade: Annotated[
        bool,
        Meta(
            description="do stages again that other versions of mipo, torch, transformers, trl or another library "
            "did; false keeps them, and says so"
        ),
    ] = False
    trust_remote_code: Annotated[bool, Meta(description="run code that comes with the model")] = False

    def __post_init__(self) -> None:
        for reason in self.max_dropped if isinstance(self.max_dropped, dict) else ():
            if not reasons.is_known(reason):
                near = reasons.nearest(reason)
                raise InputError(f"max_dropped: expected reasons for which rows are dropped, for example {near!r}, "
                                 f"got {reason!r}")  # fmt: skip

    @property
    def judge(self) -> Responses | None:
        """What answers held-out prompts and scores, before and after training alike: vLLM where the recipe has it, None
        for this process.

        A server does not have the trained model, and vLLM cannot load an adapter as one.
        """
        return self.responses if self.responses.engine == "vllm" and self.lora is None else None


def load(path: str | Path, *, seed: int | None = None, control: str | None = None) -> Recipe:
    """The recipe in a YAML file. `seed` and `control` replace its own; names of files beside it are made absolute.

    Raises NotThereError without a file, and InputError that names the file, each wrong setting, what is allowed and
    what it got. Names and values of `trainer` and `lora` are refused here if the source of TRL and PEFT says enough;
    `mipo.trainer.config` has the last word.
    """
    path = Path(path)
    values = document.read(path)
    values |= {name: value for name, value in (("seed", seed), ("control", control)) if value is not None}
    try:
        records.refuse([f"{name}: {NO_SECRET}" for name in document.secrets(values)])
        recipe = _read(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    source, test = (name and _absolute(name, path.parent) for name in (recipe.prompts.source, recipe.prompts.test))
    prompts = msgspec.structs.replace(recipe.prompts, source=source, test=test)
    launch = recipe.launch
    if launch and launch.config:
        launch = msgspec.structs.replace(launch, config=_absolute(launch.config, path.parent))
    model = _absolute(recipe.model, path.parent)
    return msgspec.structs.replace(recipe, model=model, prompts=prompts, launch=launch)


def run_folder(path: str | Path, output: str | Path | None, seed: int | None, control: str | None) -> Path:
    """The folder of a run: `output`, or one in `runs` by the recipe's name, and the seed and control if given."""
    named = [Path(path).stem, *([] if seed is None else [f"seed-{seed}"]), *([control] if control else [])]
    return Path(output or Path("runs") / "-".join(named))


def dump(recipe: Recipe) -> str:
    """A loaded recipe as YAML that repeats the run: every setting, with overrides and absolute file names."""
    return document.write(records.settings(recipe))


def _read(values: dict[Any, Any]) -> Recipe:
    """Refuses every wrong setting at once: those of the records, and those of `trainer` and `lora`."""
    problems, checked = [], dict(values)
    for section in ("trainer", "lora"):
        if isinstance(fields := values.get(section), dict) and (wrong := _wrong_fields(section, fields)):
            problems += wrong
            checked[section] = {}
    if checked.get("trainer", {}) is None:  # an empty section
        checked["trainer"] = {}
    recipe, others = records.examine(Recipe, checked)
    records.refuse([*others, *problems])
    assert recipe is not None
    return recipe


def _wrong_fields(section: str, values: dict[Any, Any]) -> list[str]:
    fields = fields_of("MIPOConfig" if section == "trainer" else "LoraConfig")
    if fields is None:
        return []
    problems = []
    for name, value in values.items():
        if name not in fields:
            problems.append(records.unknown(name, fields, section))
        elif (section, name) == ("trainer", "output_dir"):
            problems.append("trainer.output_dir: expected none; a run keeps everything in its own folder, see --output")
        elif problem := records.problem(fields[name].kind, value, f"{section}.{name}"):
            problems.append(problem)
    return problems


def _absolute(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if (folder / name).exists() else name
