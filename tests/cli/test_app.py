"""How commands are found, called and refused: help, version, usage errors, exit codes."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mipo import cli
from mipo.cli.app import COMMANDS
from mipo.cli.errors import one_line
from mipo.errors import InputError

CONTRAST = ["contrast", "prompts.jsonl", "--output", "counterparts.parquet"]


def shown(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "mipo", *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=os.environ | environment, check=True
    ).stdout


def test_help_names_every_command_in_the_order_of_a_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["--help"]) == 0
    words = [line.strip("│ ").split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [word for word in words if word in COMMANDS] == list(COMMANDS)


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    assert COMMANDS["run"] in capsys.readouterr().out


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"mipo \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [50, 80])
def test_help_fits_the_terminal(columns):
    text = shown("contrast", "--help", COLUMNS=str(columns))
    assert max(map(len, text.splitlines())) <= columns
    assert "--near-duplicates" in text


def test_help_in_a_file_has_no_colour():
    assert "\x1b" not in shown("contrast", "--help")


@pytest.mark.parametrize(("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_help_on_a_terminal_has_colour_unless_asked_not_to(environment, colour):
    """FORCE_COLOR makes a pipe a terminal to rich, which draws the help."""
    text = shown("contrast", "--help", FORCE_COLOR="1", TERM="xterm-256color", **environment)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) == colour


def test_help_is_ascii_where_the_terminal_is():
    shown("contrast", "--help", PYTHONIOENCODING="ascii").encode("ascii")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contrst", "prompts.jsonl"], "mipo: error: unknown command 'contrst'; did you mean 'contrast'?"),
        (["fly"], "mipo: error: unknown command 'fly'; --help lists the commands."),
        (["--fly"], "mipo: error: unknown command '--fly'; --help lists the commands."),
        ([*CONTRAST[:2]], "parameter --output requires an argument"),
        ([CONTRAST[0], *CONTRAST[2:]], "parameter PROMPTS requires an argument"),
        ([*CONTRAST, "more.jsonl"], "['more.jsonl']"),
        ([*CONTRAST, "--negativs", "2"], "Unknown option: --negativs. Did you mean --negatives?"),
        ([*CONTRAST, "--kind", "foo"], 'Invalid value "foo" for --kind. Choose from: "random", "partial", "context"'),
        ([*CONTRAST, "--negatives", "2.7"], "Invalid value for --negatives: expected a whole number, got '2.7'."),
        ([*CONTRAST, "--near-duplicates", "much"], '--near-duplicates: unable to convert "much" into float.'),
        ([*CONTRAST, "--near", "prompt"], "Invalid value for --near: expected COLUMN=NUMBER, got 'prompt'."),
        (["report", "runs/a", "--beside", "b"], "--beside: expected NAME=RUN, got 'b'"),
        ([*CONTRAST, "--address", "auto"], "--address: expected --engine ray with it, since it names a Ray cluster"),
        (
            [*CONTRAST, "--engine", "ray", "--near-duplicates", "0.8", "--held-out", "test.jsonl"],
            "--engine ray has no --held-out, --near-duplicates; leave it out, or draw with --engine local",
        ),
        (["train", "--tokens", "t", "--output", "o"], "parameter --model requires an argument"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"mipo {arguments[0]}: error: " if arguments[0] in COMMANDS else "mipo: error: ")
    assert not printed.out


def test_a_bug_is_no_one_line():
    assert one_line(InputError("rows: expected 1 or more, got 0")) == "rows: expected 1 or more, got 0"
    for bug in (ValueError("a"), TypeError("b"), KeyError("c"), OSError("d"), ModuleNotFoundError("e", name="mipo.e")):
        assert one_line(bug) is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_with_one_line(number, code, tmp_path):
    mark = tmp_path / ".mipo.json"
    os.mkfifo(mark)  # a file that is never read to its end
    command = [sys.executable, "-m", "mipo", "demo", "--output", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = _opened(mark, process)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        os.close(end)
    assert process.returncode == code
    assert error == "\nmipo demo: stopped; run the same command again to continue\n"


NATIVE = """
import sys
from mipo.cli import app, signals
def hang(*words, **options):
    import hashlib
    print("there", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # hours, without Python's lock
sys.argv = ["mipo", "doctor"]
type(app.app).parse_args = lambda *words, **options: (hang, type("Bound", (), {"args": (), "kwargs": {}}), {})
sys.exit(app.main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_they_end_a_library_s_native_call_too(number, code):
    with subprocess.Popen(
        [sys.executable, "-c", NATIVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert error == "\nmipo doctor: stopped; run the same command again to continue\n"


def test_the_signals_of_a_worker_are_not_the_command_s():
    """A data loader ends its workers, which are forks, with SIGTERM."""
    program = (
        "import os, signal, time\n"
        "from mipo.cli import signals\n"
        "signals.SECONDS = 0\n"
        "signals.end_on_signals('mipo train')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    while True: time.sleep(1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "time.sleep(0.3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, f"{-signal.SIGTERM}\n"), ended.stderr


def _opened(pipe: Path, reader: subprocess.Popen[str]) -> int:
    """The writing end of a pipe, once the process reads it."""
    while reader.poll() is None:
        with suppress(OSError):  # as long as nobody reads
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    raise AssertionError(reader.communicate()[1])
