"""Refusals: what cannot be done is said in one line, before anything is read, generated or trained."""

import fcntl
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from mipo import cli, demo
from mipo.io import outputs

MODEL = str(demo.HERE / "model")
TOO_DEEP = 5_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files as people have them, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"prompt": f"what tea {i} ?", "user": "ab"[i % 2], "answer": "tea"} for i in range(12)]
    pl.DataFrame(rows).write_ndjson(folder / "p.jsonl")
    pl.DataFrame(rows).write_parquet(folder / "p.parquet")
    answers = [{"prompt": row["prompt"], "response": f"{i}"} for i, row in enumerate(rows)]
    pl.DataFrame(answers).write_parquet(folder / "r.parquet")
    drawn = pl.DataFrame({"prompt_id": [0, 1], "counterpart_id": [1, 0], "negative": 0, "kind": "random"})
    drawn = drawn.with_columns(reason=pl.lit(None, pl.String))
    drawn.write_parquet(folder / "c.parquet")
    pl.concat([drawn, drawn[:1]]).write_parquet(folder / "twice.parquet")
    drawn.with_columns(counterpart_id=pl.Series([1.0, 0.5])).write_parquet(folder / "cut.parquet")
    drawn.drop("negative").write_parquet(folder / "lacking.parquet")
    pl.DataFrame({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}).write_ndjson(folder / "x.jsonl")
    (folder / "deep.jsonl").write_text('{"prompt": ' + "[" * TOO_DEEP + "]" * TOO_DEEP + "}\n" + '{"prompt": "a"}\n')
    (folder / "deep.yaml").write_text("model: " + "[" * TOO_DEEP + "]" * TOO_DEEP)
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "old").mkdir()
    (folder / "old" / "answers.sqlite").write_text("no database, but long enough to be one" * 100)
    return folder


CONTRAST = ["contrast", "p.jsonl", "--output", "new.parquet"]
GENERATE = ["generate", "p.jsonl", "--model", MODEL, "--output", "new"]
EVALUATE = ["evaluate", "p.jsonl", "--model", MODEL]
TOKENS = ["tokens", "x.jsonl", "--tokenizer", MODEL, "--output", "new"]
PAIRS = ["pairs", "p.parquet", "--output", "new.parquet", "--responses"]
TRAIN = ["train", "--model", MODEL, "--tokens", "absent", "--output", "new"]
SEEDS = "--seed: expected a whole number from 0 to 4294967295, got "

REFUSED = [
    ([*CONTRAST, "--seed", "4294967296"], f"{SEEDS}4294967296"),
    ([*CONTRAST, "--seed", "-1"], f"{SEEDS}-1"),
    ([*CONTRAST, "--negatives", "0"], "--negatives: expected a whole number of at least 1, got 0"),
    ([*CONTRAST, "--near", "prompt=nan"], "--near: expected [text, a number of at least 0], got ('prompt', nan)"),
    ([*CONTRAST, "--near-duplicates", "2"], "--near-duplicates: expected a number above 0 and at most 1, got 2.0"),
    ([*CONTRAST[:3], "."], ".: expected a name that ends in .jsonl or .parquet"),
    (["contrast", "-", *CONTRAST[2:]], "Unknown option: -."),
    (["contrast", "pipe.jsonl", *CONTRAST[2:]], "pipe.jsonl: expected a file or a folder, got a pipe or a device"),
    (["contrast", "deep.jsonl", *CONTRAST[2:]], "deep.jsonl: row 1: its JSON is nested too deeply"),
    (
        ["overlap", "p.jsonl", "--held-out", "p.jsonl", *CONTRAST[2:], "--words", "0"],
        "--words: expected a whole number",
    ),
    (
        ["overlap", "p.jsonl", "--held-out", "p.jsonl", *CONTRAST[2:], "--share", "nan"],
        "--share: expected a number above",
    ),
    ([*GENERATE, "--max-new-tokens", "-1"], "--max-new-tokens: expected a whole number of at least 1, got -1"),
    ([*GENERATE, "--temperature", "nan"], "--temperature: expected a number of at least 0, got nan"),
    ([*GENERATE, "--batch-size", "0"], "--batch-size: expected a whole number of at least 1, got 0"),
    ([*GENERATE, "--seed", "4294967296"], f"{SEEDS}4294967296"),
    ([*EVALUATE, "--answer", "answer"], "pattern: is missing; expected a regular expression"),
    ([*EVALUATE, "--rows", "0"], "--rows: expected a whole number of at least 1, got 0"),
    ([*EVALUATE, "--rows", "-1"], "--rows: expected a whole number of at least 1, got -1"),
    ([*EVALUATE, "--negatives", "12"], "negatives: expected 1 to 11 (12 held-out prompts), got 12"),
    (
        [*EVALUATE, "--negatives", "2", "--answer", "nope", "--pattern", "(?P<answer>.)"],
        "rule.answer: expected a column",
    ),
    ([*EVALUATE, "--negatives", "2", "--kind", "context"], "kind 'context' needs the column 'context'"),
    ([*TOKENS, "--max-length", "-1"], "--max-length: expected a whole number of at least 1, got -1"),
    ([*TOKENS, "--shard-rows", "0"], "--shard-rows: expected a whole number of at least 1, got 0"),
    (
        [*PAIRS, "r.parquet", "--counterparts", "c.parquet", "--batch-rows", "0"],
        "--batch-rows: expected a whole number",
    ),
    (
        [*PAIRS, "r.parquet", "--counterparts", "twice.parquet"],
        "counterparts: 2 rows are there more than once, the first is row 1",
    ),
    ([*PAIRS, "r.parquet", "--counterparts", "cut.parquet"], "row 2: column 'counterpart_id': expected a whole number"),
    ([*PAIRS, "r.parquet", "--counterparts", "lacking.parquet"], "counterparts: no column 'negative'"),
    (
        [*PAIRS, "r.parquet", "--counterparts", "r.parquet"],
        "counterparts: no column 'prompt_id'; it has prompt, response",
    ),
    ([*PAIRS, "c.parquet", "--counterparts", "c.parquet"], "responses: no column 'prompt'; it has prompt_id"),
    ([*TRAIN, "--lora-r", "0"], "--lora-r: expected a whole number of at least 1, got 0"),
    ([*TRAIN, "--seed", "4294967296"], f"{SEEDS}4294967296"),
    ([*TRAIN, "--beta", "nan"], "--beta: expected a number of at least 0, got nan"),
    ([*TRAIN, "--eval_strategy", "steps"], "eval_strategy: expected no, got 'steps'"),
    ([*TRAIN, "--report_to", "clearml"], "report_to: ClearMLCallback requires"),
    ([*TRAIN, "--optim", "adamw_bnb_8bit"], "optim: You need to install `bitsandbytes`"),
    ([*TRAIN, "--config", "absent.yaml"], "absent.yaml: No such file or directory"),
    ([*TRAIN, "--fsdp", "true", "--fsdp_config", "absent.json"], "absent.json: No such file or directory"),
    ([*TRAIN, "--resume_from_checkpoint", "x"], "resume_from_checkpoint: expected none, got 'x'"),
    # Before the prompts are read, which are broken.
    (["generate", "deep.jsonl", *GENERATE[2:], "--reuse", "."], ".: no answers.sqlite there; name a folder of"),
    (["generate", "deep.jsonl", *GENERATE[2:], "--reuse", "old"], "old/answers.sqlite: expected a database of answers"),
    (
        ["generate", "deep.jsonl", *GENERATE[2:], "--counterparts", "r.parquet"],
        "r.parquet: no column 'prompt_id'; it has prompt, response",
    ),
    (["generate", "deep.jsonl", *GENERATE[2:4], "--output", "."], ".: expected a new or empty folder, or one for"),
    (["run", "deep.yaml"], "deep.yaml: expected at most 20 levels"),
    (["report", ".", "--sample", "-1"], "--sample: expected a whole number of at least 1, got -1"),
    (["run", "absent.yaml", "--beside", "before=x"], "beside: expected another name than before, after, change, got"),
    (["run", "absent.yaml", "--beside", "a=x"], "x/manifest.json: expected this file of a finished run, got none"),
    (["report", ".", "--beside", "a=x", "--beside", "a=y"], "--beside: expected each name once, got 'a' again"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_it_is_one_line_and_nothing_is_written(
    files: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    there = sorted(files.iterdir())
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"mipo {arguments[0]}: error: ")
    assert error.count("\n") == 1
    assert sorted(files.iterdir()) == there


def test_a_folder_in_use_is_refused_before_the_prompts_are_read(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.mark(tmp_path, "responses")
    with (tmp_path / outputs.MARK).open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # as another process does
        command = ["generate", str(files / "deep.jsonl"), "--model", MODEL, "--output", str(tmp_path)]
        assert cli.main(command) == 2
    assert "another mipo process works there" in capsys.readouterr().err


def test_a_name_that_is_said_twice_is_meant_once(files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(files)
    for name, columns in (("once", ["user"]), ("twice", ["user", "user"])):
        written = ["contrast", "p.jsonl", "--output", str(tmp_path / f"{name}.parquet"), "--match", *columns]
        assert cli.main(written) == 0
    assert pl.read_parquet(tmp_path / "once.parquet").equals(pl.read_parquet(tmp_path / "twice.parquet"))


TEMPLATES = [
    (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}",
        "the chat template takes no system message, which is what a context becomes (no system); write",
    ),
    ("{{ raise_exception('never') }}", "the chat template refuses the conversation: never; drop or change it"),
    ("{{ messages | nofilter }}", "the chat template refuses the conversation: No filter named 'nofilter'"),
    (
        "{% for m in messages %}{{ m.content }}",
        "the chat template refuses the conversation: Unexpected end of template",
    ),
    ("{{ 1 / 0 }}", "the chat template refuses the conversation: division by zero"),
    ("{{ foo.bar }}", "the chat template refuses the conversation: 'foo' is undefined"),
]


@pytest.mark.parametrize(("template", "message"), TEMPLATES, ids=[template for template, _ in TEMPLATES])
def test_what_a_template_refuses_has_file_and_row(
    template: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    rows = [{"prompt": " ", "context": "c"}, *({"prompt": f"what {i} ?", "context": f"i like {i}"} for i in range(8))]
    pl.DataFrame(rows).write_ndjson(tmp_path / "p.jsonl")
    (tmp_path / "r.yaml").write_text(
        "model: model\nprompts: {source: p.jsonl, context: context, holdout: 3}\n"
        "responses: {max_new_tokens: 4}\ncontrast: {kind: context}\n"
    )
    generated = ["--model", str(tmp_path / "model"), "--context", "context", "--output", str(tmp_path / "new")]
    for place, arguments in [
        (f"{tmp_path / 'p.jsonl'}: row 2: ", ["run", str(tmp_path / "r.yaml"), "--dry-run"]),
        ("response_id 0: ", ["generate", str(tmp_path / "p.jsonl"), *generated]),
    ]:
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"mipo {arguments[0]}: error: {place}{message}")
