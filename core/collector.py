"""Python's search for cycles of garbage, put off while much is made that stays.

A model is a few hundred thousand objects, and the libraries behind it more. The collector looks through all of them
whenever enough new ones have come, again and again while they are made, and finds nothing: a fifth of the time to the
first step went into that, and 0.2 s of every fifth merge.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_put_off() -> Iterator[None]:
    """Inside, nothing is searched; afterwards what was made counts as old, which only a full search looks through."""
    was_enabled, has_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not has_frozen:  # else what the caller froze would be let loose, too
                gc.freeze()
                gc.unfreeze()
            gc.enable()
