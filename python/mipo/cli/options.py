"""Options: the keyword arguments of a stage's functions as options of a command, with their types and defaults.

Knows signatures, and the text that `--help` shows for each name. Knows no command.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from cyclopts import Parameter
from msgspec import structs
from msgspec.structs import FieldInfo

from mipo.cli.values import WRITTEN
from mipo.errors import InputError
from mipo.io import records
from mipo.io.records import Count

# Of options that are no setting of a recipe, or that mean more there; the others are described by the recipe's records.
HELP = {
    "batch_rows": "rows held in memory at once, of Parquet tables of any size",
    "beside": "a control run whose figures stand beside this one's; may be repeated",
    "database": "an SQLite file that keeps answers and scores as they come, so that a later call continues",
    "encoder": "what makes the ids: fastokens, tokenizers (the reference, slow), or auto, which says when it is slow",
    "format": "the trainer that reads the pairs",
    "negatives": "K, the number of other prompts",
    "output": "where the result goes",
    "reuse": "another folder of the same kind, of which what was done alike is taken over",
    "sample": "how many pairs the page shows",
    "share": "share of a held-out prompt's words that an overlapping prompt has, in runs",
    "shard_rows": "rows in one shard",
    "until": "the last stage to run",
    "words": "how many words in a row make a run that both prompts have",
}

# What options allow that are no setting of a recipe.
ALLOWED: dict[str, Any] = {name: Count for name in ("batch_rows", "negatives", "sample", "shard_rows")}
# Options that have another name than their setting.
SETTINGS = {"share": "overlap_share", "words": "overlap_words"}

Address = Annotated[
    str | None, Parameter(help="a Ray cluster's: auto, or ray://HOST:10001; without it one is started on this machine")
]
Counterparts = Annotated[Path, Parameter(help="what `mipo contrast` wrote")]
Engine = Annotated[Literal["local", "ray"], Parameter(help="where the work is done: here, or on Ray")]
HeldOut = Annotated[
    str | Path, Parameter(metavar="PATH", help="a file of prompts, with the same columns, that must not be trained on")
]
HeldOutSplit = Annotated[
    str | None, Parameter(help="split of the held-out prompts; without it the same as that of the prompts")
]
ModelName = Annotated[str | Path, Parameter(metavar="MODEL", help="a folder or a hub name")]  # shells complete a path
Output = Annotated[Path, Parameter(help=HELP["output"])]
Prompts = Annotated[
    str | Path, Parameter(help="JSONL, Parquet or CSV file, a folder of them, or a Hugging Face dataset")
]
TrustRemoteCode = Annotated[bool, Parameter(show_default=False, help="run code that comes with the model")]

Command = TypeVar("Command", bound=Callable[..., None])


def mirrors(*functions: Callable[..., Any], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Puts the keyword arguments of `functions` into a command's signature, in the place of its `**options`.

    Not those that the command has itself, nor those in `without`. The command gets what its user wrote, if the settings
    of recipes with these names allow it, and the functions have the defaults. Raises KeyError for a name that nothing
    describes.
    """

    def mirror(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = {parameter.name: parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD}
        mirrored = set()
        for function in functions:
            for name, parameter in _keyword_only(function).items():
                if name not in parameters and name not in without:
                    mirrored.add(name)
                    parameters[name] = parameter.replace(annotation=_option(parameter, function))

        @functools.wraps(command)
        def checked(*arguments: Any, **options: Any) -> None:
            for name in options.keys() & {*mirrored, *ALLOWED}:
                check(name, options[name])
            command(*arguments, **options)

        checked.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        checked.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return cast("Command", checked)

    return mirror


def keywords(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command that are keyword arguments of `function`."""
    return {name: options[name] for name in _keyword_only(function) if name in options}


def describe(name: str) -> str:
    """What `--help` says of an option."""
    return HELP.get(name) or str(records.meta(_settings()[name]).description)


def check(name: str, value: Any) -> None:
    """InputError for a value that the option does not allow: what the setting of a recipe of this name does not."""
    setting = _settings().get(SETTINGS.get(name, name))
    kind = ALLOWED.get(name) or (setting.type if setting else Any)
    if value is not None and (problem := records.problem(kind, value, f"--{name.replace('_', '-')}")):
        raise InputError(problem.replace(" or null, got", ", got"))  # nobody writes null on a command line


@functools.cache
def _settings() -> dict[str, FieldInfo]:
    """A recipe's settings, by name."""
    from mipo.responses.sampling import Responses
    from mipo.run.recipe import Contrast, Evaluation, Prompts, Recipe, Tokens

    kinds = (Prompts, Contrast, Responses, Tokens, Evaluation, Recipe)
    fields = [field for kind in reversed(kinds) for field in structs.fields(kind)]
    return {field.name: field for field in fields}


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def _option(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """The parameter's type, with how a command line writes it and what `--help` says of it."""
    kind = parameter.annotation
    if isinstance(kind, str):  # postponed; only this one is evaluated, since others may name types that are not loaded
        kind = eval(kind, vars(sys.modules[function.__module__]))
    return Annotated[WRITTEN.get(kind, kind), Parameter(help=describe(parameter.name))]
