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
    from mipo.models.loading import load_config, load_tokenizer
    from mipo.tokens.store import PairStore
    from mipo.trainer.checks import check_grouped, check_tokens, check_training
    from mipo.trainer.config import lora_config
    from mipo.trainer.model_checks import check_adapter, check_model
    from mipo.trainer.training import train

    if lora_r is not None and lora_r < 1:
        raise InputError(f"--lora-r: expected a whole number of at least 1, got {lora_r}; leave it out to train all")
    outputs.check_folder(output, "model")
    output = output.resolve()
    config = _config("--output_dir", str(output.with_name(f"{output.name}-checkpoints")), *flags)
    lora = None if lora_r is None else {"r": lora_r, "target_modules": "all-linear"}
    check_training(config, negatives=1, lora=lora is not None)
    empty = check_model(config, load_config(str(model), trust_remote_code=config.trust_remote_code))
    if lora is not None:
        check_adapter(lora_config(lora), config, empty)
    tokenizer = load_tokenizer(str(model), trust_remote_code=config.trust_remote_code)
    check_tokens(config, tokenizer)
    store = PairStore.open(tokens)
    if store.negatives > 1:
        check_grouped(config)
    log = train(store, str(model), tokenizer, output, args=config, lora=lora)
    if int(os.environ.get("RANK", "0")) == 0:
        files.write_json(output / "training.json", log)
        print(f"model in {output}")


def _config(*flags: str) -> Any:
    """The `MIPOConfig` that TRL's parser makes of the flags; InputError for those that it or training cannot use."""
    from trl import TrlParser

    from mipo.io import records
    from mipo.run.training_fields import OURS
    from mipo.trainer.config import MIPOConfig

    try:
        (config,) = TrlParser(MIPOConfig, exit_on_error=False).parse_args_and_config(args=list(map(_positive, flags)))
    except OSError as error:  # a file that a flag names
        raise InputError(f"{error.filename or 'a file'}: {error.strerror or error}") from error
    except (argparse.ArgumentError, ValueError, TypeError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
    plain = [name for name in OURS if hasattr(config, name) and name not in ("fsdp", "parallelism_config")]
    problems = (records.problem(OURS[name], getattr(config, name), f"--{name}") for name in plain)
    records.refuse([problem for problem in problems if problem])
    return config


def _positive(flag: str) -> str:
    """`--no_bf16` as `--bf16=false`: TRL's parser has the first form only for settings whose default is true."""
    from mipo.trainer.config import UNDECIDED

    name = flag.removeprefix("--no_").removeprefix("--no-").replace("-", "_")
    return f"--{name}=false" if flag.startswith("--no") and name in UNDECIDED else flag
