"""A few megabytes held back on the disk, so that on a full one there still is room to write down what happened."""

from __future__ import annotations

import os
import shutil

from studio.workspace import Workspace

RESERVE_BYTES = 8 * 2**20
NAME = "reserve"


class Reserve:
    """A file of real blocks in the workspace. Whoever meets a full disk releases it; the scheduler makes it again."""

    def __init__(self, workspace: Workspace) -> None:
        self.path = workspace.root / NAME

    def keep(self) -> bool:
        """Make the file where it is missing; False while the disk has no room for it, and so none for a job."""
        if self.path.exists():
            return True
        if shutil.disk_usage(self.path.parent).free < 2 * RESERVE_BYTES:
            return False
        try:
            self.path.write_bytes(bytes(RESERVE_BYTES))
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give the room back; False when that has been done already."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return False
        return True
