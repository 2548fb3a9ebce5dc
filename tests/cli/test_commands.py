"""The command line: every command by itself on real files, and errors as one line with exit code 2."""

import json
import os
import resource
import subprocess
import sys

import polars as pl
import pytest

from mipo import cli, demo
from mipo.demo import world
from mipo.run import recipe

MODEL = str(demo.HERE / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts, counterparts, responses, pairs and tokens, each written by its own command."""
    folder = tmp_path_factory.mktemp("commands")
    world.write(folder, train=40, test=12, seed=3)
    source = [str(folder / "train.jsonl"), "--context", "context"]
    sampling = ["--temperature", "1", "--top-p", "1", "--max-new-tokens", "16"]
    counterparts, responses = (
        ["--counterparts", f"{folder}/counterparts.parquet"],
        ["--responses", f"{folder}/responses"],
    )
    for arguments in (
        ["contrast", *source, "--kind", "context", "--output", f"{folder}/counterparts.parquet"],
        ["generate", *source, *counterparts, "--model", MODEL, *sampling, "--output", f"{folder}/responses"],
        ["pairs", *source, *counterparts, *responses, "--output", f"{folder}/pairs.parquet"],
        ["tokens", f"{folder}/pairs.parquet", "--tokenizer", MODEL, "--output", f"{folder}/tokens"],
    ):
        assert cli.main(arguments) == 0, arguments
    return folder


def test_the_commands_one_by_one(folder):
    pairs = pl.read_parquet(folder / "pairs.parquet")
    assert 20 <= pairs.height <= 40
    assert set(pairs["kind"]) == {"context"}
    from mipo import PairStore

    assert len(PairStore.open(folder / "tokens")) == pairs.height


def test_a_prompt_that_no_table_holds_is_named_and_the_others_are_answered(tmp_path, capsys):
    prompts = [f"what should number {row} eat ?" for row in range(6)]
    prompts[3] += "\ud83d"
    source, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    source.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    sampling = ["--temperature", "0", "--max-new-tokens", "4"]
    assert cli.main(["generate", str(source), "--model", MODEL, *sampling, "--output", str(output)]) == 0
    dropped = "half of a surrogate pair, which is not a character: 1, first in row 4"
    assert capsys.readouterr().out.splitlines()[0] == f"{source}: 6 rows in, 5 out; {dropped}"
    answered = pl.read_parquet(output / "part-*.parquet")
    asked = answered["prompt"].list.first().struct.field("content").to_list()
    assert asked == [*prompts[:3], *prompts[4:]]
    assert not answered["response"].null_count()


def test_tokens_in_a_process_of_their_own_need_no_torch(folder):
    arguments = ["tokens", str(folder / "pairs.parquet"), "--tokenizer", MODEL, "--output", str(folder / "again")]
    command = [sys.executable, "-X", "importtime", "-m", "mipo", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "transformers" in imported
    assert "torch" not in imported
    assert (folder / "again" / "manifest.json").exists()


def test_train_takes_every_dpo_flag(folder, capsys):
    arguments = ["train", "--model", MODEL, "--tokens", str(folder / "tokens"), "--output", str(folder / "model")]
    flags = [
        "--beta",
        "0.5",
        "--max_steps",
        "2",
        "--learning_rate",
        "1e-4",
        "--loss_type",
        "hinge",
        "--use_cpu",
        "true",
    ]
    assert cli.main([*arguments, *flags]) == 0
    log = json.loads((folder / "model" / "training.json").read_text())
    assert log[-1]["step"] == 2
    assert (folder / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["--lerning_rate", "1e-4"], "['--lerning_rate', '1e-4']"),
    ],
)
def test_what_trl_refuses_of_its_flags_is_one_line(folder, flags, message, capsys):
    arguments = ["train", "--model", MODEL, "--tokens", str(folder / "tokens"), "--output", str(folder / "no-model")]
    assert cli.main([*arguments, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "no-model").exists()


def test_evaluate_prints_figures_with_intervals(folder, capsys):
    test = [str(folder / "test.jsonl"), "--context", "context", "--kind", "context", "--negatives", "3"]
    how = ["--model", MODEL, "--temperature", "1", "--max-new-tokens", "16", "--output", str(folder / "side.json")]
    assert cli.main(["evaluate", *test, *how, "--held-out", str(folder / "tokens")]) == 0
    printed = capsys.readouterr().out
    side = json.loads((folder / "side.json").read_text())
    for name in ("infonce", "leave_one_out", "margin"):
        assert name in printed
        assert side[name]["low"] <= side[name]["value"] <= side[name]["high"]


def test_export(folder):
    assert cli.main(["export", str(folder / "pairs.parquet"), "--output", str(folder / "pairs.jsonl")]) == 0
    first = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])
    assert first.keys() == {"prompt", "chosen", "rejected"}
    assert first["chosen"][0]["role"] == "assistant"


def test_recipe_prints_one_and_its_schema(tmp_path, capsys):
    assert cli.main(["recipe"]) == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    assert recipe.load(tmp_path / "recipe.yaml").contrast.kind == "random"
    assert cli.main(["recipe", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$ref"] == "#/$defs/Recipe"


def test_doctor_names_what_is_there(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "mipo 0.1.0" in printed
    assert "torch" in printed
    assert "device" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contrast", "absent.jsonl", "--output", "x.parquet"], "absent.jsonl: no such file"),
        (["run", "absent.yaml"], "absent.yaml: no such recipe"),
        (["report", "absent"], "absent"),
        (["export", "absent.parquet", "--output", "x.jsonl"], "absent.parquet: no such file"),
        (["tokens", "absent.parquet", "--tokenizer", MODEL, "--output", "x"], "absent.parquet: no such file"),
        (["tokens", "absent.parquet", "--tokenizer", "no/model", "--output", "x"], "absent.parquet: no such file"),
        (["generate", "{train}", "--model", "no/model", "--output", "x"], "no/model: no tokenizer found there"),
        (
            ["contrast", "{train}", "--prompt", "question", "--output", "x.parquet"],
            "no column 'question'; it has",
        ),
        (["contrast", "{train}", "--negatives", "40", "--output", "x.parquet"], "negatives: expected 1 to 39"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(folder, arguments, message, capsys):
    arguments = [word.replace("{train}", str(folder / "train.jsonl")) for word in arguments]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"mipo {arguments[0]}: error: ")
    assert "Traceback" not in error


def test_a_full_disk_leaves_nothing_that_a_later_run_would_trust(folder, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    arguments = [sys.executable, "-m", "mipo", "contrast", str(folder / "train.jsonl"), "--output", "c.parquet"]
    ended = subprocess.run(
        arguments, cwd=tmp_path, preexec_fn=small_disk, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "c.parquet: could not be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["peft", "matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # as where mipo was installed without [train]
    assert cli.main(["run", str(demo.HERE / "recipe.yaml"), "--dry-run"]) == 2
    assert f"{library} is not installed; this command needs `pip install 'mipo[train]'`" in capsys.readouterr().err


def test_a_missing_table_is_named_and_not_searched_elsewhere(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path / "pairs"), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert f"{tmp_path / 'pairs'}: no such file" in capsys.readouterr().err
