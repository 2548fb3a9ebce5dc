"""Preference head: makes a causal LM return the preference loss of a batch of groups instead of logits.

Knows transformers' models, PEFT's wrappers and the settings of TRL's DPOTrainer. Knows nothing of training steps,
metrics or the source of reference log-probs. The loss is computed within the model's own forward, so that DDP, FSDP and
autocast work on it as on any forward.
"""

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig
from trl.trainer import dpo_trainer

from mipo.errors import InputError
from mipo.fused.heads import Head
from mipo.fused.operators import linear_logps, linear_preference_loss
from mipo.loss.preference import check_losses
from mipo.trainer import shared_attention
from mipo.trainer.packing import PackedGroups


class Figures:
    """What is logged of a batch, without gradients. FSDP casts the tensors of a model's result, and not these."""

    def __init__(self, logps: Tensor, entropy: Tensor, mean_logits: Tensor, is_top1: Tensor) -> None:
        self.logps = logps  # [G, K+1], nats
        self.entropy = entropy  # [T], nats
        self.mean_logits = mean_logits  # [T]
        self.is_top1 = is_top1  # [T], bool


class PreferenceHeadOutput(NamedTuple):
    """The result of a model with a preference head for `groups`."""

    loss: Tensor  # [], the mean over the groups, without aux_loss
    aux_loss: Tensor | None  # [], of a mixture of experts with output_router_logits
    figures: Figures


class ResponseLogps:
    """The result for `groups` without a reference, without gradients."""

    def __init__(self, tokens: Tensor, responses: Tensor) -> None:
        self.tokens = tokens  # [T], nats
        self.responses = responses  # [G, K+1], nats, 0 where a group has no such response


def add_preference_head(model: Any, args: DPOConfig) -> None:
    """Makes `model(..., groups=PackedGroups)` return `PreferenceHeadOutput`; without `groups`, nothing changes.

    Groups without `ref_logps` are scored: the result is `ResponseLogps`.

    Args:
        model: a causal LM of transformers, or PEFT's wrapper of one. Its forward is patched as by TRL's
            `add_fused_lm_head`, which may have patched it before; only the model refers to the patch.
        args: settings of a DPOTrainer: beta and those of the losses are used.

    Raises:
        UnsupportedError: at a call, if `mipo.fused.heads` does not support the LM head.
    """
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    original, options = inner.forward, _loss_options(args)

    # `generate` checks its arguments against this signature.
    @functools.wraps(type(inner).forward)
    def forward(self: Any, *args: Any, groups: PackedGroups | None = None, **kwargs: Any) -> Any:
        if groups is None:
            return original(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes its own None
        if groups.layout is not None:
            kwargs |= shared_attention.arguments(groups.layout)
        # Look the backbone up at every call, as TRL does: PEFT and FSDP replace modules.
        out = self.base_model(*args, **{**kwargs, "use_cache": False})
        if groups.ref_logps is None:
            return _response_logps(self, groups, out)
        return _preference_loss(self, groups, options, out, kwargs)

    inner.forward = types.MethodType(forward, inner)


def lacking(args: DPOConfig, arguments: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The settings and arguments of a DPOTrainer, and the columns of its rows, that the fused loss lacks."""
    parallel = getattr(args, "parallelism_config", None)
    flags = {
        "ld_alpha": args.ld_alpha is not None,
        "use_weighting": args.use_weighting,
        "f_divergence_type": args.f_divergence_type != "reverse_kl",
        "padding_free": args.padding_free,
    }
    named = [f"{name}={getattr(args, name)!r}" for name, is_set in flags.items() if is_set]
    named += ["compute_metrics"] if arguments.get("compute_metrics") is not None else []
    named += [f"{name!r} in the rows" for name in ("image", "images") if name in row]
    sizes = ("cp_size", "sp_size")
    return named + [f"{name}={getattr(parallel, name)}" for name in sizes if getattr(parallel, name, 1) > 1]


def check_settings(args: DPOConfig, arguments: Mapping[str, Any], row: Mapping[str, Any], negatives: int) -> None:
    """Raises InputError for what the fused loss lacks, by name, and for its own options where they do not agree."""
    if unsupported := lacking(args, arguments, row):
        raise InputError(
            f"fused_loss=True does not support {', '.join(unsupported)}; leave it out, or score with TRL's head, "
            "fused_loss=False"
        )
    check_losses(**_loss_options(args), negatives=negatives)


@contextmanager
def adapted_heads(allowed: bool) -> Iterator[None]:
    """Makes DPOTrainer.__init__ accept a model with an adapter on its LM head, if `allowed`.

    TRL refuses such a model because its head reads the weight alone and would not train the adapter; mipo's head does.
    The check is in the middle of the constructor, after the line that wraps the model, and has no switch. So this hides
    the class that it tests for: nothing else in that module uses it, and if a later TRL renames it, the refusal
    returns.
    """
    layer_class = vars(dpo_trainer).get("BaseTunerLayer")
    if not allowed or layer_class is None:  # without PEFT there is no such class
        yield
        return
    dpo_trainer.BaseTunerLayer = ()  # no object is an instance of ()
    try:
        yield
    finally:
        dpo_trainer.BaseTunerLayer = layer_class


def _loss_options(args: DPOConfig) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("beta", "loss_type", "loss_weights", "label_smoothing",
                                                   "discopop_tau")}  # fmt: skip


def _preference_loss(
    model: Any, groups: PackedGroups, options: Mapping[str, Any], out: Any, arguments: Mapping[str, Any]
) -> PreferenceHeadOutput:
    hidden, head = _read(model, groups, out)
    assert groups.ref_logps is not None
    result = linear_preference_loss(
        hidden, targets=groups.targets, lengths=groups.lengths, ref_logps=groups.ref_logps, statistics=True,
        **head, **options,
    )  # fmt: skip
    statistics = result.statistics
    assert statistics is not None
    figures = Figures(result.logps, statistics.entropy, statistics.mean_logits, statistics.is_top1)
    counts = arguments.get("attention_mask") if groups.layout is None else groups.layout.copies
    aux_loss = _aux_loss(model, out, counts) if arguments.get("output_router_logits") else None
    return PreferenceHeadOutput(result.loss, aux_loss, figures)


@torch.no_grad()
def _response_logps(model: Any, groups: PackedGroups, out: Any) -> ResponseLogps:
    hidden, head = _read(model, groups, out)
    device = hidden.device.type
    # The dtype of a training step, so that the rounding of its logits is the reference's too, and cancels.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    logps = linear_logps(hidden, targets=groups.targets, logits_dtype=dtype, **head)
    lengths = groups.lengths.to(logps.device, non_blocking=True)
    responses = torch.segment_reduce(logps, "sum", lengths=lengths.flatten(), unsafe=True).view_as(lengths)
    return ResponseLogps(logps, responses)


def _read(model: Any, groups: PackedGroups, out: Any) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states [T, D] to score, and the LM head as arguments."""
    hidden = groups.hidden(out.last_hidden_state)
    head = Head.of(model)
    hidden = hidden.to(head.weight)  # a device_map may put the head on another device, PEFT its copy into float32
    return hidden, head(hidden)


def _aux_loss(model: Any, out: Any, counts: Tensor | None) -> Any:
    """`counts` [N, L] say how often each token counts."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    return load_balancing_loss_func(out.router_logits, config.num_experts, config.num_experts_per_tok, counts)
