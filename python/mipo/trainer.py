"""Trainer: TRL's DPOTrainer on pre-tokenized groups, with one rejected response or several, and the paper's settings.

Knows TRL. Knows nothing of how pairs came about. One rejected response a group is TRL's own path, untouched; several
are one softmax over the group's implicit rewards (`mipo.loss.preference_loss`).
"""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import ProgressCallback
from trl import DPOConfig, DPOTrainer

from mipo.loss import implicit_rewards, preference_loss
from mipo.tokens import PairStore, fingerprint

REF = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass
class MIPOConfig(DPOConfig):
    """`trl.DPOConfig` with the paper's settings (arXiv 2603.19294) as defaults; every field of it can be set.

    β 0.1, learning rate 5e-7 with 3 % warm-up and a cosine to 10 %, one epoch, 4 groups a step and device, no length
    limit of TRL's own (the tokens room drops by name), reference log-probs computed once before training, bf16 and
    gradient checkpointing on an accelerator.
    """

    learning_rate: float = field(default=5e-7, metadata={"help": "The initial learning rate for AdamW."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Preference groups a step and device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs over the pairs."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning-rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(  # type: ignore[type-arg]  # TRL's parser takes no other form
        default_factory=lambda: {"min_lr_rate": 0.1}, metadata={"help": "Arguments of the schedule."}
    )
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up steps; below 1, their share of all steps."})
    max_length: int | None = field(default=None, metadata={"help": "TRL's length limit; it would cut or drop unnamed."})
    precompute_ref_log_probs: bool = field(
        default=True, metadata={"help": "Score the reference once, before training."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are kept, to go on after a kill."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps between checkpoints; below 1, a share of all."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "Default: on an accelerator only."})

    def __post_init__(self) -> None:
        accelerated = torch.accelerator.is_available()
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = accelerated
        if self.bf16 is None and not accelerated:
            self.bf16 = False
        super().__post_init__()


@dataclass
class GroupCollator:
    """Batches groups with `rejected_ids` as a list of lists.

    Gives input_ids, attention_mask and completion_mask [N, L] of the N responses that are there, padded on the right,
    group_mask [G, K+1] (which responses are there, chosen first, in the order of the N), and ref_logps [G, K+1] where
    the rows have them.
    """

    pad_token_id: int

    def __call__(self, groups: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collates a list of rows."""
        width = 1 + max(len(group["rejected_ids"]) for group in groups)
        mask = torch.tensor([[k <= len(group["rejected_ids"]) for k in range(width)] for group in groups])
        rows = [(group["prompt_ids"], ids) for group in groups for ids in [group["chosen_ids"], *group["rejected_ids"]]]
        length = max(len(prompt) + len(response) for prompt, response in rows)
        ids = torch.full((len(rows), length), self.pad_token_id)
        seen, said = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor([*prompt, *response])
            seen[row, :end], said[row, len(prompt) : end] = 1, 1
        batch = {"input_ids": ids, "attention_mask": seen, "completion_mask": said, "group_mask": mask}
        if REF[0] in groups[0]:
            ref = [[group[REF[0]], *group[REF[1]]] for group in groups]
            batch["ref_logps"] = torch.tensor([row + [0.0] * (width - len(row)) for row in ref])
        return batch


class MIPOTrainer(DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` that also takes pre-tokenized rows, and groups with several rejected responses.

    `train_dataset` holds prompt_ids, chosen_ids and rejected_ids (`mipo.PairStore.to_trl()`), or anything that
    DPOTrainer takes. Where rejected_ids is a list of lists, the loss of a group is −log softmax(s)_0 with
    s_k = β(log π(y_k|x) − log π_ref(y_k|x)); K = 1 is DPO exactly. TRL's other losses need one rejected response.
    """

    _tag_names = ("trl", "dpo", "mipo")

    def __init__(self, model: Any, args: MIPOConfig | None = None, *, train_dataset: Any = None, **kwargs: Any) -> None:
        args = args or MIPOConfig(output_dir="mipo")
        self._grouped = train_dataset is not None and _grouped(train_dataset)
        if self._grouped:
            _check_grouped(args)
            tokenizer = kwargs.get("processing_class")
            if tokenizer is None:
                raise ValueError("several rejected responses a group: pass the tokenizer as processing_class")
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            kwargs.setdefault("data_collator", GroupCollator(pad_token_id=pad))
        super().__init__(model, args=args, train_dataset=train_dataset, **kwargs)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if "prompt_ids" in next(iter(dataset)):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """Adds the reference's log-probs as columns; unlike TRL's, it writes no cache file of the data set."""
        if isinstance(dataset, datasets.IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        if REF[0] in dataset.column_names:
            return dataset
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator))
        model = self.ref_model or self.model
        if self.ref_model is None and self.is_deepspeed_enabled:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        width = max(len(rejected) for rejected in dataset["rejected_ids"]) if self._grouped else 1
        chosen, rejected = [], []
        for batch in tqdm(loader, desc=f"reference log-probs, {name}", unit="batch", delay=0.5):
            first, others = self._reference(model, batch, width)
            first, others = self.accelerator.gather_for_metrics((first, others))
            chosen += first.tolist()
            rejected += others.tolist()
        if self._grouped:
            sizes = [len(ids) for ids in dataset["rejected_ids"]]
            rejected = [row[:size] for row, size in zip(rejected, sizes, strict=True)]
        return dataset.add_column(REF[0], chosen).add_column(REF[1], rejected)

    def _reference(self, model: Any, batch: dict[str, Tensor], width: int) -> tuple[Tensor, Tensor]:
        if not self._grouped:
            return self.compute_ref_log_probs(model, batch)  # type: ignore[no-any-return]
        adapter = contextlib.nullcontext()
        if self.ref_model is None and hasattr(self.model, "disable_adapter"):
            adapter = self.accelerator.unwrap_model(self.model).disable_adapter()
        with torch.no_grad(), adapter, self.accelerator.autocast():
            logps, _ = self._group_logps(model, batch)
        logps = torch.nn.functional.pad(logps, (0, width + 1 - logps.shape[1]))
        return logps[:, 0], logps[:, 1:]

    def _group_logps(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sequence log-probs [G, K+1] and which of them are there."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        seen = batch["attention_mask"]
        out = model(
            input_ids=batch["input_ids"], attention_mask=seen, labels=labels, fused_lm_head=True, use_cache=False
        )
        sums = out.log_probs.sum(dim=1)
        mask = batch["group_mask"]
        return sums.new_zeros(mask.shape).masked_scatter(mask, sums), mask

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        if not self._grouped:
            return super()._compute_loss(model, inputs, return_outputs)
        logps, there = self._group_logps(model, inputs)
        if "ref_logps" in inputs:
            ref = inputs["ref_logps"]
        else:
            first, others = self._reference(self.ref_model or model, inputs, logps.shape[1] - 1)
            ref = torch.cat([first[:, None], others], dim=1)
        ref = ref.to(logps)
        loss = preference_loss(logps, ref, beta=self.beta, mask=there).mean()
        self._log_group(logps.detach(), implicit_rewards(logps.detach(), ref, beta=self.beta), there, inputs)
        return (loss, None) if return_outputs else loss

    def _log_group(self, logps: Tensor, rewards: Tensor, there: Tensor, inputs: dict[str, Tensor]) -> None:
        mode = "train" if self.model.training else "eval"
        against = there[:, 1:]
        margins = (rewards[:, :1] - rewards[:, 1:])[against]
        figures = {
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": rewards[:, 1:][against],
            "rewards/accuracies": (margins > 0).float(),
            "rewards/margins": margins,
            "logps/chosen": logps[:, 0],
            "logps/rejected": logps[:, 1:][against],
        }
        for name, values in figures.items():
            self._metrics[mode][name].append(self.accelerator.gather(values.mean()).mean().item())
        if mode == "train":
            self._total_train_tokens += self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def train(
    store: PairStore,
    model: str,
    tokenizer: Any,
    output: Path,
    *,
    args: MIPOConfig,
    lora: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Trains `model` on the groups of `store`, writes it whole to `output`, and returns TRL's log of the training.

    `lora` are fields of `peft.LoraConfig` (default: all weights are trained). Training goes on from the last whole
    checkpoint in `args.output_dir`; that folder is removed at the end. Raises ValueError where `tokenizer` is not the
    one that made the store.
    """
    if store.fingerprint != fingerprint(tokenizer):
        raise ValueError(f"the tokens were made by another tokenizer or chat template than {model}'s; make them anew")
    folder = Path(args.output_dir)
    trainer = MIPOTrainer(
        model, args=args, train_dataset=store.to_trl(), processing_class=tokenizer, peft_config=_lora(lora)
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress)
    last = last_checkpoint(folder)
    if last:
        print(f"train: going on from {last.name}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.is_world_process_zero():
        _save(trainer, output)
        shutil.rmtree(folder, ignore_errors=True)
    log: list[dict[str, Any]] = trainer.state.log_history
    return log


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; a kill may have left the newest half-written, and its state is written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


class _Progress(ProgressCallback):  # type: ignore[misc]
    """The bar alone: the log goes to `training.json` and to `report_to`."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Prints nothing."""


def _lora(fields: Mapping[str, Any] | None) -> Any:
    if fields is None:
        return None
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **fields})


def _save(trainer: MIPOTrainer, output: Path) -> None:
    """The model and tokenizer under a temporary name, without TRL's pickled arguments, and then renamed."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    (temporary / "training_args.bin").unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)


def _grouped(dataset: Any) -> bool:
    row = next(iter(dataset), {})
    first = next(iter(row.get("rejected_ids", [])), None)
    return isinstance(first, (list, tuple))


def _check_grouped(args: MIPOConfig) -> None:
    if args.loss_type != ["sigmoid"] or args.ld_alpha is not None or args.use_weighting or args.label_smoothing:
        raise ValueError(
            f"several rejected responses a group have the softmax loss only; came loss_type={args.loss_type}, "
            f"ld_alpha={args.ld_alpha}, use_weighting={args.use_weighting}, label_smoothing={args.label_smoothing}. "
            "Use negatives: 1 for TRL's other losses."
        )
