"""Responses: the model answers each distinct prompt once, prompts and counter-prompts alike.

Knows transformers, sampling and parts on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import checksum, files, records, tables
from mipo.io.lazy import lazy
from mipo.models.model import Model
from mipo.responses.engines.local import sample
from mipo.responses.sampling import Sampling
from mipo.tokenizer.chat import encode_prompts
from mipo.tokenizer.messages import key

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
else:
    np = lazy("numpy")
    pl = lazy("polars")
    torch = lazy("torch")

PART_ROWS = 512  # a part is what a kill can cost; it has its own seed, so a part made again is the same


def generate(
    asked: pl.DataFrame,
    model: Model,
    *,
    folder: Path | None = None,
    temperature: float = 0.1,
    top_p: float = 0.9,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 64,
    progress: str = "generate",
) -> pl.DataFrame:
    """One sampled response for each row of `asked` (see `ask`); temperature 0 is greedy.

    Returns `asked` with response (text without special tokens), response_tokens (with the end of turn) and truncated
    (cut off by `max_new_tokens`, tokens). The draws are from the model's own distribution under temperature and top_p:
    a repetition penalty or top_k of its generation config is not applied, its end tokens are.

    With `folder`, parts of 512 rows are kept there as `part-*.parquet`, and a call with the same arguments goes on
    where an earlier one was stopped; ValueError, naming the difference, for a folder of other prompts or settings. The
    same arguments give the same responses on the same machine; another batch size or device rounds differently. Weights
    are loaded only where rows are missing. Raises ValueError, before anything is generated, for a prompt that
    leaves no room for `max_new_tokens` in the model's context.
    """
    if not asked.height:
        raise InputError("no prompt to answer; give at least one row")
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    records.read(Sampling, {**how, "batch_size": batch_size})
    if folder:
        _claim(folder, asked, {"model": model.name, **how, "seed": seed, "batch_size": batch_size})
    parts: list[pl.DataFrame] = []
    ids: list[list[int]] = []
    with _bar(asked.height, progress) as bar:
        for number, start in enumerate(range(0, asked.height, PART_ROWS)):
            rows, path = slice(start, start + PART_ROWS), folder / f"part-{number:05d}.parquet" if folder else None
            if path and path.exists():
                parts.append(pl.read_parquet(path, glob=False))
                bar.update(parts[-1].height)
                continue
            # All prompts at once, so that one that is too long is found before the first costs anything.
            ids = ids or _encode_fitting(asked, model, max_new_tokens)
            torch.manual_seed(_stream(seed, number))
            parts.append(
                asked[rows].with_columns(sample(ids[rows], model.weights, model.tokenizer, how, batch_size, bar))
            )
            if path:
                tables.write_frame(parts[-1], path)
    return pl.concat(parts)


def _stream(seed: int, number: int) -> int:
    """The seed of a part: of its own, where seed + number would share streams between neighbouring seeds and parts."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _claim(folder: Path, asked: pl.DataFrame, settings: dict[str, Any]) -> None:
    """Says in `folder` what its parts are made of, or refuses a folder whose parts are made of something else."""
    digest = checksum.of_value(key(asked["prompt"]).to_list())
    settings = {**settings, "part_rows": PART_ROWS, "prompts_checksum": digest}
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.glob("part-*.parquet")):
            raise InputError(f"{folder}: holds responses, but no settings.json that says of what; name another folder")
        files.write_json(path, settings)
        return
    found = files.read_json(path)
    differing = [f"{name}: {found.get(name)!r} there, {value!r} now" for name, value in settings.items()
                 if found.get(name) != value]  # fmt: skip
    if differing:
        raise InputError(
            f"{folder}: holds responses made of something else:\n  " + "\n  ".join(differing) + "\nName another "
            "folder, or delete this one."
        )


def _encode_fitting(asked: pl.DataFrame, model: Model, new: int) -> list[list[int]]:
    ids = [row.tolist() for row in encode_prompts(asked["prompt"], model.tokenizer)]
    room = model.context_length
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    if room is not None and len(ids[longest]) + new > room:
        raise InputError(
            f"response_id {asked['response_id'][longest]}: a prompt of {len(ids[longest])} tokens and {new} new tokens "
            f"do not fit the model's context of {room}; drop long prompts or lower max_new_tokens"
        )
    return ids


def _bar(total: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="row", delay=0.5)
