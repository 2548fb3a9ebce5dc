"""Recipes: a YAML file as people write it becomes a typed record, or each wrong value is refused by its full name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mipo import demo
from mipo.errors import InputError, NotThereError
from mipo.io import records
from mipo.responses.generation import generate
from mipo.responses.sampling import Sampling
from mipo.run import document, recipe, recipe_text
from mipo.run.recipe import Contrast, Evaluation, Prompts, Recipe, Tokens

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted((ROOT / "recipes").glob("*.yaml")), demo.HERE / "recipe.yaml"]
HEAD = "model: some/model\nprompts: {source: prompts.jsonl}\n"


def write(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(head + text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, head: str = HEAD) -> str:
    path = write(folder, text, head)
    with pytest.raises((InputError, NotThereError)) as error:
        recipe.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    assert recipe.load(write(tmp_path, "")) == Recipe(model="some/model", prompts=Prompts(source="prompts.jsonl"))


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    empty = "contrast:\nresponses:\ntokens:\ntrainer:\nlora:\nevaluation:\n"
    assert recipe.load(write(tmp_path, empty)) == recipe.load(write(tmp_path, ""))


def test_values_have_their_types(tmp_path: Path) -> None:
    text = """
contrast: {kind: context, negatives: 2, match: [task, lang], differ: user, near: [prompt, 50], near_duplicates: 1}
responses: {temperature: 1, top_p: .5}
trainer: {learning_rate: 5e-7, loss_type: [sigmoid], report_to: none, save_strategy: 'no', lr_scheduler_kwargs: {}}
lora: {r: 16, target_modules: all-linear, init_lora_weights: pissa_niter_4}
evaluation: {rule: {answer: answer, pattern: '(?P<answer>.)'}}
max_dropped: {empty response: 1}
"""
    loaded = recipe.load(write(tmp_path, text))
    assert loaded.contrast == Contrast(
        kind="context", negatives=2, match=("task", "lang"), differ="user", near=("prompt", 50.0), near_duplicates=1.0
    )
    assert loaded.responses.temperature == 1.0
    assert isinstance(loaded.responses.temperature, float)
    assert loaded.trainer["learning_rate"] == 5e-7
    assert loaded.lora is not None
    assert loaded.evaluation.rule is not None
    assert loaded.evaluation.rule.pattern_column is None
    assert loaded.max_dropped == {"empty response": 1.0}


def test_a_record_cannot_be_changed(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, ""))
    with pytest.raises(AttributeError):
        loaded.seed = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        loaded.contrast.negatives = 2  # type: ignore[misc]


# (what is written, the setting's full name, what is allowed, what it got)
WRONG = [
    ("contrast: {kind: foo}", "contrast.kind", "context, dropped, partial or random", "'foo'"),
    ("contrast: {kind: }", "contrast.kind", "context, dropped, partial or random", "null"),
    ("contrast: {negatives: 0}", "contrast.negatives", "a whole number of at least 1", "0"),
    ("contrast: {negatives: 1.0}", "contrast.negatives", "a whole number of at least 1", "1.0"),
    ("contrast: {negatives: '1'}", "contrast.negatives", "a whole number of at least 1", "'1'"),
    ("contrast: {negatives: yes}", "contrast.negatives", "a whole number of at least 1", "true"),
    ("contrast: {match: 5}", "contrast.match", "text or a list of texts", "5"),
    ("contrast: {match: [task, 5]}", "contrast.match[1]", "text", "5"),
    ("contrast: {differ: {user: 1}}", "contrast.differ", "text or a list of texts", "{'user': 1}"),
    ("contrast: {near: prompt}", "contrast.near", "[text, a number of at least 0] or null", "'prompt'"),
    ("contrast: {near: [prompt]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt']"),
    ("contrast: {near: [prompt, -1]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt', -1]"),
    ("contrast: {near: [prompt, .inf]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt', inf]"),
    ("contrast: {near_duplicates: 0}", "contrast.near_duplicates", "a number above 0 and at most 1 or null", "0"),
    ("contrast: {kind: dropped, negatives: 2}", "contrast.negatives", "1 with kind 'dropped'", "2"),
    ("responses: {top_p: 7}", "responses.top_p", "a number above 0 and at most 1", "7"),
    ("responses: {top_p: 0}", "responses.top_p", "a number above 0 and at most 1", "0"),
    ("responses: {top_p: .nan}", "responses.top_p", "a number above 0 and at most 1", "nan"),
    ("responses: {temperature: -0.1}", "responses.temperature", "a number of at least 0", "-0.1"),
    ("responses: {temperature: .inf}", "responses.temperature", "a number of at least 0", "inf"),
    ("responses: {temperature: warm}", "responses.temperature", "a number of at least 0", "'warm'"),
    ("responses: {max_new_tokens: 1e3}", "responses.max_new_tokens", "a whole number of at least 1", "1000.0"),
    ("responses: {batch_size: }", "responses.batch_size", "a whole number of at least 1", "null"),
    ("responses: 5", "responses", "settings as `name: value`", "5"),
    ("responses: [temperature]", "responses", "settings as `name: value`", "['temperature']"),
    ("tokens: {max_length: 0}", "tokens.max_length", "a whole number of at least 1 or null", "0"),
    ("trainer: {learning_rate: fast}", "trainer.learning_rate", "a number of at least 0", "'fast'"),
    ("trainer: {learning_rate: '5e-7'}", "trainer.learning_rate", "a number of at least 0", "'5e-7'"),
    ("trainer: {learning_rate: -1}", "trainer.learning_rate", "a number of at least 0", "-1"),
    ("trainer: {beta: .nan}", "trainer.beta", "a number of at least 0", "nan"),
    ("trainer: {max_steps: many}", "trainer.max_steps", "a whole number", "'many'"),
    ("trainer: {num_train_epochs: 0}", "trainer.num_train_epochs", "a number above 0", "0"),
    ("trainer: {bf16: 'no'}", "trainer.bf16", "true or false or null", "'no'"),
    ("trainer: {trust_remote_code: 1}", "trainer.trust_remote_code", "true or false", "1"),
    ("trainer: {lr_scheduler_type: cosin}", "trainer.lr_scheduler_type", "cosine_with_min_lr", "'cosin'"),
    ("trainer: {save_strategy: no}", "trainer.save_strategy", "best, epoch, no or steps", "false"),
    ("trainer: {seed: 4294967296}", "trainer.seed", "a whole number from 0 to 4294967295", "4294967296"),
    ("trainer: {report_to: [wandb, 5]}", "trainer.report_to[1]", "text", "5"),
    ("trainer: [beta, 0.1]", "trainer", "settings", "['beta', 0.1]"),
    ("trainer: false", "trainer", "settings", "false"),
    ("lora: {r: 0}", "lora.r", "a whole number of at least 1", "0"),
    ("lora: {r: sixteen}", "lora.r", "a whole number of at least 1", "'sixteen'"),
    ("lora: {bias: some}", "lora.bias", "all, lora_only or none", "'some'"),
    ("lora: {lora_dropout: 1.5}", "lora.lora_dropout", "a number of at least 0 and below 1", "1.5"),
    ("lora: {target_modules: 5}", "lora.target_modules", "a list of texts, text or null", "5"),
    ("lora: true", "lora", "settings or null", "true"),
    ("evaluation: {rows: 0}", "evaluation.rows", "a whole number of at least 1", "0"),
    ("evaluation: {negatives: 0}", "evaluation.negatives", "a whole number of at least 1 or null", "0"),
    ("evaluation: {rule: strict}", "evaluation.rule", "settings as `name: value`", "'strict'"),
    ("evaluation: {rule: {answer: a, pattern: '['}}", "evaluation.rule.pattern", "a regular expression", "'['"),
    ("evaluation: {rule: {answer: a, pattern: 'x{99999999999}'}}", "evaluation.rule.pattern", "a regular expression", "'x{99999999999}'"),  # noqa: E501
    ("evaluation: {rule: {answer: a, pattern: '(.)'}}", "evaluation.rule.pattern", "a group `answer`", "'(.)'"),
    ("evaluation: {rule: {answer: a, pattern: 5}}", "evaluation.rule.pattern", "text or null", "5"),
    ("seed: 4294967296", "seed", "a whole number from 0 to 4294967295", "4294967296"),
    ("seed: -1", "seed", "a whole number from 0 to 4294967295", "-1"),
    ("seed: '0'", "seed", "a whole number from 0 to 4294967295", "'0'"),
    ("control: random", "control", "sft, shuffled or null", "'random'"),
    ("max_dropped: {x: often}", "max_dropped.x", "a number from 0 to 1", "'often'"),
    ("max_dropped: {x: 1.5}", "max_dropped.x", "a number from 0 to 1", "1.5"),
    ("max_dropped: .nan", "max_dropped", "a number from 0 to 1 or settings", "nan"),
    ("max_dropped: 1%", "max_dropped", "a number from 0 to 1 or settings", "'1%'"),
    ("trust_remote_code: 'no'", "trust_remote_code", "true or false", "'no'"),
    ("trust_remote_code: 'false'", "trust_remote_code", "true or false", "'false'"),
    ("trust_remote_code: 0", "trust_remote_code", "true or false", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "allowed", "got"), WRONG, ids=[case[0] for case in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed_and_what_it_got(
    tmp_path: Path, text: str, name: str, allowed: str, got: str
) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{name}: expected ")
    before, _, after = message.partition(", got ")
    assert allowed in before
    assert after.startswith(got)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("prompts: {source: 5}", "prompts.source: expected text, got 5"),
        ("prompts: {source: ''}", "prompts.source: expected text, got ''"),
        ("prompts: {prompt: question}", "prompts.source: is missing; expected text"),
        ("prompts:", "prompts.source: is missing; expected text"),
        ("", "prompts.source: is missing; expected text"),
        ("prompts: prompts.jsonl", "prompts: expected settings as `name: value`, got 'prompts.jsonl'"),
        ("prompts: {source: p, holdout: 1}", "prompts.holdout: expected a whole number of at least 2 or null, got 1"),
        ("prompts: {source: p, overlap_share: 50}", "prompts.overlap_share: expected a number above 0 and at most 1"),
        ("prompts: {source: p, overlap_words: 0}", "prompts.overlap_words: expected a whole number from 1 to"),
        ("prompts: {source: p, context: no}", "prompts.context: expected text or null, got false"),
    ],
)
def test_prompts_say_where_they_are(tmp_path: Path, prompts: str, message: str) -> None:
    assert refused(tmp_path, prompts, head="model: some/model\n").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contrast: {negativs: 2}", "contrast.negativs: no such setting; did you mean contrast.negatives?"),
        ("trainer: {learning_rat: 2}", "trainer.learning_rat: no such setting; did you mean trainer.learning_rate?"),
        ("lora: {target_module: all}", "lora.target_module: no such setting; did you mean lora.target_modules?"),
        ("lora: {rank_of_all: 8}", "lora.rank_of_all: no such setting"),
        ("tokens: {padding: 8}", "tokens.padding: no such setting; there are max_length"),
        ("evaluation: {rule: {answr: a}}", "did you mean evaluation.rule.answer?"),
        ("evaluatoin: {rows: 8}", "evaluatoin: no such setting; did you mean evaluation?"),
        ("5: 6", "5: no such setting; there are model, prompts"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contrast: {kind: partial, match: task}", "contrast.match: expected none with kind 'partial'"),
        ("contrast: {kind: dropped, near_duplicates: 0.8}", "contrast.near_duplicates: expected none with kind"),
        ("evaluation: {rule: {pattern: '(?P<answer>.)'}}", "evaluation.rule.answer: is missing; expected text"),
        ("evaluation: {rule: {answer: a}}", "evaluation.rule.pattern: is missing"),
        ("evaluation: {rule: {answer: a, pattern: '(?P<answer>.)', pattern_column: p}}",
         "evaluation.rule.pattern_column: expected none beside a pattern"),
        ("trainer: {output_dir: out}", "trainer.output_dir: expected none"),
    ],
)  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "seed: -1\nresponses: {top_p: 7, temperatur: 1}\ntrainer: {beta: low}\nlora: {r: 0}\n")
    first, *lines = message.splitlines()
    assert first == "5 settings are wrong:"
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "lora.r", "responses.temperatur", "responses.top_p", "seed", "trainer.beta",
    ]  # fmt: skip


def test_a_recipe_is_refused_without_torch(tmp_path: Path) -> None:
    """The figure behind it, under a second of CPU, is in DESIGN.md: a test never times."""
    for number, (text, *_) in enumerate(WRONG):
        (tmp_path / f"{number}.yaml").write_text(HEAD + text)
    code = (
        "import sys; from pathlib import Path; from mipo import cli\n"
        "codes = {cli.main(['run', str(path)]) for path in Path(sys.argv[1]).glob('*.yaml')}\n"
        "print(codes, [name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert ended.stdout == "{2} []\n"


# YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 4: expected each setting once, got 'seed' again"),
        ("trainer:\n  beta: 0.1\n  'beta': 0.2\n", "line 5: expected each setting once, got 'beta' again"),
        ("trainer: &a\n  model_init_kwargs: *a\n", "got more, by aliases"),
        ("trainer: {optim_args: &a [*a]}", "got more, by aliases"),
        ("".join(f"a{n}: &a{n} [{', '.join(['x' if not n else f'*a{n - 1}'] * 9)}]\n" for n in range(9)), "by aliases"),
        ("trainer:\n" + "".join(f"{'  ' * n}a:\n" for n in range(1, 60)), "expected at most 20 levels, got more"),
        ("x: " + "[" * 500 + "]" * 500, "expected at most 20 levels, got more"),
        ("model_: !!python/object/apply:os.system [true]", "line 3: expected a plain value, got the tag"),
        ("lora: !!set {r, bias}", "line 3: expected a plain value, got the tag"),
        ("seed: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("---\nseed: 1\n", "not valid YAML"),
        (f"seed: {'9' * 5000}", "not valid YAML"),
        ("? [a]\n: b\n", "not valid YAML"),
        ("# " + "x" * 100_000, "expected a recipe of at most 65,536 bytes"),
    ],
    ids=lambda value: value[:30],
)
def test_what_yaml_reads_in_two_ways_or_never_ends_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(("text", "kind"), [("- model\n", "list"), ("just text", "str"), ("5", "int")])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    assert refused(tmp_path, text, head="") == f"expected settings as `name: value`, got {kind}"


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"absent\.yaml: no such recipe"):
        recipe.load(tmp_path / "absent.yaml")
    with pytest.raises(NotThereError, match="no such recipe"):
        recipe.load(tmp_path)
    (tmp_path / "table.parquet").write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(InputError, match=r"table\.parquet: not valid YAML"):
        recipe.load(tmp_path / "table.parquet")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="model: is missing"):
        recipe.load(tmp_path / "empty.yaml")


def test_an_alias_stands_for_its_value_and_a_date_is_text(tmp_path: Path) -> None:
    loaded = recipe.load(
        write(tmp_path, "contrast: {match: &columns [task], differ: *columns}\ntrainer: {run_name: 2026-11-29}")
    )
    assert loaded.contrast.match == loaded.contrast.differ == ("task",)
    assert loaded.trainer == {"run_name": "2026-11-29"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("trainer: {hub_token: hf_madeupmadeupmadeup}", "trainer.hub_token"),
        ("trainer: {hub_token: x}", "trainer.hub_token"),
        ("trainer: {model_init_kwargs: {token: secretword}}", "trainer.model_init_kwargs.token"),
        ("trainer: {run_name: hf_abcdefghijklmnopqrstuvwxyz}", "trainer.run_name"),
        ("lora: {auto_mapping: {password: 271828182845}}", "lora.auto_mapping.password"),
        ("lora: {auto_mapping: {wandb_api_key: a0123456789}}", "lora.auto_mapping.wandb_api_key"),
        ("trainer: {run_name: 'https://me:secretword@host/x'}", "trainer.run_name"),
        ("api_key: secretword", "api_key"),
    ],
)  # fmt: skip
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, text: str, name: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{name}: expected no secret in a recipe")
    assert not [word for word in ("madeup", "secretword", "abcdef", "a0123", "2718") if word in message]


def test_a_name_that_only_ends_like_one_is_no_secret(tmp_path: Path) -> None:
    text = "trainer: {hub_token: null, pad_token: '<pad>'}\nlora: {trainable_token_indices: [1]}"
    assert recipe.load(write(tmp_path, text)).trainer["pad_token"] == "<pad>"


# What a recipe is written as


def test_names_of_files_beside_the_recipe_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "held out.jsonl").touch()
    (tmp_path / "model").mkdir()
    text = "model: model\nprompts: {source: prompts.jsonl, test: held out.jsonl}\n"
    loaded = recipe.load(write(tmp_path, text, head=""))
    assert loaded.model == str(tmp_path / "model")
    assert (loaded.prompts.source, loaded.prompts.test) == (
        str(tmp_path / "prompts.jsonl"), str(tmp_path / "held out.jsonl"),
    )  # fmt: skip
    assert recipe.load(write(tmp_path, "")).model == "some/model"


def test_seed_and_control_replace_the_recipe_s(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\n")
    assert recipe.load(path).seed == 3
    replaced = recipe.load(path, seed=0, control="shuffled")
    assert (replaced.seed, replaced.control) == (0, "shuffled")
    with pytest.raises(InputError, match=r"recipe\.yaml: seed: expected a whole number from 0 to 4294967295, got -1"):
        recipe.load(path, seed=-1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_that_is_written_repeats_itself(tmp_path: Path, path: Path) -> None:
    loaded = recipe.load(path)
    assert recipe.load(write(tmp_path, recipe.dump(loaded), head="")) == loaded
    assert records.read(Recipe, json.loads(json.dumps(records.settings(loaded)))) == loaded


def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path) -> None:
    columns = ["1e5", "5e-7", "no", "null", "2026-11-29", "0x1", "a: b", "ü", "1:30", "[", "#", "", "\u2028"]
    loaded = recipe.load(write(tmp_path, ""))
    written = Recipe(
        model=loaded.model, prompts=loaded.prompts, trainer={"optim_args": "1e5", "label_names": columns, "beta": 5e-7}
    )
    assert recipe.load(write(tmp_path, recipe.dump(written), head="")) == written


def test_settings_are_what_they_were_as_plain_dicts() -> None:
    """Keys of stages rest on them: a run that is resumed finds the stages of the same settings."""
    made = Recipe(model="m", prompts=Prompts(source="p"), evaluation=Evaluation(rule=None))
    assert records.settings(made) == {
        "model": "m",
        "prompts": {
            "source": "p", "prompt": "prompt", "context": None, "split": "train", "test": None, "holdout": None,
            "holdout_by": None, "overlap_share": None, "overlap_words": 8,
        },
        "contrast": {
            "kind": "random", "negatives": 1, "match": (), "differ": (), "near": None, "near_duplicates": None,
        },
        "responses": {"temperature": 0.1, "top_p": 0.9, "max_new_tokens": 512, "batch_size": 64},
        "tokens": {"max_length": 15_360},
        "trainer": {},
        "lora": None,
        "evaluation": {"negatives": None, "rows": 512, "rule": None},
        "seed": 0,
        "control": None,
        "max_dropped": 0.01,
        "trust_remote_code": False,
    }  # fmt: skip
    rule = records.read(Evaluation, {"rule": {"answer": "a", "pattern_column": "p"}})
    assert records.settings(rule)["rule"] == {"answer": "a", "pattern_column": "p"}


def test_one_record_says_how_responses_are_sampled() -> None:
    defaults = generate.__kwdefaults__
    assert {name: defaults[name] for name in records.settings(Sampling())} == records.settings(Sampling())


# The commented recipe and the JSON Schema


def schema() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(recipe_text.schema())
    jsonschema.Draft202012Validator.check_schema(whole)
    return whole


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema())
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def test_the_commented_recipe_loads_and_is_the_defaults(tmp_path: Path) -> None:
    text = recipe_text.commented()
    loaded = recipe.load(write(tmp_path, text, head=""))
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
    loaded = recipe.load(write(tmp_path, "\n".join(text), head=""))
    assert loaded.trainer["learning_rate"] == 5e-7
    assert loaded.trainer["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
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
