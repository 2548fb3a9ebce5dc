"""Metrics: TRL's figures of the batches since the last log, and InfoNCE, kept on the device until they are read.

Knows their names and how each is averaged. Knows no trainer and no model.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from mipo.loss.preference import implicit_rewards
from mipo.trainer.preference_head import Figures

TOKENS = "num_tokens"  # a sum; all others are means
# Beside TRL's: log softmax(s)_0 + log(K+1) over the rewards s of a group. On pairs that were not trained on, its mean
# estimates a lower bound on the information between prompt and response; it cannot exceed its cap, log(K+1). With one
# rejected response it is log 2 minus DPO's loss.
INFONCE, CAP = "rewards/infonce", "rewards/infonce_cap"


class Metrics:
    """A sum and a weight for each metric of each batch, by mode: `train` or `eval`."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._batches: dict[str, list[Tensor]] = defaultdict(list)
        self._names: tuple[str, ...] = ()

    def add(
        self, mode: str, figures: Figures, aux_loss: Tensor | None, ref: Tensor, mask: Tensor, responses: Tensor,
        chosen: Tensor, attention: Tensor,
    ) -> None:  # fmt: skip
        """Adds a batch without waiting for the device.

        `ref` and `mask` are [G, K+1], as the log-probs of `figures`; `responses`, `chosen` and `attention` are 1 at the
        tokens that count, else 0.
        """
        rewards = implicit_rewards(figures.logps, ref, beta=self._beta)
        margins = rewards[:, :1] - rewards[:, 1:]
        rejected, groups = mask[:, 1:], torch.ones_like(rewards[:, 0])
        cap = mask.sum(1).to(rewards).log()
        log_share = rewards[:, 0] - rewards.masked_fill(~mask, -torch.inf).logsumexp(1)
        values = {
            "rewards/chosen": (rewards[:, 0], groups),
            "rewards/rejected": (rewards[:, 1:], rejected),
            "rewards/accuracies": (margins > 0, rejected),
            "rewards/margins": (margins, rejected),
            INFONCE: (log_share + cap, groups),
            CAP: (cap, groups),
            "logps/chosen": (figures.logps[:, 0], groups),
            "logps/rejected": (figures.logps[:, 1:], rejected),
            "logits/chosen": (figures.mean_logits, chosen),
            "logits/rejected": (figures.mean_logits, responses - chosen),
            "entropy": (figures.entropy, responses),
            "mean_token_accuracy": (figures.is_top1, chosen),
            TOKENS: (attention, groups.new_ones(())),
        }
        if aux_loss is not None:
            values["aux_loss"] = (aux_loss, groups.new_ones(()))
        pairs = [torch.stack([(value * weight).sum(), weight.sum()]).float() for value, weight in values.values()]
        self._names = tuple(values)
        self._batches[mode].append(torch.stack(pairs).detach())

    def read(self, mode: str, accelerator: Any) -> list[dict[str, float]]:
        """The metrics of each batch of a mode over all processes, with one reduction and one wait for the device.

        They are read once. Every process must call this.
        """
        batches = self._batches.pop(mode, None)
        if not batches:
            return []
        return [
            {
                name: total if name == TOKENS else total / weight if weight else 0.0
                for name, (total, weight) in zip(self._names, batch, strict=True)
            }
            for batch in accelerator.reduce(torch.stack(batches), reduction="sum").tolist()
        ]
