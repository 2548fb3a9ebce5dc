"""Options: a function's keyword arguments as options of a command, and back.

Knows signatures and argument parsing. Knows no command, and loads a function's room only when it is asked about it.
"""

import argparse
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = {
    "batch_rows": "rows held in memory at once, of tables of any size in Parquet",
    "batch_size": "prompts generated at once",
    "beside": "NAME=RUN: a control run whose figures stand beside this one's",
    "context": "column with the user's context",
    "control": "train a control instead of the method: shuffled (chosen and rejected swapped at random) or sft",
    "differ": "columns in which a counterpart differs (a user)",
    "encoder": "what makes the ids: fastokens, tokenizers (the truth, slow), or auto, which says why it is slow",
    "format": "trl, openrlhf or nemo-rl",
    "kind": "what the rejected response answers: random, partial, context or dropped",
    "match": "columns in which a counterpart equals its row (a task, a language)",
    "max_length": "longest prompt and response, in tokens; longer pairs are dropped by name",
    "max_new_tokens": "longest response, in tokens",
    "near": "a column, and how far a counterpart's number in it may be; of texts their characters, as prompt=50",
    "negatives": "K, how many other prompts",
    "near_duplicates": "rows at least so alike (Jaccard, as 0.8), or held together by such, never face each other",
    "output": "where the result goes",
    "overlap_share": "share of a held-out prompt's words that makes a prompt leave, where both have them in runs",
    "overlap_words": "words in a run that counts as shared with a held-out prompt",
    "prompt": "column with the prompt: text or chat messages",
    "reuse": "another run folder, whose stages with the same inputs are taken over",
    "rows": "how many rows are shown or scored",
    "sample": "how many pairs the page shows",
    "seed": "the same seed gives the same result",
    "share": "share of a held-out prompt's words that lies in runs of words which the prompt has too",
    "shard_rows": "rows that make one shard",
    "split": "split of a Hugging Face dataset",
    "temperature": "sampling temperature; 0 is greedy",
    "top_p": "nucleus sampling",
    "trust_remote_code": "run code that comes with the model",
    "until": "the last stage to do",
    "words": "words in a run that counts as shared with a held-out prompt",
}


def add_options(
    command: argparse.ArgumentParser, functions: tuple[str, ...], own: tuple[tuple[str, dict[str, Any]], ...]
) -> None:
    """Gives a command its own arguments, and for each plain keyword argument of its functions an option."""
    for name, how in own:
        command.add_argument(name, **how)
    taken = {action.dest for action in command._actions}
    for function in functions:
        for parameter in inspect.signature(_load(function)).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in taken and _plain(parameter):
                taken.add(parameter.name)
                command.add_argument(f"--{parameter.name.replace('_', '-')}", **_option(parameter))


def _load(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded


def _plain(parameter: inspect.Parameter) -> bool:
    """Whether an option can say it: text, numbers, paths and lists of names."""
    if parameter.name in ("progress", "folder"):  # the name of a progress bar; --output says the folder
        return False
    words = {"bool", "str", "int", "float", "Path", "Kind", "Format", "Choice", "None"}
    words |= {"Sequence[str]", "Mapping[str, Path]", "tuple[str, float]"}
    return all(part in words for part in _annotation(parameter).split(" | "))


def _annotation(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    return kind if isinstance(kind, str) else inspect.formatannotation(kind).replace("pathlib.", "")


def _option(parameter: inspect.Parameter) -> dict[str, Any]:
    about, kind, default = HELP.get(parameter.name), _annotation(parameter), parameter.default
    if kind == "bool":
        return {"action": "store_true", "help": about}
    if kind.startswith("Mapping"):
        return {"action": "append", "type": _named_path, "metavar": "NAME=RUN", "help": about}
    if kind.startswith("tuple"):
        return {"type": _column_and_number, "metavar": "COLUMN=NUMBER", "help": about}
    if kind.startswith("Sequence"):
        return {"nargs": "*", "default": list(default), "metavar": "COLUMN", "help": about}
    shown = f"{about} (default {default})" if about and default is not None else about
    choices = {
        "Kind": ("random", "partial", "context", "dropped"),
        "Format": ("trl", "openrlhf", "nemo-rl"),
        "Choice": ("auto", "fastokens", "tokenizers"),
    }.get(kind)
    number: Any = {"int": int, "float": float}.get(kind.split(" | ")[0], str)
    return {"default": default, "type": number, "choices": choices, "help": shown}


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=RUN, came {text!r}")
    return name, Path(path)


def _column_and_number(text: str) -> tuple[str, float]:
    column, _, number = text.rpartition("=")
    try:
        return column, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected COLUMN=NUMBER, came {text!r}") from None


def given(args: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """The options that are keyword arguments of `function`."""
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    found = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "beside" in found:
        found["beside"] = dict(found["beside"] or [])
    return {name: value for name, value in found.items() if name not in ("folder", "tokenizer")}
