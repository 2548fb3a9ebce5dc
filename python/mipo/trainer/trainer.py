"""Trainer: TRL's DPOTrainer on pre-tokenized groups, with one rejected response or several, and the paper's settings.

Knows TRL. Knows nothing of the source of the pairs. For several rejected responses the loss is one softmax over the
group's implicit rewards (`mipo.loss.preference_loss`). With `fused_loss`, on where prompts are shared, the model
computes the loss in its forward (`mipo.trainer.preference_head`); without it, one rejected response takes TRL's path.
"""

import copy
import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import datasets
import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl import DPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import use_adapter

from mipo.errors import InputError
from mipo.fused.heads import Head, softcap_of
from mipo.loss.preference import preference_loss
from mipo.trainer import truncation
from mipo.trainer.checks import check_grouped
from mipo.trainer.collators import GroupCollator
from mipo.trainer.config import MIPOConfig
from mipo.trainer.initial_model import load_again
from mipo.trainer.metrics import TOKENS, Metrics
from mipo.trainer.packing import REF, PackedGroups, PackingCollator, ordinary, ordinary_rows, shared_row
from mipo.trainer.preference_head import (
    Figures,
    ResponseLogps,
    adapted_heads,
    add_preference_head,
    check_settings,
)
from mipo.trainer.reference import can_precompute, group_sizes, is_streamed, with_columns
from mipo.trainer.shared_attention import read_layouts
from mipo.trainer.sharing import (
    at_rest,
    obstacle_at_first_use,
    obstacle_in_model,
    obstacle_in_settings,
    obstacle_of_kernels,
)

logger = logging.getLogger(__name__)


class MIPOTrainer(DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` that also takes pre-tokenized rows, and groups with several rejected responses.

    `train_dataset` holds prompt_ids, chosen_ids and rejected_ids (`mipo.PairStore.to_trl()`), or any rows that
    DPOTrainer takes. Where rejected_ids is a list of lists, the loss is -log softmax(s)_0 over the group's implicit
    rewards s; TRL's other losses need one rejected response per group, and raise InputError otherwise.

    With `args.shared_prompts` a batch is one row, in which each prompt stands once, with all its responses behind it
    (`mipo.trainer.shared_prompts`): the log-probs are those of ordinary rows, for the FLOPs of one prompt. It is the
    default where settings and model allow it. The first batch is scored both ways; where they differ, ordinary rows
    are used, and a warning says why. True raises InputError instead. On an accelerator the LM head and its loss are
    tried first (`mipo.fused.verification`).

    With `args.fused_loss` the loss is `mipo.fused.linear_preference_loss`, with the same losses, gradients and metrics:
    3F in the LM head instead of TRL's 4F, and 2F instead of 3F with a frozen head. It also trains LoRA on the LM head.
    Shared prompts need it.

    Where `args.precompute_ref_log_probs` is None, its default, the reference is scored before training unless TRL
    refuses that: for an iterable or a vision data set, and with `sync_ref_model`. There it is scored in each step.
    `evaluate` does so for a stream, and after all weights were trained: then it loads the initial model again.
    """

    ref_model: Any
    _precompute_engine: Any

    def __init__(self, model: Any, *, args: MIPOConfig | None = None, train_dataset: Any = None, **kwargs: Any) -> None:
        args = args or MIPOConfig(output_dir="mipo")
        first: Any = None if train_dataset is None else next(iter(train_dataset), None)
        if train_dataset is not None and first is None:
            raise InputError("train_dataset: expected at least one group, got no row")
        first = first if isinstance(first, Mapping) else None  # TRL says what is wrong with other data sets
        self._precomputes_by_default = getattr(args, "precompute_ref_log_probs", False) is None
        if self._precomputes_by_default:
            args = copy.copy(args)  # the caller's stay as they are, for the next data set
            args.precompute_ref_log_probs = can_precompute(args, first, train_dataset, kwargs.get("eval_dataset"))
        self._grouped = first is not None and _grouped(first)
        self._fused: bool = bool(getattr(args, "fused_loss", False))
        self._sharing: bool | None = None  # None: not decided
        self._is_checked = False
        self._kept = Metrics(args.beta)
        negatives = 2 if self._grouped else 1
        if self._fused and first is not None:
            check_settings(args, kwargs, first, negatives)
        self._obstacle = None if first is None else obstacle_in_settings(args, kwargs, first, negatives)
        if self._grouped:
            tokenizer = kwargs.get("processing_class")
            if tokenizer is None:
                raise InputError("several rejected responses per group: pass the tokenizer as processing_class")
            check_grouped(args)
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            collator = GroupCollator(pad, args.pad_to_multiple_of, args.max_length, args.truncation_mode)
            kwargs.setdefault("data_collator", collator)
        with adapted_heads(allowed=self._fused):
            super().__init__(model, args=args, train_dataset=train_dataset, **kwargs)
        self._decide()

    def _decide(self) -> None:
        """Whether prompts are shared; adds the preference head, and packs the batches, where the loss is fused."""
        if self._sharing is not None:
            return
        shared, fused = (getattr(self.args, name, False) for name in ("shared_prompts", "fused_loss"))
        self._sharing = bool(shared) or (shared is None and fused is not False)
        if fused is False:
            self._obstacle = "fused_loss=False"
        if self._cuts_batches():
            self._obstacle = "accelerate cuts batches up for the processes, as those of a stream"
            if self._fused:
                raise InputError(
                    f"fused_loss: expected None or False, since {self._obstacle}; got True. Leave it out, or set "
                    "accelerator_config: {dispatch_batches: false}"
                )
        if self._sharing:
            has_weights = not self.is_fsdp_enabled
            if obstacle := self._obstacle or obstacle_in_model(self.model, has_weights=has_weights):
                self._share_no_more(obstacle)
        self._fused |= self._sharing
        if not self._fused:
            return
        if not self.is_fsdp_enabled:  # where only the main process may have weights at first, the first step raises
            Head.of(self.model)
        self._add_head(self.model)
        if self.ref_model is not None:
            self._add_head(self.accelerator.unwrap_model(self.ref_model))
        self.data_collator: Any = PackingCollator(self.data_collator, sharing=self._sharing)

    def _cuts_batches(self) -> bool:
        """Whether one process makes the batches of all, by accelerate's rule."""
        chosen = self.accelerator.dispatch_batches
        streamed = is_streamed(self.train_dataset) or is_streamed(self.eval_dataset)
        return self.accelerator.num_processes > 1 and (streamed if chosen is None else bool(chosen))

    def _add_head(self, model: Any) -> None:
        add_preference_head(model, self.args)
        if self._sharing:
            read_layouts(model)

    def _share_no_more(self, obstacle: str) -> None:
        """Falls back to ordinary rows, or raises InputError where shared ones are insisted on."""
        if self.args.shared_prompts:
            raise InputError(f"shared_prompts: expected None or False, since {obstacle}; got True")
        if self.accelerator.is_main_process:
            logger.warning("prompts are not shared between their responses: %s", obstacle)
        self._sharing = False
        if isinstance(self.data_collator, PackingCollator):
            self.data_collator.sharing = False
        if self._is_checked and self.args.fused_loss is None:
            self._fused = False

    def _check(self, model: Any, inputs: dict[str, Any]) -> None:
        """At the first batch, what was chosen by default: the LM head on this device, and shared rows by this model."""
        if self._is_checked or not self._sharing:
            return
        self._is_checked = True
        config = self.accelerator.unwrap_model(model).config.get_text_config()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, self.model.dtype)
        if self.args.fused_loss is None:
            device, softcap = self.accelerator.device, softcap_of(config)
            self._agree(obstacle_of_kernels(device, dtype, config.vocab_size, softcap))
        if not self._sharing:
            return
        shared, apart = shared_row(inputs), ordinary_rows(inputs)
        obstacle = obstacle_at_first_use(
            lambda: self._score(model, *shared).tokens, lambda: self._score(model, *apart).tokens,
            shared[1].layout, config, dtype,
        )  # fmt: skip
        self._agree(obstacle)

    def _agree(self, obstacle: str | None) -> None:
        """Falls back in all processes if one of them has an obstacle."""
        differing = torch.tensor(float(obstacle is not None), device=self.accelerator.device)
        if self.accelerator.reduce(differing, reduction="sum").item():
            self._share_no_more(obstacle or "another process can't")

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        first: Mapping[str, Any] = next(iter(dataset), {})
        if "prompt_ids" not in first:
            kept = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        elif _grouped(first) != self._grouped:
            raise InputError(
                f"the {dataset_name} data set has {'several' if _grouped(first) else 'one'} rejected response(s) per "
                "group, the training data set has not; make both with the same number of negatives"
            )
        else:
            kept = truncation.fitting(dataset, args)
        if first:
            truncation.check(dataset, kept, args, dataset_name)
        return kept

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """Adds the reference's log-probs as columns, unless the rows have them.

        Unlike TRL's method it writes no cache file: for rows in memory that file is in a temporary folder of one
        process, which the others do not know.
        """
        self._decide()
        if isinstance(dataset, datasets.IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if REF[0] in dataset.column_names:
            return dataset
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator))
        model = self.ref_model or self.model
        if self.ref_model is None and self.is_deepspeed_enabled:
            model = self._precompute_engine = self._precompute_engine or prepare_deepspeed(self.model, self.accelerator)
        sizes = group_sizes(dataset) if self._grouped else []
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
        return with_columns(dataset, dict(zip(REF, columns, strict=True)))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """TRL's. By default it also takes streams, and new data after all weights were trained."""
        is_new = eval_dataset is not None and not isinstance(eval_dataset, str)
        is_policy = self.ref_model is None and not is_peft_model(self.model)
        too_late = is_streamed(eval_dataset) or (is_policy and self.state.global_step > 0)
        chosen = self._precomputes_by_default and self.precompute_ref_logps
        with self._scored_in_each_step() if chosen and is_new and too_late else nullcontext():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """Trainer's. By default the reference is scored with each batch, unless the rows bring its log-probs."""
        ready = REF[0] in (getattr(test_dataset, "column_names", None) or ())
        chosen = self._precomputes_by_default and self.precompute_ref_logps and not ready
        with self._scored_in_each_step() if chosen else nullcontext():
            if chosen and self.precompute_ref_logps:
                raise InputError(
                    "predict: the initial model is not at hand as the reference; train with precompute_ref_log_probs: "
                    "false, or pass ref_model"
                )
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    @contextmanager
    def _scored_in_each_step(self) -> Iterator[None]:
        """The reference is scored with each batch, unless it is not at hand: then TRL's error says what to do."""
        own, checksum = self.ref_model, self._precompute_model_hash
        if own is None and not is_peft_model(self.model):
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            self.ref_model = None if sharded else load_again(self.model, self.args, checksum)
            if self.ref_model is None:
                yield
                return
            if self._fused:
                self._add_head(self.ref_model)
        self.precompute_ref_logps = False
        try:
            yield
        finally:
            self.precompute_ref_logps, self.ref_model = True, own
            gc.collect()  # TRL's patched forward refers back to a model that was loaded

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The reference's log-probs of a batch: chosen [G], and rejected [G] or, for several per group, [G, K]."""
        self._check(model, inputs)
        if self._fused:
            rows, groups = self._rows(inputs)
            logps = self._score(model, rows, groups).responses
        elif self._grouped:
            # TRL's own pass handles adapters, checkpointing and autocast. It returns the rows in two halves.
            rows = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
            logps = _by_group(torch.cat(super().compute_ref_log_probs(model, rows)), inputs["group_mask"])
        else:
            return super().compute_ref_log_probs(model, ordinary(inputs))  # type: ignore[no-any-return]
        return logps[:, 0], logps[:, 1:] if self._grouped else logps[:, 1]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self._check(model, inputs)
        if not self._grouped and (return_outputs or not self._fused):
            return super()._compute_loss(model, ordinary(inputs), return_outputs)
        if return_outputs:
            raise InputError("several rejected responses per group have no outputs for compute_metrics; leave it out")
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        aux_loss, loss = (self._fused_loss if self._fused else self._group_loss)(model, inputs, routed)
        return loss + self.router_aux_loss_coef * aux_loss if routed else loss

    def _rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], PackedGroups]:
        return shared_row(inputs) if self._sharing else ordinary_rows(inputs)

    def _score(self, model: Any, rows: dict[str, Any], groups: PackedGroups) -> ResponseLogps:
        """Log-probs under `model`, or under what the policy was before training where it is the policy."""
        adapter: Any = nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            policy = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)
        with at_rest(self.model), adapter, self.accelerator.autocast():
            scored: ResponseLogps = model(**rows, groups=groups.with_reference(None))
        return scored

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
        figures = Figures(logps.detach(), out.entropy, out.mean_logits, out.is_top1)
        self._log_groups(figures, out.aux_loss, ref, mask, responses, chosen, inputs["attention_mask"])
        return out.aux_loss, loss

    def _fused_loss(self, model: Any, inputs: dict[str, Any], routed: dict[str, bool]) -> tuple[Any, Tensor]:
        rows, groups = self._rows(inputs)
        groups = groups.to(self.accelerator.device)
        if groups.ref_logps is None:
            groups = groups.with_reference(self._reference(inputs))
        out = model(**rows, groups=groups, **routed)
        figures = out.figures
        mask = (groups.lengths > 0).to(figures.logps.device, non_blocking=True)
        assert groups.ref_logps is not None
        ref = groups.ref_logps.to(figures.logps)
        responses, chosen = torch.ones_like(groups.targets), groups.is_chosen.long()
        self._log_groups(figures, out.aux_loss, ref, mask, responses, chosen, inputs["attention_mask"])
        return out.aux_loss, out.loss

    def _reference(self, inputs: dict[str, Any]) -> Tensor:
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return torch.cat([chosen[:, None], rejected.view(len(chosen), -1)], dim=1)

    def _log_groups(self, figures: Figures, aux_loss: Any, *batch: Tensor) -> None:
        self._kept.add(self._mode, figures, aux_loss, *batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds TRL's metrics to `logs`, which are read from the device here."""
        if batches := self._kept.read(self._mode, self.accelerator):
            for metrics in batches:
                tokens = int(metrics.pop(TOKENS))
                for name, value in metrics.items():
                    self._metrics[self._mode][name].append(value)
                if self._mode == "train":
                    self._total_train_tokens += tokens // self._tp_size
            self._metrics[self._mode][TOKENS] = [self._total_train_tokens]
        super().log(logs, start_time)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"


def _by_group(sums: Tensor, mask: Tensor) -> Tensor:
    """The values [N] at the places [G, K+1] where `mask` is true, and 0 elsewhere."""
    return sums.new_zeros(mask.shape).masked_scatter(mask, sums)


def _grouped(row: Mapping[str, Any]) -> bool:
    return isinstance(next(iter(row.get("rejected_ids", [])), None), (list, tuple))
