"""Mutual Information Preference Optimization: a language model improves itself, with no labels (arXiv 2603.19294).

What needs torch is imported by path: `mipo.loss`, `mipo.fused`, `mipo.trainer`, `mipo.evaluation`, `mipo.run`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mipo.negatives.draw import contrast, counterparts
    from mipo.pairing.join import pairs
    from mipo.tokenizer.encoder import encode
    from mipo.tokenizer.table import TokenTable
    from mipo.tokens.store import PairStore

    __version__: str

__all__ = ["PairStore", "TokenTable", "contrast", "counterparts", "encode", "pairs"]

_MODULES = {
    "PairStore": "mipo.tokens.store",
    "TokenTable": "mipo.tokenizer.table",
    "contrast": "mipo.negatives.draw",
    "counterparts": "mipo.negatives.draw",
    "encode": "mipo.tokenizer.encoder",
    "pairs": "mipo.pairing.join",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: all of them take longer than the command line to start."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mipo")
    if name not in _MODULES:
        raise AttributeError(f"module 'mipo' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
