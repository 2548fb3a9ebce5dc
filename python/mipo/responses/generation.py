"""Generation: a model's response to each distinct prompt, in parts that a later call continues.

Knows sampling and parts on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io import checksum, files, outputs, records, tables
from mipo.io.lazy import np, pl, torch
from mipo.models.model import Model
from mipo.responses.engines.local import sample
from mipo.responses.sampling import Sampling
from mipo.tokenizer.chat import encode_prompts
from mipo.tokenizer.messages import key
from mipo.tokenizer.template import RowError

RESPONSE = ("response", "response_tokens", "truncated")  # what a part holds beside the prompts
PART_ROWS = 512  # a kill costs at most one part; each has its own seed, so generating it again gives the same rows


def generate(
    prompts: pl.DataFrame,
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
    """One sampled response for each row of `prompts` (those of `Requests`); temperature 0 is greedy.

    Returns `prompts` with response (text without special tokens), response_tokens (with the end of turn) and truncated
    (cut off after `max_new_tokens` tokens: as a part of a pair it has no end of turn, see `mipo.tokens.groups`).
    Samples from the model's own distribution under temperature and top_p: a repetition penalty or top_k in its
    generation config is ignored, its end tokens are used.

    With `folder`, parts of 512 rows are kept there as `part-*.parquet`, and a call with the same arguments continues
    an interrupted one. The same arguments give the same responses on the same machine; another batch size or device
    rounds differently. Weights are loaded only where rows are missing. Raises InputError for a folder of other prompts
    or settings, naming the difference, and, before it generates anything, for a prompt that leaves no room for
    `max_new_tokens` in the model's context.
    """
    if not prompts.height:
        raise InputError("no prompt to answer; give at least one row")
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    records.read(Sampling, {**sampling, "batch_size": batch_size})
    with outputs.claim(folder, "responses") if folder else nullcontext():
        if folder:
            of_model = {"model": model.name, **model.content, "tokenizer": model.tokenizer_fingerprint}
            _check(folder, prompts, {**of_model, **sampling, "seed": seed, "batch_size": batch_size})
        return _answered(prompts, model, folder, sampling, seed, batch_size, progress)


def _answered(
    prompts: pl.DataFrame,
    model: Model,
    folder: Path | None,
    sampling: dict[str, Any],
    seed: int,
    batch_size: int,
    progress: str,
) -> pl.DataFrame:
    """The prompts with their responses, part by part."""
    new = sampling["max_new_tokens"]
    parts: list[pl.DataFrame] = []
    ids: list[list[int]] = []
    with _bar(prompts.height, progress) as bar:
        for number, start in enumerate(range(0, prompts.height, PART_ROWS)):
            rows, path = slice(start, start + PART_ROWS), folder / f"part-{number:05d}.parquet" if folder else None
            if path and path.exists():
                part = tables.scan(path).collect() if tables.is_own(path) else pl.DataFrame()
                if part.columns == [*prompts.columns, *RESPONSE] and _same(part, prompts[rows]):
                    parts.append(part)
                    bar.update(part.height)
                    continue
                print(f"{path}: damaged, or not the responses to these prompts; made again")
            # All prompts at once, so that one that is too long is refused before any generation.
            ids = ids or _encode_fitting(prompts, model, new)
            torch.manual_seed(_part_seed(seed, number))
            responses = sample(ids[rows], model.weights, model.tokenizer, sampling, batch_size, bar)
            parts.append(prompts[rows].with_columns(responses))
            if path:
                tables.write([parts[-1]], path)
    return pl.concat(parts)


def _same(part: pl.DataFrame, prompts: pl.DataFrame) -> bool:
    """Whether a part holds a response to each of these prompts."""
    complete = not sum(part.select(RESPONSE).null_count().row(0))
    return complete and part.select(prompts.columns).equals(prompts)


def _part_seed(seed: int, number: int) -> int:
    """The seed of a part. With seed + number, neighbouring seeds and parts would share random numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(folder: Path, prompts: pl.DataFrame, settings: dict[str, Any]) -> None:
    """Writes prompts and settings of the parts to `folder`; InputError for a folder with parts of others."""
    digest = checksum.of_value(key(prompts["prompt"]).to_list())
    settings = {**settings, "part_rows": PART_ROWS, "prompts_checksum": digest}
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.glob("part-*.parquet")):
            raise InputError(
                f"{folder}: holds responses, but no settings.json that describes them; name another folder"
            )
        files.write_json(path, settings)
        return
    if lines := records.differences(files.read_json(path), settings):
        raise InputError(
            f"{folder}: holds responses of other prompts or settings:\n  " + "\n  ".join(lines) + "\nName another "
            "folder, or delete this one."
        )


def _encode_fitting(prompts: pl.DataFrame, model: Model, new: int) -> list[list[int]]:
    """The ids of each prompt; InputError unless all leave room for `new` tokens."""
    try:
        ids = [row.tolist() for row in encode_prompts(prompts["prompt"], model.tokenizer)]
    except RowError as error:
        raise InputError(f"response_id {prompts['response_id'][error.row]}: {error.message}") from error
    context = model.context_length
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    if context is not None and len(ids[longest]) + new > context:
        raise InputError(
            f"response_id {prompts['response_id'][longest]}: a prompt of {len(ids[longest])} tokens and {new} new "
            f"tokens do not fit the model's context of {context}; drop long prompts or lower max_new_tokens"
        )
    return ids


def _bar(total: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="row", delay=0.5)
