"""Checkpoints: each has a record of its files' checksums, which are compared before a training goes on from it.

Knows files of transformers by their names only. Knows nothing of models.
"""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from mipo.errors import InputError, NotThereError
from mipo.io import checksum, files

RECORD = "mipo.json"


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes the record of each checkpoint, and only then removes older ones: one that can be resumed always stays.

    `keep` is how many stay (None: all), in place of `save_total_limit`, which removes them before the record is there.
    """

    def __init__(self, keep: int | None) -> None:
        self.keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After transformers wrote a checkpoint."""
        PartialState().wait_for_everyone()  # each process writes its own random state
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.write_json(checkpoint / RECORD, checksum.signed({"files": checksum.of_files(checkpoint)}))
        rotate_checkpoints(args.output_dir, self.keep, state.best_model_checkpoint)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written, or None. Removes newer ones, and prints what was wrong."""
    steps = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*") if _is_numbered(path)}
    wrong = []
    last = None
    for _, checkpoint in sorted(steps.items(), reverse=True):
        if not (damage := _damage(checkpoint)):
            last = checkpoint
            break
        wrong.append(f"{checkpoint.name} {damage}")
        shutil.rmtree(checkpoint)
    notes = "".join(f"{note}; " for note in wrong)
    if last or notes:
        print(f"train: {notes}{f'resuming from {last.name}' if last else 'starting again'}")
    return last


def _is_numbered(path: Path) -> bool:
    return path.is_dir() and path.name.rpartition("-")[2].isdecimal()


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; nothing if all files are as they were written."""
    try:
        record = files.read_json(checkpoint / RECORD)
    except NotThereError:
        return "was not finished"
    except InputError:
        record = None
    if not checksum.is_signed(record):
        return f"is damaged ({RECORD})"
    written, present = record["files"], checksum.of_files(checkpoint)
    differing = [name for name in written if present.get(name) != written[name]]
    return f"is damaged ({', '.join(differing)})" if differing else ""
