"""What each method is to the one who picks it: name, settings, what trains, what it cannot do. Torch-free.

One file per method, beside the file of the same name in `core/adapters/` that computes it. The form, the CLI, the plan
and the docs read only this side, so that a page which never loads torch still knows, counts and refuses everything.

    method.py   what a method says of itself        lora.py rslora.py ...   the methods
"""

from importlib import import_module
from pkgutil import iter_modules

from core.methods.method import BASELINE, Method, listed, methods, options_of, whole_parameters

for _file in sorted(iter_modules(__path__), key=lambda found: found.name):
    if not _file.name.startswith("__"):
        import_module(f"{__name__}.{_file.name}")

__all__ = ["BASELINE", "Method", "listed", "methods", "options_of", "whole_parameters"]
