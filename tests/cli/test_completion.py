"""Completion, as the shells do it: each reads the script that `mipo completion` wrote."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mipo import cli
from mipo.cli.app import COMMANDS

ASK_BASH = """
source "$0"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_mipo
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    shell = ["bash", "-c", ASK_BASH, str(script), *words]
    return set(subprocess.run(shell, capture_output=True, text=True, check=True, cwd=script.parent).stdout.split())


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "train.jsonl").touch()
    (folder / "model").mkdir()
    assert cli.main(["completion", "--shell", "bash", "--output", str(folder / "mipo.bash")]) == 0
    return folder / "mipo.bash"


def test_commands(script):
    assert completed(script, "mipo", "") == set(COMMANDS)
    assert completed(script, "mipo", "con") == {"contrast"}


def test_options_and_their_choices(script):
    assert completed(script, "mipo", "contrast", "train.jsonl", "--ne") == {
        "--near",
        "--near-duplicates",
        "--negatives",
    }
    assert completed(script, "mipo", "contrast", "--kind", "") == {"random", "partial", "context", "dropped"}


def test_file_names(script):
    assert completed(script, "mipo", "contrast", "tr") == {"train.jsonl"}
    assert completed(script, "mipo", "tokens", "train.jsonl", "tr") == {"train.jsonl"}
    assert completed(script, "mipo", "generate", "--model", "mo") == {"model"}


def test_fish_and_zsh_read_theirs(tmp_path):
    for shell in ("fish", "zsh"):
        assert cli.main(["completion", "--shell", shell, "--output", str(tmp_path / shell)]) == 0
        text = (tmp_path / shell).read_text()
        assert all(command in text for command in COMMANDS)
        if shutil.which(shell):
            subprocess.run([shell, "-n", str(tmp_path / shell)], check=True)


def test_it_is_installed_where_the_shell_looks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias l=ls\n")
    for _ in range(2):
        assert cli.main(["completion", "--shell", "bash"]) == 0
    place = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "mipo"
    assert str(place) in capsys.readouterr().out
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines[0] == "alias l=ls"
    assert sum(str(place) in line for line in lines) == 1, "a second call adds nothing"
    completion = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; complete -p mipo"],
        capture_output=True, text=True, check=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert completion.stdout.strip() == "complete -F _mipo mipo"
