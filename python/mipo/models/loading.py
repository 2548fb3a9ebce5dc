"""Loading: a model's config, tokenizer and weights, from a folder or the hub.

Knows transformers. Knows nothing of prompts or responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, MipoError, NotThereError, first_line
from mipo.io.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, padding on the left. Raises NotThereError where there is none,
    InputError for one without an end token.
    """
    from transformers import AutoTokenizer

    _check_place(model, "tokenizer*", "vocab*", "*.model")
    with _reading(model, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{model}: the tokenizer has no eos_token, so responses could never end; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_config(model: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a model folder or hub name; NotThereError where there is none."""
    from transformers import AutoConfig

    _check_place(model, "config.json", "adapter_config.json")
    with _reading(model, "config"):
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)


def load_generation_config(model: str, config: Any) -> Any:
    """The generation config of a model folder or hub name, or what transformers makes of its `config` without one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return GenerationConfig.from_model_config(config)


def load_model(model: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal model of a folder (also a PEFT adapter's) or hub name, in evaluation mode on the accelerator, if any.

    `dtype` is the name of a torch dtype, or `auto`: the saved dtype on an accelerator, float32 on a CPU. Raises
    NotThereError where there is no such model, InputError where weights are missing or not finite.
    """
    from transformers import AutoModelForCausalLM

    _check_place(model, "config.json", "adapter_config.json")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    options = {"dtype": _dtype(dtype, device), "trust_remote_code": trust_remote_code, "output_loading_info": True}
    with _reading(model, "causal language model", torch.OutOfMemoryError), without_bars():
        weights, info = AutoModelForCausalLM.from_pretrained(model, **options)
    if missing := info["missing_keys"]:
        raise InputError(
            f"{model}: {len(missing)} weights of its architecture are missing, for example {min(missing)}; they would "
            "be random. Give a complete causal language model"
        )
    loaded: PreTrainedModel = weights.to(device).eval()
    if name := not_finite(loaded):
        raise InputError(
            f"{model}: expected finite weights, got {name} with NaN or infinity, as after a training that diverged; "
            "give another model"
        )
    return loaded


def not_finite(model: Any) -> str | None:
    """The name of the first parameter with NaN or infinity; None where there is none."""
    return next((name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())), None)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the progress bars of transformers ("Loading weights", "Writing model shards"); those of downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _reading(model: str, part: str, *others: type[Exception]) -> Iterator[None]:
    """Makes a NotThereError of whatever a library raises for files that it cannot read, except for `others`.

    tokenizers raises Exception itself, safetensors an error of its own, and a config may fail anywhere.
    """
    passing: tuple[type[Exception], ...] = (MipoError, ImportError, MemoryError, *others)
    try:
        yield
    except passing:
        raise
    except Exception as error:
        raise NotThereError(f"{model}: no {part} found there that can be read ({first_line(error)})") from None


def _check_place(model: str, *names: str) -> None:
    """NotThereError for a path that is no folder, or a folder without any of the files `names`. transformers would
    look for it on the hub first, which takes long.
    """
    path = Path(model)
    if path.is_dir():
        if not any(any(path.glob(name)) for name in names):
            raise NotThereError(f"{model}: a folder without {' or '.join(names)}; name the folder of a model")
    elif path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise NotThereError(f"{model}: no such folder; name the folder of a model, or a model on the hub")


def _dtype(name: str, device: torch.device | None) -> Any:
    if name == "auto":
        return torch.float32 if device is None or device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype: expected auto or a dtype of torch, for example bfloat16, got {name!r}")
    return dtype
