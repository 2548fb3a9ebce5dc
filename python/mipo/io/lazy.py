"""Modules imported at their first use: `import mipo` must stay under 0.3 s, and polars alone takes 0.2."""

import importlib
from types import ModuleType
from typing import Any


class lazy(ModuleType):
    """Stands in for the module `name`, and imports it when an attribute is first used."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)
