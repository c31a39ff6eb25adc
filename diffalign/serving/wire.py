"""How pictures travel to a reward elsewhere, and scores back: as JSON, with PNG or WebP in it. Nothing is unpickled.

Pictures have 8 bits a channel on the way, so a reward elsewhere sees what a saved picture would hold.
Scores lose nothing. Dimensions: B items of a request, F frames of a video (a picture is an item with one).
"""

from __future__ import annotations

import base64
import io
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.reward import Scores

PROTOCOL = 1
TOKEN = "DIFFALIGN_REWARD_TOKEN"
"""The environment variable that both sides read the bearer token from; it belongs in no config file."""
FORMATS = ("PNG", "WEBP")
MODES = {"1", "L", "P", "RGB"}
"""What becomes RGB without a loss; 16 bits a channel or transparency would be dropped silently."""


class Message(BaseModel):
    """Unknown fields are errors; numbers that are not finite travel as strings."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Limits(Message):
    """What a server takes in one request: items, frames, pixels of a frame and of all, characters of a prompt."""

    items: int = Field(default=32, ge=1)
    frames: int = Field(default=4096, ge=1)
    pixels: int = Field(default=2**24, ge=1)
    total_pixels: int = Field(default=2**25, ge=1)
    prompt: int = Field(default=10_000, ge=1)

    @property
    def bytes(self) -> int:
        """Room for incompressible pictures in base64, for the prompts, and some to spare."""
        return 5 * self.total_pixels + 8 * self.items * self.prompt + 2**20

    def fit(self, frames: int, pixels: int) -> int:
        """How many items of so many frames and pixels (of all frames) a request may have; one at least."""
        return max(1, min(self.items, self.frames // frames, self.total_pixels // pixels))


class Card(Message):
    """What a server serves."""

    model_config = ConfigDict(extra="ignore")  # so that a newer server's still says which protocol it is

    protocol: int = PROTOCOL
    name: str
    arguments: dict[str, Any]
    capabilities: dict[str, bool]
    limits: Limits
    versions: dict[str, str]


class Item(Message):
    """A picture (one frame) or a video, each frame a PNG or WebP file in base64, and its prompt."""

    prompt: str
    frames: list[str] = Field(min_length=1)


class Request(Message):
    """Some items of one size; `video` keeps the axis of the frames where there is only one."""

    video: bool = False
    items: list[Item] = Field(min_length=1)


class Numbers(Message):
    """Floats that come out as they went in."""

    dtype: Literal["float32", "float64"]
    values: list[float]

    @classmethod
    def of(cls, values: Tensor) -> Numbers:
        """From a vector: narrower floats become float32, integers float64, which loses nothing."""
        single = values.is_floating_point() and values.dtype != torch.float64
        dtype = torch.float32 if single else torch.float64
        return cls(dtype=str(dtype).removeprefix("torch."), values=values.to(dtype).tolist())

    def tensor(self) -> Tensor:
        """The vector, on the CPU."""
        return torch.tensor(self.values, dtype=getattr(torch, self.dtype))


class Answer(Message):
    """The scores of a request's items."""

    value: Numbers
    parts: dict[str, Numbers] = {}
    uncertainty: Numbers | None = None

    @classmethod
    def of(cls, scores: Scores) -> Answer:
        """From what a reward returned."""
        parts = {name: Numbers.of(values) for name, values in scores.parts.items()}
        unsure = None if scores.uncertainty is None else Numbers.of(scores.uncertainty)
        return cls(value=Numbers.of(scores.value), parts=parts, uncertainty=unsure)

    def scores(self) -> Scores:
        """What the reward returned, on the CPU."""
        parts = {name: numbers.tensor() for name, numbers in self.parts.items()}
        return Scores(self.value.tensor(), parts, self.uncertainty.tensor() if self.uncertainty else None)


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8, rounded as a saved picture is."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def to_floats(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]."""
    return images.float() / 255


def encode(images: Tensor, prompts: Sequence[str]) -> Request:
    """A request for uint8 pictures (B, 3, H, W) or videos (B, F, 3, H, W)."""
    video = images.ndim == 5
    stacks = images if video else images[:, None]
    items = [
        Item(prompt=prompt, frames=[_png(frame) for frame in stack])
        for stack, prompt in zip(stacks, prompts, strict=True)
    ]
    return Request(video=video, items=items)


def decode(request: Request, limits: Limits) -> Tensor:
    """The uint8 pictures (B, 3, H, W) or videos (B, F, 3, H, W) of a request that keeps to the limits."""
    if len(request.items) > limits.items:
        raise DiffalignError(f"{len(request.items)} items in one request; send at most {limits.items}.")
    if (longest := max(len(item.prompt) for item in request.items)) > limits.prompt:
        raise DiffalignError(f"a prompt of {longest} characters; at most {limits.prompt} are taken.")
    if (count := sum(len(item.frames) for item in request.items)) > limits.frames:
        raise DiffalignError(f"{count} frames in one request; at most {limits.frames} are taken.")
    frames = [_opened(frame, limits) for item in request.items for frame in item.frames]
    _same(request, frames, limits)
    pixels = torch.stack([_pixels(frame) for frame in frames])
    return pixels.reshape(len(request.items), -1, *pixels.shape[1:]) if request.video else pixels


def _same(request: Request, frames: Sequence[Image.Image], limits: Limits) -> None:
    """Refuse, before any is decoded, frames that are no tensor or too large together."""
    lengths, sizes = {len(item.frames) for item in request.items}, {frame.size for frame in frames}
    if len(lengths) > 1 or len(sizes) > 1:
        raise DiffalignError(
            f"items of {sorted(lengths)} frame(s) and sizes {sorted(sizes)}; send one size a request."
        )
    if not request.video and lengths != {1}:
        raise DiffalignError(f"a picture has one frame, these have {lengths.pop()}; say video: true.")
    if (total := sum(frame.width * frame.height for frame in frames)) > limits.total_pixels:
        raise DiffalignError(f"{total} pixels in one request; at most {limits.total_pixels} are taken.")


def _opened(text: str, limits: Limits) -> Image.Image:
    """A picture file whose header was read; nothing is decompressed yet."""
    frame = _readable(lambda: Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=FORMATS))
    if frame.mode not in MODES:
        raise DiffalignError(
            f"a picture of mode {frame.mode}; send RGB of 8 bits a channel, not transparent."
        )
    if frame.width * frame.height > limits.pixels:
        raise DiffalignError(f"a picture of {frame.size} pixels; at most {limits.pixels} are taken.")
    return frame


def _readable(read: Callable[[], Image.Image]) -> Image.Image:
    try:
        return read()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DiffalignError(f"a frame is not a PNG or WebP file in base64: {error}.") from error


def _pixels(frame: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an opened picture."""
    return torch.from_numpy(np.array(_readable(lambda: frame.convert("RGB")))).permute(2, 0, 1)


def _png(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def loopback(host: str) -> bool:
    """Whether only this machine reaches a host's name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
