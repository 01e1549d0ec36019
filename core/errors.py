"""Errors a user can meet: each says what happened and what to do about it. Torch-free."""

from __future__ import annotations


class StudioError(Exception):
    """An error with a remedy; the page and the CLI show both sentences and never a traceback."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what} {fix}".strip())
        self.what = what
        self.fix = fix


class ConfigError(StudioError):
    """A setting is outside its range, unknown, or does not fit the model."""


class DatasetError(StudioError):
    """A dataset cannot be read, or cannot be trained on."""


class NothingTrainedError(DatasetError):
    """Every token of every example is masked, so that there is nothing to learn."""


class ModelError(StudioError):
    """A base model is missing, unsafe to load, or of a kind the core does not know."""


class MissingModelError(ModelError):
    """A base model is not where it should be, or does not exist."""


class GatedModelError(ModelError):
    """A model of the hub asks for its terms to be accepted first."""


class AdapterError(StudioError):
    """An adapter cannot be made, loaded, combined or merged."""


class CheckpointError(StudioError):
    """A checkpoint is missing, incomplete or does not belong to this run."""


class DivergedError(StudioError):
    """The loss or a gradient became NaN or infinite."""


class OutOfMemoryError(StudioError):
    """The device or the host has not enough memory for the next step."""


class DiskFullError(StudioError):
    """The disk has not enough room for what was to be written."""


class JobError(StudioError):
    """A job cannot make the move that was asked of it, or does not exist."""
