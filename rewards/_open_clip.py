"""open_clip's models as towers, from the local Hugging Face cache, a file or a folder."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache

from diffalign.reward import DiffalignError, unknown
from diffalign_rewards import _weights
from diffalign_rewards._clip import Resized, Tower
from diffalign_rewards._pixels import Mode

FOLDER = "local-dir:"
FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives hold among their weights."""


def load(
    reward: str, architecture: str, checkpoint: str | None, path: str | None = None, option: str = "path"
) -> tuple[Tower, Resized]:
    """`architecture` with its published weights `checkpoint` ("openai"), from the cache or the file `path`.

    An architecture `local-dir:FOLDER` has its weights, and all else, in that folder.
    """
    if architecture.startswith(FOLDER):
        if checkpoint or path:
            raise DiffalignError(f"{architecture} has its own weights: leave out checkpoint and {option}.")
        return from_folder(Path(architecture.removeprefix(FOLDER)).expanduser().resolve())
    published = _published(architecture, checkpoint or "openai")
    repo, name = _address(published)
    tower = from_file(architecture, _weights.file(reward, repo, name, path, option).resolve())
    return tower, _look(published, tower.model.visual.image_size)


@lru_cache
def from_file(architecture: str, path: Path) -> Tower:
    """The weights of a file in a built-in architecture."""
    with _weights.reading(path, f"the weights of open_clip's {architecture}"):
        model = _read(architecture, path)
    return Tower(model, _tokenizer(architecture))


@lru_cache
def from_folder(folder: Path) -> tuple[Tower, Resized]:
    """A model as open_clip saves it, with open_clip_config.json and its tokenizer."""
    with _weights.reading(folder, "a model that open_clip saved"):
        model = open_clip.create_model(f"{FOLDER}{folder}", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(f"{FOLDER}{folder}")
    return Tower(model, tokenizer), _look(model.visual.preprocess_cfg, model.visual.image_size)


def _published(architecture: str, checkpoint: str) -> Mapping[str, Any]:
    """What open_clip knows of a checkpoint: where it is and how it wants its pictures."""
    if architecture not in open_clip.list_models():
        raise unknown("open_clip architecture", architecture, [*open_clip.list_models(), f"{FOLDER}PATH"])
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if checkpoint not in tags:
        raise unknown(f"checkpoint of {architecture}", checkpoint, tags)
    published: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, checkpoint)
    if published.get("quick_gelu") and not open_clip.get_model_config(architecture).get("quick_gelu"):
        raise DiffalignError(
            f"the weights {checkpoint!r} were trained with QuickGELU, which {architecture} does without: "
            f"its scores would be wrong. Write {architecture}-quickgelu."
        )
    return published


def _address(published: Mapping[str, Any]) -> tuple[str, str]:
    """(repository, file) of `organisation/name/file`; without a file, that default name which is at hand."""
    repo, _, name = published["hf_hub"].rpartition("/")
    cached = (n for n in FILES if isinstance(try_to_load_from_cache(repo, n), str))
    return repo, name or next(cached, FILES[0])


def _read(architecture: str, path: Path) -> Any:
    """OpenAI publishes TorchScript archives; everything else open_clip reads by itself."""
    if not (zipfile.is_zipfile(path) and any("constants.pkl" in n for n in zipfile.ZipFile(path).namelist())):
        return open_clip.create_model(architecture, pretrained=str(path))
    model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    archive = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    model.load_state_dict({name: value for name, value in archive.items() if name not in NOT_WEIGHTS})
    return model


def _tokenizer(architecture: str) -> Any:
    """open_clip's own, or the Hugging Face one that the architecture names, from the local cache."""
    repo = open_clip.get_model_config(architecture)["text_cfg"].get("hf_tokenizer_name")
    if not repo:
        return open_clip.get_tokenizer(architecture)
    with _weights.reading("the local cache", f"the tokenizer {repo} (fetch it with `hf download {repo}`)"):
        return open_clip.get_tokenizer(architecture, local_files_only=True)


def _look(wishes: Mapping[str, Any], size: int | tuple[int, int]) -> Resized:
    """open_clip's preprocessing settings; its published models know two ways to resize."""
    fit, sides = wishes["resize_mode"], size if isinstance(size, tuple) else (size, size)
    if fit not in ("shortest", "squash") or (fit == "shortest" and sides[0] != sides[1]):
        raise DiffalignError(
            f"cannot resize by {fit!r} to {sides}: only `shortest` to a square and `squash`."
        )
    mode: Mode = "bilinear" if wishes["interpolation"] == "bilinear" else "bicubic"
    return Resized(sides, fit == "squash", mode, tuple(wishes["mean"]), tuple(wishes["std"]))
