"""Model checks: refuses settings that do not fit a model, from its config alone: an empty model is made of it.

Knows the refusals of TRL, transformers and PEFT. Reads no data and no weights.
"""

import copy
import inspect
import re
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from mipo.errors import InputError
from mipo.trainer.checks import refusal
from mipo.trainer.config import MIPOConfig

# PEFT's initializations that read data, in a step of their own before training.
PREPARED = ("eva", "corda", "lora_ga")
DTYPES = ("auto", "bfloat16", "float16", "float32")  # those that TRL takes by name


def check_model(args: MIPOConfig, model_config: Any) -> Any:
    """Raises InputError for settings that the model of a config does not take; returns that model, without weights.

    The message begins with the name of a setting.
    """
    options: dict[str, Any] = args.model_init_kwargs or {}  # TRL parsed what was text
    for name in options:
        if not _is_taken(name, model_config):
            raise InputError(f"model_init_kwargs.{name}: from_pretrained takes no such argument; leave it out")
    if (dtype := options.get("dtype", "auto")) not in DTYPES:
        raise InputError(f"model_init_kwargs.dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if quantization := options.get("quantization_config"):
        with refusal("model_init_kwargs.quantization_config"):
            AutoHfQuantizer.from_config(quantization).validate_environment(device_map=None)
    config, attention = copy.deepcopy(model_config), options.get("attn_implementation")
    with torch.device("meta"), refusal("model_init_kwargs.attn_implementation" if attention else "model"):
        empty = AutoModelForCausalLM.from_config(
            config, trust_remote_code=args.trust_remote_code, attn_implementation=attention
        )
    if args.router_aux_loss_coef and not hasattr(model_config.get_text_config(), "output_router_logits"):
        raise InputError(
            f"router_aux_loss_coef: expected none, since the model is no mixture of experts, got "
            f"{args.router_aux_loss_coef}; leave it out"
        )
    return empty


def _is_taken(name: str, config: Any) -> bool:
    """Whether `from_pretrained` takes an argument: one of its own, of which it reads most by name, or of the config."""
    own = inspect.getsource(PreTrainedModel.from_pretrained)
    return f'"{name}"' in own or f" {name}:" in own or hasattr(config, name)


def check_adapter(lora: Any, args: MIPOConfig, empty: Any) -> None:
    """Raises InputError where a `peft.LoraConfig` does not fit a model of `check_model`, which it changes."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if str(getattr(lora.task_type, "value", lora.task_type)) != "CAUSAL_LM":
        raise InputError(f"task_type: expected CAUSAL_LM, got {lora.task_type}; leave it out")
    _check_names(lora, empty)
    _check_initialization(lora)
    layers, config = _layers(empty), copy.deepcopy(lora)
    config.init_lora_weights = False
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training repeats these warnings
        try:
            adapted = get_peft_model(empty, config)
        except re.error as error:
            raise InputError(f"target_modules: expected a regular expression or a list of names ({error})") from error
        except (ValueError, NotImplementedError) as error:
            if "arget modules" not in str(error):
                raise
            raise InputError(f"target_modules: {' '.join(str(error).split())} {layers}") from error
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise InputError("inference_mode: expected false, since it leaves nothing to train, got true")
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer) and not args.fused_loss:
        raise InputError(
            "target_modules: expected no LM head, since TRL's loss does not train it; leave it out, or set "
            "trainer.fused_loss: true"
        )


def _check_names(lora: Any, empty: Any) -> None:
    """Each name in a list, since PEFT passes over those that nothing has beside one that something has."""
    modules = {f".{name}" for name, _ in empty.named_modules()}
    parameters = {f".{name}" for name, _ in empty.named_parameters()}
    there = {"target_modules": modules, "modules_to_save": modules, "target_parameters": parameters}
    for setting, known in there.items():
        names = getattr(lora, setting) or ()
        for name in () if isinstance(names, str) else sorted(names):
            if not any(path.endswith(f".{name}") for path in known):
                raise InputError(f"{setting}: expected names in the model, got {name!r}. {_layers(empty)}")
    tokens, rows = lora.trainable_token_indices or [], empty.get_input_embeddings().num_embeddings
    listed = tokens if isinstance(tokens, list) else [token for some in tokens.values() for token in some]
    if beyond := [token for token in listed if not 0 <= token < rows]:
        raise InputError(f"trainable_token_indices: expected 0 to {rows - 1}, got {beyond[0]}")


def _check_initialization(lora: Any) -> None:
    """Initializes the adapter of one small layer, since an empty model has no weights to begin from."""
    from peft import LoraConfig, inject_adapter_in_model

    how = lora.init_lora_weights
    if how in PREPARED:
        raise InputError(f"init_lora_weights: {how} reads data before training, which mipo does not do; leave it out")
    one = LoraConfig(r=1, target_modules=["0"], init_lora_weights=how, loftq_config=lora.loftq_config)
    with refusal("init_lora_weights"):
        inject_adapter_in_model(one, torch.nn.Sequential(torch.nn.Linear(8, 8)))


def _layers(model: Any) -> str:
    linear = (name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear | Conv1D))
    return f"The model's linear layers are {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
