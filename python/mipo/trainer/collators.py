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
    rows have them.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, groups: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collates a list of rows."""
        width = 1 + max(len(group["rejected_ids"]) for group in groups)
        mask = torch.tensor([[k <= len(group["rejected_ids"]) for k in range(width)] for group in groups])
        rows = [(group["prompt_ids"], ids) for group in groups for ids in [group["chosen_ids"], *group["rejected_ids"]]]
        length = max(len(prompt) + len(response) for prompt, response in rows)
        length += -length % (self.pad_to_multiple_of or 1)
        ids = torch.full((len(rows), length), self.pad_token_id)
        attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor([*prompt, *response])
            attention[row, :end], completion[row, len(prompt) : end] = 1, 1
        batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion, "group_mask": mask}
        if REF[0] in groups[0]:
            ref = [[group[REF[0]], *group[REF[1]]] for group in groups]
            batch["ref_logps"] = torch.tensor([row + [0.0] * (width - len(row)) for row in ref])
        return batch
