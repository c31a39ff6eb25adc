"""Where a reward finds its weights: at a path, or in the local Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError

from diffalign.reward import DiffalignError


def file(reward: str, repo: str, name: str, path: str | None = None) -> Path:
    """The file `name` of the repository, or `path` where that is given."""
    found = path or try_to_load_from_cache(repo, name)
    if isinstance(found, str) and Path(found).is_file():
        return Path(found)
    raise DiffalignError(_missing(reward, repo, name, path, "FILE"))


def folder(reward: str, repo: str, needs: str, path: str | None = None) -> Path:
    """The folder with all files of the repository, or `path`; it must hold a file that matches `needs`."""
    try:
        found = Path(path or snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        found = None
    if found and any(found.glob(needs)):
        return found
    raise DiffalignError(_missing(reward, repo, needs, path, "FOLDER"))


def _missing(reward: str, repo: str, name: str, path: str | None, kind: str) -> str:
    where = f"{path} does not hold it" if path else f"it is not in the local cache ({constants.HF_HUB_CACHE})"
    wanted = repo if kind == "FOLDER" else f"{repo} {name}"
    return (
        f"{reward} needs {name} of the Hugging Face repository {repo}, and {where}. "
        f"Fetch it once with `hf download {wanted}`, or say where it is with path: {kind}."
    )
