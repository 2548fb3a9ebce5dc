"""Mutual Information Preference Optimization: a language model improves itself, with no labels (arXiv 2603.19294).

The rooms with torch are imported by path: `mipo.loss`, `mipo.fused`, `mipo.trainer`, `mipo.evaluation`, `mipo.run`.
"""

from mipo.contrast import contrast, counterparts
from mipo.pairs import pairs
from mipo.store import PairStore
from mipo.tokens import TokenTable, encode

__all__ = ["PairStore", "TokenTable", "contrast", "counterparts", "encode", "pairs"]
