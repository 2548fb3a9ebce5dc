"""Responses: the model answers each distinct prompt once, prompts and counter-prompts alike.

Knows transformers, sampling and parts on disk. Knows nothing of pairs or training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
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

    _check_place(model, "tokenizer*", "vocab*", "*.model")
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

    `dtype` is a torch dtype's name or `auto`: as saved on an accelerator, float32 on a CPU. Raises FileNotFoundError
    where there is no such model, ValueError where it lacks weights.
    """
    from transformers import AutoModelForCausalLM

    _check_place(model, "config.json", "adapter_config.json")
    where = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    how = {"dtype": _dtype(dtype, where), "trust_remote_code": trust_remote_code, "output_loading_info": True}
    try:
        with without_bars():
            loaded, told = AutoModelForCausalLM.from_pretrained(model, **how)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{model}: no causal language model found there ({_first_line(error)})") from None
    if told["missing_keys"]:
        raise ValueError(
            f"{model}: {len(told['missing_keys'])} weights of its architecture are not there, as "
            f"{min(told['missing_keys'])}; they would be random. Give a whole causal language model"
        )
    ready: PreTrainedModel = loaded.to(where).eval()
    return ready


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the bars of transformers ("Loading weights", "Writing model shards"); those of downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
    trust_remote_code: bool = False,
    progress: str = "generate",
) -> pl.DataFrame:
    """One sampled response for each row of `asked` (see `ask`); temperature 0 is greedy.

    Returns `asked` with response (text without special tokens), response_tokens (with the end of turn) and truncated
    (cut off by `max_new_tokens`, tokens). The draws are from the model's own distribution under temperature and top_p:
    a repetition penalty or top_k of its generation config is not applied, its end tokens are.

    With `folder`, parts of 512 rows are kept there as `part-*.parquet`, and a call with the same arguments goes on
    where an earlier one was stopped; ValueError, naming the difference, for a folder of other prompts or settings. The
    same arguments give the same responses on the same machine; another batch size or device rounds differently. A model
    by name is loaded only where rows are missing. Raises ValueError, before anything is generated, for a prompt that
    leaves no room for `max_new_tokens` in the model's context.
    """
    _check_arguments(asked, temperature, top_p, max_new_tokens, batch_size)
    if tokenizer is None:
        if not isinstance(model, str):
            raise ValueError("a loaded model needs its tokenizer; pass it as tokenizer=")
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    if folder:
        named = model if isinstance(model, str) else model.name_or_path
        _claim(folder, asked, {"model": named, **how, "seed": seed, "batch_size": batch_size})
    parts: list[pl.DataFrame] = []
    ids: list[list[int]] = []
    with _bar(asked.height, progress) as bar:
        for number, start in enumerate(range(0, asked.height, PART_ROWS)):
            rows, path = slice(start, start + PART_ROWS), folder / f"part-{number:05d}.parquet" if folder else None
            if path and path.exists():
                parts.append(pl.read_parquet(path))
                bar.update(parts[-1].height)
                continue
            if isinstance(model, str):
                model = load_model(model, trust_remote_code=trust_remote_code)
            # All prompts at once, so that one that is too long is found before the first costs anything.
            ids = ids or _encode_fitting(asked, tokenizer, context_length(model.config), max_new_tokens)
            torch.manual_seed(_stream(seed, number))
            parts.append(asked[rows].with_columns(_sample(ids[rows], model, tokenizer, how, batch_size, bar)))
            if path:
                with files.whole(path) as temporary:
                    parts[-1].write_parquet(temporary)
    return pl.concat(parts)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a response, in order: the tokenizer's and the generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None})


def _stream(seed: int, number: int) -> int:
    """The seed of a part: of its own, where seed + number would share streams between neighbouring seeds and parts."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sample(
    ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    how: dict[str, Any],
    batch_size: int,
    bar: Any,
) -> pl.DataFrame:
    """response, response_tokens and truncated for each prompt's ids."""
    greedy, ends = {"do_sample": False, "max_new_tokens": how["max_new_tokens"]}, end_ids(model, tokenizer)
    how = {**({"do_sample": True, "top_k": 0, **how} if how["temperature"] else greedy), "eos_token_id": ends}
    answers: dict[int, tuple[str, int, bool]] = {}
    # Long prompts first: an out-of-memory error comes at the start, and a batch holds little padding.
    order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
    for batch in (order[at : at + batch_size] for at in range(0, len(order), batch_size)):
        for row, response in zip(batch, _continue(model, tokenizer, [ids[r] for r in batch], how), strict=True):
            answers[row] = (_decode(tokenizer, ids[row], response), len(response), response[-1] not in ends)
        bar.update(len(batch))
    kinds = {"response": pl.String, "response_tokens": pl.UInt32, "truncated": pl.Boolean}
    return pl.DataFrame([answers[row] for row in range(len(ids))], schema=kinds, orient="row")


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], how: dict[str, Any]
) -> list[list[int]]:
    """The new token ids of each prompt, up to its end of turn, which is included."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode(), _own_distribution(model):
        out = model.generate(**padded, **how, pad_token_id=tokenizer.pad_token_id)
    rows = out[:, padded["input_ids"].shape[1] :].tolist()
    return [row[: next((at + 1 for at, i in enumerate(row) if i in how["eos_token_id"]), len(row))] for row in rows]


@contextmanager
def _own_distribution(model: PreTrainedModel) -> Iterator[None]:
    # A repetition penalty, top_k or suppressed token that the model's maker put into its generation config would draw
    # from another distribution than the reference that training and evaluation score.
    from transformers import GenerationConfig

    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> str:
    """The response's text. After a plain-text prompt a leading space counts, and only the whole shows it."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if is_chat(tokenizer):
        return text(response)
    before, whole = text(prompt), text(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else text(response)


def _encode(composed: pl.Series, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = render(composed, tokenizer)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not is_chat(tokenizer))["input_ids"] if texts else []
    return ids


def _claim(folder: Path, asked: pl.DataFrame, settings: dict[str, Any]) -> None:
    """Says in `folder` what its parts are made of, or refuses a folder whose parts are made of something else."""
    digest = hashlib.sha256("\x1d".join(key(asked["prompt"])).encode()).hexdigest()
    settings = {**settings, "part_rows": PART_ROWS, "prompts_sha256": digest}
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.glob("part-*.parquet")):
            raise ValueError(f"{folder}: holds responses, but no settings.json that says of what; name another folder")
        files.write_json(path, settings)
        return
    found = files.read_json(path)
    differing = [f"{name}: {found.get(name)!r} there, {value!r} now" for name, value in settings.items()
                 if found.get(name) != value]  # fmt: skip
    if differing:
        raise ValueError(
            f"{folder}: holds responses made of something else:\n  " + "\n  ".join(differing) + "\nName another "
            "folder, or delete this one."
        )


def _check_arguments(
    asked: pl.DataFrame, temperature: float, top_p: float, max_new_tokens: int, batch_size: int
) -> None:
    if not asked.height:
        raise ValueError("no prompt to answer; give at least one row")
    if temperature < 0:
        raise ValueError(f"temperature: expected 0 (greedy) or more, came {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0 and at most 1 (all tokens), came {top_p}")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, came {value}")


def _encode_fitting(
    asked: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, room: int | None, new: int
) -> list[list[int]]:
    ids = _encode(asked["prompt"], tokenizer)
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    if room is not None and len(ids[longest]) + new > room:
        raise ValueError(
            f"response_id {asked['response_id'][longest]}: a prompt of {len(ids[longest])} tokens and {new} new tokens "
            f"do not fit the model's context of {room}; drop long prompts or lower max_new_tokens"
        )
    return ids


def _check_place(model: str, *names: str) -> None:
    """Refuses a folder that is none, or holds none of the files `names`, before the hub is asked for it at length."""
    path = Path(model)
    if path.is_dir():
        if not any(any(path.glob(name)) for name in names):
            raise FileNotFoundError(f"{model}: a folder with no {' and no '.join(names)}; name the folder of a model")
    elif path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"{model}: no such folder; name the folder of a model, or a model on the hub")


def _dtype(name: str, where: torch.device | None) -> Any:
    if name == "auto":
        return torch.float32 if where is None or where.type == "cpu" else "auto"
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype: expected auto or a dtype of torch, as bfloat16, came {name!r}")
    return found


def _bar(total: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="row", delay=0.5)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
