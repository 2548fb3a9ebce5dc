"""Recipes: a YAML file as people write it becomes a typed record, or each wrong value is refused by its full name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import HEAD, SHIPPED, WRONG, refused, write_recipe

from mipo.errors import InputError
from mipo.io import records
from mipo.responses.generation import generate
from mipo.responses.sampling import Sampling
from mipo.run import recipe
from mipo.run.recipe import Contrast, Evaluation, Prompts, Recipe


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    assert recipe.load(write_recipe(tmp_path, "")) == Recipe(
        model="some/model", prompts=Prompts(source="prompts.jsonl")
    )


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    empty = "contrast:\nresponses:\ntokens:\ntrainer:\nlora:\nevaluation:\n"
    assert recipe.load(write_recipe(tmp_path, empty)) == recipe.load(write_recipe(tmp_path, ""))


def test_values_have_their_types(tmp_path: Path) -> None:
    text = """
contrast: {kind: context, negatives: 2, match: [task, lang], differ: user, near: [prompt, 50], near_duplicates: 1}
responses: {temperature: 1, top_p: .5}
trainer: {learning_rate: 5e-7, loss_type: [sigmoid], report_to: none, save_strategy: 'no', lr_scheduler_kwargs: {}}
lora: {r: 16, target_modules: all-linear, init_lora_weights: pissa_niter_4}
evaluation: {rule: {answer: answer, pattern: '(?P<answer>.)'}}
max_dropped: {empty response: 1}
"""
    loaded = recipe.load(write_recipe(tmp_path, text))
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
    loaded = recipe.load(write_recipe(tmp_path, ""))
    with pytest.raises(AttributeError):
        loaded.seed = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        loaded.contrast.negatives = 2  # type: ignore[misc]


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
        (
            "prompts: {source: p, test_split: a}",
            "prompts.test_split: expected a source test with it, got 'a' and no test",
        ),
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


def test_every_wrong_setting_is_reported_at_once(tmp_path: Path) -> None:
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


# What a recipe is written as


def test_names_of_files_beside_the_recipe_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "held out.jsonl").touch()
    (tmp_path / "model").mkdir()
    text = "model: model\nprompts: {source: prompts.jsonl, test: held out.jsonl}\n"
    loaded = recipe.load(write_recipe(tmp_path, text, head=""))
    assert loaded.model == str(tmp_path / "model")
    assert (loaded.prompts.source, loaded.prompts.test) == (
        str(tmp_path / "prompts.jsonl"), str(tmp_path / "held out.jsonl"),
    )  # fmt: skip
    assert recipe.load(write_recipe(tmp_path, "")).model == "some/model"


def test_seed_and_control_replace_the_recipe_s(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "seed: 3\n")
    assert recipe.load(path).seed == 3
    replaced = recipe.load(path, seed=0, control="shuffled")
    assert (replaced.seed, replaced.control) == (0, "shuffled")
    with pytest.raises(InputError, match=r"recipe\.yaml: seed: expected a whole number from 0 to 4294967295, got -1"):
        recipe.load(path, seed=-1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_that_is_written_repeats_itself(tmp_path: Path, path: Path) -> None:
    loaded = recipe.load(path)
    assert recipe.load(write_recipe(tmp_path, recipe.dump(loaded), head="")) == loaded
    assert records.read(Recipe, json.loads(json.dumps(records.settings(loaded)))) == loaded


def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path) -> None:
    columns = ["1e5", "5e-7", "no", "null", "2026-11-29", "0x1", "a: b", "ü", "1:30", "[", "#", "", "\u2028"]
    loaded = recipe.load(write_recipe(tmp_path, ""))
    written = Recipe(
        model=loaded.model, prompts=loaded.prompts, trainer={"optim_args": "1e5", "label_names": columns, "beta": 5e-7}
    )
    assert recipe.load(write_recipe(tmp_path, recipe.dump(written), head="")) == written


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ("{engine: batch, dtype: bfloat16}", "dtype: expected engine: local or vllm or ray with it, got engine: batch"),
        (
            "{engine: ray, samples: 2, choose: best}",
            "choose: expected an engine that scores (local, vllm, server), got",
        ),
        ("{choose: best}", "choose: expected samples: 2 or more to choose the best of, got samples: 1"),
    ],
)
def test_settings_that_the_engine_cannot_have_are_refused(tmp_path: Path, responses: str, message: str) -> None:
    assert refused(tmp_path, f"responses: {responses}").startswith(f"responses.{message}")


@pytest.mark.parametrize(
    ("responses", "whose"),
    [
        ("{}", "mipo's"),
        ("{engine: server, urls: [http://h/v1]}", "mipo's"),
        ("{engine: server, urls: [http://h/v1], send: text}", "the server's, of mipo's text"),
        ("{engine: batch}", "the server's, of mipo's text"),
        ("{engine: batch, batch_for: hosted}", "the server's, of messages that it renders"),
    ],
)
def test_it_is_known_whose_token_ids_are_answered(tmp_path: Path, responses: str, whose: str) -> None:
    assert recipe.load(write_recipe(tmp_path, f"responses: {responses}")).responses.token_ids == whose


@pytest.mark.parametrize(
    "reason",
    [
        "empty prompt", "null chosen", "no number in age", "longer than 512 tokens", "a prompt of 9 tokens or more",
        "longer than the 112 tokens that the model's context leaves",
        "fewer than 2 rows with another context, the same task",
    ],
)  # fmt: skip
def test_every_reason_may_have_a_share_of_its_own(tmp_path: Path, reason: str) -> None:
    assert recipe.load(write_recipe(tmp_path, f'max_dropped: {{"{reason}": 0.5}}')).max_dropped == {reason: 0.5}


def test_a_misspelt_reason_is_named_with_the_nearest(tmp_path: Path) -> None:
    assert refused(tmp_path, "max_dropped: {empty promt: 0.5}") == (
        "max_dropped: expected reasons for which rows are dropped, for example 'empty prompt', got 'empty promt'"
    )


def test_settings_are_plain_values_in_a_fixed_form() -> None:
    """The keys of stages are made of them: a resumed run recognizes stages with the same settings."""
    loaded = Recipe(model="m", prompts=Prompts(source="p"), evaluation=Evaluation(rule=None))
    assert records.settings(loaded) == {
        "model": "m",
        "prompts": {
            "source": "p", "prompt": "prompt", "context": None, "split": "train", "test": None, "test_split": None,
            "holdout": None, "holdout_by": None, "overlap_share": None, "overlap_words": 8,
        },
        "contrast": {
            "kind": "random", "negatives": 1, "match": (), "differ": (), "near": None, "near_duplicates": None,
        },
        "responses": {
            "temperature": 0.1, "top_p": 0.9, "max_new_tokens": 512, "batch_size": 64, "reasoning": "drop",
            "samples": 1, "choose": "each", "fresh": False, "engine": "local", "urls": (), "served_model": None,
            "key_variable": "OPENAI_API_KEY", "send": "auto", "batch_for": "vllm", "requests_per_file": 10_000,
            "python": None, "dtype": "auto", "engine_options": {}, "concurrency": 64, "timeout": 600.0,
            "patience": 300.0, "address": None, "workers": None, "gpus": None, "prices": None, "max_failures": 0.1,
        },
        "tokens": {"max_length": 15_360},
        "trainer": {},
        "lora": None,
        "launch": None,
        "evaluation": {"negatives": None, "rows": 512, "rule": None},
        "seed": 0,
        "control": None,
        "max_dropped": 0.01,
        "redo_after_upgrade": False,
        "trust_remote_code": False,
    }  # fmt: skip
    rule = records.read(Evaluation, {"rule": {"answer": "a", "pattern_column": "p"}})
    assert records.settings(rule)["rule"] == {"answer": "a", "pattern_column": "p"}


def test_one_record_says_how_responses_are_sampled() -> None:
    defaults = generate.__kwdefaults__
    assert {name: defaults[name] for name in records.settings(Sampling())} == records.settings(Sampling())
