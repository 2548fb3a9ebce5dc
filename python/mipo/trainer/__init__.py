"""The trainer: TRL's DPOTrainer on groups of token ids, with one rejected response or several."""

from mipo.trainer.config import MIPOConfig
from mipo.trainer.trainer import MIPOTrainer
from mipo.trainer.training import train

__all__ = ["MIPOConfig", "MIPOTrainer", "train"]
