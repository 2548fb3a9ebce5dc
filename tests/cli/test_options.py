"""Options are keyword arguments of the stages' functions: written ones reach them, others keep their defaults."""

import inspect
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from mipo.cli.app import COMMANDS, app
from mipo.cli.options import HELP, describe, keywords, mirrors
from mipo.cli.values import paths_by_name
from mipo.negatives.draw import contrast
from mipo.prompts.rows import read


def written(*words: str) -> dict[str, Any]:
    """The keyword arguments with which a command would be called."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return bound.kwargs


CONTRAST = ("contrast", "prompts.jsonl", "--output", "c.parquet")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--kind context", "kind", "context"),
        ("--negatives 1_000", "negatives", 1000),
        ("--seed=-1", "seed", -1),
        ("--seed 1 --seed 2", "seed", 2),
        ("--match task", "match", ["task"]),
        ("--match task language --match user", "match", ["task", "language", "user"]),
        ("--differ --kind random", "differ", []),
        ("--near prompt=50", "near", ("prompt", 50.0)),
        ("--near a=b=0.5", "near", ("a=b", 0.5)),
        ("--near-duplicates 0.8", "near_duplicates", 0.8),
        ("--context none", "context", "none"),
        ("--held-out test.jsonl", "held_out", "test.jsonl"),
    ],
)
def test_values(words, name, value):
    kwargs = written(*CONTRAST, *words.split())
    assert (kwargs[name], type(kwargs[name])) == (value, type(value))


def test_values_are_the_same_where_pydantic_is_loaded():
    """Ray and others load it, and cyclopts then checks each value against its option's type."""
    code = "import pydantic; from mipo.cli.app import app\n" + (
        f"_, bound, _ = app.parse_args({[*CONTRAST, '--near', 'prompt=50', '--match', 'task']!r})\n"
        "assert bound.kwargs['near'] == ('prompt', 50.0) and bound.kwargs['match'] == ['task'], bound.kwargs\n"
        "_, bound, _ = app.parse_args(['run', 'r.yaml', '--beside', 'a=b', '--seed', '3'])\n"
        "assert bound.kwargs['beside'] == ['a=b'], bound.kwargs"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_control_runs_are_named_paths():
    kwargs = written("run", "recipe.yaml", "--beside", "sft=runs/sft", "--beside", "shuffled=runs/a=b")
    assert paths_by_name(kwargs["beside"]) == {"sft": Path("runs/sft"), "shuffled": Path("runs/a=b")}


def test_what_is_not_written_is_not_passed_on():
    assert written(*CONTRAST) == {"output": Path("c.parquet")}
    assert written("generate", "p.jsonl", "--model", "m", "--output", "o", "--trust-remote-code") == {
        "model": "m",
        "output": Path("o"),
        "trust_remote_code": True,
    }


def test_flags_of_trl_pass_through_as_they_are():
    flags = ["--beta", "0.5", "--loss_type", "hinge", "sigmoid", "--learning_rate=1e-4", "--use_cpu", "-1", "--lora-r"]
    words = [*flags[:4], "--model", "m", *flags[4:], "8", "--tokens", "t", "--output", "o"]
    _, bound, _ = app.parse_args(["train", *words], exit_on_error=False, print_error=False)
    assert bound.args == tuple(flags[:-1])
    assert bound.kwargs == {"model": "m", "tokens": Path("t"), "output": Path("o"), "lora_r": 8}


def test_every_text_is_shown_by_some_command():
    from rich.console import Console

    lines = Console(file=StringIO(), width=400)
    for command in COMMANDS:
        app.help_print([command], console=lines)
    printed = lines.file.getvalue()
    assert [name for name, text in HELP.items() if text not in printed] == []


def test_a_mirror_has_the_types_and_defaults_of_the_functions():
    @mirrors(read, contrast, without=("held_out",))
    def command(prompts: Path, *, kind: str, **options: Any) -> None: ...

    parameters = inspect.signature(command).parameters
    assert list(parameters)[:5] == ["prompts", "kind", "prompt", "context", "split"]
    for function in (read, contrast):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in ("held_out", "kind"):
                assert parameters[name].default == parameter.default
                assert parameters[name].annotation.__metadata__[-1].help == describe(name)
    assert parameters["kind"].default is inspect.Parameter.empty, "what a command has itself is its own"
    assert "held_out" not in parameters


def test_an_option_without_a_text_is_refused():
    def draw(*, colour: str = "red") -> None: ...

    with pytest.raises(KeyError, match="colour"):

        @mirrors(draw)
        def command(**options: Any) -> None: ...


def test_each_function_takes_its_own_of_a_commands_options():
    options = {"split": "test", "kind": "context", "seed": 3}
    assert keywords(read, options) == {"split": "test"}
    assert keywords(contrast, options) == {"kind": "context", "seed": 3}
