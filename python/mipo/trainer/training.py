"""Training: from a store of token ids to a model on disk, resumed from its last checkpoint."""

import gc
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, ProgressCallback

from mipo.errors import InputError
from mipo.models.loading import without_bars
from mipo.tokenizer.encoder import fingerprint
from mipo.tokens.store import PairStore
from mipo.trainer.config import MIPOConfig, lora_config
from mipo.trainer.trainer import MIPOTrainer


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
    checkpoint in `args.output_dir`; that folder is removed at the end. Under `accelerate launch` every process calls
    it. Raises ValueError for an empty store, and where `tokenizer` is not the one that made it.
    """
    if not len(store):
        raise InputError("the tokens hold no group to train on; see what `mipo pairs` and `mipo tokens` dropped")
    if store.fingerprint != fingerprint(tokenizer):
        raise InputError(f"the tokens were made by another tokenizer or chat template than {model}'s; make them anew")
    with without_bars():
        adapter = None if lora is None else lora_config(lora)
        trainer = MIPOTrainer(
            model, args=args, train_dataset=store.to_trl(), processing_class=tokenizer, peft_config=adapter
        )
        trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        if not args.disable_tqdm:
            trainer.add_callback(_Progress)
        trainer.train(resume_from_checkpoint=_checkpoint(trainer))
        _save(trainer, output)
    log: list[dict[str, Any]] = trainer.state.log_history
    # The forward that TRL patches into the model refers back to it: without this the weights stay on the accelerator
    # until some later collection, and the next model may not fit.
    del trainer
    gc.collect()
    return log


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; a kill may have left newer ones half-written, and these are removed.

    transformers writes `trainer_state.json` last.
    """
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


def _checkpoint(trainer: MIPOTrainer) -> str | None:
    """Where all processes go on from: the main one looks, since looking removes what is half-written."""
    found: list[str | None] = [None]
    if trainer.is_world_process_zero():
        last = last_checkpoint(Path(trainer.args.output_dir))
        if last:
            print(f"train: going on from {last.name}")
            found = [str(last)]
    broadcast_object_list(found)
    return found[0]


def _save(trainer: MIPOTrainer, output: Path) -> None:
    """The model and tokenizer under a temporary name, without TRL's pickled arguments, and then renamed."""
    temporary = output.with_name(f".{output.name}.tmp")
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))  # by all processes, which a sharded model is gathered from
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (temporary / "training_args.bin").unlink(missing_ok=True)
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
