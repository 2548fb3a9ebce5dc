"""The commented recipe is one, and the JSON Schema marks what is refused."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from recipes import HEAD, SHIPPED, WRONG, write_recipe

from mipo.responses.sampling import Sampling
from mipo.run import document, recipe, recipe_text
from mipo.run.recipe import Contrast, Evaluation, Prompts, Recipe, Tokens


def schema() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(recipe_text.schema())
    jsonschema.Draft202012Validator.check_schema(whole)
    return whole


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema())
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def test_the_commented_recipe_loads_and_is_the_defaults(tmp_path: Path) -> None:
    text = recipe_text.commented()
    loaded = recipe.load(write_recipe(tmp_path, text, head=""))
    assert loaded == Recipe(model=loaded.model, prompts=Prompts(source=loaded.prompts.source))
    assert errors(text) == []
    assert max(map(len, text.splitlines())) <= 120


def test_the_commented_recipe_names_every_setting_with_a_comment() -> None:
    lines = recipe_text.commented().splitlines()
    written = yaml.safe_load("\n".join(lines))
    for section in (Prompts, Contrast, Sampling, Tokens, Evaluation, Recipe):
        for name in section.__struct_fields__:
            assert any(line.split(":")[0].strip() == name for line in lines), name
    for number, line in enumerate(lines):
        if ":" in line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), line
    assert list(written) == list(Recipe.__struct_fields__)


def test_what_the_commented_recipe_has_in_comments_can_be_taken_out_of_them(tmp_path: Path) -> None:
    lines = recipe_text.commented().splitlines()
    start = lines.index("trainer:")
    stop = lines.index("", start)
    paper = [line.replace("# ", "", 1) for line in lines[start + 1 : stop]]
    rule = next(number for number, line in enumerate(lines) if line.strip() == "# rule:")
    shown = [line.replace("# ", "", 1) for line in lines[rule : rule + 4]]
    text = [*lines[: start + 1], *paper, *lines[stop : rule - 1], *shown, *lines[rule + 4 :]]
    loaded = recipe.load(write_recipe(tmp_path, "\n".join(text), head=""))
    assert loaded.trainer["learning_rate"] == 5e-7
    assert loaded.trainer["lr_scheduler_type"] == "cosine_with_min_lr"
    assert loaded.evaluation.rule is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_recipe_is_one_for_the_schema_too(path: Path) -> None:
    assert list(jsonschema.Draft202012Validator(schema()).iter_errors(document.read(path))) == []


# Expressions, conditions between settings, and numbers that JSON does not have or takes for whole ones.
UNSEEN = ("pattern: '", "dropped,", ".nan", ".inf", "1.0}", "1e3")


@pytest.mark.parametrize("text", [text for text, *_ in WRONG if not any(word in text for word in UNSEEN)])
def test_an_editor_marks_what_is_refused(text: str) -> None:
    assert errors(HEAD + text)


def test_the_schema_describes_every_setting() -> None:
    whole = schema()
    for name, kind in whole["$defs"].items():
        assert kind["additionalProperties"] is False, name
        for setting, about in kind["properties"].items():
            assert "$ref" in json.dumps(about) or about.get("description") or "anyOf" in about, (name, setting)
    trainer = whole["$defs"]["Recipe"]["properties"]["trainer"]["anyOf"][0]["properties"]
    assert trainer["learning_rate"]["default"] == 5e-7
    assert "cosine" in trainer["lr_scheduler_type"]["enum"]
