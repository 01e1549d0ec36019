"""The shapes of rows that are understood, one a module; a new format is one new file here. Torch-free."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from core.data.formats.format import Format, formats

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Format", "formats"]
