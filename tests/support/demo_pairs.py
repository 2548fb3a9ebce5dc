"""Pairs written by the demo's world, and settings of short trainings on them: nothing here is sampled."""

import random
from pathlib import Path
from typing import Any

import polars as pl

import mipo.demo
from mipo.demo import world
from mipo.trainer.config import MIPOConfig

DEMO = str(Path(mipo.demo.__file__).parent / "model")


def preferences(rows: int, negatives: tuple[int, ...]) -> pl.DataFrame:
    """Pairs: the user's own value is chosen, other values are rejected; row i has negatives[i mod …] of them."""
    rng = random.Random(0)
    people = [user for user in world.users() if not world.held_out(user)]
    table = []
    for row, user in enumerate(rng.sample(people, rows)):
        topic = rng.choice(sorted(user))
        prompt = [("system", world.context(user, rng)), ("user", world.question(topic, rng))]
        others = rng.sample(
            [v for v in world.TOPICS[topic].values if v != user[topic]], negatives[row % len(negatives)]
        )
        chosen = world.answer(topic, user[topic], rng)
        for other in others:
            table.append((row, prompt, [("assistant", chosen)], [("assistant", world.answer(topic, other, rng))]))
    messages = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    as_messages = [
        (row, *([{"role": role, "content": text} for role, text in side] for side in sides)) for row, *sides in table
    ]
    schema = {"prompt_id": pl.UInt64, "prompt": messages, "chosen": messages, "rejected": messages}
    return pl.DataFrame(as_messages, schema=schema, orient="row")


def arguments(folder: Path, **fields: Any) -> MIPOConfig:
    plain = {"learning_rate": 2e-4, "per_device_train_batch_size": 4, "logging_steps": 1, "max_steps": 3}
    return MIPOConfig(output_dir=str(folder), **{**plain, "save_strategy": "no", "disable_tqdm": True, **fields})


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in log if "loss" in row]
