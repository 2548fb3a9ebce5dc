"""Shared prompts: one row that holds every prompt of a batch once, with all its responses behind it.

Knows token ids, lengths and positions. Knows no model: `mipo.trainer.shared_attention` reads the layout in one.

Letters: T tokens of the row, n trees of a block, P and R the longest prompt and response there, B responses of a tree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Trees share a block, and responses share queries, if that costs this factor more at most, or as little as one call.
SLACK, CALL = 1.25, 1 << 15  # pairs of a query and a key


class Tree(NamedTuple):
    """The lengths of a prompt, 1 or more, and of its responses, in tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def parts(self) -> list[tuple[int, int, int]]:
        """Of the prompt and each response: its first position, the one behind its last, in how many sequences it is."""
        ends = [(self.prompt, self.prompt + size, 1) for size in self.responses]
        return [(0, self.prompt, len(self.responses)), *ends]

    @property
    def order(self) -> tuple[int, int, int]:
        """What trees are sorted by, so that similar ones are padded together."""
        return len(self.responses), self.prompt, max(self.responses)


class Block:
    """Trees with equally many responses, each padded to P + B R places: those of its prompt, then of its responses."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.trees = tuple(trees)
        self.branches = len(trees[0].responses)
        self.prompt = max(tree.prompt for tree in trees)
        self.response = max(max(tree.responses) for tree in trees)
        self.width = self.prompt + self.branches * self.response

    @property
    def is_joint(self) -> bool:
        """Whether all responses of a tree are queries of one call: the cheaper way, unless they are long."""
        tokens = self.branches * self.response
        return tokens * (self.prompt + tokens) <= SLACK * tokens * (self.prompt + self.response) + CALL

    @property
    def cost(self) -> int:
        """Pairs of a query and a key."""
        keys = self.prompt + self.response * (self.branches if self.is_joint else 1)
        return len(self.trees) * (self.prompt**2 // 2 + self.branches * self.response * keys)

    def is_token(self) -> Tensor:
        """[n, width], false at the padding."""
        prompts = torch.tensor([tree.prompt for tree in self.trees])
        responses = torch.tensor([tree.responses for tree in self.trees])
        of_prompts = torch.arange(self.prompt) < prompts[:, None]
        of_responses = torch.arange(self.response) < responses[..., None]
        return torch.cat([of_prompts, of_responses.flatten(1)], 1)

    def prompt_mask(self, window: int | None) -> Tensor:
        """[1, 1, P, P], which places of a prompt each one attends to."""
        place = torch.arange(self.prompt)
        return _attends(place[:, None], place, window)[None, None]

    def response_mask(self, window: int | None) -> Tensor:
        """Which places each one of a response attends to: the prompt's, and its own response's.

        Joint it is [n, 1, B R, P + B R], otherwise [n B, 1, R, P + R].
        """
        prompts = torch.tensor([tree.prompt for tree in self.trees])[:, None, None]
        of_prompt, own = torch.arange(self.prompt), torch.arange(self.response)
        before = (of_prompt < prompts) & _attends(prompts + own[:, None], of_prompt, window)
        beside = _attends(own[:, None], own, window)
        if self.is_joint:
            before, beside = before.repeat(1, self.branches, 1), _repeated_diagonally(beside, self.branches)
        mask = torch.cat([before, beside.expand(len(before), -1, -1)], -1)[:, None]
        return mask if self.is_joint else mask.repeat_interleave(self.branches, 0)


class Layout:
    """What each token of a row [prompt | response | response … | prompt | …] attends to.

    It is not a tensor: code that casts or splits all tensors among a model's arguments leaves it alone.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.blocks = tuple(_blocks(trees))
        parts = [part for tree in trees for part in tree.parts]
        self.positions: Tensor = torch.cat([torch.arange(*ends) for *ends, _ in parts])[None]
        """[1, T], the position of each token in its own sequence of prompt and response."""
        self.copies: Tensor = torch.cat([torch.full((b - a,), count) for a, b, count in parts])[None]
        """[1, T], in how many sequences each token is."""
        self.order: Tensor | None = None
        """[T], the place of each token in the blocks, one after another; None where it is its place in the row."""
        self.padded: Tensor | None = None
        """[places], the token at each place; any at the padding."""
        is_token = torch.cat([block.is_token().flatten() for block in self.blocks])
        if not is_token.all():
            self.order = is_token.nonzero()[:, 0]
            self.padded = (is_token.cumsum(0) - 1).clamp(min=0)
        self.windows: list[int | None] = []
        """The window of each attention that has read this layout."""
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def to(self, device: Any, **options: Any) -> Layout:
        """A copy with its tensors on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> Layout:
        """A copy with its tensors in pinned memory."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, move: Callable[[Tensor], Tensor]) -> Layout:
        layout = copy.copy(self)
        for name in ("positions", "copies", "order", "padded"):
            if (tensor := getattr(self, name)) is not None:
                setattr(layout, name, move(tensor))
        layout.windows, layout._masks = [], {}
        return layout

    def mask(self, number: int, part: str, window: int | None, dtype: torch.dtype, device: Any) -> Tensor:
        """The mask of a part, `prompt` or `response`, of a block: bool, or else to be added to the scores.

        It is made once, since most layers of a model ask for the same.
        """
        key = (number, part, window, dtype, device)
        if key not in self._masks:
            block = self.blocks[number]
            mask = block.prompt_mask(window) if part == "prompt" else block.response_mask(window)
            if dtype != torch.bool:
                mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
            self._masks[key] = mask.to(device)
        return self._masks[key]


def share(input_ids: Tensor, is_token: Tensor, is_response: Tensor) -> tuple[Tensor, Layout, Tensor]:
    """The tokens of a batch as one row [1, T], its layout, and the place there of each token [N, L] (0 for padding).

    All arguments are [N, L]. What comes before the first response token of a sequence is its prompt; those with equal
    prompts share one.
    """
    sharing: dict[bytes, list[_Sequence]] = {}
    for number, first in enumerate(is_response.int().argmax(1).tolist()):
        columns = is_token[number].nonzero()[:, 0]
        prompt = int(is_token[number, :first].sum())
        key = input_ids[number, columns[:prompt]].numpy().tobytes()
        sharing.setdefault(key, []).append(_Sequence(number, columns, prompt))
    trees = sorted(((_tree(sequences), sequences) for sequences in sharing.values()), key=lambda pair: pair[0].order)
    tokens, places, end = [], torch.zeros_like(input_ids), 0
    for _, sequences in trees:
        prompts = [(number, columns[:prompt]) for number, columns, prompt in sequences]
        responses = [[(number, columns[prompt:])] for number, columns, prompt in sequences]
        for same in (prompts, *responses):
            start, end = end, end + len(same[0][1])
            tokens.append(input_ids[same[0]])
            for number, columns in same:
                places[number, columns] = torch.arange(start, end)
    return torch.cat(tokens)[None], Layout([tree for tree, _ in trees]), places


class _Sequence(NamedTuple):
    """A sequence of a batch: its number, the columns of its tokens, and how many of them are the prompt's."""

    number: int
    columns: Tensor
    prompt: int


def _tree(sequences: Sequence[_Sequence]) -> Tree:
    return Tree(sequences[0].prompt, tuple(len(columns) - prompt for _, columns, prompt in sequences))


def _blocks(trees: Sequence[Tree]) -> Iterator[Block]:
    """Consecutive trees, in a block as long as the padding costs less than another call."""
    block, alone = Block(trees[:1]), Block(trees[:1]).cost
    for tree in trees[1:]:
        alone += Block([tree]).cost + CALL
        if len(tree.responses) == block.branches and (wider := Block([*block.trees, tree])).cost <= SLACK * alone:
            block = wider
        else:
            yield block
            block = Block([tree])
            alone = block.cost
    yield block


def _repeated_diagonally(block: Tensor, times: int) -> Tensor:
    eye = torch.eye(times, dtype=torch.bool)
    return torch.kron(eye, block)


def _attends(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """By position: not to later ones, nor to those a window or more before."""
    return (key <= query) & (window is None or query - key < window)
