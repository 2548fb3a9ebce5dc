"""Outputs: new, empty or mipo's own; nothing of a stranger's is changed, by the functions or by any command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mipo import cli, demo
from mipo.io import files, outputs, tables

MODEL = str(demo.HERE / "model")


def contents(folder: Path) -> dict[str, str | bytes]:
    """Every file and link of a folder with what is in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths}


@pytest.fixture
def strangers(tmp_path):
    """A folder with somebody's files, among them names that mipo uses too."""
    folder = tmp_path / "project"
    for name in ("notes.txt", "manifest.json", "settings.json", "checkpoint-5/weights.bin", "model/part-00000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")
    return folder


def test_requests_of_a_batch_are_mipo_s_by_name_and_results_are_the_user_s(tmp_path):
    folder = tmp_path / "responses"
    with outputs.claim(folder, "responses"):
        for name in ("requests/0123abcd-00001.jsonl", "requests/mine.jsonl", "results/0123abcd-00001.jsonl"):
            path = folder / "batch" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    outputs.remove(folder)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert left == ["batch/requests/mine.jsonl", "batch/results/0123abcd-00001.jsonl"]


def test_a_new_folder_and_an_empty_one_are_marked_and_known_again(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "inner", tmp_path / "empty"):
        with outputs.claim(folder, "tokens"):
            assert json.loads((folder / outputs.MARK).read_text()) == {"mipo": "tokens"}
        with outputs.claim(folder, "tokens"):
            pass
        with pytest.raises(ValueError, match="expected a folder for responses, got the one that mipo made for tokens"):
            outputs.check_folder(folder, "responses")


@pytest.mark.parametrize("kind", outputs.FILES)
def test_a_folder_of_somebody_is_refused_and_unchanged(kind, strangers):
    before = contents(strangers)
    with pytest.raises(ValueError, match=r"new or empty folder.* and no .mipo.json"), outputs.claim(strangers, kind):
        pass
    outputs.remove(strangers)
    assert contents(strangers) == before


def test_only_what_mipo_wrote_is_removed(tmp_path):
    folder = tmp_path / "responses"
    with outputs.claim(folder, "responses"):
        files.write_json(folder / "answers.sqlite", {})
        tables.write([pl.DataFrame({"a": [1]})], folder / "part-00000.parquet")
    (folder / "notes.txt").write_text("mine")
    (folder / "inner").mkdir()
    (folder / "inner" / "part-00000.parquet").write_text("mine")
    (folder / "part-link").symlink_to(tmp_path)
    outputs.remove(folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["inner", "notes.txt", "part-00000.parquet", "part-link"]
    (folder / "notes.txt").unlink()
    shutil.rmtree(folder / "inner")
    (folder / "part-link").unlink()
    with outputs.claim(folder, "responses"):
        files.write_json(folder / "answers.sqlite", {})
    outputs.remove(folder)
    assert not folder.exists()


def test_a_model_with_a_file_of_somebody_s_is_refused_by_its_name(tmp_path):
    folder = tmp_path / "model"
    outputs.mark(folder, "unfinished model")
    (folder / "config.json").write_text("{}")
    outputs.mark_model(folder, "training.json")
    (folder / "training.json").write_text("[]")
    outputs.check_folder(folder, "model")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which mipo did not write"):
        outputs.check_folder(folder, "model")
    outputs.remove(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    claim = (
        f"from mipo.io import outputs; outputs.claim(__import__('pathlib').Path({str(tmp_path)!r}), 'run').__enter__()"
    )
    with outputs.claim(tmp_path, "run"):
        with outputs.claim(tmp_path, "run"):  # a run's own stages
            pass
        other = subprocess.run([sys.executable, "-c", claim], capture_output=True, text=True, check=False)
        assert "another mipo process works there" in other.stderr
    assert subprocess.run([sys.executable, "-c", claim], check=False).returncode == 0


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with outputs.claim(tmp_path / "run", "run"):
        pass
    (tmp_path / "run" / f".pairs.parquet.{ended.pid}.tmp").write_text("half")
    (tmp_path / "run" / f".shard-00000.{ended.pid}.tmp").mkdir()
    (tmp_path / "run" / f".mine.{os.getppid()}.tmp").write_text("of a process that runs")
    with outputs.claim(tmp_path / "run", "run"):
        assert {path.name for path in (tmp_path / "run").iterdir()} == {outputs.MARK, f".mine.{os.getppid()}.tmp"}


def test_a_file_is_written_through_a_link_and_never_over_a_device_or_a_pipe(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.parquet"
    link.symlink_to(tmp_path / "real" / "file.parquet")
    tables.write([pl.DataFrame({"a": [1]})], link)
    assert link.is_symlink()
    assert outputs.check_file(link) == tmp_path / "real" / "file.parquet"  # its own table may be written again
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in (tmp_path / "pipe.parquet", tmp_path / "real"):
        with pytest.raises(ValueError, match="expected the name of a file"):
            outputs.check_file(path)
        with pytest.raises(ValueError, match="expected the name of a file"):
            files.write_text(path, "x")
    assert (tmp_path / "pipe.parquet").is_fifo()


def test_a_file_that_mipo_may_not_have_written_is_not_overwritten(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "mine.parquet")
    (tmp_path / "broken.parquet").write_text("mine")
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("mine.parquet", "broken.parquet", "mine.jsonl"):
        with pytest.raises(ValueError, match="nothing in it says that mipo wrote it"):
            outputs.check_file(tmp_path / name)
    outputs.check_file(tmp_path / "empty.jsonl")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What every command reads, each made by its own command: prompts, pairs and tokens."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [{"prompt": f"What is {n}?", "user": str(n % 3)} for n in range(20)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": f"What is {n}?", "chosen": "one", "rejected": "two"} for n in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for arguments in (
        ["contrast", f"{folder}/prompts.jsonl", "--output", f"{folder}/counterparts.parquet"],
        ["tokens", f"{folder}/pairs.jsonl", "--tokenizer", MODEL, "--output", f"{folder}/tokens"],
    ):
        assert cli.main(arguments) == 0
    (folder / "recipe.yaml").write_text(f"model: {MODEL}\nprompts: {{source: prompts.jsonl, holdout: 4}}\n")
    return folder


def commands(inputs: Path) -> dict[str, list[str]]:
    """Every command that writes, but for its output."""
    model, prompts = ["--model", MODEL], f"{inputs}/prompts.jsonl"
    return {
        "contrast": ["contrast", prompts],
        "overlap": ["overlap", prompts, "--held-out", prompts],
        "pairs": ["pairs", prompts, "--counterparts", f"{inputs}/counterparts.parquet", "--responses", prompts],
        "export": ["export", f"{inputs}/pairs.jsonl"],
        "evaluate": ["evaluate", prompts, *model],
        "generate": ["generate", prompts, *model],
        "tokens": ["tokens", f"{inputs}/pairs.jsonl", "--tokenizer", MODEL],
        "train": ["train", *model, "--tokens", f"{inputs}/tokens"],
        "run": ["run", f"{inputs}/recipe.yaml"],
        "demo": ["demo"],
    }  # fmt: skip


NAMES = list(commands(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_no_command_writes_into_what_is_somebody_s(name, inputs, strangers, tmp_path, capsys):
    file = tmp_path / "somebody.parquet"
    pl.DataFrame({"mine": [1]}).write_parquet(file)
    os.mkfifo(tmp_path / "pipe.parquet")
    shutil.copytree(inputs / "tokens", tmp_path / "store.parquet")
    (tmp_path / "link.parquet").symlink_to(strangers)
    (tmp_path / "link-to-file.parquet").symlink_to(file)
    targets = [strangers, file, tmp_path / "pipe.parquet", tmp_path / "link.parquet", tmp_path / "link-to-file.parquet"]
    if name != "tokens":
        targets.append(tmp_path / "store.parquet")
    if name not in ("run", "demo"):  # a run's folder, and what is in it
        run = tmp_path / "run.parquet"
        outputs.mark(run, "run")
        (run / "manifest.json").write_text("{}")
        targets.append(run)
    before = contents(tmp_path), file.read_bytes()
    for target in targets:
        assert cli.main([*commands(inputs)[name], "--output", str(target)]) == 2, target
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1, error
        assert "expected" in error or "nothing in it says" in error, error
    assert (contents(tmp_path), file.read_bytes()) == before
    assert (tmp_path / "pipe.parquet").is_fifo()
    assert (tmp_path / "link.parquet").is_symlink()


@pytest.mark.parametrize("output", ["..", "."])
def test_the_parent_folder_and_the_working_folder_are_refused(output, inputs, strangers, monkeypatch, capsys):
    (strangers / "inner").mkdir()
    monkeypatch.chdir(strangers / "inner" if output == ".." else strangers)
    before = contents(strangers)
    for name in ("generate", "tokens", "train", "run", "demo"):
        assert cli.main([*commands(inputs)[name], "--output", output]) == 2
        assert "expected a new or empty folder" in capsys.readouterr().err
    assert contents(strangers) == before


def test_checkpoints_go_into_no_folder_of_somebody_s(inputs, strangers, tmp_path, capsys):
    before = contents(strangers)
    arguments = [*commands(inputs)["train"], "--output", str(tmp_path / "model"), "--output_dir", str(strangers)]
    assert cli.main(arguments) == 2
    assert "expected a new or empty folder, or one for checkpoints" in capsys.readouterr().err
    assert contents(strangers) == before


@pytest.fixture(scope="module")
def private_outputs(inputs, tmp_path_factory):
    """What came of every command with outputs on devices, a read-only disk and full ones, in a namespace of its own."""
    unshare = ["unshare", "-m"]
    allowed = shutil.which("unshare") and subprocess.run(
        [*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], check=False
    )
    if not allowed or allowed.returncode:
        pytest.skip(
            "unshare -m and mount are not permitted here: no disk can be filled, and no device made, for a test"
        )
    folder = tmp_path_factory.mktemp("private")
    program = [sys.executable, str(Path(__file__).parents[1] / "support" / "private_outputs.py")]
    call = [*unshare, *program, str(folder), json.dumps(commands(inputs))]
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_no_command_replaces_a_device_or_changes_a_read_only_or_full_disk(name, private_outputs):
    tried = [result[1:] for result in private_outputs if result[0] == name]
    assert len(tried) == 7
    for output, code, error, unchanged in tried:
        assert unchanged, output
        if output == "nearly/new.parquet" and code == 0:
            continue  # what was written may fit
        assert code == 2, (output, code, error)
        assert f"mipo {name}: error: " in error.strip().splitlines()[-1], (output, error)  # after a bar of transformers
        assert "Traceback" not in error
