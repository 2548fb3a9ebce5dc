"""Responses: the model answers each distinct prompt once, prompts and counter-prompts alike.

Knows transformers, sampling and parts on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import files
from mipo.lazy import lazy
from mipo.prompts import is_chat, key, render

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:
    np = lazy("numpy")
    pl = lazy("polars")
    torch = lazy("torch")

PART_ROWS = 512  # a part is what a kill can cost; it has its own seed, so a part made again is the same


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, padding on the left; FileNotFoundError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{model}: no tokenizer found there ({_first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model}: the tokenizer has no eos_token, so no response could ever end; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_model(model: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal model of a folder (also a PEFT adapter's) or hub name, in evaluation mode on the accelerator, if any.

    `dtype` is a torch dtype's name or `auto`: as saved on an accelerator, float32 on a CPU.
    """
    from transformers import AutoModelForCausalLM

    where = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    kind = ("auto" if where.type != "cpu" else torch.float32) if dtype == "auto" else getattr(torch, dtype)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=kind, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{model}: no causal language model found there ({_first_line(error)})") from None
    ready: PreTrainedModel = loaded.to(where).eval()
    return ready


def context_length(model_config: Any) -> int | None:
    """How many tokens the model can see at once; None where its config does not say."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)


def lengths(composed: pl.Series, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Tokens of each composed prompt as the model sees it, [n]."""
    return np.array([len(ids) for ids in _encode(composed, tokenizer)], dtype=np.int64)


def ask(*composed: pl.Series) -> pl.DataFrame:
    """The distinct prompts among all series, nulls left out: response_id (uint64, order of appearance) and prompt."""
    asked = pl.concat([series.drop_nulls().alias("prompt") for series in composed])
    table = pl.DataFrame({"prompt": asked, "key": key(asked).alias("key")})
    distinct = table.unique("key", keep="first", maintain_order=True).drop("key")
    return distinct.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("response_id"), "prompt")


def generate(
    asked: pl.DataFrame,
    model: str | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
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
    (cut off by `max_new_tokens`, tokens). With `folder`, parts of 512 rows are kept there as `part-*.parquet`, and a
    call with the same arguments goes on where an earlier one was stopped. The same arguments give the same responses on
    the same machine; another batch size or device rounds differently. A model by name is loaded only where rows are
    missing. Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context.
    """
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model)
    assert tokenizer is not None, "a loaded model needs its tokenizer"
    parts: list[pl.DataFrame] = []
    with _bar(asked.height, progress) as bar:
        for number, start in enumerate(range(0, asked.height, PART_ROWS)):
            path = folder / f"part-{number:05d}.parquet" if folder else None
            if path and path.exists():
                part = pl.read_parquet(path)
            else:
                if isinstance(model, str):
                    model = load_model(model)
                sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
                rows = asked[start : start + PART_ROWS]
                part = _sample(rows, model, tokenizer, seed=seed + number, batch_size=batch_size, bar=bar, **sampling)
                if path:
                    with files.whole(path) as temporary:
                        part.write_parquet(temporary)
            bar.update(start + part.height - bar.n)
            parts.append(part)
    return pl.concat(parts)


def _sample(
    rows: pl.DataFrame,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    bar: Any,
) -> pl.DataFrame:
    ids = _encode(rows["prompt"], tokenizer)
    _check_room(ids, rows, context_length(model.config), max_new_tokens)
    ends = end_ids(model, tokenizer)
    how: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        how |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    answers: dict[int, tuple[str, int, bool]] = {}
    # Long prompts first: an out-of-memory error comes at the start, and a batch holds little padding.
    order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
    for batch in _batches(order, batch_size):
        new = _continue(model, tokenizer, [ids[row] for row in batch], ends, how)
        for row, response in zip(batch, new, strict=True):
            text = _decode(tokenizer, ids[row], response)
            answers[row] = (text, len(response), not response or response[-1] not in ends)
        bar.update(len(batch))
    columns = list(zip(*(answers[row] for row in range(len(ids))), strict=True))
    return rows.with_columns(
        pl.Series("response", columns[0], dtype=pl.String),
        pl.Series("response_tokens", columns[1], dtype=pl.UInt32),
        pl.Series("truncated", columns[2], dtype=pl.Boolean),
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token ids that end a response: the tokenizer's and the generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None}


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    ends: set[int],
    how: dict[str, Any],
) -> list[list[int]]:
    """The new token ids of each prompt, up to its end of turn, which is included."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        out = model.generate(**padded, **how, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    rows = out[:, padded["input_ids"].shape[1] :].tolist()
    return [row[: next((at + 1 for at, i in enumerate(row) if i in ends), len(row))] for row in rows]


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> str:
    """The response's text. After a plain-text prompt a leading space counts, and only the whole shows it."""
    if is_chat(tokenizer):
        return str(tokenizer.decode(response, skip_special_tokens=True))
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + response, skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(response, skip_special_tokens=True))


def _encode(composed: pl.Series, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = render(composed, tokenizer)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not is_chat(tokenizer))["input_ids"] if texts else []
    return ids


def _check_room(ids: list[list[int]], rows: pl.DataFrame, room: int | None, new: int) -> None:
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    if room is not None and len(ids[longest]) + new > room:
        raise ValueError(
            f"response_id {rows['response_id'][longest]}: a prompt of {len(ids[longest])} tokens and {new} new tokens "
            f"do not fit the model's context of {room}; drop long prompts or lower max_new_tokens"
        )


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[at : at + size] for at in range(0, len(order), size))


def _bar(total: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="row", delay=0.5)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
