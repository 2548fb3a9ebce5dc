"""A program for test_pipeline.py: a run that kills itself at a named point (`killed_run.py RECIPE OUTPUT POINT`)."""

import os
import signal
import sys

from transformers import TrainerCallback

from mipo.io import files
from mipo.responses.answers import Answers
from mipo.responses.engines import local
from mipo.run import pipeline
from mipo.trainer import training


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAfterCheckpoint(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if any(name.startswith("checkpoint-") for name in os.listdir(args.output_dir)):
            die()


def arm(point: str) -> None:
    """Makes the process die in the middle of generation, of writing pairs.parquet, or of training."""
    whole = files.whole

    def dying(path):
        if point == "pairs" and path.name == "pairs.parquet":
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(b"half")
            die()
        return whole(path)

    files.whole = dying
    if point == "generation":
        add, kept = Answers.add, list[object]()

        def add_some(self, answers, engine):
            kept.extend(answers)
            add(self, answers, engine)
            if len(kept) > 36:  # after three blocks
                die()

        Answers.add = add_some
    if point == "training":
        training._Progress.on_step_end = DieAfterCheckpoint.on_step_end


if __name__ == "__main__":
    recipe, output, point = sys.argv[1:]
    local.BLOCK_ROWS = 16
    arm(point)
    pipeline.run_recipe(recipe, output=output)
