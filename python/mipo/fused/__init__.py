"""Log-probs and losses from hidden states and an LM head, without stored logits.

Needs torch alone; what knows transformers and TRL is imported by path: `mipo.fused.heads`, `mipo.fused.trl`.
"""

from mipo.fused.operators import FusedPreferenceLoss, linear_logps, linear_preference_loss

__all__ = ["FusedPreferenceLoss", "linear_logps", "linear_preference_loss"]
