"""Training settings: the sections `trainer` and `lora` of a recipe as TRL's and PEFT's configs.

Loads torch, TRL and PEFT. Reads no data and no weights, so that a wrong setting is refused before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.models.loading import load_config
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
        if lora is not None:
            from mipo.trainer.checks import check_modules

            config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
            with _refused("lora"):
                check_modules(lora, args, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return recipe


def build(recipe: Recipe, folder: Path) -> tuple[MIPOConfig, LoraConfig | None]:
    """The configs that a recipe trains with, checkpoints in `folder`; InputError if training could not start."""
    import peft  # noqa: F401  # a run needs it, and must say so at once

    from mipo.trainer.checks import check_training
    from mipo.trainer.config import MIPOConfig, lora_config

    fields = {"seed": recipe.seed, "trust_remote_code": recipe.trust_remote_code, **trainer_fields(recipe)}
    with _refused("trainer"):
        args = MIPOConfig(output_dir=str(folder / "checkpoints"), **fields)
        check_training(args, negatives=recipe.contrast.negatives)
    with _refused("lora"):
        return args, None if recipe.lora is None else lora_config(recipe.lora)


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
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, OSError) as error:
        raise InputError(f"{section}: {' '.join(str(error).split())}") from error
