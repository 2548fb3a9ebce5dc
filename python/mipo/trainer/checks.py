"""Checks: refuses settings with which MIPOTrainer cannot train, before anything is loaded or computed.

Knows the refusals of TRL, transformers, torch and accelerate that come late: while a trainer is built, or in its first
step. Reads no data, no model and no weights.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
import torch
from accelerate.utils import TorchDynamoPlugin
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.optimization import get_scheduler
from transformers.training_args import trainer_log_levels
from transformers.utils import is_liger_kernel_available

from mipo.errors import InputError
from mipo.loss.preference import LOSS_TYPES
from mipo.trainer.config import MIPOConfig, is_partitioned
from mipo.trainer.preference_head import check_settings

# What the libraries raise for a setting that they do not take.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError)
# TRL's: a term of other f-divergences cancels in the difference of rewards only, which these losses have.
OF_DIFFERENCES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
STEPS = 100  # of the schedule that is made as a trial


def check_training(args: MIPOConfig, *, negatives: int, lora: bool = False, launched: bool = False) -> None:
    """Raises InputError for settings with which training on `negatives` rejected responses per group cannot start.

    `lora`: an adapter is trained. `launched`: this process will start those that train. The message begins with the
    name of a setting.
    """
    _check_loss(args, negatives)
    _check_process(args, alone=not launched and int(os.environ.get("WORLD_SIZE", "1")) == 1)
    _check_libraries(args)
    if args.sync_ref_model and args.precompute_ref_log_probs:
        raise InputError(
            "sync_ref_model: expected false, or precompute_ref_log_probs false with it; got true for both; leave "
            "precompute_ref_log_probs out"
        )
    if args.sync_ref_model and lora:
        raise InputError(
            "sync_ref_model: expected false with LoRA, whose reference is the model without the adapter; got true"
        )


def check_grouped(args: MIPOConfig) -> None:
    """Raises InputError for settings that do not work with several rejected responses per group."""
    if args.truncation_mode not in ("keep_start", "keep_end"):
        raise InputError(f"truncation_mode: expected keep_start or keep_end, got {args.truncation_mode!r}")
    required = {"loss_type": ["sigmoid"], "loss_weights": None, "ld_alpha": None, "use_weighting": False,
             "label_smoothing": 0.0, "f_divergence_type": "reverse_kl"}  # fmt: skip
    for name, value in required.items():
        if getattr(args, name) != value:
            raise InputError(
                f"{name}: expected {value!r}, since several rejected responses per group need the softmax loss, got "
                f"{getattr(args, name)!r}; leave it out, or use negatives: 1, which has all of TRL's losses"
            )


def _check_loss(args: MIPOConfig, negatives: int) -> None:
    names = list(args.loss_type)
    unknown = [name for name in names if name not in LOSS_TYPES]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise InputError(f"loss_type: expected names among {', '.join(LOSS_TYPES)}, got {got}")
    if negatives > 1:
        check_grouped(args)
    if args.fused_loss:
        try:
            check_settings(args, {}, {}, negatives)
        except ValueError as error:
            raise InputError(str(error)) from error
    divergences = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    if args.f_divergence_type not in divergences:
        raise InputError(f"f_divergence_type: expected one of {', '.join(divergences)}, got {args.f_divergence_type!r}")
    if args.f_divergence_type != "reverse_kl" and (others := [name for name in names if name not in OF_DIFFERENCES]):
        raise InputError(
            f"f_divergence_type: expected reverse_kl with loss_type {', '.join(others)}, got {args.f_divergence_type!r}"
        )
    if args.use_weighting and (sorting := [name for name in names if name.startswith("aot")]):
        raise InputError(f"use_weighting: expected false with loss_type {', '.join(sorting)}, which sorts, got true")
    if "exo_pair" in names and not args.label_smoothing:
        raise InputError("label_smoothing: expected more than 0 with loss_type exo_pair, for example 0.001, got 0")


def _check_process(args: MIPOConfig, *, alone: bool) -> None:
    """Refuses what needs more than this training has, such as an accelerator, and values that TRL rejects late."""
    on_cpu = not torch.accelerator.is_available()
    evaluates = "training has no data set to evaluate on: a run measures its held-out prompts before and after training"
    # The setting, whether it is wrong, what is expected, what it got and why.
    wrong: list[tuple[str, bool, str]] = [
        ("eval_strategy", args.eval_strategy != "no", f"expected no, got {args.eval_strategy.value!r}; {evaluates}"),
        ("eval_on_start", args.eval_on_start, f"expected false, got true; {evaluates}"),
        ("save_strategy", args.save_strategy == "best", f"expected steps, epoch or 'no', got 'best'; {evaluates}"),
        ("resume_from_checkpoint", args.resume_from_checkpoint is not None,
         f"expected none, got {args.resume_from_checkpoint!r}; a training that is started again goes on from its own "
         "last checkpoint by itself"),
        ("train_sampling_strategy", args.train_sampling_strategy not in ("random", "sequential"),
         f"expected random or sequential, got {args.train_sampling_strategy!r}, which TRL's preference rows do not "
         "have the lengths for"),
        ("max_length", args.max_length is not None and args.max_length < 2,
         f"expected at least 2, one token of prompt and one of response, got {args.max_length}; leave it out for no "
         "limit"),
        ("precompute_ref_log_probs", bool(args.precompute_ref_log_probs) and is_partitioned(args),
         "expected null or false with ZeRO-3, which cannot train a model that was used for scoring before, got true"),
        ("fp16", args.fp16 and on_cpu, "expected false on a CPU, got true; leave it out, or set bf16"),
        ("activation_offloading", args.activation_offloading and on_cpu, "expected false on a CPU, got true"),
        ("fsdp", bool(args.fsdp) and alone,
         "expected none in a single process, got some; name several in a recipe, for example launch: {config: fsdp2}, "
         "or train with `accelerate launch -m mipo train …`"),
        ("push_to_hub", args.push_to_hub and huggingface_hub.get_token() is None,
         "expected a login at the Hugging Face hub with it, got none; run `hf auth login`, or set HF_TOKEN"),
    ]  # fmt: skip
    for name, is_wrong, message in wrong:
        if is_wrong:
            raise InputError(f"{name}: {message}")


def _check_libraries(args: MIPOConfig) -> None:
    """Makes small ones of what the libraries would make of the settings only after the model is loaded."""
    with refusal("report_to"):
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    for name in ("log_level", "log_level_replica"):
        if (level := getattr(args, name)) not in trainer_log_levels:
            raise InputError(f"{name}: expected one of {', '.join(trainer_log_levels)}, got {level!r}")
    with refusal("dataloader_num_workers"):
        DataLoader([0], num_workers=args.dataloader_num_workers)  # type: ignore[arg-type]  # a list is a data set
    if args.torch_compile:
        with refusal("torch_compile_backend"):
            TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    known = {*inspect.signature(checkpoint).parameters, "preserve_rng_state"} - {"function", "args", "kwargs"}
    if unknown := [name for name in args.gradient_checkpointing_kwargs or () if name not in known]:
        raise InputError(
            f"gradient_checkpointing_kwargs: expected arguments of torch.utils.checkpoint, {', '.join(sorted(known))}; "
            f"got {unknown[0]!r}"
        )
    if args.use_liger_kernel:
        if not is_liger_kernel_available():
            raise InputError("use_liger_kernel: needs liger-kernel, which is not installed; `pip install liger-kernel`")
        if (args.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
            raise InputError("liger_kernel_config: expected no fused_linear_cross_entropy, since TRL has its own head")
    _check_schedule(args, _optimizer(args))


def _optimizer(args: MIPOConfig) -> torch.optim.Optimizer:
    """The optimizer of one weight, or a plain one for those that transformers makes of a whole model."""
    weight = torch.nn.Linear(1, 1, bias=False)
    with refusal("optim"):
        if args.optim_args and any(part.count("=") != 1 for part in args.optim_args.split(",")):
            raise InputError(f"optim_args: expected name=value, name=value, got {args.optim_args!r}")
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, weight)
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and "params" not in options:
            return kind(weight.parameters(), **options)
    return torch.optim.SGD(weight.parameters(), lr=1.0)


def _check_schedule(args: MIPOConfig, optimizer: torch.optim.Optimizer) -> None:
    if isinstance(args.lr_scheduler_kwargs, dict | None):
        with refusal("lr_scheduler_kwargs"):
            warmup = args.get_warmup_steps(STEPS)
            get_scheduler(args.lr_scheduler_type, optimizer, warmup, STEPS, args.lr_scheduler_kwargs)


def check_tokens(args: MIPOConfig, tokenizer: Any) -> None:
    """Raises InputError for settings that do not fit the tokenizer."""
    if args.pad_token is not None and args.pad_token not in tokenizer.get_vocab():
        raise InputError(f"pad_token: expected a token of the model's, got {args.pad_token!r}; leave it out")


@contextmanager
def refusal(setting: str) -> Iterator[None]:
    """Makes an InputError that begins with `setting` of what a library raises; mipo's own pass."""
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        raise InputError(f"{setting}: {' '.join(str(error).split())}") from error
