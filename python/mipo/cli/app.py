"""The app: which commands there are, and how one of them is run.

Knows argument parsing and exit codes. Loads a command, and with it the stage that it calls, only when it is called.
"""

import os
import sys

from cyclopts import App, Parameter

from mipo.cli import signals
from mipo.cli.errors import one_line

# Set before torch loads, unless the user set them. Waiting threads must sleep, since spinning takes the core from every
# other job (256 responses of the demo's model beside another job: 9 s, or 0.7 s with sleep; 2026-11-24). And TRL would
# report each training to its authors.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_TELEMETRY": "1"}

# In the order of `mipo --help`. A command is the function `command` in the file of its name in `mipo/cli/commands/`.
COMMANDS = {
    "run": "Take a recipe to a trained model and a report.",
    "recipe": "Print a recipe with every setting, its default and what it may be.",
    "demo": "Run a recipe on a tiny model, on this machine, in about two minutes.",
    "overlap": "Find the prompts that occur in a held-out set.",
    "contrast": "Draw the counter-prompts.",
    "generate": "Let a model answer prompts and counter-prompts.",
    "pairs": "Join prompts, counterparts and responses to preference pairs.",
    "tokens": "Tokenize pairs as TRL would.",
    "train": "Train on tokenized pairs; takes every flag of trl.DPOConfig.",
    "evaluate": "Measure the information interval of a model on prompts.",
    "report": "Write a run's page again and print its table.",
    "export": "Write pairs for another trainer.",
    "doctor": "Show what is installed, and which code paths this machine takes.",
    "completion": "Install completion for bash, zsh or fish.",
}


def _version() -> str:
    from importlib.metadata import version

    return f"mipo {version('mipo')}"


app = App(
    name="mipo",
    help="Mutual Information Preference Optimization.",
    help_format="plaintext",  # help texts have no markup, and its parser would take a third of the start-up time
    version=_version,
    default_parameter=Parameter(negative="", allow_repeating=True),  # no --no-…; the last of two equal options counts
    suppress_keyboard_interrupt=False,
)
for place, (name, summary) in enumerate(COMMANDS.items()):
    app.command(f"mipo.cli.commands.{name}:command", name=name, help=summary, sort_key=place)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 after an error in one line, 130 after Ctrl-C, or 143 after SIGTERM."""
    words = sys.argv[1:] if arguments is None else arguments
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if not words:
        app.help_print([])
        return 2
    called = f"mipo {words[0]}" if words[0] in COMMANDS else "mipo"
    if arguments is None:  # this process is mipo's own
        signals.end_on_signals(called)
    try:
        command, bound, of_process = app.parse_args(words, exit_on_error=False, print_error=False)
        command(*bound.args, **bound.kwargs, **dict.fromkeys(of_process, arguments is None))
    except KeyboardInterrupt as interrupt:
        signals.tell(called)
        return 143 if isinstance(interrupt, signals.Terminated) else 130
    except Exception as error:
        line = one_line(error)
        if line is None or os.environ.get("MIPO_TRACEBACK"):
            raise
        print(f"{called}: error: {line}", file=sys.stderr)
        return 2
    return 0
