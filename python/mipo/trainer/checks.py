"""Checks: refuses settings with which MIPOTrainer cannot train, from settings and the model's config alone.

Knows the refusals of TRL and PEFT. Reads no data and no weights.
"""

import copy
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations import get_reporting_integration_callbacks
from transformers.pytorch_utils import Conv1D

from mipo.errors import InputError
from mipo.loss.preference import LOSS_TYPES
from mipo.trainer.config import MIPOConfig
from mipo.trainer.preference_head import check_settings


def check_training(args: MIPOConfig, *, negatives: int) -> None:
    """Raises InputError for settings with which training on `negatives` rejected responses per group cannot start.

    The message begins with the name of a setting.
    """
    unknown = [name for name in args.loss_type if name not in LOSS_TYPES]
    if unknown:
        raise InputError(f"loss_type: expected names among {', '.join(LOSS_TYPES)}, got {', '.join(unknown)}")
    if negatives > 1:
        check_grouped(args)
    if args.fused_loss:
        try:
            check_settings(args, {}, {}, negatives)
        except ValueError as error:
            raise InputError(str(error)) from error
    if args.eval_strategy != "no":
        raise InputError(
            f"eval_strategy: expected no, got {str(args.eval_strategy.value)!r}; training has no data set to evaluate "
            "on: a run measures its held-out prompts before and after training"
        )
    if args.fp16 and not torch.accelerator.is_available():
        raise InputError("fp16: expected false on a CPU, got true; leave it out, or set bf16")
    if args.sync_ref_model and args.precompute_ref_log_probs:
        raise InputError("sync_ref_model: expected false, or precompute_ref_log_probs false with it; got true for both")
    for callback in get_reporting_integration_callbacks(args.report_to):
        try:
            callback()
        except RuntimeError as error:
            raise InputError(f"report_to: {error}") from error


def check_grouped(args: MIPOConfig) -> None:
    """Raises InputError for settings that do not work with several rejected responses per group."""
    required = {"loss_type": ["sigmoid"], "loss_weights": None, "ld_alpha": None, "use_weighting": False,
             "label_smoothing": 0.0, "f_divergence_type": "reverse_kl"}  # fmt: skip
    for name, value in required.items():
        if getattr(args, name) != value:
            raise InputError(
                f"{name}: expected {value!r}, since several rejected responses per group need the softmax loss, got "
                f"{getattr(args, name)!r}; leave it out, or use negatives: 1, which has all of TRL's losses"
            )
    if args.max_length is not None:
        raise InputError(
            f"max_length: expected None, since several rejected responses per group are not cut, got {args.max_length};"
            " drop long ones by name instead (`mipo tokens --max-length`, or tokens.max_length in a recipe)"
        )


def check_modules(lora: Any, args: MIPOConfig, model_config: Any) -> None:
    """Raises InputError where a `peft.LoraConfig` does not fit the model of a config.

    Adds the adapter to a model without weights, and so without the adapter's own initialization from weights.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = copy.deepcopy(lora)
    config.init_lora_weights = False
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training repeats these warnings
        empty = AutoModelForCausalLM.from_config(model_config, trust_remote_code=args.trust_remote_code)
        try:
            adapted = get_peft_model(empty, config)
        except (ValueError, NotImplementedError) as error:
            linear = (name for name, part in empty.named_modules() if isinstance(part, torch.nn.Linear | Conv1D))
            layers = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(
                f"target_modules: {' '.join(str(error).split())} The model's linear layers are {', '.join(layers)}"
            ) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer) and not args.fused_loss:
        raise InputError(
            "target_modules: expected no LM head, since TRL's loss does not train it; leave it out, or set "
            "trainer.fused_loss: true"
        )
