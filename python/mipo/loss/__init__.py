"""The loss, defined in plain PyTorch: log-probs under an LM head, and the losses of preference groups.

Needs torch alone. It is the specification, the path on a CPU and the oracle of the kernels.
"""

from mipo.loss.logps import TokenStatistics, sequence_logps, token_logps, token_statistics
from mipo.loss.preference import implicit_rewards, preference_loss

__all__ = [
    "TokenStatistics", "implicit_rewards", "preference_loss", "sequence_logps", "token_logps", "token_statistics",
]  # fmt: skip
