"""The launcher of a training in several processes: torchrun, or accelerate with a configuration.

Knows their command lines, the machine's GPUs and TRL's configurations. Starts nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import yaml

from mipo.errors import InputError
from mipo.run.recipe import Launch


def command(settings: Launch) -> list[str]:
    """The launcher: torchrun, or accelerate with a configuration.

    TRL's configurations are for 8 processes, so the number is always given; a user's own may have it.
    """
    import torch

    processes = settings.processes or torch.accelerator.device_count()
    if settings.config is None:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    configuration = configuration_file(settings.config)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={configuration}"]
    own = Path(settings.config).is_file() and settings.processes is None  # then it has the number, too
    return launcher if own else [*launcher, f"--num_processes={processes}"]


def check_launch(settings: Launch) -> None:
    """Raises InputError for a configuration that is not there, and for more processes than this machine has GPUs."""
    import torch

    if settings.config is not None:
        configuration_file(settings.config)
    there, wanted = torch.accelerator.device_count(), settings.processes
    if there and wanted and wanted > there:
        raise InputError(f"launch.processes: expected at most {there}, the GPUs of this machine, got {wanted}")
    if not there and wanted is None:
        raise InputError("launch.processes: expected a number on a machine without GPUs, got none")


def is_partitioned(settings: Launch) -> bool:
    """Whether the configuration is one of ZeRO-3; one that names a file of DeepSpeed's is not read."""
    if settings.config is None:
        return False
    path = configuration_file(settings.config)
    try:
        configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"launch.config: {path}: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(configuration, dict):
        raise InputError(f"launch.config: {path}: expected settings of accelerate, name: value, got {configuration!r}")
    return (configuration.get("deepspeed_config") or {}).get("zero_stage") == 3


def configuration_file(name: str) -> Path:
    """The file of an accelerate configuration: `name` itself, or TRL's of that name."""
    if Path(name).is_file():
        return Path(name).resolve()
    spec = importlib.util.find_spec("trl")
    folder = Path(str(spec.origin)).parent / "accelerate_configs" if spec else Path()
    own = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in own:
        raise InputError(f"launch.config: expected a file, or one of TRL's, {', '.join(own)}; got {name!r}")
    return own[name]
