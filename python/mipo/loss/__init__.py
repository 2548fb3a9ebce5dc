"""The loss, defined in plain PyTorch: log-probs under an LM head, and the losses of preference groups.

Needs torch alone. It is the specification, the path on a CPU and the oracle of the kernels at once.
"""

from mipo.loss.logps import sequence_logps, token_logps
from mipo.loss.preference import implicit_rewards, preference_loss

__all__ = ["implicit_rewards", "preference_loss", "sequence_logps", "token_logps"]
