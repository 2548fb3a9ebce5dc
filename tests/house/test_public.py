"""The public surface: exported names, command-line options, and what an import may cost."""

import inspect
import subprocess
import sys

import pytest

import mipo
from mipo import cli
from mipo.cli.app import COMMANDS

OPTIONS = {
    "run": "--ask --beside --control --dry-run --output --reuse --seed --until",
    "recipe": "--schema",
    "demo": "--control --output --seed",
    "overlap": "--context --held-out --held-out-split --output --prompt --share --split --words",
    "contrast": "--address --context --differ --engine --held-out --held-out-split --kind --match --near "
    "--near-duplicates --negatives --output --overlap-share --overlap-words --prompt --seed --split",
    "generate": "--address --batch-for --batch-size --concurrency --context --counterparts --dtype --engine "
    "--engine-options --gpus --key-variable --max-failures --max-new-tokens --model --output --patience --prompt "
    "--python --reasoning --requests-per-file --reuse --seed --send --served-model --split --temperature --timeout "
    "--top-p --trust-remote-code --urls --workers",
    "pairs": "--batch-rows --context --counterparts --output --prompt --responses --split",
    "tokens": "--address --encoder --engine --max-length --output --shard-rows --split --tokenizer",
    "train": "--lora-r --model --output --tokens",
    "evaluate": "--address --answer --batch-for --batch-size --concurrency --context --database --dtype --engine "
    "--engine-options --gpus --held-out --key-variable --kind --max-new-tokens --model --negatives --output "
    "--patience --pattern --prompt --python --reasoning --requests-per-file --rows --seed --send --served-model "
    "--split --temperature --timeout --top-p --trust-remote-code --urls --workers",
    "report": "--beside --sample",
    "export": "--batch-rows --format --output",
    "doctor": "",
    "completion": "--output --shell",
}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_exported_names():
    assert mipo.__all__ == ["PairStore", "TokenTable", "contrast", "counterparts", "encode", "pairs"]
    assert all(hasattr(mipo, name) for name in mipo.__all__)


HEAVY = {"torch", "polars", "numpy", "pyarrow", "transformers", "trl", "datasets"}
SHOW_LOADED = "\nimport sys\nprint('loaded:', *{name.split('.')[0] for name in sys.modules})"


@pytest.mark.parametrize(
    "code",
    [
        "import mipo",
        "from mipo.cli import main",
        "from mipo.cli import main; main(['--help'])",
        "from mipo.cli import main; main(['contrst'])",
        "from mipo.cli import main; main(['contrast', '--help'])",
        "from mipo.cli import main; main(['train', '--help'])",
    ],
)
def test_a_start_loads_nothing_heavy(code):
    """The figure behind it, `import mipo` and `mipo --help` in under 0.3 s, is in LOG.md: a test never times."""
    loaded = python(code + SHOW_LOADED).split("loaded:")[1].split()
    assert "mipo" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    loaded = python(f"from mipo.cli import main; main(['{command}', '--help'])" + SHOW_LOADED).split("loaded:")[1]
    assert not {"torch", "transformers", "trl", "datasets", "matplotlib"} & set(loaded.split())


def test_the_fused_head_needs_torch_alone():
    """A checkout on a machine without cargo, polars or transformers can run the kernels: benchmarks/gpu.sh does."""
    loaded = python("import sys, mipo.fused; print(*sys.modules)").split()
    heavy = {"mipo._native", "polars", "pyarrow", "transformers", "trl", "datasets"}
    assert not (heavy | {"jaxtyping", "beartype"}) & set(loaded)


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert mipo.__version__ == version("mipo")
    assert not hasattr(mipo, "__author__")


def test_commands():
    assert list(COMMANDS) == list(OPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert {word for word in shown.split() if word.startswith("--")} == set(OPTIONS[command].split())


def test_trl_methods_that_we_override():
    from trl import DPOConfig, DPOTrainer

    from mipo.trainer.config import MIPOConfig
    from mipo.trainer.trainer import MIPOTrainer

    ours = {name for name in vars(MIPOTrainer) if callable(getattr(MIPOTrainer, name)) and hasattr(DPOTrainer, name)}
    assert ours == {
        "__init__", "_prepare_dataset", "_precompute_ref_logps", "compute_ref_log_probs", "_compute_loss", "evaluate",
        "predict", "log",
    }  # fmt: skip
    for name in ours - {"__init__"}:
        theirs = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
        assert list(inspect.signature(getattr(MIPOTrainer, name)).parameters) == theirs, name
    assert issubclass(MIPOConfig, DPOConfig)
