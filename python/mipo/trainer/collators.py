"""Collators: groups of token ids become padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mipo.trainer.packing import REF


@dataclass
class GroupCollator:
    """Collates groups with `rejected_ids` as a list of lists.

    Returns input_ids, attention_mask and completion_mask [N, L] of all N responses, padded on the right; group_mask
    [G, K+1], true where a group has a response, chosen first, in the order of the N; and ref_logps [G, K+1] where the
    rows have them. Rows of more than `max_length` tokens are cut as in TRL, at their end or, with truncation_mode
    keep_end, at their start.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    max_length: int | None = None
    truncation_mode: str = "keep_start"

    def __call__(self, groups: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collates a list of rows."""
        width = 1 + max(len(group["rejected_ids"]) for group in groups)
        mask = torch.tensor([[k <= len(group["rejected_ids"]) for k in range(width)] for group in groups])
        rows = [(group["prompt_ids"], ids) for group in groups for ids in [group["chosen_ids"], *group["rejected_ids"]]]
        limit = self.max_length
        kept = slice(None, limit) if limit is None or self.truncation_mode == "keep_start" else slice(-limit, None)
        whole = [
            ([*prompt, *response][kept], ([0] * len(prompt) + [1] * len(response))[kept]) for prompt, response in rows
        ]
        length = max(len(row) for row, _ in whole)
        length += -length % (self.pad_to_multiple_of or 1)
        ids = torch.full((len(rows), length), self.pad_token_id)
        attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (tokens, is_response) in enumerate(whole):
            end = len(tokens)
            ids[row, :end], completion[row, :end] = torch.tensor(tokens), torch.tensor(is_response)
            attention[row, :end] = 1
        batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion, "group_mask": mask}
        if REF[0] in groups[0]:
            ref = [[group[REF[0]], *group[REF[1]]] for group in groups]
            batch["ref_logps"] = torch.tensor([row + [0.0] * (width - len(row)) for row in ref])
        return batch
