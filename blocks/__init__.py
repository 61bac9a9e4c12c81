"""Credentials as Prefect blocks: one file per provider, and the realm.

Importing this package registers the block types whose extras are installed; a provider without its extra is passed over here
and explained when it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    with contextlib.suppress(ModuleNotFoundError):  # the provider's extra is not installed
        importlib.import_module(f"{__name__}.{_module.name}")
