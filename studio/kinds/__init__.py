"""The kinds of jobs, ONE FILE PER KIND. A new one is a module here whose `run` is decorated with `@job_kind("name")`.

Importing this package imports every kind; their modules load torch only when they run, since the scheduler and the web
process read this registry too.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from studio.kinds.kind import Kind, Outcome, job_kind, kinds

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Kind", "Outcome", "job_kind", "kinds"]
