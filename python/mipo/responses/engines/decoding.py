"""Decoding: new tokens for many prompts by a model of transformers, in one batch that is filled up as its rows end.

Knows a model and token ids. Knows nothing of texts, answers or engines.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from mipo.responses.engines.picking import Pick

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Ended = list[tuple[int, list[int]]]  # places of prompts, and their new ids

COLUMNS = 64  # of the cache that are reserved at once
# Padded tokens of prompts that go through the model at once, on an accelerator and on a CPU.
PREFILL_TOKENS = (16_384, 4_096)


def decode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pick: Pick, *, rows: int, new: int, ends: Collection[int],
    shrink: Callable[[int], None] | None = None,
) -> Iterator[Ended]:  # fmt: skip
    """The new ids of each prompt, with its place: `new` of them, or up to and with the first of `ends`.

    At most `rows` prompts are in the batch, the longest first. A row that ends makes room for the next prompt. Yields
    the rows that have ended, so that short ones come before long ones. Where memory runs out, half as many rows are
    tried, of which `shrink` is told, and what was begun begins again. Raises torch's error where there is not enough
    for one row.
    """
    # Long prompts first: memory runs out at the start or never, and those of one time need little padding.
    left = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    run = _run if _has_plain_cache(model) else _run_by_generate
    while left:
        done = set[int]()
        try:
            for ended in run(model, prompts, left, pick, rows, new, ends):
                done.update(place for place, _ in ended)
                yield ended
        except RuntimeError as error:
            if rows == 1 or not _is_out_of_memory(error):
                raise
            print(f"generate: no memory for {rows} prompts at once; going on with {rows // 2}")
            rows //= 2
            if shrink:
                shrink(rows)
        left = [place for place in left if place not in done]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out; of Apple's MPS only the message says so."""
    return isinstance(error, torch.OutOfMemoryError) or str(error).startswith("MPS backend out of memory")


def _run(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], order: list[int], pick: Pick, rows: int, new: int,
    ends: Collection[int],
) -> Iterator[Ended]:  # fmt: skip
    """`decode` for models whose caches can be joined."""
    waiting, batch = deque(order), None
    budget = PREFILL_TOKENS[model.device.type == "cpu"]
    while waiting or batch:
        parts, ended = [batch] if batch else [], list[tuple[int, list[int]]]()
        room = rows - (len(batch.live) if batch else 0)
        if room >= max(1, rows // 8):
            while waiting and room:
                count = min(room, len(waiting), max(1, budget // max(1, len(prompts[waiting[0]]))))
                part, logits = _begin(model, prompts, [waiting.popleft() for _ in range(count)])
                ended += part.add(logits, pick, new, ends)
                parts.append(part)
                room -= count
        if len(parts) > 1 or batch is None or batch.is_stale:
            batch = _join(parts)
        if batch:
            ended += batch.add(_step(model, batch), pick, new, ends)
        if ended:
            yield ended


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer [n, heads, columns, width], written in place into columns that are reserved."""

    def __init__(self, *buffers: Tensor, length: int = 0) -> None:
        super().__init__()
        self._buffers, self._length, self.is_initialized = buffers, length, bool(buffers)

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Keys and values of the columns that are written."""
        return tuple(buffer[:, :, : self._length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds columns; returns all of them."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self.is_initialized:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start : self._length] = states
        else:
            self._buffers, self.is_initialized = (key_states, value_states), True
        self.keys, self.values = self.states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The columns that are written."""
        return self._length

    def release(self) -> None:
        """Gives the memory back."""
        self._buffers, self.keys, self.values = (), None, None  # type: ignore[assignment]


@dataclass(eq=False, slots=True)
class _Batch:
    """Rows that are decoded together. Their tokens end in the same column of the cache, and have no gaps.

    `new` are the new ids of each row, of which the last is not in the cache yet. A row that has ended stays until the
    next `_join`.
    """

    cache: Cache
    seen: Tensor  # [n, columns], 1 where the cache has a token of the row, also of columns that are only reserved
    sizes: Tensor  # [n], tokens in the cache
    places: list[int]
    new: list[list[int]]
    is_live: list[bool]

    @property
    def live(self) -> list[int]:
        """The rows that have not ended."""
        return [row for row, is_live in enumerate(self.is_live) if is_live]

    @property
    def is_stale(self) -> bool:
        """Whether an eighth of the rows has ended (`_join` copies the cache), or the reserved columns are full."""
        ended = len(self.places) - len(self.live)
        return ended >= max(1, len(self.places) // 8) or self.cache.get_seq_length() == self.seen.shape[1]

    def add(self, logits: Tensor, pick: Pick, new: int, ends: Collection[int]) -> Ended:
        """Picks the next token of each live row; returns the rows that end with it."""
        live, ended = self.live, []
        picked = pick(logits[live], [self.places[row] for row in live], [len(self.new[row]) for row in live])
        for row, token in zip(live, picked.tolist(), strict=True):
            ids = self.new[row]
            ids.append(token)
            if len(ids) == new or ids[-1] in ends:
                self.is_live[row] = False
                ended.append((self.places[row], ids))
        return ended


def _begin(model: PreTrainedModel, prompts: Sequence[Sequence[int]], places: list[int]) -> tuple[_Batch, Tensor]:
    """A batch of prompts whose tokens are in the cache, and the logits of the first new ones."""
    ids, seen = _pad([prompts[place] for place in places], model.device)
    cache = Cache(layer_class_to_replicate=_Layer)
    batch = _Batch(cache, seen, seen.sum(1), places, [[] for _ in places], [True] * len(places))
    return batch, _logits(model, ids, seen, (seen.cumsum(1) - 1).clamp_min(0), cache)


def _step(model: PreTrainedModel, batch: _Batch) -> Tensor:
    """Puts the last token of each row into the cache; the logits of the next."""
    width = batch.cache.get_seq_length()
    batch.seen[:, width] = 1
    last = torch.tensor([ids[-1:] for ids in batch.new], device=model.device)
    logits = _logits(model, last, batch.seen[:, : width + 1], batch.sizes[:, None], batch.cache)
    batch.sizes += 1
    return logits


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: Tensor, seen: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """The logits [n, V] in float32 behind ids [n, columns], which go into the cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    options = {"attention_mask": seen, "position_ids": positions, name: cache}
    return model(ids, **options, use_cache=True, logits_to_keep=1).logits[:, -1].float()  # type: ignore[no-any-return]


def _join(parts: list[_Batch]) -> _Batch | None:
    """The live rows of all parts in one batch, without the columns that none of them needs; None without a live row."""
    parts = [part for part in parts if part.live]
    if not parts:
        return None
    kept = [torch.tensor(part.live) for part in parts]  # on the CPU, since layers may be on several devices
    sizes = torch.cat([part.sizes[rows] for part, rows in zip(parts, kept, strict=True)])
    width = int(sizes.max())
    layers = []
    for of_parts in zip(*(part.cache.layers for part in parts), strict=True):
        states = zip(*(layer.states for layer in of_parts), strict=True)
        layers.append(_Layer(*(_align(side, kept, width) for side in states), length=width))
        del states
        for layer in of_parts:
            layer.release()
    columns = torch.arange(width + COLUMNS, device=sizes.device)
    seen = ((columns >= width - sizes[:, None]) & (columns < width)).long()
    rows = [(part.places[row], part.new[row]) for part in parts for row in part.live]
    places, new = map(list, zip(*rows, strict=True))
    return _Batch(Cache(layers=layers), seen, sizes, places, new, [True] * len(rows))


def _align(states: Sequence[Tensor], kept: list[Tensor], width: int) -> Tensor:
    """The kept rows of all states [n, heads, columns, size]: their last `width` columns, and reserved ones behind."""
    count = sum(map(len, kept))
    # Zeros, since what is masked is multiplied by 0.
    joined = states[0].new_zeros(count, states[0].shape[1], width + COLUMNS, states[0].shape[3])
    start = 0
    for part, rows in zip(states, kept, strict=True):
        columns = min(width, part.shape[2])
        joined[start : start + len(rows), :, width - columns : width] = part[rows, :, -columns:]
        start += len(rows)
    return joined


def _pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [n, longest], padded on the left, and 1 where there is one."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, seen


def _has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers are keys and values of its tokens, and it is asked in the common way."""
    is_common = {"attention_mask", "position_ids", "logits_to_keep"} <= set(inspect.signature(model.forward).parameters)
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return is_common and not model.config.is_encoder_decoder and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


class _Picked(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` no choice but the picked token."""

    def __init__(self, pick: Pick, places: list[int], width: int) -> None:
        self._pick, self._places, self._width = pick, places, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = [input_ids.shape[1] - self._width] * len(self._places)
        picked = self._pick(scores.float(), self._places, counts)
        return torch.full_like(scores, -torch.inf).scatter(1, picked[:, None], 0.0)


def _run_by_generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], order: list[int], pick: Pick, rows: int, new: int,
    ends: Collection[int],
) -> Iterator[Ended]:  # fmt: skip
    """`decode` for other models, for example with recurrent layers: a batch runs until its last row ends."""
    options: dict[str, Any] = {"max_new_tokens": new, "eos_token_id": sorted(ends), "pad_token_id": 0}
    for places in (order[start : start + rows] for start in range(0, len(order), rows)):
        ids, seen = _pad([prompts[place] for place in places], model.device)
        picked = _Picked(pick, places, ids.shape[1])
        with torch.inference_mode(), _own_distribution(model):
            out = model.generate(ids, attention_mask=seen, logits_processor=[picked], do_sample=False, **options)
        rows_of_ids = out[:, ids.shape[1] :].tolist()
        lengths = [next((n + 1 for n, i in enumerate(row) if i in ends), len(row)) for row in rows_of_ids]
        yield [(place, row[:n]) for place, row, n in zip(places, rows_of_ids, lengths, strict=True)]


@contextmanager
def _own_distribution(model: PreTrainedModel) -> Iterator[None]:
    # A repetition penalty or suppressed token in the model's generation config would change the distribution: it would
    # no longer be the reference that training and evaluation score.
    config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = config
