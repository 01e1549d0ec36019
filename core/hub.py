"""Fetching a model from the Hugging Face hub: safetensors and text files only, never code or pickles."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import GatedModelError, MissingModelError, ModelError

SAFE_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.txt",
    "LICENSE*",
    "README.md",
)


def download_model(hub_id: str, folder: Path | None = None) -> Path:
    """Fetch `owner/name` into `folder` (or the hub's own cache) and return where it is.

    Raises ModelError when the id is malformed, the hub cannot be reached, or the model is gated or has no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        raise ModelError(
            f"There is no model {hub_id!r}.", "Give a folder, a GGUF file, 'starter', or a hub id such as owner/name."
        )
    try:
        return Path(snapshot_download(hub_id, local_dir=folder, allow_patterns=list(SAFE_FILES)))
    except GatedRepoError:
        raise GatedModelError(
            f"{hub_id} is gated.", "Accept its terms on the hub and set HF_TOKEN, then try again."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise MissingModelError(f"The hub has no model {hub_id!r}.", "Check the spelling: owner/name.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError):
        raise ModelError(
            f"The hub could not be reached to fetch {hub_id}.",
            "Check the connection, or add the model from a local folder.",
        ) from None


def is_reachable(hub_id: str, timeout_s: float = 5.0) -> bool:
    """True when the hub answers for this model within `timeout_s` seconds; never when HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urlopen(Request(f"{endpoint}/api/models/{hub_id}", method="HEAD"), timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError, ValueError):
        return False
