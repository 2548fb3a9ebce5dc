"""The examples of the README and of docs/ run as they stand."""

import re
from pathlib import Path

import pytest

from mipo.cli.app import app
from mipo.run import recipe

ROOT = Path(__file__).parents[2]
README = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
EXAMPLES = [text for language, text in FENCED if language == "python"]
BLOCKS = "".join(text for language, text in FENCED if not language).replace("\\\n", "")
COMMANDS = re.findall(r"^(?:accelerate launch -m )?(mipo [a-z]+ .*)$", BLOCKS, flags=re.MULTILINE)


def test_there_are_examples():
    assert len(EXAMPLES) >= 3
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_python_example_runs(example):
    names = {}
    exec(example, names)
    if "pairs" in names:
        assert names["pairs"].height == 3
        assert (names["pairs"]["chosen"] != names["pairs"]["rejected"]).all()
    if "loss" in names:
        assert names["loss"].isfinite()
        assert (names["logps"] < 0).all()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    words = command.split("#")[0].split()[1:]
    function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert function.__module__ == f"mipo.cli.commands.{words[0]}"
    assert bound.arguments


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_one(path):
    assert recipe.load(path).prompts.source
