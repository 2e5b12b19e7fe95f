"""ir.Model -> the same function, cheaper: exact rewrites, one idea a file.

Every module of this folder registers its rewrites when it is imported; a new one is a new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from se_deploy.passes.registry import check, names, rewriters

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["check", "names", "rewriters"]
