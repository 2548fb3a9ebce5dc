"""Mutual Information Preference Optimization: a language model improves itself, with no labels (arXiv 2603.19294).

What needs torch is imported by path: `mipo.loss`, `mipo.fused`, `mipo.trainer`, `mipo.evaluation`, `mipo.run`.
"""

from typing import TYPE_CHECKING

from mipo.negatives.draw import contrast, counterparts
from mipo.pairing.join import pairs
from mipo.tokenizer.encoder import encode
from mipo.tokenizer.table import TokenTable
from mipo.tokens.store import PairStore

if TYPE_CHECKING:
    __version__: str

__all__ = ["PairStore", "TokenTable", "contrast", "counterparts", "encode", "pairs"]


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for, since `importlib.metadata` would be a third of the import."""
    if name != "__version__":
        raise AttributeError(f"module 'mipo' has no attribute {name!r}")
    from importlib.metadata import version

    return version("mipo")
