"""Training of a run: in this process, or in several, which a launcher starts as `python -m mipo.run.training FOLDER`.

Knows a run's folder. Knows nothing of how a model is trained.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mipo.errors import InputError, MipoError, StoppedError
from mipo.io import files, processes
from mipo.models.model import Model
from mipo.run.launcher import command
from mipo.run.recipe import Launch, Recipe, load
from mipo.run.training_settings import build
from mipo.tokens.store import PairStore

# Set for the processes of a launcher: the process of the run, with which they end, and where the first one that cannot
# train says why.
PARENT, ERROR = "MIPO_RUN_PROCESS", "MIPO_RUN_ERROR"


def train_run(folder: Path, recipe: Recipe, model: Model, reuse: Path | None = None) -> None:
    """Trains a run's model on its tokens, and writes `model/` and `training.json`; several processes all call it."""
    from mipo.trainer.training import train

    args, _ = build(recipe, folder)
    log = train(
        PairStore.open(folder / "tokens"), model.name, model.tokenizer, folder / "model", args=args, lora=recipe.lora,
        reuse=reuse / "tokens" if reuse else None,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        files.write_json(folder / "training.json", log)


def launch(folder: Path, settings: Launch, reuse: Path | None = None) -> None:
    """Does `train_run` in the processes of `settings`, whose output is this process's.

    Raises InputError for what one of them refused, and StoppedError where the launcher ended otherwise: what is
    trained stays, as after a kill, and the next call goes on from the last checkpoint.
    """
    with tempfile.TemporaryDirectory() as temporary:
        error = Path(temporary) / "error"
        environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, PARENT: str(os.getpid()), ERROR: str(error)}
        where = [str(folder.resolve()), *([str(reuse.resolve())] if reuse else [])]
        process = subprocess.Popen([*command(settings), "-m", __name__, *where], env=environment)
        try:
            code = process.wait()
        finally:
            processes.end(process)
        if error.exists():
            raise InputError(error.read_text(encoding="utf-8"))
    if code:
        raise StoppedError(
            f"train: the launcher ended with {code}, and its processes said why above; the same command goes on from "
            "the last checkpoint"
        )


def _end_with(parent: int) -> None:
    """Ends this process when the run's, or its own launcher, has ended, however that did.

    Two trainings in one folder destroy each other.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher and _runs(parent):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _runs(process: int) -> bool:
    """False also for one that has ended and that nobody has waited for."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main(arguments: list[str]) -> int:
    """One process of a launcher."""
    folder, *reuse = map(Path, arguments)
    _end_with(int(os.environ[PARENT]))
    recipe = load(folder / "recipe.yaml")
    try:
        model = Model(recipe.model, trust_remote_code=recipe.trust_remote_code)
        train_run(folder, recipe, model, reuse[0] if reuse else None)
    except MipoError as error:
        with suppress(FileExistsError), Path(os.environ[ERROR]).open("x", encoding="utf-8") as file:
            file.write(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
