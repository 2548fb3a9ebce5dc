"""Training settings: the sections `trainer` and `lora` of a recipe as TRL's and PEFT's configs.

Loads torch, TRL and PEFT. Reads no data and no weights, so that a wrong setting is refused before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.models.loading import load_config, load_tokenizer
from mipo.run.launcher import check_launch, is_partitioned
from mipo.run.recipe import Recipe, load

if TYPE_CHECKING:
    from peft import LoraConfig

    from mipo.trainer.config import MIPOConfig


def load_checked(path: str | Path, folder: Path, *, seed: int | None = None, control: str | None = None) -> Recipe:
    """The recipe in a YAML file (`mipo.run.recipe.load`), after a check that its training can start in `folder`.

    Raises InputError, with the file's name, for settings that TRL or PEFT refuse, and for an adapter that does not fit
    the model. Only the model's config is read.
    """
    recipe = load(path, seed=seed, control=control)
    try:
        args, lora = build(recipe, folder)
        check_fit(args, lora, recipe.model)
        if recipe.launch:
            check_launch(recipe.launch)
            if is_partitioned(recipe.launch) and args.precompute_ref_log_probs:
                raise InputError(
                    "trainer.precompute_ref_log_probs: expected null or false with ZeRO-3 (launch.config), got true"
                )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return recipe


def build(recipe: Recipe, folder: Path) -> tuple[MIPOConfig, LoraConfig | None]:
    """The configs that a recipe trains with, checkpoints in `folder`; InputError if training could not start."""
    # A run needs them, the first two for its report, and must say so at once.
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import peft  # noqa: F401

    from mipo.trainer.checks import check_training
    from mipo.trainer.config import MIPOConfig, lora_config

    fields = {"seed": recipe.seed, "trust_remote_code": recipe.trust_remote_code, **trainer_fields(recipe)}
    with _refused("trainer"):
        args = _config(MIPOConfig, output_dir=str(folder / "checkpoints"), **fields)
        check_training(
            args,
            negatives=recipe.contrast.negatives,
            lora=recipe.lora is not None,
            launched=recipe.launch is not None,
        )
    with _refused("lora"):
        return args, None if recipe.lora is None else lora_config(recipe.lora)


def _config(kind: type[MIPOConfig], **fields: Any) -> MIPOConfig:
    """The config of these fields. Of one that is refused, transformers keeps no DeepSpeed settings for the process."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    try:
        return kind(**fields)
    except Exception:
        unset_hf_deepspeed_config()
        raise


def check_fit(args: MIPOConfig, lora: LoraConfig | None, model: str) -> None:
    """InputError where settings do not fit the model, of which only config and tokenizer are read."""
    from mipo.trainer.checks import check_tokens
    from mipo.trainer.model_checks import check_adapter, check_model

    config = load_config(model, trust_remote_code=args.trust_remote_code)
    with _refused("trainer"):
        empty = check_model(args, config)
        if args.pad_token is not None:
            check_tokens(args, load_tokenizer(model, trust_remote_code=args.trust_remote_code))
    if lora is not None:
        with _refused("lora"):
            check_adapter(lora, args, empty)


def trainer_fields(recipe: Recipe) -> dict[str, Any]:
    """The section `trainer`, with the loss of the recipe's control."""
    return {**recipe.trainer, **({"loss_type": ["sft"]} if recipe.control == "sft" else {})}


@contextmanager
def _refused(section: str) -> Iterator[None]:
    """Adds the section to the errors of mipo's checks and of the libraries."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}.{error}") from None
    except OSError as error:  # a file that a setting names
        raise InputError(f"{section}: {error.filename or 'a file'}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError) as error:
        raise InputError(f"{section}: {' '.join(str(error).split())}") from error
