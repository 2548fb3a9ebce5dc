"""Documents: YAML that is ambiguous, never ends or holds a secret is refused with its line or name."""

from pathlib import Path

import pytest
from recipes import refused, write_recipe

from mipo.errors import InputError, NotThereError
from mipo.run import recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 4: expected each setting once, got 'seed' again"),
        ("trainer:\n  beta: 0.1\n  'beta': 0.2\n", "line 5: expected each setting once, got 'beta' again"),
        ("trainer: &a\n  model_init_kwargs: *a\n", "got more (an alias"),
        ("trainer: {optim_args: &a [*a]}", "got more (an alias"),
        (
            "".join(f"a{n}: &a{n} [{', '.join(['x' if not n else f'*a{n - 1}'] * 9)}]\n" for n in range(9)),
            "got more (an alias",
        ),
        ("trainer:\n" + "".join(f"{'  ' * n}a:\n" for n in range(1, 60)), "expected at most 20 levels"),
        ("x: " + "[" * 500 + "]" * 500, "expected at most 20 levels"),
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
        write_recipe(tmp_path, "contrast: {match: &columns [task], differ: *columns}\ntrainer: {run_name: 2026-11-29}")
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
    assert recipe.load(write_recipe(tmp_path, text)).trainer["pad_token"] == "<pad>"
