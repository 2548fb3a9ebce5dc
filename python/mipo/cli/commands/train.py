"""`mipo train`: training on tokenized pairs, alone or under `accelerate launch`."""

import argparse
import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.options import ModelName, Output
from mipo.cli.values import whole_number
from mipo.errors import InputError


def command(
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    model: ModelName,
    tokens: Annotated[Path, Parameter(help="what `mipo tokens` wrote")],
    output: Output,
    lora_r: Annotated[
        int | None,
        Parameter(converter=whole_number, help="train a LoRA adapter of this rank on all linear layers"),
    ] = None,
) -> None:
    """Writes the trained model; `flags` go to TRL's parser."""
    from mipo.io import files, outputs
    from mipo.models.loading import load_tokenizer
    from mipo.tokens.store import PairStore
    from mipo.trainer.training import train

    outputs.check_folder(output, "model")
    output = output.resolve()
    config = _config("--output_dir", str(output.with_name(f"{output.name}-checkpoints")), *flags)
    lora = {"r": lora_r, "target_modules": "all-linear"} if lora_r else None
    tokenizer = load_tokenizer(str(model), trust_remote_code=config.trust_remote_code)
    log = train(PairStore.open(tokens), str(model), tokenizer, output, args=config, lora=lora)
    if int(os.environ.get("RANK", "0")) == 0:
        files.write_json(output / "training.json", log)
        print(f"model in {output}")


def _config(*flags: str) -> Any:
    """The `MIPOConfig` that TRL's parser makes of the flags."""
    from trl import TrlParser

    from mipo.trainer.config import MIPOConfig

    try:
        (config,) = TrlParser(MIPOConfig, exit_on_error=False).parse_args_and_config(args=list(flags))
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(str(error)) from error
    return config
