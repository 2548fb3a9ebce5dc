"""Preference head: makes a causal LM return the preference loss of a batch of groups instead of logits.

Knows transformers' models, PEFT's wrappers and the settings of TRL's DPOTrainer. Knows nothing of training steps,
metrics or the source of reference log-probs. The loss is computed within the model's own forward, so that DDP, FSDP and
autocast work on it as on any forward.
"""

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig
from trl.trainer import dpo_trainer

from mipo.errors import InputError
from mipo.fused.heads import Head
from mipo.fused.operators import linear_preference_loss
from mipo.loss.preference import check_losses

REF = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True, eq=False)
class PackedGroups:
    """The positions of the response tokens of a batch of rows [N, L], packed group by group, chosen responses first.

    It is not a tensor, so code that moves or casts all tensors of a batch, or of a model's arguments, leaves it alone:
    the lengths stay on the CPU, where reading them does not wait, and the reference stays in float32.
    """

    states: Tensor  # [T], int64: which of the N L hidden states predicts each token
    targets: Tensor  # [T], int64: the tokens
    is_chosen: Tensor  # [T], bool: the token is in a chosen response
    lengths: Tensor  # [G, K+1], int64, CPU: tokens of each response, 0 where a group has no such response
    ref_logps: Tensor | None  # [G, K+1], nats
    width: int  # L

    def to(self, device: Any, **options: Any) -> "PackedGroups":
        """A copy with all but the lengths on `device`; accelerate's loaders call it by this name."""
        tensors = {name: getattr(self, name) for name in ("states", "targets", "is_chosen", "ref_logps")}
        copies: dict[str, Any] = {k: v if v is None else v.to(device, **options) for k, v in tensors.items()}
        return replace(self, **copies)


@dataclass
class PackingCollator:
    """Adds `groups` to the batches of another collator, TRL's or `mipo.trainer.collators.GroupCollator`.

    A response token in the first column, which nothing predicts, is neither scored nor counted.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collates a list of rows; raises InputError where one of their responses has no token to score."""
        batch = self.collate(rows)
        ids, is_response = batch["input_ids"], batch["completion_mask"] != 0
        is_response[:, 0] = False
        mask, order = batch.get("group_mask"), torch.arange(len(ids))
        if mask is None:  # TRL's order: the chosen response of every group, then the rejected ones
            order = order.view(2, -1).t().flatten()
            mask = torch.ones(len(ids) // 2, 2, dtype=torch.bool)
        counts = is_response.sum(1)[order]
        if not counts.all():
            empty = mask.nonzero()[counts == 0, 0].unique().tolist()
            raise InputError(
                f"expected a token to score in every response, got none in groups {empty[:10]} of a batch; drop these "
                "groups, and give prompts and responses of at least one token"
            )
        row, column = is_response[order].nonzero(as_tuple=True)
        tokens = order[row] * ids.shape[1] + column
        is_chosen = torch.zeros_like(mask).index_fill_(1, torch.tensor(0), True)[mask].repeat_interleave(counts)
        lengths = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter_(mask, counts)
        groups = PackedGroups(tokens - 1, ids.flatten()[tokens], is_chosen, lengths, _reference(batch), ids.shape[1])
        return {**batch, "groups": groups}


class PreferenceHeadOutput(NamedTuple):
    """The result of a model with a preference head for `groups`; `loss` and `aux_loss` have gradients."""

    loss: Tensor  # [], the mean over the groups, without aux_loss
    logps: Tensor  # [G, K+1], nats
    entropy: Tensor  # [T], nats
    mean_logits: Tensor  # [T]
    is_top1: Tensor  # [T], bool
    aux_loss: Tensor | None  # [], of a mixture of experts with output_router_logits


def add_preference_head(model: Any, args: DPOConfig) -> None:
    """Makes `model(..., groups=PackedGroups)` return `PreferenceHeadOutput`; without `groups`, nothing changes.

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
        return _preference_loss(self, groups, options, *args, **kwargs)

    inner.forward = types.MethodType(forward, inner)


def check_settings(args: DPOConfig, arguments: Mapping[str, Any], row: Mapping[str, Any], negatives: int) -> None:
    """Raises InputError, with their names, for settings and arguments of a DPOTrainer that the fused loss lacks."""
    parallel = getattr(args, "parallelism_config", None)
    flags = {
        "ld_alpha": args.ld_alpha is not None,
        "use_weighting": args.use_weighting,
        "f_divergence_type": args.f_divergence_type != "reverse_kl",
        "padding_free": args.padding_free,
    }
    lacking = [f"{name}={getattr(args, name)!r}" for name, is_set in flags.items() if is_set]
    lacking += ["compute_metrics"] if arguments.get("compute_metrics") is not None else []
    lacking += [f"{name!r} in the rows" for name in ("image", "images") if name in row]
    sizes = ("cp_size", "sp_size")
    lacking += [f"{name}={getattr(parallel, name)}" for name in sizes if getattr(parallel, name, 1) > 1]
    if lacking:
        raise InputError(
            f"fused_loss=True does not support {', '.join(lacking)}; leave it out, or score with TRL's head, "
            "fused_loss=False"
        )
    check_losses(**_loss_options(args), negatives=negatives)


def check_head(trainer: Any) -> None:
    """Raises unless a trainer's LM head can be fused and TRL's head, which reads no adapter, can score its reference.

    Under FSDP, where only the main process may have weights at first, the first step raises instead.
    """
    if trainer.is_fsdp_enabled:
        return
    head = Head.of(trainer.model)
    if head.adapters and "ref" in getattr(trainer.model, "peft_config", {}):
        raise InputError(
            "expected a model without a LoRA adapter on its LM head, got one: the reference would be a copy of that "
            "adapter, which TRL's head does not read; pass ref_model, or call merge_and_unload() and pass a new "
            "peft_config"
        )


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


def _reference(batch: Mapping[str, Any]) -> Tensor | None:
    if REF[0] in batch:
        return torch.stack([batch[name] for name in REF], 1)
    return batch.get("ref_logps")


def _preference_loss(
    model: Any, groups: PackedGroups, options: Mapping[str, Any], *args: Any, **kwargs: Any
) -> PreferenceHeadOutput:
    # Look the backbone up at every call, as TRL does: PEFT and FSDP replace modules.
    out = model.base_model(*args, **{**kwargs, "use_cache": False})
    # PEFT puts learned prompts before the tokens.
    states = out.last_hidden_state[:, -groups.width :].flatten(0, 1)
    hidden = states.index_select(0, groups.states.to(states.device))
    head = Head.of(model)
    hidden = hidden.to(head.weight)  # a device_map may put the head on another device, PEFT its copy into float32
    assert groups.ref_logps is not None
    result = linear_preference_loss(
        hidden, targets=groups.targets, lengths=groups.lengths, ref_logps=groups.ref_logps, statistics=True,
        **head(hidden), **options,
    )  # fmt: skip
    statistics = result.statistics
    assert statistics is not None
    aux_loss = _aux_loss(model, out, kwargs) if kwargs.get("output_router_logits") else None
    per_token = statistics.entropy, statistics.mean_logits, statistics.is_top1
    return PreferenceHeadOutput(result.loss, result.logps, *per_token, aux_loss)


def _aux_loss(model: Any, out: Any, kwargs: Mapping[str, Any]) -> Any:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    experts = config.num_experts, config.num_experts_per_tok
    return load_balancing_loss_func(out.router_logits, *experts, kwargs.get("attention_mask"))
