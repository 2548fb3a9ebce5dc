"""Log-probs and losses from hidden states and an LM head, without stored logits.

Needs torch alone. Import the modules for transformers and TRL by path: `mipo.fused.heads`, `mipo.fused.trl`.
"""

from mipo.fused.operators import FusedPreferenceLoss, linear_logps, linear_preference_loss

__all__ = ["FusedPreferenceLoss", "linear_logps", "linear_preference_loss"]
