"""Trainer: TRL's DPOTrainer on pre-tokenized groups, with one rejected response or several, and the paper's settings.

Knows TRL. Knows nothing of the source of the pairs. Groups with one rejected response take TRL's own path, unchanged;
for several the loss is one softmax over the group's implicit rewards (`mipo.loss.preference_loss`). With `fused_loss`
the model computes either loss in its forward (`mipo.trainer.preference_head`).
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl import DPOTrainer
from trl.models import prepare_deepspeed

from mipo.errors import InputError
from mipo.loss.preference import implicit_rewards, preference_loss
from mipo.trainer.checks import check_grouped
from mipo.trainer.collators import GroupCollator
from mipo.trainer.config import MIPOConfig
from mipo.trainer.preference_head import (
    REF,
    PackingCollator,
    adapted_heads,
    add_preference_head,
    check_head,
    check_settings,
)


class MIPOTrainer(DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` that also takes pre-tokenized rows, and groups with several rejected responses.

    `train_dataset` holds prompt_ids, chosen_ids and rejected_ids (`mipo.PairStore.to_trl()`), or any rows that
    DPOTrainer takes. Where rejected_ids is a list of lists, the loss is -log softmax(s)_0 over the group's implicit
    rewards s; TRL's other losses need one rejected response per group, and raise InputError otherwise.

    With `args.fused_loss` the loss is `mipo.fused.linear_preference_loss`, with the same losses, gradients and metrics:
    3F in the LM head instead of TRL's 4F, and 2F instead of 3F with a frozen head. It also trains LoRA on the LM head.

    Where `args.precompute_ref_log_probs` is None, its default, the reference is scored before training unless TRL
    refuses that: for an iterable or a vision data set, and with `sync_ref_model`. There it is scored in each step.
    """

    _precompute_engine: Any

    def __init__(self, model: Any, *, args: MIPOConfig | None = None, train_dataset: Any = None, **kwargs: Any) -> None:
        args = args or MIPOConfig(output_dir="mipo")
        first: Any = None if train_dataset is None else next(iter(train_dataset), None)
        if train_dataset is not None and first is None:
            raise InputError("train_dataset: expected at least one group, got no row")
        first = first if isinstance(first, Mapping) else None  # TRL says what is wrong with other data sets
        if getattr(args, "precompute_ref_log_probs", False) is None:
            args = copy.copy(args)  # the caller's stay as they are, for the next data set
            args.precompute_ref_log_probs = _can_precompute(args, first, train_dataset, kwargs.get("eval_dataset"))
        self._grouped = first is not None and _grouped(first)
        self._fused: bool = getattr(args, "fused_loss", False)
        if self._fused and first is not None:
            check_settings(args, kwargs, first, negatives=2 if self._grouped else 1)
        if self._grouped:
            tokenizer = kwargs.get("processing_class")
            if tokenizer is None:
                raise InputError("several rejected responses per group: pass the tokenizer as processing_class")
            check_grouped(args)
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            multiple = args.pad_to_multiple_of
            kwargs.setdefault("data_collator", GroupCollator(pad_token_id=pad, pad_to_multiple_of=multiple))
        with adapted_heads(allowed=self._fused):
            super().__init__(model, args=args, train_dataset=train_dataset, **kwargs)
        if self._fused:
            check_head(self)
            add_preference_head(self.model, args)
            self.data_collator: Any = PackingCollator(self.data_collator)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        first: Mapping[str, Any] = next(iter(dataset), {})
        if "prompt_ids" not in first:
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if _grouped(first) != self._grouped:
            raise InputError(
                f"the {dataset_name} data set has {'several' if _grouped(first) else 'one'} rejected response(s) per "
                "group, the training data set has not; make both with the same number of negatives"
            )
        if args.max_length is not None and args.truncation_mode == "keep_start":
            # As in TRL: the collator would truncate the whole response of such a row.
            kept = dataset.filter(lambda row: len(row["prompt_ids"]) < args.max_length)
            if next(iter(kept), None) is None:
                raise InputError(
                    f"max_length: expected a group whose prompt is shorter, got {args.max_length}; leave it out, or "
                    "raise it"
                )
            return kept
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """Adds the reference's log-probs as columns, unless the rows have them.

        Unlike TRL's method it writes no cache file: for rows in memory that file is in a temporary folder of one
        process, which the others do not know.
        """
        if self._fused:
            check_head(self)  # before scoring takes time
        if isinstance(dataset, datasets.IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if REF[0] in dataset.column_names:
            return dataset
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator))
        model = self.ref_model or self.model
        if self.ref_model is None and self.is_deepspeed_enabled:
            model = self._precompute_engine = self._precompute_engine or prepare_deepspeed(self.model, self.accelerator)
        sizes = _sizes(dataset) if self._grouped else []
        scored: list[tuple[Tensor, Tensor]] = []
        quiet = not self.accelerator.is_main_process
        for batch in tqdm(loader, desc=f"reference log-probs, {name}", unit="batch", delay=0.5, disable=quiet):
            chosen, rejected = self.compute_ref_log_probs(model, batch)
            if self._grouped:  # pad to the widest group of all: gathered batches must have one shape
                rejected = torch.nn.functional.pad(rejected, (0, max(sizes) - rejected.shape[1]))
            scored.append(self.accelerator.gather_for_metrics((chosen, rejected)))
        columns = [torch.cat(side).tolist() for side in zip(*scored, strict=True)]
        if self._grouped:
            columns[1] = [row[:size] for row, size in zip(columns[1], sizes, strict=True)]
        return _with_columns(dataset, dict(zip(REF, columns, strict=True)))

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The reference's log-probs of a batch: chosen [G], and rejected [G] or, for several per group, [G, K]."""
        if not self._grouped:
            rows = {name: value for name, value in inputs.items() if name != "groups"}
            return super().compute_ref_log_probs(model, rows)  # type: ignore[no-any-return]
        # TRL's own pass handles adapters, checkpointing and autocast. It returns the rows in two halves.
        rows = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        logps = _by_group(torch.cat(super().compute_ref_log_probs(model, rows)), inputs["group_mask"])
        return logps[:, 0], logps[:, 1:]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self._grouped and not self._fused:
            return super()._compute_loss(model, inputs, return_outputs)
        if return_outputs:
            raise InputError(
                "several rejected responses per group and fused_loss have no outputs for compute_metrics; leave it out"
            )
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        out, loss = (self._fused_loss if self._fused else self._group_loss)(model, inputs, routed)
        return loss + self.router_aux_loss_coef * out.aux_loss if routed else loss

    def _group_loss(self, model: Any, inputs: dict[str, Tensor], routed: dict[str, bool]) -> tuple[Any, Tensor]:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        out = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False,
            fused_lm_head=True, **routed,
        )  # fmt: skip
        mask = inputs["group_mask"]
        logps = _by_group(out.log_probs.sum(dim=1), mask)
        ref = inputs.get("ref_logps")
        ref = (self._reference(inputs) if ref is None else ref).to(logps)
        loss = preference_loss(logps, ref, beta=self.beta, mask=mask).mean()
        responses = inputs["completion_mask"][:, 1:]
        starts = mask.sum(dim=1).cumsum(0) - mask.sum(dim=1)
        chosen = torch.zeros_like(responses).index_copy_(0, starts, responses[starts])
        self._log_groups(out, logps.detach(), ref, mask, responses, chosen, inputs["attention_mask"])
        return out, loss

    def _fused_loss(self, model: Any, inputs: dict[str, Any], routed: dict[str, bool]) -> tuple[Any, Tensor]:
        groups = inputs["groups"].to(self.accelerator.device)
        if groups.ref_logps is None:
            groups = replace(groups, ref_logps=self._reference(inputs))
        added = ("completion_mask", "group_mask", "ref_logps", "groups", *REF)
        rows = {name: value for name, value in inputs.items() if name not in added}
        out = model(**rows, groups=groups, **routed)
        mask = (groups.lengths > 0).to(out.logps.device, non_blocking=True)
        ref = groups.ref_logps.to(out.logps)
        responses, chosen = torch.ones_like(groups.targets), groups.is_chosen.long()
        self._log_groups(out, out.logps, ref, mask, responses, chosen, inputs["attention_mask"])
        return out, out.loss

    def _reference(self, inputs: dict[str, Any]) -> Tensor:
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return torch.cat([chosen[:, None], rejected.view(len(chosen), -1)], dim=1)

    def _log_groups(
        self, out: Any, logps: Tensor, ref: Tensor, mask: Tensor, responses: Tensor, chosen: Tensor, attention: Tensor
    ) -> None:
        """Logs TRL's metrics; `responses`, `chosen` and `attention` are 1 at the tokens that count, else 0."""
        mode = "train" if self.model.training else "eval"
        rewards = implicit_rewards(logps, ref, beta=self.beta)
        margins = rewards[:, :1] - rewards[:, 1:]
        rejected, groups = mask[:, 1:], torch.ones_like(logps[:, 0])
        figures = {
            "rewards/chosen": (rewards[:, 0], groups),
            "rewards/rejected": (rewards[:, 1:], rejected),
            "rewards/accuracies": (margins > 0, rejected),
            "rewards/margins": (margins, rejected),
            "logps/chosen": (logps[:, 0], groups),
            "logps/rejected": (logps[:, 1:], rejected),
            "logits/chosen": (out.mean_logits, chosen),
            "logits/rejected": (out.mean_logits, responses - chosen),
            "entropy": (out.entropy, responses),
            "mean_token_accuracy": (out.is_top1, chosen),
            "num_tokens": (attention, groups.new_ones(())),
        }
        # One reduction and one wait for the device: the sum and weight of each figure, over all processes.
        totals = [
            torch.stack([(values * weights).sum(), weights.sum()]).float() for values, weights in figures.values()
        ]
        sums = self.accelerator.reduce(torch.stack(totals).detach(), reduction="sum").tolist()
        for name, (total, weight) in zip(figures, sums, strict=True):
            if name != "num_tokens":
                self._metrics[mode][name].append(total / weight if weight else 0.0)
            elif mode == "train":
                self._total_train_tokens += int(total) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if out.aux_loss is not None:
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(out.aux_loss).mean().item())


def _by_group(sums: Tensor, mask: Tensor) -> Tensor:
    """The values [N] at the places [G, K+1] where `mask` is true, and 0 elsewhere."""
    return sums.new_zeros(mask.shape).masked_scatter(mask, sums)


def _can_precompute(args: MIPOConfig, row: Mapping[str, Any] | None, train: Any, held_out: Any) -> bool:
    """Whether TRL takes reference log-probs from before training with these settings and data sets."""
    others = held_out.values() if isinstance(held_out, Mapping) else [held_out]
    streamed = any(isinstance(dataset, datasets.IterableDataset) for dataset in [train, *others])
    pictures = row is not None and not {"image", "images"}.isdisjoint(row)
    return not (streamed or pictures or args.sync_ref_model)


def _grouped(row: Mapping[str, Any]) -> bool:
    return isinstance(next(iter(row.get("rejected_ids", [])), None), (list, tuple))


def _with_columns(dataset: datasets.Dataset, columns: Mapping[str, list[Any]]) -> datasets.Dataset:
    """The data set with new columns and its format, which `add_column` forgets: a lazy one needs it to show ids."""
    form = dataset.format
    wider = dataset.with_format("arrow")  # without the transform: `add_column` may copy rows, as row numbers
    for name, values in columns.items():
        wider = wider.add_column(name, values)
    shown = None if set(form["columns"]) == set(dataset.column_names) else [*form["columns"], *columns]
    options = {"columns": shown, "output_all_columns": form["output_all_columns"], **form["format_kwargs"]}
    return wider.with_format(form["type"], **options)


def _sizes(dataset: datasets.Dataset) -> list[int]:
    """The number of rejected responses of each group, without making Python lists of token ids."""
    table = dataset.select_columns("rejected_ids").with_format("arrow")[:]
    sizes: list[int] = pc.list_value_length(table["rejected_ids"]).to_pylist()
    return sizes
