"""Training: from a store of token ids to a model on disk, resuming from the last checkpoint."""

import gc
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from mipo.errors import InputError
from mipo.io import outputs
from mipo.models.loading import not_finite, without_bars
from mipo.models.model import Model
from mipo.tokenizer.encoder import fingerprint
from mipo.tokens.store import PairStore
from mipo.trainer import reference
from mipo.trainer.checkpoints import Recorder, last_checkpoint
from mipo.trainer.config import MIPOConfig, lora_config
from mipo.trainer.trainer import MIPOTrainer

T = TypeVar("T")

# Settings, by the beginnings of their names, that do not change what is trained: where it goes, what is told of it.
ELSEWHERE = ("output_dir", "logging_", "log_", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "save_",
             "hub_", "push_to_hub", "dataloader_", "dataset_num_proc", "resume_from_checkpoint")  # fmt: skip


def train(
    store: PairStore,
    model: str,
    tokenizer: Any,
    output: Path,
    *,
    args: MIPOConfig,
    lora: Mapping[str, Any] | None = None,
    reuse: Path | None = None,
) -> list[dict[str, Any]]:
    """Trains `model` on the groups of `store`, writes it whole to `output`, and returns TRL's log of the training.

    `lora` are fields of `peft.LoraConfig` (default: train all weights). Training resumes from the last checkpoint in
    `args.output_dir` that is as it was written, and removes that folder at the end. The reference's log-probs are kept
    in the folder of the store, where the next training finds them; `reuse` is another folder that may have them. Under
    `accelerate launch` every process calls this function.

    Raises InputError for an empty store, for the store of another tokenizer, and for a training that diverged: weights
    that are not finite are not saved.
    """
    if not len(store):
        raise InputError("expected at least one group to train on, got none; see what `mipo tokens` dropped and why")
    if store.fingerprint != fingerprint(tokenizer):
        raise InputError(f"the tokens are those of another tokenizer or chat template than {model}'s; make them again")
    output, start = output.resolve(), Model(model, trust_remote_code=args.trust_remote_code)
    main = int(os.environ.get("RANK", "0")) == 0
    if args.n_gpu > 1 and "device_map" not in (args.model_init_kwargs or {}):
        print(f"train: one of {args.n_gpu} GPUs is used; launch: {{processes: {args.n_gpu}}} in a recipe uses them all")
        args._n_gpu = 1  # transformers would copy the model to each GPU in every step, which TRL refuses
    with without_bars(), ExitStack() as stack:
        if main:
            # Before the model is loaded; its folder keeps nothing else, since it is replaced as a whole.
            stack.enter_context(outputs.claim(output, "model"))
            checkpoints = Path(str(args.output_dir))
            stack.enter_context(outputs.claim(checkpoints, "checkpoints"))
            outputs.check_origin(checkpoints, _origin(store, start, args, lora))
            outputs.check_folder(_temporary(output), "unfinished model", "model")
        adapter = None if lora is None else lora_config(lora)
        groups, name, kept = store.to_trl(), None, None
        if reference.is_kept(args, lora):
            name = _from_main(lambda: reference.file_name(store, start.identity, args))
            kept = _kept_reference([folder for folder in (store.folder, reuse) if folder], name)
        if kept is not None:
            groups = reference.with_columns(groups, kept)
        trainer = MIPOTrainer(model, args=args, train_dataset=groups, processing_class=tokenizer, peft_config=adapter)
        if main and store.folder and name and kept is None:
            reference.write(trainer.train_dataset, store.folder / name)
        trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        if not args.disable_tqdm:
            trainer.add_callback(_Progress)
        trainer.add_callback(_Divergence(trainer))
        trainer.add_callback(Recorder(trainer.args.save_total_limit))
        trainer.args.save_total_limit = None
        _train(trainer)
        _check_finite(trainer)
        _save(trainer, output)
    log: list[dict[str, Any]] = trainer.state.log_history
    # TRL's patched forward refers back to its model: without a collection now, the weights stay on the accelerator
    # until a later one, and the next model may not fit.
    del trainer
    gc.collect()
    return log


def _kept_reference(folders: list[Path], name: str) -> dict[str, pa.Array] | None:
    """The reference's log-probs of an earlier training, if every process has them; else all score together."""
    kept = reference.read(folders, name)
    return kept if all(gather_object([kept is not None])) else None


def _origin(store: PairStore, model: Model, args: MIPOConfig, lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a training is made from; a checkpoint of another one is no place to go on from."""
    settings = {name: value for name, value in args.to_dict().items() if not name.startswith(ELSEWHERE)}
    of_model = {"model": model.name, **model.content}
    whole = {"tokens": store.content, **of_model, "lora": None if lora is None else dict(lora)}
    return json.loads(json.dumps(whole | settings, default=str))  # type: ignore[no-any-return]


class _Progress(ProgressCallback):  # type: ignore[misc]
    """The bar without printed logs: the log goes to `training.json` and to `report_to`."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Prints nothing."""


class _Divergence(TrainerCallback):  # type: ignore[misc]
    """Stops a training that diverged before its weights take the place of the last checkpoint."""

    def __init__(self, trainer: MIPOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Runs after the callback that decides whether this step is saved."""
        if control.should_save:
            _check_finite(self._trainer)


def _check_finite(trainer: MIPOTrainer) -> None:
    """InputError in every process where the weights of any are not finite: each may hold another part of them."""
    name = not_finite(trainer.model)
    diverged = torch.tensor([float(name is not None)], device=trainer.accelerator.device)
    if trainer.accelerator.reduce(diverged, reduction="sum").item():
        raise InputError(
            f"the training diverged: weights are NaN or infinite after step {trainer.state.global_step}"
            f"{f' ({name})' if name else ''}, and are not saved; lower learning_rate or max_grad_norm, or look at the "
            "longest pairs"
        )


def _train(trainer: MIPOTrainer) -> None:
    """Trains, from the last checkpoint on. From one that has all steps, transformers would train one more."""
    checkpoint = _checkpoint(trainer)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if checkpoint and trainer.args.max_steps > 0 and not sharded:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if state.global_step >= trainer.args.max_steps:
            trainer._load_from_checkpoint(checkpoint)
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=checkpoint)


def _checkpoint(trainer: MIPOTrainer) -> str | None:
    """The checkpoint that all processes resume from; the main one looks for it, since that removes files."""
    last = _from_main(lambda: last_checkpoint(Path(trainer.args.output_dir)))
    return str(last) if last else None


def _from_main(find: Callable[[], T]) -> T:
    """What the main process finds; in all of them."""
    result: list[Any] = [find() if PartialState().is_main_process else None]
    broadcast_object_list(result)
    return result[0]  # type: ignore[no-any-return]


def _save(trainer: MIPOTrainer, output: Path) -> None:
    """Saves model and tokenizer, without TRL's pickled arguments, under a temporary name, then renames the folder."""
    temporary = _temporary(output)
    if trainer.is_world_process_zero():
        outputs.remove(temporary)
        outputs.mark(temporary, "unfinished model")
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))  # every process takes part: it gathers a sharded model
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (temporary / "training_args.bin").unlink(missing_ok=True)
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        outputs.mark_model(temporary, "training.json")
        outputs.remove(output)
        temporary.rename(output)
        outputs.remove(Path(trainer.args.output_dir))
    trainer.accelerator.wait_for_everyone()


def _temporary(output: Path) -> Path:
    """Where a model is written before it becomes `output`; every process of a training has the same one."""
    return output.with_name(f".{output.name}.tmp")
