"""Where a reward finds its weights: at a path, or in the local Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError

from diffalign.reward import DiffalignError


def file(reward: str, repo: str, name: str, path: str | None = None, option: str = "path") -> Path:
    """The file `name` of the repository, or `path`, the reward's argument `option`, where that is given."""
    found = path or try_to_load_from_cache(repo, name)
    if isinstance(found, str) and Path(found).expanduser().is_file():
        return Path(found).expanduser()
    raise DiffalignError(_missing(reward, repo, name, path, f"{option}: FILE", f"{repo} {name}"))


def folder(reward: str, repo: str, needs: str | tuple[str, ...], path: str | None = None) -> Path:
    """The folder with all files of the repository, or `path`; every pattern of `needs` must be met there."""
    try:
        found = Path(path or snapshot_download(repo, local_files_only=True)).expanduser()
    except LocalEntryNotFoundError:
        found = Path()
    for name in (needs,) if isinstance(needs, str) else needs:
        if found == Path() or not any(found.glob(name)):
            raise DiffalignError(_missing(reward, repo, name, path, "path: FOLDER", repo))
    return found


def _missing(reward: str, repo: str, name: str, path: str | None, option: str, fetched: str) -> str:
    where = f"{path} does not hold it" if path else f"it is not in the local cache ({constants.HF_HUB_CACHE})"
    return (
        f"{reward} needs {name} of the Hugging Face repository {repo}, and {where}. "
        f"Fetch it once with `hf download {fetched}`, or say where it is with {option}."
    )


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Whatever goes wrong in this block is because `path` does not hold `what`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DiffalignError(f"{path} does not hold {what}, or is damaged: {reason}") from error
