"""Packing: from a padded batch to its response tokens, group after group, and to one row that shares its prompts.

Knows batches of token ids. Knows nothing of models, losses or where the batches come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mipo.errors import InputError
from mipo.trainer.shared_prompts import Layout, share

REF = ("ref_chosen_logps", "ref_rejected_logps")
# What a batch has beside the arguments of a model.
NOT_OF_MODELS = ("completion_mask", "group_mask", "ref_logps", *REF)


class PackedGroups:
    """The response tokens of a batch, group by group, chosen responses first, and the states that predict them.

    A class of its own, no tuple and no dataclass, so that what moves, casts or splits all tensors of a batch, or of a
    model's arguments, leaves it alone: lengths stay on the CPU, where reading them does not wait, and the reference in
    float32.
    """

    def __init__(
        self,
        *,
        states: Tensor,
        targets: Tensor,
        is_chosen: Tensor,
        lengths: Tensor,
        ref_logps: Tensor | None,
        width: int,
    ) -> None:
        self.states = states
        """[S], which of the hidden states of a batch, row after row, are read; each once."""
        self.repeats: Tensor | None = None
        """[T], which of `states` predicts each token; None where there is one for each."""
        self.targets = targets
        """[T], the tokens."""
        self.is_chosen = is_chosen
        """[T], the token is in a chosen response."""
        self.lengths = lengths
        """[G, K+1], CPU: tokens of each response, 0 where a group has no such response."""
        self.ref_logps = ref_logps
        """[G, K+1], nats."""
        self.width = width
        """The columns of a row."""
        self.layout: Layout | None = None
        """How one row shares its prompts; None for ordinary rows."""

    def to(self, device: Any, **options: Any) -> PackedGroups:
        """A copy with all but the lengths on `device`; accelerate's loaders call it by this name."""
        return self._with_each(lambda moved: moved.to(device, **options))

    def pin_memory(self) -> PackedGroups:
        """A copy in pinned memory; torch's loaders call it by this name."""
        return self._with_each(lambda moved: moved.pin_memory())

    def with_reference(self, ref_logps: Tensor | None) -> PackedGroups:
        """A copy with these log-probs of the reference, in nats."""
        groups = copy.copy(self)
        groups.ref_logps = ref_logps
        return groups

    def in_row(self, places: Tensor, layout: Layout) -> PackedGroups:
        """These groups in one row of `layout`, where each token of the batch has one of `places`."""
        groups = copy.copy(self)
        groups.states, groups.repeats = torch.unique(places.flatten()[self.states], return_inverse=True)
        groups.width, groups.layout = layout.positions.shape[1], layout
        return groups

    def hidden(self, states: Tensor) -> Tensor:
        """The states [T, D] that predict the tokens, of the last layer's [N, columns, D].

        PEFT may have put learned prompts before them.
        """
        hidden = states[:, -self.width :].flatten(0, 1).index_select(0, self.states)
        if self.repeats is None:
            return hidden
        # The gradients of a state that predicts the first token of several responses are added in float32.
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return wide.index_select(0, self.repeats).to(hidden.dtype)

    def _with_each(self, move: Callable[[Any], Any]) -> PackedGroups:
        groups = copy.copy(self)
        for name in ("states", "repeats", "targets", "is_chosen", "ref_logps", "layout"):
            if (value := getattr(self, name)) is not None:
                setattr(groups, name, move(value))
        return groups


@dataclass
class PackingCollator:
    """Adds `groups` to the batches of another collator, TRL's or `mipo.trainer.collators.GroupCollator`.

    With `sharing` it also adds `shared_ids` [1, T], the batch as one row, and `shared_groups`, the groups in it. A
    response token in the first column, which nothing predicts, is neither scored nor counted.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    sharing: bool = False

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
        groups = PackedGroups(
            states=tokens - 1, targets=ids.flatten()[tokens], is_chosen=is_chosen, ref_logps=_reference(batch),
            lengths=torch.zeros(mask.shape, dtype=torch.int64).masked_scatter_(mask, counts), width=ids.shape[1],
        )  # fmt: skip
        batch = {**batch, "groups": groups}
        if self.sharing:
            batch["shared_ids"], layout, places = share(ids[order], batch["attention_mask"][order] != 0,
                                                        is_response[order])  # fmt: skip
            batch["shared_groups"] = groups.in_row(places[order.argsort()], layout)
        return batch


def ordinary(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as its collator made it, before it was packed."""
    return {name: value for name, value in inputs.items() if name not in ("groups", "shared_ids", "shared_groups")}


def ordinary_rows(inputs: dict[str, Any]) -> tuple[dict[str, Any], PackedGroups]:
    """The arguments of a model, and the groups in its rows."""
    return {name: value for name, value in ordinary(inputs).items() if name not in NOT_OF_MODELS}, inputs["groups"]


def shared_row(inputs: dict[str, Any]) -> tuple[dict[str, Any], PackedGroups]:
    """The same for the batch as one row, which holds each prompt once."""
    return {"input_ids": inputs["shared_ids"]}, inputs["shared_groups"]


def _reference(batch: Mapping[str, Any]) -> Tensor | None:
    if REF[0] in batch:
        return torch.stack([batch[name] for name in REF], 1)
    return batch.get("ref_logps")
